"""Our methods by the names that rows have, for the command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_jax import queries
from distill_jax.compare import LINES
from distill_jax.recipe import Recipe, setting
from distill_jax.selection import SELECTIONS
from distill_jax.sources import Method, distilled, queried, selected
from distill_jax.task import Task
from distill_jax.train import Protocol

QUERY = "query:"  # before the name of a query: k_center is a selection too
QUERIES = [QUERY + name for name in queries.QUERIES if name != "random"]
TAUGHT = ("random", "kmeans_medoids")  # with soft labels of a teacher too
GROUPS: dict[str, list[str]] = {
    **{line: [line] for line in LINES},
    "distilled": ["distilled"],
    "selections": list(SELECTIONS),
    "queries": QUERIES,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the sets that are compared are made; keywords of `named_methods`."""

    taught: bool = setting(
        True, "Also real examples with soft labels of a teacher.", flag="soft_labels"
    )
    seeds: int = setting(
        3, "Distillations at the budgets of --many_at.", flag="distill_seeds"
    )
    passes: int = setting(10, "Sampled networks that queries score by, F.")
    dropout: float = setting(0.2, "Rate of the networks that queries read.")
    rounds: int = setting(
        4, "Rounds of queries after the random start.", flag="query_rounds"
    )
    pool: int = setting(
        5000, "Random part of train that queries see; 0: all.", flag="pool_size"
    )

    def __post_init__(self):
        for name in ("seeds", "passes", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.pool < 0:
            raise ValueError(f"pool must not be negative, got {self.pool}")


def check_fair(recipe: Recipe, protocol: Protocol) -> None:
    """Refuses what would not compare like with like.

    Raises:
        ValueError: naming the flag.
    """
    usual = Recipe()
    for flag, value, needed in (
        ("select_on", recipe.meta.select_on, usual.meta.select_on),
        ("labels", recipe.start.labels, usual.start.labels),
        ("words_kept", recipe.start.words_kept, usual.start.words_kept),
    ):
        if value != needed:
            raise ValueError(
                f"--{flag} is not for comparisons: budgets are --budgets, methods "
                "--methods, sentences of one length, and all is chosen on validation"
            )
    if recipe.meta.theta_0 != "random":
        raise ValueError("--theta_0 must be random: all methods share theta_0")
    for name in ("test_inits", "selection_seeds"):
        if getattr(protocol, name) < 2:
            raise ValueError(f"--{name} must be at least 2, to tell methods apart")


def percent_of_train(task: Task, percent: float) -> int:
    """Examples of each class nearest to a share of train, at least one."""
    return max(1, round(percent / 100 * len(task.labels) / task.num_classes))


def named_methods(
    names: Sequence[str],
    *,
    recipe: Recipe | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    folder: str | Path | None = None,
    seeds: int | None = None,
    taught: bool = False,
    passes: int = 10,
    dropout: float = 0.2,
    rounds: int = 4,
    pool: int = 5000,
    devices: Any = None,
    how: str | None = None,
) -> tuple[dict[str, Method], list[str]]:
    """The methods of some names, and the lines of `compare` among them.

    Args:
        names: `all`, groups of `GROUPS`, `distilled`, selections, `query:NAME`, lines.
        recipe, seeds, devices, how: of `distilled`; seeds are distillations.
        protocol: of the networks of queries and of the teacher.
        folder: where distilled sets and the teacher's labels are kept.
        taught: `TAUGHT` ones also with a teacher's soft labels.
        passes, dropout, rounds, pool: of queries; see `queried`.

    Raises:
        ValueError: for an unknown name, listing those that are known.
    """
    known = [name for group in GROUPS.values() for name in group]
    wanted: list[str] = []
    for name in names:
        if name != "all" and name not in GROUPS and name not in known:
            raise ValueError(
                f"unknown method {name!r}; known: all, {', '.join(GROUPS)}, "
                + ", ".join(known)
            )
        wanted += known if name == "all" else GROUPS.get(name, [name])
    methods: dict[str, Method] = {}
    for name in dict.fromkeys(wanted):
        if name == "distilled":
            methods[name] = distilled(
                recipe, folder=folder, seeds=seeds, devices=devices, how=how
            )
        elif name.startswith(QUERY):
            methods[name] = queried(
                name.removeprefix(QUERY),
                rounds,
                passes=passes,
                dropout=dropout,
                pool=pool,
                protocol=protocol,
            )
        elif name in SELECTIONS:
            methods[name] = selected(
                name,
                taught=taught and name in TAUGHT,
                folder=folder,
                protocol=protocol,
            )
    return methods, [name for name in dict.fromkeys(wanted) if name in LINES]
