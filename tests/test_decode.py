"""Nearest words are those of a plain search, in any shape and order."""

import numpy as np
import pytest

from distill_jax import decode
from distill_jax.decode import nearest_words

WORDS = ("<pad>", "<unk>", "north", "east", "north-east", "again north")
TABLE = np.array([[0, 0], [0.4, 0.5], [0, 2], [3, 0], [1, 1], [0, 5]], float)


def test_the_words_of_a_compass():
    x = np.array([[[0, 0.1], [7, 6.9], [-1, 0.1]]])
    found = nearest_words(x, TABLE, WORDS, k=2)
    assert found.words.shape == found.cosines.shape == found.ids.shape == (1, 3, 2)
    # "north" and "again north" are equally near: the smaller id comes first.
    assert found.words[0].tolist() == [
        ["north", "again north"],
        ["north-east", "<unk>"],
        ["north", "again north"],
    ]
    assert found.ids[0].tolist() == [[2, 5], [4, 1], [2, 5]]
    np.testing.assert_allclose(found.cosines[0, 0], [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.cosines[0, 2], 0.1 / np.hypot(1, 0.1), rtol=1e-5)


def test_equal_to_a_plain_search(monkeypatch):
    monkeypatch.setattr(decode, "_ROWS", 4)  # more than one chunk, the last not full
    rng = np.random.default_rng(0)
    table, x = rng.normal(size=(30, 5)), rng.normal(size=(2, 3, 3, 5))
    words = [f"w{i}" for i in range(30)]
    found = nearest_words(x, table, words, k=4)
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    for place in np.ndindex(2, 3, 3):
        cosines = units @ x[place] / np.linalg.norm(x[place])
        order = np.argsort(-cosines)[:4]
        assert found.ids[place].tolist() == order.tolist()
        assert found.words[place].tolist() == [words[i] for i in order]
        np.testing.assert_allclose(found.cosines[place], cosines[order], rtol=1e-5)


def test_scale_does_not_matter_and_a_word_finds_itself():
    table = np.random.default_rng(1).normal(size=(200, 50))
    words = [str(i) for i in range(200)]
    found = nearest_words(3 * table[None], 0.01 * table, words, k=1)
    assert found.ids[0, :, 0].tolist() == list(range(200))
    # Rounded, some come out above 1 unless they are clipped.
    assert found.cosines.max() == 1 and found.cosines.min() > 1 - 1e-6


def test_rows_and_words_of_zeros_have_no_direction():
    found = nearest_words(np.zeros((1, 2)), TABLE, WORDS, k=5)
    assert found.words.tolist() == [[""] * 5]
    assert not found.cosines.any() and not found.ids.any()
    # The padding is no word, even where every other one points away.
    away = nearest_words(np.array([[-1.0, -1.0]]), TABLE, WORDS, k=5)
    assert "<pad>" not in away.words and (away.cosines < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones(2)}, r"x must be \[..., L, D\].*got \[2\] and \[6, 2\]"),
        ({"x": np.ones((1, 3))}, r"got \[1, 3\] and \[6, 2\]"),
        ({"words": WORDS[1:]}, "5 words do not fit 6 vectors"),
        ({"x": np.full((1, 2), np.nan)}, "x must be finite"),
        ({"vectors": TABLE + np.inf}, "vectors must be finite"),
        ({"k": 0}, "k must be from 1 to 5.*got 0"),
        ({"k": 6}, "k must be from 1 to 5.*got 6"),
    ],
)
def test_bad_input(changes, message):
    given = {"x": np.ones((1, 2)), "vectors": TABLE, "words": WORDS, "k": 1}
    with pytest.raises(ValueError, match=message):
        nearest_words(**given | changes)
