"""A pool of items, which of them have labels, and who gives them."""

import dataclasses
from collections.abc import Callable

import numpy as np

Oracle = Callable[[np.ndarray], np.ndarray]  # ids [n] -> labels [n], each by its id


@dataclasses.dataclass(frozen=True)
class Pool:
    """Which items have labels, and since when. Never changed in place.

    Attributes:
        labelled: bool `[N]`.
        acquired_round: int32 `[N]`, the round an item was asked for; the start set is
            round 0, and -1 is not yet. An item asked for and not yet answered is not
            labelled.
        labels: int32 `[N]`, what the oracle said; -1 where unknown.
    """

    labelled: np.ndarray
    acquired_round: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        kinds = {"labelled": bool, "acquired_round": np.int32, "labels": np.int32}
        shapes = {np.shape(getattr(self, name)) for name in kinds}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(
                f"the arrays of a pool must all be [N], got {sorted(shapes)}"
            )
        for name, kind in kinds.items():
            array = np.array(getattr(self, name), kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def unlabelled(cls, num_items: int) -> "Pool":
        """A pool of N items of which nothing was asked."""
        none = np.full(num_items, -1, np.int32)
        return cls(np.zeros(num_items, bool), none, none)

    @property
    def round(self) -> int:
        """The last round that asked for labels; -1: none did."""
        return int(self.acquired_round.max(initial=-1))

    @property
    def unanswered(self) -> np.ndarray:
        """The ids that were asked for and have no label yet, in order."""
        return np.flatnonzero((self.acquired_round >= 0) & ~self.labelled)

    def ask(self, ids: np.ndarray) -> "Pool":
        """The pool after a round that asks for these.

        Raises:
            ValueError: for ids that do not exist, come twice or were asked before.
        """
        ids = self._checked(ids)
        if (self.acquired_round[ids] >= 0).any():
            again = ids[self.acquired_round[ids] >= 0][0]
            raise ValueError(f"item {again} was asked for before")
        rounds = self.acquired_round.copy()
        rounds[ids] = self.round + 1
        return dataclasses.replace(self, acquired_round=rounds)

    def answer(self, ids: np.ndarray, labels: np.ndarray) -> "Pool":
        """The pool with the labels of ids that were asked for.

        Raises:
            ValueError: for ids that were not asked for, or labels below 0.
        """
        ids, new = self._checked(ids), np.asarray(labels)
        if new.shape != ids.shape or not np.issubdtype(new.dtype, np.integer):
            raise ValueError(
                f"the oracle must give {len(ids)} integer labels, got "
                f"{new.dtype} {list(new.shape)}"
            )
        if not np.isin(ids, self.unanswered).all():
            raise ValueError("labels were given for items that were not asked for")
        if (new < 0).any():
            raise ValueError(f"item {ids[new < 0][0]} has the label {new[new < 0][0]}")
        labelled, known = self.labelled.copy(), self.labels.copy()
        labelled[ids], known[ids] = True, new
        return dataclasses.replace(self, labelled=labelled, labels=known)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
            raise ValueError(
                f"ids must be integers [n], got {ids.dtype} {list(ids.shape)}"
            )
        ids = ids.astype(int)
        wrong = (ids < 0) | (ids >= len(self.labelled))
        if wrong.any():
            raise ValueError(
                f"item {ids[wrong][0]} does not exist: the pool has "
                f"{len(self.labelled)} items, from 0"
            )
        if len(np.unique(ids)) < len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise ValueError(f"item {values[counts > 1][0]} comes twice")
        return ids


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated:
    """An oracle that knows all answers, `[N]`; see `simulated`."""

    answers: np.ndarray

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self.answers[np.asarray(ids, int)]


def simulated(
    labels: np.ndarray, num_classes: int, *, noise: float = 0.0, seed: int = 0
) -> Simulated:
    """An oracle that knows the labels, and is wrong on some items.

    Args:
        labels: int `[N]`.
        num_classes: C.
        noise: chance that an item's answer is another class, any with equal chance.
            The same item always has the same answer.
        seed: of the noise.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be in [0, 1], got {noise}")
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < noise
    shift = rng.integers(1, max(num_classes, 2), len(labels))
    return Simulated(np.where(wrong, (labels + shift) % num_classes, labels))


def num_items(size: str | int, total: int, name: str = "query size") -> int:
    """A number of items from "85" or a share such as "1%" of `total`.

    Raises:
        ValueError: if it is neither, or comes to no item, or to more than `total`.
    """
    text = str(size).strip()
    share = text.endswith("%")
    try:
        n = round(float(text[:-1]) / 100 * total) if share else int(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name} must be a number of items or a share such as 1%, got {size!r}"
        ) from None
    if not 1 <= n <= total or share and float(text[:-1]) > 100:
        raise ValueError(
            f"{name} {size!r} is {n} items of {total:,}: it must be from 1 to {total:,}"
        )
    return n


def query_sizes(
    total: int, start: int, size: int, *, rounds: int = 0, budget: int = 0
) -> list[int]:
    """How many items each round asks for.

    Args:
        total: N.
        start: items of the start set.
        size: items in a round; the last one asks for what is left.
        rounds: how many; 0: as many as the budget allows.
        budget: labels in all, the start set included; 0: N.

    Raises:
        ValueError: if there are not so many items, or the budget is below the start.
    """
    for name, value, least in (("start", start, 1), ("query size", size, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if rounds < 0 or budget < 0:
        raise ValueError(f"rounds and budget must not be negative: {rounds}, {budget}")
    if max(start, budget) > total:
        raise ValueError(
            f"a {'budget' if budget > total else 'start'} of {max(start, budget):,} "
            f"labels is larger than the pool of {total:,} items"
        )
    if budget and budget < start:
        raise ValueError(
            f"a budget of {budget:,} labels is below the start set of {start:,}"
        )
    left = (budget or total) - start
    if rounds and not budget and rounds * size > left:
        raise ValueError(
            f"{start:,} items to start and {rounds} rounds of {size:,} are more than "
            f"the pool of {total:,} items: ask for fewer rounds, or name a budget"
        )
    sizes = [size] * (left // size) + ([left % size] if left % size else [])
    return sizes[:rounds] if rounds else sizes
