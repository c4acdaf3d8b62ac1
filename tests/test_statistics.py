"""Statistics against known values and against SciPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distill_jax import statistics

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "active_learning.json"


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the golden values are not beside this checkout")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


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


def test_golden_paired_statistics(golden):
    known = golden["stats"]
    got = statistics.paired_summary(known["a"], known["b"])
    expected = (
        known["mean_diff"],
        known["sd_diff_ddof1"],
        *known["t_ci95"],
        known["t_test_p"],
        known["wilcoxon_exact_p"],
        known["cohens_dz"],
        8,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    flips = statistics.paired_test(known["a"], known["b"])
    assert flips.p_value == pytest.approx(known["signflip_exact_p"], rel=1e-12)
    discordant = known["mcnemar"]
    assert statistics.mcnemar(discordant["b"], discordant["c"]) == pytest.approx(
        discordant["exact_p"], rel=1e-12
    )
    np.testing.assert_allclose(
        statistics.holm(known["holm"]["p"]), known["holm"]["adjusted"], rtol=1e-12
    )
    ratio = known["ratio"]
    assert statistics.relative_accuracy(ratio["acc"], ratio["full"]) == pytest.approx(
        ratio["ratio_to_full"], rel=1e-12
    )
    assert statistics.chance_corrected(
        ratio["acc"], ratio["full"], ratio["chance"]
    ) == pytest.approx(ratio["chance_corrected"], rel=1e-12)


def test_golden_curves(golden):
    known = golden["curve_metrics"]
    area = statistics.aulc(known["labels"], known["acc"])
    assert area == pytest.approx(known["aulc_normalised"], rel=1e-12)
    assert statistics.deficiency(known["acc"], known["reference_acc"]) == pytest.approx(
        known["deficiency_vs_reference"], rel=1e-12
    )


def test_difference_pairs_the_shared_inits():
    """b has a set for each two of the theta_0; all its sets together have all."""
    theta = np.linspace(0, 0.1, 6)
    a = 0.6 + np.stack([theta, theta + 0.02])
    inits = np.array([[0, 1], [2, 3], [4, 5]])
    b = 0.56 + theta[inits]
    got = statistics.difference(a, b, inits_b=inits)
    assert got.difference == pytest.approx(0.05)
    assert got.p_value == pytest.approx(2 / 64) and got.num_pairs == 6
    assert got.low < 0.05 < got.high
    # Given other theta_0, the same numbers are other pairs.
    turned = statistics.difference(a, b, inits_b=inits[[1, 2, 0]])
    pairs = statistics.paired_test(a.mean(0), 0.56 + theta[[4, 5, 0, 1, 2, 3]])
    assert turned.p_value == pytest.approx(pairs.p_value) and pairs.p_value > 2 / 64
    few = statistics.difference(a, b[:2], inits_b=inits[:2])
    assert few.num_pairs == 4 and few.p_value == pytest.approx(2 / 16)


def test_the_interval_of_a_difference_sees_both_kinds_of_seeds():
    r = np.random.default_rng(0)
    inits = 0.02 * r.normal(size=12)
    sets_a, sets_b = 0.6 + 0.03 * r.normal(size=(5, 1)), 0.5 + np.zeros((4, 1))
    both = statistics.difference(sets_a + inits, sets_b + inits)
    expected = statistics.summary(sets_a - 0.5)  # theta_0 cancel; sets of a remain
    assert both.low == pytest.approx(expected.low, abs=0.002)
    assert both.high == pytest.approx(expected.high, abs=0.002)
    swapped = statistics.difference(sets_b + inits, sets_a + inits)
    assert swapped.difference == pytest.approx(-both.difference)
    assert swapped.high == pytest.approx(-both.low, abs=0.002)
    single = statistics.difference((sets_a + inits)[0], inits + 0.5)
    assert single.high - single.low == pytest.approx(0, abs=1e-9)


def test_bad_differences():
    with pytest.raises(ValueError, match="two shared theta_0, got 1"):
        statistics.difference([0.5, 0.6], [[0.5], [0.6]])
    with pytest.raises(ValueError, match=r"inits_b must be \[1, 2\], got \[1, 3\]"):
        statistics.difference([0.5, 0.6], [0.5, 0.6], inits_b=[0, 1, 2])


def test_paired_summary_of_seeds_and_of_equal_differences():
    table = np.random.default_rng(0).uniform(0.4, 0.6, (6, 3))
    other = np.random.default_rng(1).uniform(0.4, 0.6, (6, 3))
    by_seed = statistics.paired_summary(table, other)
    np.testing.assert_allclose(
        by_seed, statistics.paired_summary(table.mean(1), other.mean(1))
    )
    assert by_seed.num_pairs == 6
    wide = statistics.paired_summary(table, other, confidence=0.99)
    assert wide.high - wide.low > by_seed.high - by_seed.low
    equal = statistics.paired_summary([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert equal.low == equal.high == equal.difference == pytest.approx(0.1)
    assert np.isnan(equal.t_p_value) and np.isnan(equal.effect)


def test_curves_by_hand():
    assert statistics.aulc([0, 1, 3], [0.0, 1.0, 1.0]) == pytest.approx(2.5 / 3)
    assert statistics.deficiency([0.5, 0.5], [0.2, 0.4]) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.aulc([1, 2], [0.1, 0.2, 0.3]), "2 numbers of labels for 3"),
        (lambda: statistics.aulc([1, 1], [0.1, 0.2]), "must increase"),
        (lambda: statistics.aulc([1], [0.1]), "at least two"),
        (lambda: statistics.aulc([1, 2], [0.1, np.nan]), "finite"),
        (lambda: statistics.deficiency([0.1, 0.2], [0.3, 0.3]), "constant"),
        (lambda: statistics.deficiency([0.1, 0.2], [0.1, 0.2, 0.3]), "2 and 3"),
        (lambda: statistics.mcnemar(0, 0), "nor both 0"),
        (lambda: statistics.mcnemar(-1, 3), "must not be negative"),
        (lambda: statistics.paired_summary([1], [2]), "at least two"),
        (lambda: statistics.paired_summary([1, 2], [2, 1], confidence=2), "between"),
    ],
)
def test_bad_curves_and_counts(call, message):
    with pytest.raises(ValueError, match=message):
        call()
