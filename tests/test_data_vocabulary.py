"""Tokens, ids and their statistics."""

import numpy as np
import pytest

from distill_jax.data import Vocabulary, tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I don't, can't; won't!", "i do n't , ca n't ; wo n't !"),
        ("It's they're I've we'll he'd I'm", "it 's they 're i 've we 'll he 'd i 'm"),
        ("It does n't 's already split", "it does n't 's already split"),
        ("don\u2019t say \u201chi\u201d", "do n't say \" hi \""),
        ("a well-made film -- wow...", "a well - made film -- wow ..."),
        ("``quoted''", "`` quoted ''"),
        ("$1,000.50 in 1999, 3.", "$ 1,000.50 in 1999 , 3 ."),
        ("good<br /><br/>bad <i>x</i> <3", "good bad x < 3"),
        ("Street #39;s AT&amp;T", "street 's at & t"),
        ("quot;key quot; result;", '" key " result ;'),
        ("café naïve", "café naïve"),
        ("it\x92s \x96 so", "it 's -- so"),
        ("n'ts 'sad mustn't've", "n ' ts ' sad must n't 've"),
        (" \n\t", ""),
    ],
)  # fmt: skip
def test_tokens(text, tokens):
    assert tokenize(text) == tokens.split()


def test_ids_follow_frequency_then_spelling():
    vocabulary = Vocabulary.build(["b a c", "b c", "d"])
    assert vocabulary.words == ("<pad>", "<unk>", "b", "c", "a", "d")
    assert Vocabulary.build(["d", "c b", "c a b"]) == vocabulary
    assert Vocabulary.build(["b a c", "b c"], max_size=3).words[2:] == ("b",)
    assert Vocabulary.build(["b a c", "b c"], min_count=2).words[2:] == ("b", "c")
    assert len(vocabulary) == 6


def test_encoding_cuts_pads_and_never_leaves_a_row_empty():
    vocabulary = Vocabulary.build(["a a b"])
    tokens = vocabulary.encode(["a b a b", "b what", "<br />", "A"], 3)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[2, 3, 2], [3, 1, 0], [1, 0, 0], [2, 0, 0]]


def test_restricted_vocabulary_keeps_its_order():
    vocabulary = Vocabulary.build(["c c c b b a"]).restrict({"a", "c"})
    assert vocabulary.words == ("<pad>", "<unk>", "c", "a")


def test_unknown_shares_count_tokens_and_types():
    vocabulary = Vocabulary.build(["a b"])
    shares = vocabulary.unknown_shares(["a a x", "x y"])
    assert shares == {"tokens": pytest.approx(3 / 5), "types": pytest.approx(2 / 3)}
    assert vocabulary.unknown_shares([]) == {"tokens": 0, "types": 0}


def test_sha256_tells_vocabularies_apart():
    one, two = Vocabulary.build(["a b"]), Vocabulary.build(["a c"])
    assert one.sha256 == Vocabulary.build(["b a"]).sha256 != two.sha256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary.build([" "]), "no words left of 0"),
        (lambda: Vocabulary.build(["a"], min_count=2), "no words left of 1 with min_c"),
        (lambda: Vocabulary.build(["a"], max_size=2), "no words left of 1 .*max_size"),
        (lambda: Vocabulary(("a", "b")), "begins with '<pad>', '<unk>'"),
        (lambda: Vocabulary(("<pad>", "<unk>", "a", "a")), "'a' is twice"),
        (lambda: Vocabulary.build(["a"]).encode(["a"], 0), "length is 0"),
    ],
)
def test_bad_vocabularies_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
