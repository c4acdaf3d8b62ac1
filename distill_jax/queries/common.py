"""What a query reads and returns, and what all of them share.

Axes: F sampled networks, N items in the pool, C classes, H features, n picks.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

ScoreFn = Callable[..., jax.Array]  # (log_probs [F, N, C], key) -> scores [N]


class Context(NamedTuple):
    """What a query may look at; never a hidden label.

    Attributes:
        labelled: bool `[N]`; these are never picked again.
        log_probs: `[F, N, C]` log class probabilities of F sampled networks (F = 1: the
            plain network), float32 or float64; -inf is p = 0.
        features: `[N, H]`, for `k_center` and `badge`.
    """

    labelled: np.ndarray
    log_probs: np.ndarray | None = None
    features: np.ndarray | None = None


class Picked(NamedTuple):
    """The items to label next.

    Attributes:
        indices: `[n]`, distinct and unlabelled, in the order picked.
        scores: `[n]`, each pick's score when it was picked; 0 without scores.
        n_tied_at_cut: unlabelled items whose score equals that of the last pick, where
            not all of them were picked, so that chance or index decided; else 0.
    """

    indices: np.ndarray
    scores: np.ndarray
    n_tied_at_cut: int


class Query(NamedTuple):
    """A way to choose items to label.

    Attributes:
        pick: `(context, n, key) -> Picked`.
        passes: the least F it needs: 0 reads no probabilities, 1 reads the network's,
            2 needs networks that disagree (dropout).
        features: whether it reads `Context.features`.
    """

    pick: Callable[[Context, int, jax.Array], Picked]
    passes: int
    features: bool


def by_score(score_fn: ScoreFn, passes: int) -> Query:
    """The query that picks the n highest scores; a random order breaks ties.

    Args:
        score_fn: `(log_probs [F, N, C], key) -> scores [N]`, higher first.
        passes: the least F it needs, 1 or 2.
    """

    def pick(context: Context, n: int, key: jax.Array) -> Picked:
        candidates = unlabelled(context, n)
        score_key, tie_key = jax.random.split(key)
        scores = scored(score_fn, context, passes, score_key)[candidates]
        chosen, tied = highest(scores, n, generator(tie_key))
        return Picked(candidates[chosen], scores[chosen], tied)

    return Query(pick, passes, features=False)


def unlabelled(context: Context, n: int) -> np.ndarray:
    """Indices of the items that may be picked.

    Raises:
        ValueError: if `labelled` is no bool vector, or n no integer from 1 to their
            number.
    """
    labelled = np.asarray(context.labelled)
    if labelled.ndim != 1 or labelled.dtype != bool:
        raise ValueError(
            "Context.labelled must be bool [N], one per item of the pool, got "
            f"{labelled.dtype} {list(labelled.shape)}"
        )
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise ValueError(f"n, the number of items to pick, must be an integer: {n!r}")
    candidates = np.flatnonzero(~labelled)
    if count < 1:
        raise ValueError(f"n, the number of items to pick, must be at least 1: {n}")
    if count > len(candidates):
        raise ValueError(
            f"asked for {n} items, but {len(candidates)} of the {len(labelled)} in the "
            "pool are unlabelled; ask for fewer"
        )
    return candidates


def checked_log_probs(context: Context, passes: int, name: str) -> np.ndarray:
    """`Context.log_probs`, if they are what query `name` can read.

    Raises:
        ValueError: naming the first item whose row is NaN, +inf, or no distribution.
    """
    if context.log_probs is None:
        raise ValueError(
            f"{name} reads Context.log_probs [F, N, C], which are None; score the pool "
            "first"
        )
    log_probs = np.asarray(context.log_probs)
    num_items = len(context.labelled)
    if log_probs.ndim != 3 or log_probs.shape[1] != num_items or not log_probs.size:
        raise ValueError(
            f"Context.log_probs must be [F, N, C] with N = {num_items}, got "
            f"{list(log_probs.shape)}"
        )
    if log_probs.dtype not in (np.float32, np.float64):
        raise ValueError(
            "Context.log_probs must be float32 or float64, got "
            f"{log_probs.dtype}; take the log-softmax in float32"
        )
    if len(log_probs) < passes:
        raise ValueError(
            f"{name} needs at least F = {passes} sampled networks to see them "
            f"disagree, got F = {len(log_probs)}; score with dropout and more passes"
        )
    bad = np.isnan(log_probs) | (log_probs == np.inf)
    if bad.any():
        item, f, c = first_item(bad)
        raise ValueError(
            f"log_probs of item {item} are not finite: {log_probs[f, item, c]} for "
            f"class {c} in pass {f}"
        )
    # Loose enough for float32 logs, tight enough for logits and probabilities.
    total = np.stack([np.exp(np.minimum(one, 1.0)).sum(-1) for one in log_probs])
    off = np.abs(total - 1) > 1e-3
    if off.any():
        item, f = first_item(off)
        raise ValueError(
            f"log_probs of item {item} are no log-probabilities: they sum to "
            f"{total[f, item]:.4g} in pass {f} after exp; pass log_softmax(logits)"
        )
    return log_probs


def checked_features(context: Context, name: str) -> np.ndarray:
    """`Context.features` `[N, H]`, if query `name` can measure distances in them.

    Raises:
        ValueError: naming the first item that is not finite.
    """
    if context.features is None:
        raise ValueError(
            f"{name} reads Context.features [N, H], which are None; give the output "
            "of a model's `features`, or mean word vectors"
        )
    features = np.asarray(context.features)
    num_items = len(context.labelled)
    if features.ndim != 2 or len(features) != num_items or not features.size:
        raise ValueError(
            f"Context.features must be [N, H] with N = {num_items}, got "
            f"{list(features.shape)}"
        )
    if features.dtype.kind not in "fiu":
        raise ValueError(f"Context.features must be numbers, got {features.dtype}")
    bad = ~np.isfinite(features).all(-1)
    if bad.any():
        raise ValueError(f"features of item {bad.argmax()} are not finite")
    return features


def scored(
    score_fn: ScoreFn, context: Context, passes: int, key: jax.Array
) -> np.ndarray:
    """Scores `[N]` of the whole pool: one shape, so one compile, in every round.

    Raises:
        ValueError: if input or scores are not what they should be.
    """
    name = getattr(score_fn, "__name__", "this query")
    log_probs = checked_log_probs(context, passes, name)
    scores = np.asarray(score_fn(log_probs, key))
    if scores.shape != log_probs.shape[1:2]:
        raise ValueError(
            f"{name} must return scores [N] with N = {log_probs.shape[1]}, got "
            f"{list(scores.shape)}"
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        item = bad.argmax()
        raise ValueError(f"{name} scores item {item} with {scores[item]}")
    return scores


def highest(
    scores: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Positions `[n]` of the highest scores, ties in random order, and how many are
    tied at the cut."""
    chosen = np.lexsort((rng.random(len(scores)), -scores))[:n]
    return chosen, tied_at_cut(scores, chosen)


def tied_at_cut(scores: np.ndarray, chosen: np.ndarray) -> int:
    """`Picked.n_tied_at_cut` of `chosen` positions among candidates' scores."""
    tied = scores == scores[chosen[-1]]
    return 0 if tied[chosen].sum() == tied.sum() else int(tied.sum())


def first_item(bad: np.ndarray) -> tuple[int, ...]:
    """The lowest item marked in `bad [F, N, ...]`, then its pass and what follows."""
    item, *rest = np.argwhere(np.moveaxis(bad, 1, 0))[0].tolist()
    return (item, *rest)


def generator(key: jax.Array) -> np.random.Generator:
    """NumPy random numbers from a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
