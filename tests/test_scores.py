"""The label-robust score, against numbers worked out by hand."""

import math

import pytest

from distill_jax import scores


def test_the_three_numbers():
    got = scores.label_robust(0.8, 0.6, 0.7, 0.4)
    assert got.recovery == pytest.approx(0.2)
    assert got.improvement == pytest.approx(0.3)
    # alpha = 0.15 - 0.1; e^0.05 = 1.0512711, e^-1 = 0.3678794, e = 2.7182818
    assert got.score == pytest.approx((1.0512711 - 0.3678794) / 2.3504024, abs=1e-7)


def test_the_ends_of_the_scale():
    assert scores.label_robust(0.0, 1.0, 1.0, 0.0).score == pytest.approx(1)
    assert scores.label_robust(1.0, 0.0, 0.0, 1.0).score == pytest.approx(0)
    assert scores.label_robust(0.7, 0.7, 0.5, 0.5).score == pytest.approx(0.2689414)


def test_soft_labels_that_help_random_data_as_much_are_worth_nothing():
    plain = scores.label_robust(0.8, 0.6, 0.6, 0.5)
    soft = scores.label_robust(0.8, 0.6, 0.75, 0.65)
    assert soft.score == pytest.approx(plain.score)


def test_the_weight_moves_between_both():
    only = [scores.label_robust(0.8, 0.6, 0.7, 0.4, weight=w).score for w in (0, 1)]
    span = math.e - math.exp(-1)
    assert only[0] == pytest.approx((math.exp(-0.2) - math.exp(-1)) / span)
    assert only[1] == pytest.approx((math.exp(0.3) - math.exp(-1)) / span)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((71.0, 0.5, 0.5, 0.5), "full_hard must be a fraction in .*71"),
        ((0.7, -0.1, 0.5, 0.5), "syn_hard must be a fraction"),
        ((0.7, 0.1, math.nan, 0.5), "syn_any must be a fraction"),
        ((0.7, 0.1, 0.5, 2.0), "random_any must be a fraction"),
    ],
)
def test_what_is_no_accuracy(values, message):
    with pytest.raises(ValueError, match=message):
        scores.label_robust(*values)
    with pytest.raises(ValueError, match="weight must be a fraction"):
        scores.label_robust(0.7, 0.5, 0.5, 0.5, weight=1.5)
