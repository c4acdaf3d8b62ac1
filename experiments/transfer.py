"""Trains one network on what another has distilled, beside real sentences.

The distilled sets that experiments.compare measured are read from its folders and
trained on by `fitting`, as every set there: the same 12 recipes on validation, the same
theta_0, test read once. Only standard training: order and step sizes were learned for
the other network. Each cell is a row of the comparison with the preset `transfer`,
so tables of one network do not see it, and its config's settings name the source.
Rows of real sentences that are there already, whatever their preset, are not repeated.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax import artifact
from distill_jax import results as result_rows
from distill_jax.models import MODELS
from distill_jax.report.claims import TRANSFER
from distill_jax.results import Row
from distill_jax.task import Task
from distill_jax.types import Distilled
from experiments import compare, saved
from experiments.cells import Sets, Workbench
from experiments.running import duration
from experiments.scoring import Cell

# What compare.Config takes from the card of an artefact.
_OF_CARD = (
    "text_column label_column data_dir download length seed validation_examples "
    "test_inits selection_seeds full_epochs"
).split()


class Source(NamedTuple):
    """The distilled sets of one budget, as experiments.compare measured them.

    Attributes:
        row: of the comparison, with soft labels and standard training.
        sets: one artefact for each seed.
    """

    row: Row
    sets: tuple[artifact.Artifact, ...]

    @property
    def described(self) -> dict[str, Any]:
        """What tells these sets from all others, as JSON."""
        settings = self.row["config"]["settings"]
        return {
            "model": self.row["model"],
            "network": settings["network"],
            "distilled": settings["distilled"],
            "sha256": [one.card["tensors"]["sha256"] for one in self.sets],
        }


class Target(Workbench):
    """A network trained on the distilled sets of another.

    Args:
        sources: at each number of examples per class.
    """

    def __init__(
        self,
        config: compare.Config,
        task: Task,
        out: Path,
        results: Path,
        sources: dict[int, Source],
    ):
        super().__init__(config, task, out, results, TRANSFER)
        self.sources = sources

    def row_of(self, cell: Cell, rows: Sequence[Row] | None = None) -> Row | None:
        """The newest row with these settings, of this or any other preset."""
        if rows is None:
            rows = result_rows.read(self.results)
        return super().row_of(cell, [row | {"preset": TRANSFER} for row in rows])

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the numbers of a cell depend on, the source among it."""
        if cell.method != "distilled":
            return super().settings(cell)
        facts = super().settings(Cell("random", cell.examples_per_class))
        del facts["selection_seeds"]
        return facts | {"source": self.sources[cell.examples_per_class].described}

    def num_seeds(self, cell: Cell) -> int:
        """Sets of a cell."""
        if cell.method == "distilled":
            return len(self.sources[cell.examples_per_class].sets)
        return super().num_seeds(cell)

    def distill(self, examples_per_class: int, seed: int) -> tuple[Distilled, float]:
        """The set that was distilled, and the seconds it took."""
        found = self.sources[examples_per_class].sets[seed]
        return artifact.to_distilled(found), found.card["results"]["seconds"]

    def sets(self, cell: Cell) -> Sets:
        """The examples of each seed of a cell."""
        found = super().sets(cell)
        expected = self.task.vectors.table.shape[1]
        for batch in found.batches if cell.method == "distilled" else ():
            if batch.x.shape[-1] != expected:
                raise ValueError(
                    f"distilled words of {batch.x.shape[-1]} numbers do not fit the "
                    f"network's {expected}"
                )
        return found


def run(
    *,
    results: str | Path,
    targets: Sequence[str],
    runs: str | Path = "runs",
    corpora: Sequence[str] = (),
    sources: Sequence[str] = (),
    budgets: Sequence[str | int] = (),
    methods: str = "selections",
    full: bool = False,
    dataset: str | None = None,
    vectors: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Trains the cells that the results do not have yet.

    Args:
        results: the `.jsonl` file of the comparison; rows are appended to it.
        targets: names of the networks.
        runs: the folder of the folders that experiments.compare left.
        corpora: names, as in rows; all unless given.
        sources: networks that have distilled; all unless given.
        budgets: examples per class; all unless given.
        methods: of real sentences, as `--methods` of experiments.compare.
        full: also on all training data.
        dataset, vectors: where they are now, if not where the artefacts say.
        dry_run: stop after the plan and the estimate.
        say: where text goes.

    Returns:
        The rows appended.

    Raises:
        ValueError: for a network, corpus, budget or method that there is not, or a
            corpus that is not the one of the sets.
        FileNotFoundError: if there is no distilled set.
    """
    unknown = sorted(set(targets) - set(MODELS))
    if unknown:
        raise ValueError(
            f"unknown model {unknown[0]!r}; known: {', '.join(sorted(MODELS))}"
        )
    known = result_rows.read(results)
    groups = groups_of(known, Path(runs), corpora, sources, budgets, say)
    if dataset is not None and len({name for name, _ in groups}) > 1:
        raise ValueError("--dataset is the place of one corpus: name it by --corpora")
    planned: list[tuple[Target, list[Cell]]] = []
    for (name, source), found in groups.items():
        task = _task(next(iter(found.values())), dataset, vectors, say)
        for model in targets:
            if model == source:
                continue  # its rows are those of the comparison
            bench = _bench(task, model, found, dataset, vectors, runs, results, methods)
            cells = _cells(bench, full)
            # Real sentences are planned once, though two networks distilled.
            taken = [
                cell
                for other, theirs in planned
                for cell in theirs
                if cell.method != "distilled"
                and other.task.dataset.name == name
                and other.config.model == model
                and other.settings(cell) == bench.settings(cell)
            ]
            todo = [c for c in cells if bench.row_of(c, known) is None]
            todo = [c for c in todo if c not in taken]
            text = f"{name}, {source} to {model}: {len(todo)} of {len(cells)} to do"
            say(text + (f". {_estimate(bench, todo)}" if todo else "."))
            if dry_run:
                for cell in todo:
                    say(f"  {cell}")
            planned.append((bench, todo))
    if not planned:
        raise ValueError(
            f"nothing to transfer: {', '.join(targets)} is what has distilled"
        )
    if dry_run:
        return []
    new = []
    count = sum(len(todo) for _, todo in planned)
    for bench, todo in planned:
        for cell in todo:
            row = bench.run(cell)
            result_rows.append(results, [row])
            new.append(row)
            say(
                f"[{len(new)}/{count}] {row['dataset']}, {row['model']}: {cell}: "
                f"{row['accuracy_mean']:.1%}; {duration(row['seconds'])}"
            )
    return new


def groups_of(
    rows: Sequence[Row],
    runs: Path,
    corpora: Sequence[str],
    models: Sequence[str],
    budgets: Sequence[str | int],
    say: Callable[[str], None],
) -> dict[tuple[str, str], dict[int, Source]]:
    """The sets of each corpus and network that has distilled, by their budgets.

    Args:
        rows: of the comparison; those without a preset count.
        runs: the folder of the folders that it left.
        corpora, models, budgets: which; all where empty.
        say: where it is told which budgets are left out, as their sets are gone.

    Raises:
        ValueError: for a corpus, network or budget that no row is of.
        FileNotFoundError: if no set is there.
    """
    try:
        wanted = {int(budget) for budget in budgets}
    except ValueError:
        given = ",".join(f"{budget}" for budget in budgets)
        raise ValueError(
            f"--budgets must be whole numbers with commas, got {given}"
        ) from None
    newest: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        if (
            row["preset"] is None
            and row["method"] == "distilled"
            and (row["labels"], row["training"]) == ("soft", "standard")
        ):
            budget = round(row["examples_per_class"])
            newest[row["dataset"], row["model"], budget] = row
    for flag, given, place in (
        ("corpora", corpora, 0),
        ("sources", models, 1),
        ("budgets", wanted, 2),
    ):
        there = {key[place] for key in newest}
        missing = sorted(set(given) - there, key=str)
        if missing:
            raise ValueError(
                f"--{flag}: no distilled row is of {missing[0]!r}; there are: "
                + ", ".join(f"{value}" for value in sorted(there, key=str))
            )
        if given:
            newest = {key: row for key, row in newest.items() if key[place] in given}
    cards = _cards(runs)
    groups: dict[tuple[str, str], dict[int, Source]] = {}
    for (name, model, budget), row in sorted(newest.items()):
        folders = _folders(row, cards)
        if folders is None:
            say(
                f"Left out: {name}, {model} at {budget} per class: not all of its "
                f"{row['num_seeds']} sets are in {runs}."
            )
            continue
        found = Source(row, tuple(artifact.load(folder) for folder in folders))
        groups.setdefault((name, model), {})[budget] = found
    if not groups:
        raise FileNotFoundError(
            f"{runs} holds no distilled set of the rows asked for: run "
            "experiments.compare first, or name its folder of runs with --runs"
        )
    return groups


def _cards(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    paths = sorted(runs.glob(f"*/*/artifact/{artifact.CARD}"))
    return [(path.parent, json.loads(path.read_text("utf-8"))) for path in paths]


def _folders(row: Row, cards) -> list[Path] | None:
    """The artefact of each seed of a row, by what it was distilled with."""
    settings = row["config"]["settings"]
    found = []
    for seed in range(settings["seeds"]):
        wanted = dict(settings["distilled"])
        wanted["seed"] += seed
        corpus, words = wanted.pop("corpus"), wanted.pop("vocabulary")
        for folder, card in cards:
            made = card.get("config", {})
            if (
                card["corpus"]["name"] == corpus
                and card["vocabulary"]["sha256"] == words
                and all(k in made and made[k] == v for k, v in wanted.items())
            ):
                found.append(folder)
                break
    return found if found and len(found) == settings["seeds"] else None


def _task(
    source: Source,
    dataset: str | None,
    vectors: str | None,
    say: Callable[[str], None],
) -> Task:
    first = source.sets[0]
    task = saved.task_of(first, dataset=dataset, vectors=vectors, say=say)
    if dict(task.dataset.sha256) != first.card["corpus"]["sha256"]:
        raise ValueError(
            f"{task.dataset.name} is not the corpus that was distilled, "
            f"{first.card['corpus']['name']}: say where that is with --dataset"
        )
    return task


def bench_of_source(
    sources: dict[int, Source],
    dataset: str | None,
    vectors: str | None,
    runs: str | Path,
    results: str | Path,
    say: Callable[[str], None],
) -> Target:
    """The network that has distilled itself, with its sets and rows.

    Args:
        sources: of one corpus and network, from `groups_of`.
        dataset, vectors: where they are now, if not where the artefacts say.
        runs: the folder of the folders that experiments.compare left.
        results: the folder of the rows.
        say: where text goes.

    Raises:
        ValueError: as `run`.
    """
    first = next(iter(sources.values()))
    card = first.sets[0].card
    task = _task(first, dataset, vectors, say)
    given = tuple(card["config"]["model_settings"])
    path = Path(results) / "compare.jsonl"
    return _bench(
        task, card["model"]["name"], sources, dataset, vectors, runs, path, "all", given
    )


def _bench(
    task: Task,
    model: str,
    sources: dict[int, Source],
    dataset: str | None,
    vectors: str | None,
    runs: str | Path,
    results: str | Path,
    methods: str,
    model_settings: tuple[str, ...] = (),
) -> Target:
    first = next(iter(sources.values()))
    made, measured = first.sets[0].card["config"], first.row["config"]["settings"]
    for budget, other in sources.items():
        theirs = other.row["config"]["settings"]
        for name in ("fit_batch", "tuning_inits", "test_inits", "length", "vectors"):
            if theirs[name] != measured[name]:
                raise ValueError(
                    f"{other.row['dataset']} at {budget} per class has {name}="
                    f"{theirs[name]}, others {measured[name]}: choose with --budgets"
                )
    settings = {name: made[name] for name in _OF_CARD}
    config = compare.Config(
        **settings,
        dataset=dataset or made["dataset"],
        vectors=vectors or made["vectors"],
        model=model,
        model_settings=model_settings,
        budgets=",".join(f"{budget}" for budget in sources),
        methods=methods,
        fit_batch=measured["fit_batch"],
        tuning_inits=measured["tuning_inits"],
    )
    # As many theta_0 as the rows have, whatever the card was saved with.
    config = dataclasses.replace(config, test_inits=measured["test_inits"])
    network = saved.with_network(task, model, config.network)
    return Target(config, network, Path(runs) / TRANSFER, Path(results), sources)


def _cells(bench: Target, full: bool) -> list[Cell]:
    """Real sentences first, then what was distilled, at each budget."""
    cells = [Cell("full", 0)] if full else []
    for budget in sorted(bench.sources):
        cells += [
            Cell(name, budget)
            for name in bench.config.names
            if name not in ("full", "majority", "distilled")
        ]
        cells += [Cell("distilled", budget, labels) for labels in ("soft", "hard")]
    return cells


def _estimate(bench: Target, cells: Sequence[Cell]) -> str:
    """That of a comparison, in which nothing is distilled."""
    trained = [
        cell._replace(method="herding") if cell.method == "distilled" else cell
        for cell in cells
    ]
    return compare.estimate(bench, trained)
