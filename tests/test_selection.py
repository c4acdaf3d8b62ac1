"""What every registered selection must do, and what each one promises."""

import jax
import numpy as np
import pytest

from distill_jax import selection
from distill_jax.selection import SELECTIONS

BALANCED = sorted(set(SELECTIONS) - {"random"})
every = pytest.mark.parametrize("name", sorted(SELECTIONS))
balanced = pytest.mark.parametrize("name", BALANCED)
COUNTS = (12, 7, 9)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], COUNTS))
    return rng.normal(size=(len(labels), 4)).astype(np.float32), labels


def select(name, corpus, n, seed=0):
    return selection.get(name)(*corpus, n, jax.random.key(seed))


def per_class(labels, indices):
    return np.bincount(labels[indices], minlength=3)


@every
@pytest.mark.parametrize("n", [1, 3, 10, 21])
def test_distinct_in_range_and_repeatable(name, corpus, n):
    got = select(name, corpus, n)
    assert got.shape == (n,) and got.dtype.kind == "i"
    assert len(set(got.tolist())) == n
    assert got.min() >= 0 and got.max() < len(corpus[1])
    np.testing.assert_array_equal(got, select(name, corpus, n))


@every
def test_another_key_chooses_others(name, corpus):
    draws = {tuple(sorted(select(name, corpus, 4, seed))) for seed in range(8)}
    assert len(draws) > 1


@balanced
def test_classes_share_evenly(name, corpus):
    _, labels = corpus
    assert per_class(labels, select(name, corpus, 12)).tolist() == [4, 4, 4]
    extra = [per_class(labels, select(name, corpus, 10, s)) for s in range(8)]
    assert all(sorted(counts) == [3, 3, 4] for counts in extra)
    assert len({tuple(counts) for counts in extra}) > 1
    fewer = [per_class(labels, select(name, corpus, 2, s)) for s in range(8)]
    assert all(sorted(counts) == [0, 1, 1] for counts in fewer)
    assert len({tuple(counts) for counts in fewer}) > 1


@balanced
def test_each_round_holds_every_class(name, corpus):
    rounds = corpus[1][select(name, corpus, 14)]
    for start in range(0, 12, 3):
        assert sorted(rounds[start : start + 3]) == [0, 1, 2]


def test_random_follows_the_prior():
    labels = np.repeat([0, 1], [900, 100])
    features = np.zeros((1000, 1))
    shares = [
        labels[selection.random(features, labels, 100, jax.random.key(s))].mean()
        for s in range(20)
    ]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


@every
def test_a_permuted_corpus(name, corpus):
    """k-means does not see the order; random draws differ but keep their counts."""
    features, labels = corpus
    order = np.random.default_rng(1).permutation(len(labels))
    before = select(name, corpus, 10)
    after = select(name, (features[order], labels[order]), 10)
    if name == "kmeans_medoids":
        np.testing.assert_array_equal(order[after], before)
    elif name == "random":
        np.testing.assert_array_equal(after, before)
    else:
        assert (
            per_class(labels, order[after]).tolist()
            == per_class(labels, before).tolist()
        )


def test_medoids_are_nearest_to_well_separated_centres():
    """Four clouds in each class, each around a point that is itself an example."""
    rng = np.random.default_rng(2)
    centres = 100 * np.eye(8)
    offsets = rng.normal(size=(5, 8))
    clouds = centres[:, None] + np.concatenate([np.zeros((1, 8)), offsets, -offsets])
    features = clouds.reshape(-1, 8)
    labels = np.repeat([0, 1], 44)
    got = selection.kmeans_medoids(features, labels, 8, jax.random.key(0))
    assert sorted(got) == list(range(0, 88, 11))


@every
def test_identical_examples(name):
    got = SELECTIONS[name](
        np.ones((9, 3)), np.repeat([0, 1, 2], 3), 9, jax.random.key(0)
    )
    assert sorted(got) == list(range(9))


@every
def test_too_many(name, corpus):
    with pytest.raises(ValueError, match="asked for 29 examples of 28"):
        select(name, corpus, 29)
    with pytest.raises(ValueError, match="asked for 0 examples"):
        select(name, corpus, 0)


@balanced
def test_a_class_with_too_few(name, corpus):
    assert per_class(corpus[1], select(name, corpus, 23)).tolist() == [8, 7, 8]
    for n in (24, 27):
        with pytest.raises(ValueError, match=f"class 1 has 7 .* {n} examples"):
            select(name, corpus, n)


@balanced
def test_a_remainder_without_room(name):
    """5 of each fit; the two more would need two classes with a sixth."""
    labels = np.repeat([0, 1, 2], [5, 5, 9])
    features = np.random.default_rng(0).normal(size=(19, 2))
    assert len(select(name, (features, labels), 16)) == 16
    with pytest.raises(ValueError, match="class 0 has 5 .* ask for 6 of each"):
        select(name, (features, labels), 17)


@every
def test_wrong_shapes_and_nan(name, corpus):
    features, labels = corpus
    with pytest.raises(ValueError, match=r"got \[28, 4\] and \[27\]"):
        select(name, (features, labels[1:]), 3)
    with pytest.raises(ValueError, match="finite"):
        select(name, (features * np.nan, labels), 3)


def test_unknown_name():
    with pytest.raises(ValueError, match="'magic'.*kmeans_medoids, random"):
        selection.get("magic")
