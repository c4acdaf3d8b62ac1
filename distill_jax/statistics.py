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


class Paired(NamedTuple):
    """What `paired_summary` finds, of differences a - b.

    Attributes:
        difference: their mean.
        sd: their standard deviation (ddof=1).
        low, high: Student's t interval of the mean.
        t_p_value, wilcoxon_p_value: two-sided; Wilcoxon's signed rank test is exact
            where there are few pairs and no ties.
        effect: Cohen's d_z, the mean in units of `sd`.
        num_pairs: how many.
    """

    difference: float
    sd: float
    low: float
    high: float
    t_p_value: float
    wilcoxon_p_value: float
    effect: float
    num_pairs: int


class Difference(NamedTuple):
    """What `difference` finds, of two methods that share their theta_0.

    Attributes:
        difference: mean of a - mean of b.
        low, high: its bootstrap interval over the seeds of each and the theta_0.
        p_value: two-sided, of the sign-flip test over the theta_0.
        num_pairs: theta_0 that both have.
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_pairs: int


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
    _check_confidence(confidence)
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
    16 pairs, 10,000 random flips beyond. The least p-value it can give is
    2 / 2**pairs, so five pairs can never reach 0.05.

    Args:
        a, b: `[seeds, inits]` or `[inits]`; entry by entry the same seed and theta_0.

    Returns:
        A `PairedTest`.

    Raises:
        ValueError: for unequal shapes or fewer than two pairs.
    """
    from scipy import stats

    pairs = _pairs(a, b)
    test = stats.permutation_test(
        (pairs,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**16 if len(pairs) <= 16 else 10_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return PairedTest(float(pairs.mean()), float(test.pvalue), len(pairs))


def paired_summary(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> Paired:
    """Student's paired t interval and test, Wilcoxon's test, and Cohen's d_z.

    Pairs are as in `paired_test`. The t interval supposes normal differences, as a
    bootstrap of a handful would be too narrow.

    Args:
        a, b: `[seeds, inits]` or `[inits]`; entry by entry the same seed and theta_0.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        A `Paired`. Where all differences are equal its p-values and effect are NaN.

    Raises:
        ValueError: for unequal shapes or fewer than two pairs.
    """
    from scipy import stats

    _check_confidence(confidence)
    pairs = _pairs(a, b)
    n, mean, sd = len(pairs), float(pairs.mean()), float(pairs.std(ddof=1))
    if sd <= 1e-12:
        nan = float("nan")
        return Paired(mean, 0.0, mean, mean, nan, nan, nan, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / n**0.5
    t = stats.ttest_1samp(pairs, 0)
    wilcoxon = stats.wilcoxon(pairs)
    return Paired(
        mean,
        sd,
        mean - half,
        mean + half,
        float(t.pvalue),  # type: ignore[attr-defined]
        float(wilcoxon.pvalue),  # type: ignore[attr-defined]
        mean / sd,
        n,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947) of two classifiers.

    Args:
        only_a: test items that a alone gets right.
        only_b: test items that b alone gets right.

    Raises:
        ValueError: for a negative count, or where they never differ.
    """
    from scipy import stats

    if min(only_a, only_b) < 0 or only_a + only_b == 0:
        raise ValueError(
            f"counts must not be negative nor both 0, got {only_a} and {only_b}"
        )
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def aulc(labels: ArrayLike, accuracies: ArrayLike) -> float:
    """Area under a learning curve by the trapezoid rule, over the range of labels.

    A mean accuracy over the budgets between the first and the last point.

    Args:
        labels: `[P]` numbers of labels, increasing.
        accuracies: `[P]`, one for each.

    Raises:
        ValueError: for fewer than two points, or labels that do not increase.
    """
    x, y = _curve(labels, "labels"), _curve(accuracies, "accuracies")
    if x.shape != y.shape:
        raise ValueError(f"got {len(x)} numbers of labels for {len(y)} accuracies")
    if not (np.diff(x) > 0).all():
        raise ValueError(f"numbers of labels must increase, got {x.tolist()}")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def deficiency(accuracies: ArrayLike, reference: ArrayLike) -> float:
    """Deficiency of a learning curve against a reference (Jacobs et al. 2021).

    sum_i (max_j ref_j - acc_i) / sum_i (max_j ref_j - ref_i): below 1 is better than
    the reference.

    Args:
        accuracies: `[P]` of the method.
        reference: `[P]` at the same numbers of labels, of random say.

    Raises:
        ValueError: for curves of unequal length, or a reference that is constant.
    """
    ours, other = _curve(accuracies, "accuracies"), _curve(reference, "reference")
    if ours.shape != other.shape:
        raise ValueError(f"got curves of {len(ours)} and {len(other)} points")
    missing = other.max() - other
    if missing.sum() == 0:
        raise ValueError("the reference is constant: nothing is missing from it")
    return float((other.max() - ours).sum() / missing.sum())


def difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    inits_a: ArrayLike | None = None,
    inits_b: ArrayLike | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How much better a is than b, where they have other seeds but the same theta_0.

    The test pairs the theta_0, each averaged over the seeds. So it tells apart the sets
    that were drawn; how much other sets would differ is seen by the interval, which
    redraws the seeds of a, those of b and, for both at once, the theta_0. A method of
    one seed adds nothing to it.

    Args:
        a: `[seeds, inits]` or `[inits]`.
        b: the same, of other numbers of seeds and inits perhaps.
        inits_a, inits_b: which theta_0 each value has, integers of the same shapes;
            counted from 0 in each seed unless given.
        confidence: coverage of the interval, in (0, 1).
        num_resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        A `Difference`.

    Raises:
        ValueError: if fewer than two theta_0 are shared, or shapes do not fit.
    """
    _check_confidence(confidence)
    left, right = _by_init(a, inits_a, "a"), _by_init(b, inits_b, "b")
    shared = sorted(left.keys() & right.keys())
    if len(shared) < 2:
        raise ValueError(f"a paired test needs two shared theta_0, got {len(shared)}")
    by_init = [
        [np.mean(list(side[r].values())) for r in shared] for side in (left, right)
    ]
    test = paired_test(*by_init)
    rng = np.random.default_rng(seed)
    columns = rng.multinomial(
        len(shared), np.full(len(shared), 1 / len(shared)), num_resamples
    )

    def means(side: dict[int, dict[int, float]]) -> np.ndarray:
        num_seeds = 1 + max(s for values in side.values() for s in values)
        table = np.full((num_seeds, len(shared)), np.nan)
        for column, r in enumerate(shared):
            for s, value in side[r].items():
                table[s, column] = value
        rows = rng.multinomial(
            num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples
        )
        there = np.isfinite(table).astype(float)
        total = ((rows @ np.where(there, table, 0)) * columns).sum(1)
        count = ((rows @ there) * columns).sum(1)
        # Where seeds have few theta_0, a draw can hold no value at all.
        return np.divide(total, count, np.full(num_resamples, np.nan), where=count > 0)

    draws = means(left) - means(right)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Difference(
        test.difference, float(low), float(high), test.p_value, test.num_pairs
    )


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


def _pairs(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Differences of seeds' means, or of inits where there is one seed."""
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
    return pairs


def _by_init(
    values: ArrayLike, inits: ArrayLike | None, name: str
) -> dict[int, dict[int, float]]:
    """`{theta_0: {seed: value}}`."""
    table = _table(values, name)
    if inits is None:
        which = np.broadcast_to(np.arange(table.shape[1]), table.shape)
    else:
        which = np.atleast_2d(np.asarray(inits))
    if which.shape != table.shape:
        raise ValueError(
            f"inits_{name} must be {list(table.shape)}, got {list(which.shape)}"
        )
    found: dict[int, dict[int, float]] = {}
    for s, r in np.ndindex(table.shape):
        found.setdefault(int(which[s, r]), {})[s] = float(table[s, r])
    return found


def _curve(values: ArrayLike, name: str) -> np.ndarray:
    curve = np.asarray(values, float)
    if curve.ndim != 1 or len(curve) < 2 or not np.isfinite(curve).all():
        raise ValueError(f"{name} must be at least two finite numbers, got {curve}")
    return curve


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")


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
