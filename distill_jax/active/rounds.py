"""How many labels are asked for, and when: the settings, and what they come to."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.active.pool import num_items, query_sizes
from distill_jax.active.scoring import check_passes, has_dropout
from distill_jax.names import resolve
from distill_jax.queries import QUERIES
from distill_jax.recipe import setting
from distill_jax.task import Task

# The start sets by name, each the selection that draws it.
STARTS = {"random": "random", "balanced": "random_balanced"}


@dataclasses.dataclass(frozen=True)
class Rounds:
    """How many labels are asked for, and when."""

    start: Any = setting(
        "random", "The start set: random, balanced, or a file of ids, one a line."
    )
    start_size: str | int = setting("1%", "Its items, as 20 or 1%; of a file: all.")
    query_size: str | int = setting("1%", "Items asked in a round, as 85 or 1%.")
    rounds: int = setting(10, "Rounds of queries; 0: as the budget allows.")
    budget: int = setting(0, "Labels in all, with the start set; 0: no limit.")
    passes: int = setting(10, "Sampled networks that score the pool, F; 1: no dropout.")

    def __post_init__(self):
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        for name in ("rounds", "budget"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, got {getattr(self, name)}"
                )


class Plan(NamedTuple):
    """What the rounds come to for a pool.

    Attributes:
        start: ids of the start set, where they are given.
        num_start: its items.
        sizes: items asked for in each round.
    """

    start: np.ndarray | None
    num_start: int
    sizes: list[int]

    @property
    def num_labels(self) -> list[int]:
        """Labels at the end of each round, from that of the start set."""
        return np.cumsum([self.num_start, *self.sizes]).tolist()


def plan(task: Task, rounds: Rounds, queries: Sequence[Any] = ()) -> Plan:
    """How many items each round asks for; refuses what cannot be, before any work.

    Args:
        task: whose train split is the pool.
        rounds: the settings.
        queries: names or `Query`s that will ask.

    Raises:
        ValueError: for too few items, a start set that cannot be, an unknown query, or
            passes that are too few for a query or all equal.
    """
    total, passes = len(task.train.y), rounds.passes
    start = _start_ids(rounds.start, total)
    num_start = num_items(rounds.start_size, total, "start_size")
    if start is not None:
        num_start = len(start)
    sizes = query_sizes(
        total,
        num_start,
        num_items(rounds.query_size, total, "query_size"),
        rounds=rounds.rounds,
        budget=rounds.budget,
    )
    asking = [resolve(query, QUERIES, "query") for query in queries]
    for query, one in zip(queries, asking, strict=True):
        check_passes(one, passes, query if isinstance(query, str) else "this query")
    if passes > 1 and any(one.passes for one in asking):
        if not task.once("noisy", lambda: has_dropout(task.model, task.train)):
            raise ValueError(
                f"passes={passes} needs a network with dropout, and these passes of "
                f"{task.model_name} are all equal: give it dropout, as "
                "model_settings=dropout=0.2, or use passes=1 and a query that needs "
                "no disagreement"
            )
    return Plan(start, num_start, sizes)


def _start_ids(start: Any, total: int) -> np.ndarray | None:
    """The ids that `start` lists, or that are in the file that it names."""
    if isinstance(start, str) and start in STARTS:
        return None
    where, words = "start", start
    if isinstance(start, str | Path):
        where = path = Path(start)
        if not path.exists():
            raise ValueError(
                f"start must be {', '.join(STARTS)}, or a file of ids; {path} is not "
                "there"
            )
        words = path.read_text(encoding="utf-8").split()
    words = [str(word) for word in words]
    wrong = [word for word in words if not word.isdecimal() or int(word) >= total]
    if wrong or not words:
        raise ValueError(
            f"{where} must hold numbers of training sentences, from 0 to {total - 1}, "
            f"one a line; got {wrong[0] if wrong else 'nothing'!r}"
        )
    ids = np.array([int(word) for word in words])
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{where} has an id twice")
    return ids
