"""The distilled sets that rows of a comparison measured, found again on disk.

A row is matched with the artefacts of its seeds by what they were made from and how:
the content of the corpus, the network and the recipe, never by a name alone. Rows and
artefacts of before content was told are matched by all settings that both have.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax import artifact, stored
from distill_jax.recipe import best_recipe
from distill_jax.results import Row, newest
from distill_jax.sources import Stored, saved
from distill_jax.task import Task
from distill_jax.train import Protocol

Card = tuple[Path, dict[str, Any]]  # the folder of an artefact, and its card


class Measured(NamedTuple):
    """The distilled sets of one budget.

    Attributes:
        row: of the comparison, with soft labels and standard training.
        sets: one artefact for each seed.
    """

    row: Row
    sets: tuple[artifact.Artifact, ...]

    @property
    def protocol(self) -> Protocol:
        """By which they were measured."""
        settings = self.row["config"]["settings"]
        if "protocol" in settings:
            return Protocol(**settings["protocol"])
        known = self.sets[0].card["config"] | settings
        flags = {f.metadata["flag"] or f.name: f for f in dataclasses.fields(Protocol)}
        return Protocol(**{f.name: known[n] for n, f in flags.items() if n in known})

    def method(self, *ways: str) -> Stored:
        """For `compare`; see `saved`."""
        return saved(*self.sets, ways=ways)


def measured(
    rows: Sequence[Row],
    runs: str | Path,
    *,
    corpora: Sequence[str] = (),
    models: Sequence[str] = (),
    budgets: Sequence[float] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[float, Measured]]:
    """The sets of each corpus and network that has distilled, by examples per class.

    Args:
        rows: of a comparison, oldest first; those without a preset count.
        runs: the folder of the folders that comparisons left.
        corpora, models, budgets: which, as rows name them; all where empty.
        say: told which budgets are left out, as their sets are gone.

    Raises:
        ValueError: for a corpus, network or budget that no row is of.
        FileNotFoundError: if no set is there.
    """
    ours = [
        row
        for row in rows
        if row["preset"] is None
        and row["method"] == "distilled"
        and (row["labels"], row["training"]) == ("soft", "standard")
    ]
    for flag, wanted, field in (
        ("corpora", corpora, "dataset"),
        ("sources", models, "model"),
        ("budgets", budgets, "examples_per_class"),
    ):
        there = {row[field] for row in ours}
        missing = sorted(set(wanted) - there, key=str)
        if missing:
            known = ", ".join(map(_short, sorted(there, key=str)))
            raise ValueError(
                f"--{flag}: no distilled row is of {missing[0]!r}; there are: {known}"
            )
        ours = [row for row in ours if not wanted or row[field] in wanted]
    key = ("dataset", "model", lambda row: row.get("data"), "examples_per_class")
    paths = sorted(Path(runs).glob(f"*/*/artifact/{artifact.CARD}"))
    cards = [(path.parent, json.loads(path.read_text("utf-8"))) for path in paths]
    groups: dict[tuple, dict[float, Measured]] = {}
    order = "dataset model examples_per_class".split()
    for row in sorted(newest(ours, *key), key=lambda r: tuple(r[n] for n in order)):
        name, model, budget = row["dataset"], row["model"], row["examples_per_class"]
        found = folders_of(row, cards)
        if found is None:
            say(
                f"Left out: {name}, {model} at {budget:g} per class: not all of its "
                f"{row['num_seeds']} sets are in {runs}."
            )
            continue
        sets = tuple(artifact.load(folder) for folder in found)
        group = groups.setdefault((name, model, row.get("data")), {})
        group[budget] = Measured(row, sets)
    if not groups:
        raise FileNotFoundError(
            f"{runs} holds no distilled set of the rows asked for: run "
            "experiments.compare first, or name its folder of runs with --runs"
        )
    return list(groups.values())


def folders_of(row: Row, cards: Sequence[Card]) -> list[Path] | None:
    """The artefact of each seed of a row; None if one is gone."""
    found = []
    for seed in range(row["config"]["settings"]["seeds"]):
        there = (folder for folder, card in cards if _made(card, row, seed))
        folder = next(there, None)
        if folder is None:
            return None
        found.append(folder)
    return found or None


def _made(card: dict[str, Any], row: Row, seed: int) -> bool:
    """Whether a card is of the set that a row measured with its seed of this number."""
    made, settings = card.get("config", {}), row["config"]["settings"]
    if "data" not in row:
        wanted = dict(settings["distilled"])
        wanted["seed"] += seed
        corpus, words = wanted.pop("corpus"), wanted.pop("vocabulary")
        return (
            card["corpus"]["name"] == corpus
            and card["vocabulary"]["sha256"] == words
            and all(name in made and made[name] == wanted[name] for name in wanted)
        )
    recipe = settings["method"].get("recipe")
    network = settings["network"]
    S, B = card["tensors"]["shapes"]["x"][:2]
    return (
        card["corpus"].get("data") == row["data"]
        and card["model"]["name"] == row["model"]
        and card["model"]["settings"] == network.get("model_settings", {})
        and card["preprocessing"]["length"] == network["length"]
        and S * B == row["examples"]
        and made.get("seed") == Protocol(**settings["protocol"]).seed + seed
        and made.get("recipe")
        == (best_recipe(row["model"]).described if recipe is None else recipe)
    )


def task_of(
    group: Mapping[float, Measured],
    *,
    dataset: str | None = None,
    vectors: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Task:
    """The corpus and the network of the sets of a group.

    Args:
        group: from `measured`.
        dataset, vectors: where they are now, if not where the artefacts say.
        say: where text goes.

    Raises:
        ValueError: if budgets were measured in several ways, or the corpus is not the
            one that was distilled.
    """
    (first, *others) = group.values()
    for other in others:
        for name, value in _facts(other).items():
            if value != _facts(first)[name]:
                raise ValueError(
                    f"{other.row['dataset']} at {other.row['examples_per_class']:g} "
                    f"per class has {name}={value}, others {_facts(first)[name]}: "
                    "choose with --budgets"
                )
    saved_one, card = first.sets[0], first.sets[0].card
    task = stored.task_of(saved_one, dataset=dataset, vectors=vectors, say=say)
    same = dict(task.dataset.sha256) == card["corpus"]["sha256"]
    # Of the same file with other columns the content differs.
    if not same or card["corpus"].get("data", task.sha256) != task.sha256:
        raise ValueError(
            f"{task.dataset.name} is not the corpus that was distilled, "
            f"{card['corpus']['name']}: say where that is with --dataset"
        )
    return task


def _facts(one: Measured) -> dict[str, Any]:
    return {
        "length": one.sets[0].card["preprocessing"]["length"],
        "vectors": one.sets[0].card["vocabulary"]["vectors"],
        **dataclasses.asdict(one.protocol),
    }


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
