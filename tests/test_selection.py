"""What every registered selection must do, and what each one promises."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax import selection
from distill_jax.selection import SELECTIONS, coverage

# Of these a key decides one thing: which classes give one more.
DETERMINISTIC = {"herding", "k_center"}
SORTED_FIRST = {"el2n", "herding", "k_center", "kmeans_medoids"}
SORTED_FIRST |= {"kmeans_medoids_global"}
BALANCED = sorted(set(SELECTIONS) - {"random", "kmeans_medoids_global"})
every = pytest.mark.parametrize("name", sorted(SELECTIONS))
balanced = pytest.mark.parametrize("name", BALANCED)
COUNTS = (12, 7, 9)
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "active_learning.json"


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


@every
def test_what_a_key_decides_where_classes_share_evenly(name, corpus):
    draws = {tuple(select(name, corpus, 6, seed)) for seed in range(8)}
    assert (len(draws) == 1) == (name in DETERMINISTIC)


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
@pytest.mark.parametrize("n", [10, 20])
def test_a_permuted_corpus(name, corpus, n):
    """Most do not see the order; random draws differ but keep their counts."""
    features, labels = corpus
    order = np.random.default_rng(1).permutation(len(labels))
    before = select(name, corpus, n)
    after = select(name, (features[order], labels[order]), n)
    if name in SORTED_FIRST:
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
    with pytest.raises(ValueError, match="'magic'.*kmeans_medoids_global, random"):
        selection.get("magic")


# k-center, herding, EL2N


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the golden numbers are not beside this checkout")
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(3).normal(size=(9, 2))


def in_one_class(name, points, n):
    labels = np.zeros(len(points), int)
    return selection.get(name)(points, labels, n, jax.random.key(0)).tolist()


def test_k_center_golden(golden):
    g = golden["kcenter_greedy"]
    got = coverage.furthest_first(np.array(g["points"]), g["k"], g["labelled"])
    assert got == g["selected_in_order"]


def test_k_center_is_the_greedy_of_its_definition(points):
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    expected = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    while len(expected) < 6:
        expected.append(int(distance[:, expected].min(1).argmax()))
    assert in_one_class("k_center", points, 6) == expected


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_center_covers_within_twice_the_least_radius(points, k):
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)

    def radius(chosen):
        return distance[:, list(chosen)].min(1).max()

    least = min(map(radius, itertools.combinations(range(len(points)), k)))
    got = radius(in_one_class("k_center", points, k))
    assert least <= got <= 2 * least
    assert got <= radius(in_one_class("k_center", points, max(1, k - 1)))


def test_herding_golden(golden):
    g = golden["herding"]
    got = in_one_class("herding", np.array(g["points"]), g["k"])
    assert got == g["selected_in_order"]


def test_herding_of_unit_vectors_keeps_the_sum_nearest_to_the_mean():
    """With equal norms, the largest inner product is the least distance."""
    units = np.random.default_rng(4).normal(size=(20, 3))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    expected: list[int] = []
    while len(expected) < 8:
        off = (len(expected) + 1) * units.mean(0) - units[expected].sum(0) - units
        errors = np.linalg.norm(off, axis=1)
        errors[expected] = np.inf
        expected.append(int(errors.argmin()))
    assert in_one_class("herding", units, 8) == expected


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_el2n_golden(golden, dtype, tolerance):
    g = golden["el2n"]
    probs = np.array([g["probs_NC"]], dtype)
    got = selection.el2n_scores(probs, np.array(g["labels"]))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, g["el2n"], atol=tolerance)


def test_el2n_scores_are_means_of_norms_not_norms_of_means():
    probs = np.array([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    assert selection.el2n_scores(probs, np.array([0])) == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match=r"got \[1, 3\] and \[1\]"):
        selection.el2n_scores(probs[0], np.array([0]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 3"):
        selection.el2n_scores(probs, np.array([3]))


@pytest.fixture(scope="module")
def mislabelled():
    """Two clouds, 20 examples each, and two of each with the other's label."""
    rng = np.random.default_rng(5)
    cloud = np.repeat([0, 1], 20)
    features = 5 * (2 * cloud[:, None] - 1) + rng.normal(size=(40, 3))
    wrong = np.array([3, 11, 24, 37])
    labels = cloud.copy()
    labels[wrong] = 1 - labels[wrong]
    return features, labels + 7, wrong  # any integers will do


@pytest.mark.parametrize("keep", ["easy", "hard", "middle"])
def test_el2n_tells_mislabelled_examples(mislabelled, keep):
    features, labels, wrong = mislabelled
    got = selection.el2n(features, labels, 4, jax.random.key(0), keep=keep)
    if keep == "hard":
        assert sorted(got) == wrong.tolist()
    else:
        assert not set(got) & set(wrong)


def test_el2n_keeps_what_it_says(mislabelled):
    """Of all in one class: easy rises, hard is its reverse, middle spreads out."""
    features, labels, _ = mislabelled
    rows = np.flatnonzero(labels == 7)

    def ranked(keep):
        got = selection.el2n(features, labels, 40, jax.random.key(1), keep=keep)
        return [i for i in got.tolist() if i in rows]

    easy, hard, middle = map(ranked, ("easy", "hard", "middle"))
    assert easy == hard[::-1] and sorted(middle) == rows.tolist()
    assert set(middle[:10]) == set(easy[5:15])


def test_el2n_default_is_easy(mislabelled):
    features, labels, _ = mislabelled
    easy = selection.el2n(features, labels, 6, jax.random.key(2), keep="easy")
    np.testing.assert_array_equal(easy, select("el2n", (features, labels), 6, 2))


def test_el2n_settings(corpus):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="one of easy, hard, middle, got 'best'"):
        selection.el2n(*corpus, 3, key, keep="best")
    with pytest.raises(ValueError, match="1 or more, got 0 and 3"):
        selection.el2n(*corpus, 3, key, num_networks=0)


def test_global_medoids_read_no_label(corpus):
    features, labels = corpus
    chosen = select("kmeans_medoids_global", corpus, 5)
    other = np.roll(labels, 1)
    np.testing.assert_array_equal(
        chosen, select("kmeans_medoids_global", (features, other), 5)
    )


def test_global_medoids_find_planted_clusters():
    rng = np.random.default_rng(2)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    features = np.repeat(centres, 6, 0) + 0.1 * rng.normal(size=(24, 2))
    chosen = selection.get("kmeans_medoids_global")(
        features, np.zeros(24, int), 4, jax.random.key(0)
    )
    assert sorted(chosen // 6) == [0, 1, 2, 3]
