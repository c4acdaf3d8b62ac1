"""The rules that make a corpus, and every registered corpus against them."""

import hashlib

import numpy as np
import pytest

from distill_jax import data
from distill_jax.data.dataset import Dataset, Split, assemble, carve, make_split

# These never change. A new value here is a new corpus: results are not comparable.
PINNED = {
    "bbc_news": "b7da7506b139dd74",
    "imdb": "9ecb93a832660a35",
    "rotten_tomatoes": "f8fb41aeef070480",
}
ROWS = {"bbc_news": 2_225, "imdb": 25_000, "rotten_tomatoes": 8_530}
CLASSES = {"bbc_news": 5, "imdb": 2, "rotten_tomatoes": 2}


def contents(dataset: Dataset) -> str:
    lines = [
        f"{name}\t{label}\t{text}\n"
        for name, split in dataset.splits.items()
        for text, label in zip(split.texts, split.labels, strict=True)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def split(*rows: tuple[str, int]) -> Split:
    return make_split([text for text, _ in rows], [label for _, label in rows])


def corpus(**splits: Split) -> Dataset:
    return assemble("toy", ("no", "yes"), splits, provenance="test", sha256={})


def many(count: int, start: int = 0) -> Split:
    return split(*((f"text {i}", i % 2) for i in range(start, start + count)))


@pytest.fixture(scope="module", params=sorted(data.DATASETS))
def registered(request) -> Dataset:
    try:
        return data.load(request.param)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_registered_corpus_is_whole_typed_and_stratified(registered):
    total = 0
    for part in registered.splits.values():
        assert part.labels.dtype == np.int32 and part.labels.shape == (len(part),)
        assert all(text and text == " ".join(text.split()) for text in part.texts)
        shares = np.bincount(part.labels, minlength=registered.num_classes) / len(part)
        if part is registered.train:
            train_shares = shares
        np.testing.assert_allclose(shares, train_shares, atol=0.01)
        total += len(part)
    removed = sum(
        int(word)
        for note in registered.notes
        if "removed" in note
        for word in note.split()
        if word.isdecimal()
    )
    assert total + removed == ROWS[registered.name]
    assert registered.num_classes == CLASSES[registered.name]
    assert len(registered.test) == pytest.approx(ROWS[registered.name] / 10, abs=3)
    assert len(registered.validation) == pytest.approx(len(registered.test), abs=3)
    assert all(len(value) == 64 for value in registered.sha256.values())
    assert registered.provenance


def test_registered_corpus_does_not_leak(registered):
    train, validation, test = (
        {text.lower() for text in part.texts} for part in registered.splits.values()
    )
    assert not train & validation and not train & test and not validation & test


def test_registered_corpus_never_changes(registered):
    assert contents(registered) == PINNED[registered.name]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'nosuch'.*bbc_news, imdb, rotten_tomatoes"):
        data.load("nosuch")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in data.DATASETS:
        with pytest.raises(ModuleNotFoundError, match=r'"distill_jax\[samples\]"'):
            data.load(name)


def test_carve_is_stratified_whole_and_blind_to_row_order():
    whole = split(*((f"text {i}", int(i % 4 == 0)) for i in range(40)))
    rest, carved = carve(whole, 8)
    assert np.bincount(carved.labels).tolist() == [6, 2]
    assert sorted(rest.texts + carved.texts) == sorted(whole.texts)
    order = np.random.default_rng(0).permutation(40)
    shuffled = Split(tuple(whole.texts[i] for i in order), whole.labels[order])
    assert set(carve(shuffled, 8)[1].texts) == set(carved.texts)


def test_carve_leaves_and_takes_one_of_every_class():
    rest, carved = carve(split(("a", 0), ("b", 0), ("c", 1), *[("d", 2)] * 20), 2)
    assert np.bincount(carved.labels, minlength=3).tolist() == [1, 0, 2]
    assert np.bincount(rest.labels, minlength=3).tolist() == [1, 1, 18]


def test_missing_splits_are_a_tenth_each_and_noted():
    made = corpus(train=many(100))
    assert [len(part) for part in made.splits.values()] == [80, 10, 10]
    assert len(made.notes) == 2 and all("carved" in note for note in made.notes)


def test_carved_splits_are_bounded():
    made = corpus(train=many(30_000))
    assert [len(part) for part in made.splits.values()] == [25_000, 2_500, 2_500]


def test_texts_of_several_splits_stay_in_the_last():
    parts = {
        "train": split(("a", 0), ("b", 1), (" C\tc ", 0), ("D", 1)),
        "validation": split(("c C", 0), ("e", 1)),
        "test": split(("d", 1), ("E", 1), ("f", 0)),
    }
    made = assemble("toy", ("no", "yes"), parts, provenance="", sha256={})
    assert made.train.texts == ("a", "b")
    assert made.validation.texts == ("c C",)
    assert made.test.texts == ("d", "E", "f")
    assert made.notes == (
        "train: removed 2 rows whose text is also in validation or test",
        "validation: removed 1 rows whose text is also in test",
    )
    kept = assemble(
        "toy", ("no", "yes"), parts, provenance="", sha256={}, deduplicate=False
    )
    assert kept.train.texts == ("a", "b", "C c", "D") and len(kept.validation) == 2
    assert "train: kept 2 rows" in kept.notes[0]


def test_unlabelled_test_is_discarded_and_carved():
    unlabelled = make_split(["x", "y"], [-1, -1])
    made = corpus(train=many(40), validation=many(4, 50), test=unlabelled)
    assert len(made.test) == 4 and "x" not in made.test.texts
    assert made.notes[0] == "test: discarded, its 2 rows have no labels"


def test_rows_without_text_are_dropped_and_noted():
    made = corpus(train=split((" \n", 0), *((f"t{i}", i % 2) for i in range(20))))
    assert "train: dropped 1 rows without text" in made.notes
    assert sum(map(len, made.splits.values())) == 20


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": split(*((f"t{i}", 1) for i in range(9)))}, r"one class only \('yes"),
        ({"train": split(("", 0))}, "train split has no rows"),
        ({"train": split(("a", 0), ("b", 1))}, "too small to carve"),
        ({"test": many(4)}, "no train split"),
        ({"train": split(("a", 0), ("b", -1), ("c", 1))}, "1 of 3 rows of train have"),
        (
            {"train": many(9), "validation": split(("a", -1), ("b", 1))},
            "1 of 2 rows of validation",
        ),
        (
            {
                "train": split(("a", 0), ("b", 1)),
                "validation": split(("c", 0)),
                "test": split(("a", 0), ("B", 1)),
            },
            "every row of train is also in validation or test",
        ),
    ],
)
def test_unusable_corpora_are_refused(splits, message):
    with pytest.raises(ValueError, match=f"toy: .*{message}"):
        corpus(**splits)


def test_label_not_seen_in_train_is_named():
    parts = {"train": many(6), "validation": many(2, 6), "test": split(("z", 2))}
    with pytest.raises(ValueError, match="test has labels not seen in train: 'maybe'"):
        assemble("toy", ("no", "yes", "maybe"), parts, provenance="", sha256={})


def test_texts_and_labels_must_match():
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        make_split(["a", "b"], [0])


def test_encode_and_unknown_shares_cover_every_split():
    made = corpus(
        train=split(("a b", 0), ("b b", 1)),
        validation=split(("a c", 0)),
        test=split(("b", 1), ("d d", 0)),
    )
    vocabulary = data.Vocabulary.build(made.train.texts)
    encoded = data.encode(made, vocabulary, 3)
    assert {name: tokens.tolist() for name, (tokens, _) in encoded.items()} == {
        "train": [[3, 2, 0], [2, 2, 0]],
        "validation": [[3, 1, 0]],
        "test": [[2, 0, 0], [1, 1, 0]],
    }
    assert encoded["test"][1].tolist() == [1, 0]
    shares = data.unknown_shares(made, vocabulary)
    assert shares["train"] == {"tokens": 0, "types": 0}
    assert shares["test"] == {"tokens": pytest.approx(2 / 3), "types": 0.5}
