"""Means, intervals and paired tests over seeds and random starts.

A seed is one distillation or one selection; an init is one fresh theta_0 trained on
its result. Accuracies are fractions in [0, 1], and stand in arrays `[seeds, inits]`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Summary(NamedTuple):
    """What `summary` finds.

    Attributes:
        mean: over all values.
        sd: over the inits of one seed (ddof=1), pooled over seeds by root mean
            square: how much one fresh network differs from the next. NaN for a
            single init.
        sd_seeds: over the means of the seeds (ddof=1). NaN for a single seed.
        low, high: the bootstrap interval of the mean.
        num_seeds, num_inits: the shape of the values.
    """

    mean: float
    sd: float
    sd_seeds: float
    low: float
    high: float
    num_seeds: int
    num_inits: int


class PairedTest(NamedTuple):
    """What `paired_test` finds.

    Attributes:
        difference: mean of a - b.
        p_value: two-sided.
        num_pairs: how many differences were tested.
    """

    difference: float
    p_value: float
    num_pairs: int


def summary(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Mean, standard deviations and a bootstrap interval of the mean.

    The bootstrap is hierarchical (seeds are redrawn, then inits within each drawn
    seed) and takes percentiles. With one seed it is the ordinary bootstrap over
    inits; with one init, over seeds. It is too narrow for a handful of either.

    Args:
        values: `[seeds, inits]`, or `[inits]` for one seed.
        confidence: coverage of the interval, in (0, 1).
        num_resamples: bootstrap draws.
        seed: of the draws, so that a report can be repeated.

    Returns:
        A `Summary`.

    Raises:
        ValueError: for no values, values that are not finite, or another shape.
    """
    table = _table(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    num_seeds, num_inits = table.shape
    rng = np.random.default_rng(seed)
    rows = rng.integers(num_seeds, size=(num_resamples, num_seeds, 1))
    columns = rng.integers(num_inits, size=(num_resamples, num_seeds, num_inits))
    means = table[rows, columns].mean((1, 2))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    sd, sd_seeds = float("nan"), float("nan")
    if num_inits > 1:
        sd = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
    if num_seeds > 1:
        sd_seeds = float(table.mean(axis=1).std(ddof=1))
    return Summary(
        float(table.mean()), sd, sd_seeds, float(low), float(high), *table.shape
    )


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Sign-flip permutation test that two paired methods have equal means.

    Pairs are seeds (means over their inits); with a single seed, inits. Exact up to
    16 pairs, 65,536 random flips beyond. The least p-value it can give is
    2 / 2**pairs, so five pairs can never reach 0.05.

    Args:
        a, b: `[seeds, inits]` or `[inits]`; entry by entry the same seed and theta_0.

    Returns:
        A `PairedTest`.

    Raises:
        ValueError: for unequal shapes or fewer than two pairs.
    """
    from scipy import stats

    left, right = _table(a, "a"), _table(b, "b")
    if left.shape != right.shape:
        raise ValueError(
            f"paired values must have equal shapes, got {list(left.shape)} and "
            f"{list(right.shape)}"
        )
    differences = left - right
    pairs = differences[0] if len(differences) == 1 else differences.mean(axis=1)
    if len(pairs) < 2:
        raise ValueError("a paired test needs at least two seeds, or two inits, got 1")
    test = stats.permutation_test(
        (pairs,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**16,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return PairedTest(float(pairs.mean()), float(test.pvalue), len(pairs))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values of several tests (Holm 1979, step-down).

    Args:
        p_values: `[m]`, one for each test of the family.

    Returns:
        `[m]` in the same order; those at most alpha are rejected, with a chance of
        at most alpha of any false rejection.

    Raises:
        ValueError: if one is not in [0, 1].
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers in [0, 1], got {p}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)


def relative_accuracy(accuracy: float, full: float) -> float:
    """Accuracy as a fraction of the accuracy on the full training set.

    Args:
        accuracy: in [0, 1].
        full: the same model's accuracy on all training data, in (0, 1].
    """
    _check_fractions(accuracy=accuracy, full=full)
    if full == 0:
        raise ValueError("full-data accuracy must be above 0 to be relative to it")
    return accuracy / full


def chance_corrected(accuracy: float, full: float, majority: float) -> float:
    """(accuracy - majority) / (full - majority): 0 is a constant guess, 1 all data.

    Args:
        accuracy: in [0, 1].
        full: the same model's accuracy on all training data.
        majority: accuracy of the best constant answer; below `full`.
    """
    _check_fractions(accuracy=accuracy, full=full, majority=majority)
    if full <= majority:
        raise ValueError(
            f"full-data accuracy {full} must be above the majority's {majority}: "
            "there is nothing to correct for"
        )
    return (accuracy - majority) / (full - majority)


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")


def _table(values: ArrayLike, name: str) -> np.ndarray:
    table = np.atleast_2d(np.asarray(values, float))
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name} must be [seeds, inits], got {list(table.shape)}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite, got {table[~np.isfinite(table)][0]}")
    return table
