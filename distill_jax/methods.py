"""Our methods by the names that rows have, for the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_jax import queries
from distill_jax.compare import LINES
from distill_jax.recipe import Recipe
from distill_jax.selection import SELECTIONS
from distill_jax.sources import Method, distilled, queried, selected
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
