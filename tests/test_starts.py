"""What every start of the distilled sentences gives, and what each one means."""

import sys

import jax
import numpy as np
import pytest
from scipy import stats

from distill_jax import contrib, starts
from distill_jax.starts import Corpus
from distill_jax.types import Batch

N, L, D, C = 24, 5, 3, 3
STARTS = starts.STARTS | {
    "class_means": contrib.class_means,
    **{name: starts.get(name) for name in ("kmeans_medoids", "herding")},
}
every = pytest.mark.parametrize("name", sorted(STARTS))
KEY = jax.random.key(4)


def corpus(dtype=np.float32) -> Corpus:
    """Sentences of 1 to 3 words, classes apart from each other, two kinds in each."""
    r = np.random.default_rng(0)
    labels = r.permutation(np.arange(N) % C)
    kind = np.arange(N) // 2 % 2
    x = r.normal(size=(N, L, D)) * 0.1 + labels[:, None, None]
    x = (x + 40 * kind[:, None, None]).astype(dtype)
    mask = (np.arange(L) < r.integers(1, 4, size=(N, 1))).astype(dtype)
    mask[0] = np.arange(L) < 3
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    def sentences(rows):
        return Batch(x[rows], mask[rows], np.eye(C)[labels[rows]])

    tokens = np.where(mask > 0, 1 + np.arange(N * L).reshape(N, L), 0)
    table = np.concatenate([np.zeros((1, D), dtype), x.reshape(-1, D)])
    return Corpus(mean, labels, sentences, tokens, table)


@every
@pytest.mark.parametrize("n", [3, 9, 7])
def test_balanced_sentences_in_rounds(name, n):
    x, labels = STARTS[name](corpus(), n, KEY)
    assert x.shape == (n, L, D) and x.dtype == np.float32 and np.isfinite(x).all()
    assert isinstance(x, np.ndarray) and labels.shape == (n,)
    counts = np.bincount(labels, minlength=C)
    assert counts.max() - counts.min() == (n % C > 0)
    for first in range(0, n - n % C, C):
        assert sorted(labels[first : first + C]) == [0, 1, 2]
    assert len({row.tobytes() for row in x}) == n


@every
def test_the_same_key_gives_the_same(name):
    once, again = (STARTS[name](corpus(), 6, KEY) for _ in range(2))
    np.testing.assert_array_equal(once.x, again.x)
    np.testing.assert_array_equal(once.labels, again.labels)


@pytest.mark.parametrize("name", ["noise", "real"])
def test_another_key_gives_others(name):
    draws = {STARTS[name](corpus(), 3, jax.random.key(s)).x.tobytes() for s in range(4)}
    assert len(draws) > 1


@pytest.mark.parametrize("name", ["real", "kmeans_medoids", "herding"])
def test_real_sentences_keep_their_label_and_have_no_padding(name):
    real = corpus()
    all_of_them = real.sentences(np.arange(N))
    whole = all_of_them.x * all_of_them.mask[..., None]
    x, labels = STARTS[name](real, 9, KEY)
    for sentence, label in zip(x, labels, strict=True):
        (row,) = np.flatnonzero((whole == sentence).all((1, 2)))
        assert real.labels[row] == label


def test_starts_differ():
    assert len({STARTS[name](corpus(), 6, KEY).x.tobytes() for name in STARTS}) == 6


def test_one_mean_of_a_class_by_hand():
    real = corpus()
    x, labels = contrib.class_means(real, C, KEY)
    for sentence, label in zip(x, labels, strict=True):
        own = real.sentences(np.flatnonzero(real.labels == label))
        words = [[] for _ in range(L)]
        for tokens, mask in zip(own.x, own.mask, strict=True):
            for place in np.flatnonzero(mask):
                words[place].append(tokens[place])
        assert words[0] and not words[4]
        everything = np.mean([word for place in words for word in place], 0)
        for place in range(L):
            expected = np.mean(words[place], 0) if words[place] else everything
            np.testing.assert_allclose(sentence[place], expected, rtol=1e-5)


def test_two_means_of_a_class_are_its_two_kinds():
    x, labels = contrib.class_means(corpus(), 2 * C, KEY)
    for label in range(C):
        low, high = np.sort(x[labels == label].mean((1, 2)))
        assert low == pytest.approx(label, abs=0.2)
        assert high == pytest.approx(label + 40, abs=0.2)


def test_means_do_not_depend_on_how_many_are_embedded_at_once(monkeypatch):
    whole = contrib.class_means(corpus(), 6, KEY).x
    module = sys.modules[contrib.class_means.__module__]
    monkeypatch.setattr(module, "_CHUNK", 3)
    np.testing.assert_allclose(
        contrib.class_means(corpus(), 6, KEY).x, whole, rtol=1e-6
    )


def test_means_of_a_class_of_one_sentence_over_and_over():
    labels = np.arange(12) % 2
    x = np.ones((12, L, D)) * labels[:, None, None] + 1
    real = Corpus(
        x.mean(1),
        labels,
        lambda rows: Batch(x[rows], np.ones((len(rows), L)), np.eye(2)[labels[rows]]),
    )
    got = contrib.class_means(real, 6, KEY)
    np.testing.assert_allclose(got.x, x[got.labels])


def worded(tokens, labels, table) -> Corpus:
    tokens = np.asarray(tokens)
    return Corpus(np.zeros((len(tokens), 1)), np.asarray(labels), None, tokens, table)


def test_keywords_are_in_the_order_of_chi_squared():
    r = np.random.default_rng(1)
    labels = np.arange(60) % 2
    tokens = r.integers(1, 30, (60, 8))
    tokens[labels == 1, 0] = 7
    tokens[:, 4:][r.random((60, 4)) < 0.5] = 0
    table = r.normal(size=(30, 2))
    table[[0, 11]] = 0
    x, classes = starts.keywords(worded(tokens, labels, table), 2, KEY)
    found = {}
    for word in range(1, 30):
        has = (tokens == word).any(1)
        cells = [
            [(has & (labels == c)).sum(), (~has & (labels == c)).sum()] for c in (0, 1)
        ]
        share = [row[0] / sum(row) for row in cells]
        if has.any() and share[0] != share[1] and word != 11:
            score = stats.chi2_contingency(cells, correction=False).statistic
            found.setdefault(int(share[1] > share[0]), []).append((-score, word))
    for sentence, label in zip(x, classes, strict=True):
        words = [word for _, word in sorted(found[int(label)])[:8]]
        np.testing.assert_array_equal(sentence[: len(words)], table[words])
        assert not sentence[len(words) :].any()
    assert sorted(found[1])[0][1] == 7


def test_keywords_are_dealt_out_to_the_sentences_of_a_class():
    tokens = [[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 0, 0], [1, 5, 6, 7], [5, 6, 3, 0]]
    tokens += [[5, 0, 0, 0]]
    table = np.arange(8.0)[:, None]
    x, classes = starts.keywords(worded(tokens, [0, 0, 0, 1, 1, 1], table), 4, KEY)
    first, second = x[classes == 0, :, 0]
    np.testing.assert_array_equal(first, [2, 4, 0, 0])
    np.testing.assert_array_equal(second, [1, 3, 0, 0])


def test_keywords_that_are_not_there():
    table = np.arange(4.0)[:, None]
    same = worded([[1, 2], [1, 2], [1, 2], [1, 3]], [0, 0, 1, 1], table)
    with pytest.raises(ValueError, match="class 0 has 1 words .* too few for 2"):
        starts.keywords(same, 4, KEY)
    with pytest.raises(ValueError, match="Corpus.tokens"):
        starts.keywords(same._replace(tokens=None), 2, KEY)


def test_noise_is_standard_normal():
    x, _ = starts.noise(corpus(), 24, KEY)
    assert x.mean() == pytest.approx(0, abs=0.15)
    assert x.std() == pytest.approx(1, abs=0.15)


@every
@pytest.mark.parametrize("n", [0, N + 1])
def test_too_few_or_many(name, n):
    with pytest.raises(ValueError, match=str(n)):
        STARTS[name](corpus(), n, KEY)


def test_a_name_that_is_not_known():
    with pytest.raises(ValueError, match="'means'; known: "):
        starts.get("means")
    assert starts.get("noise") is starts.noise


def test_another_length_cuts_or_repeats_words():
    x = np.zeros((3, 4, 2))
    x[0, :2] = [[1, 2], [3, 4]]
    x[1] = np.arange(8).reshape(4, 2) + 1
    longer, shorter = starts.with_length(x, 5), starts.with_length(x, 3)
    np.testing.assert_array_equal(longer[0], x[0][[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(longer[1], x[1][[0, 1, 2, 3, 0]])
    np.testing.assert_array_equal(shorter[0], x[0][[0, 1, 0]])
    np.testing.assert_array_equal(shorter[1], x[1][:3])
    assert not longer[2].any() and longer.shape == (3, 5, 2)
    x[0, 1] = 0  # a word without a vector inside a sentence is no padding
    x[0, 2] = 9
    np.testing.assert_array_equal(starts.with_length(x, 4)[0], x[0][[0, 1, 2, 0]])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        starts.with_length(x, 0)
