"""Statistics against known values and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from distill_jax import statistics


def test_summary_of_known_values():
    got = statistics.summary([[0.1, 0.3], [0.5, 0.9]])
    assert got.mean == pytest.approx(0.45)
    assert got.sd == pytest.approx(np.sqrt((0.02 + 0.08) / 2))
    assert got.sd_seeds == pytest.approx(0.5 / np.sqrt(2))
    assert (got.num_seeds, got.num_inits) == (2, 2)
    assert 0.1 <= got.low < got.mean < got.high <= 0.9


def test_one_seed_is_the_ordinary_bootstrap():
    values = np.random.default_rng(3).normal(0.7, 0.05, 20)
    got = statistics.summary(values)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    width = expected.high - expected.low
    assert got.low == pytest.approx(expected.low, abs=0.05 * width)
    assert got.high == pytest.approx(expected.high, abs=0.05 * width)
    assert got.sd == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(got.sd_seeds)
    assert got == pytest.approx(statistics.summary([values]), nan_ok=True)


def test_the_interval_sees_the_spread_of_seeds():
    """Seeds that differ widen it though all their inits agree, and a narrower
    confidence narrows it."""
    values = np.repeat([[0.4], [0.5], [0.6], [0.7]], 20, axis=1)
    got = statistics.summary(values)
    assert got.sd == pytest.approx(0, abs=1e-12)
    assert got.high - got.low > 0.15
    narrow = statistics.summary(values, confidence=0.5)
    assert narrow.high - narrow.low < 0.7 * (got.high - got.low)
    assert np.isnan(statistics.summary([[0.4], [0.5]]).sd)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "must be"), ([[0.5, np.nan]], "finite"), (np.ones((2, 2, 2)), "inits")],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        statistics.summary(values)
    with pytest.raises(ValueError, match="confidence"):
        statistics.summary([0.5, 0.6], confidence=95)


def test_paired_test_is_exact():
    """All five differences positive: 2 of the 32 sign flips are as extreme."""
    a = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    got = statistics.paired_test(a, a - [0.01, 0.02, 0.04, 0.08, 0.16])
    assert got.difference == pytest.approx(0.062)
    assert got.p_value == pytest.approx(2 / 32)
    assert got.num_pairs == 5


def test_paired_test_by_hand():
    """Differences 3, 1, -1: flips reach |sum| of 5, 3, 3, 1, so P(|sum| >= 3)."""
    got = statistics.paired_test([0.5, 0.5, 0.5], [0.2, 0.4, 0.6])
    assert got.p_value == pytest.approx(6 / 8)


def test_seeds_are_the_pairs_where_there_are_several():
    a = np.random.default_rng(0).uniform(0.4, 0.6, (6, 3))
    got = statistics.paired_test(a + 0.1, a)
    assert got.num_pairs == 6
    assert got.p_value == pytest.approx(2 / 64)
    assert statistics.paired_test(a, a).p_value == 1


def test_paired_test_agrees_with_the_t_test_on_many_pairs():
    rng = np.random.default_rng(1)
    a = rng.normal(0.7, 0.05, 40)
    b = a + rng.normal(0.008, 0.02, 40)
    expected = stats.ttest_rel(a, b).pvalue
    assert 0.001 < expected < 0.2
    assert statistics.paired_test(a, b).p_value == pytest.approx(expected, abs=0.01)


def test_bad_pairs():
    with pytest.raises(ValueError, match=r"\[1, 2\] and \[1, 3\]"):
        statistics.paired_test([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least two"):
        statistics.paired_test([1], [2])


def test_holm_of_known_values():
    got = statistics.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(got, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1, 1])
    assert statistics.holm([]).shape == (0,)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        statistics.holm([0.1, 1.2])


def test_relative_and_chance_corrected():
    assert statistics.relative_accuracy(0.45, 0.9) == pytest.approx(0.5)
    assert statistics.chance_corrected(0.45, 0.9, 0.3) == pytest.approx(0.25)
    assert statistics.chance_corrected(0.2, 0.9, 0.3) < 0
    for bad in ((0.5, 0), (45, 0.9)):
        with pytest.raises(ValueError):
            statistics.relative_accuracy(*bad)
    with pytest.raises(ValueError, match="nothing to correct"):
        statistics.chance_corrected(0.4, 0.3, 0.3)
