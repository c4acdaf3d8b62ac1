"""Word vectors from the installed package and from the user's files."""

import gzip
import hashlib

import numpy as np
import pytest

from distill_jax import data

WORDS = {"good": [1.0, 2.0], "bad": [-1.0, 0.5], "film": [0.25, 3.0], "zebra": [9, 9]}
LINES = "".join(f"{w} {v[0]} {v[1]}\n" for w, v in WORDS.items())


@pytest.fixture
def vocabulary():
    return data.Vocabulary.build(["film film film good good oov bad"])


def write(tmp_path, kind):
    if kind == "glove.txt":
        content = LINES
    elif kind == "word2vec.txt":
        content = "4 2\n" + LINES.replace("\n", " \n")
    elif kind == "tabs.vec":
        content = LINES.replace(" ", "\t")
    elif kind == "packed.txt.gz":
        (tmp_path / kind).write_bytes(gzip.compress(LINES.encode()))
        return tmp_path / kind
    else:
        stem = kind.removesuffix(".npy").removesuffix("_vectors")
        dtype = np.float16 if stem == "half" else np.float64
        np.save(tmp_path / kind, np.array(list(WORDS.values()), dtype))
        words = "".join(word + "\n" for word in WORDS)
        if stem == "half":
            (tmp_path / "half_vocab.txt.gz").write_bytes(gzip.compress(words.encode()))
        else:
            (tmp_path / f"{stem}_vocab.txt").write_text(words)
        return tmp_path / kind
    (tmp_path / kind).write_text(content)
    return tmp_path / kind


@pytest.mark.parametrize(
    "kind",
    [
        "glove.txt",
        "word2vec.txt",
        "tabs.vec",
        "packed.txt.gz",
        "plain.npy",
        "half_vectors.npy",
    ],
)
def test_every_format_gives_the_same_table(tmp_path, vocabulary, kind):
    path = write(tmp_path, kind)
    vectors = data.from_file(path, vocabulary)
    assert vectors.vocabulary.words == ("<pad>", "<unk>", "film", "good", "bad")
    assert vectors.table.dtype == np.float32
    rows = np.array([WORDS["film"], WORDS["good"], WORDS["bad"]])
    np.testing.assert_array_equal(vectors.table[0], [0, 0])
    np.testing.assert_allclose(vectors.table[1], rows.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(vectors.table[2:], rows)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert vectors.sha256[path.name] == digest
    assert vectors.vocabulary.encode(["oov film"], 2).tolist() == [[1, 2]]


def test_words_of_several_parts_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("good 1 2\n. . . 3 4\nbad 5 6\n")
    vectors = data.from_file(path, data.Vocabulary.build(["good good bad"]))
    assert vectors.table[2:].tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"film 1 2\ngood 1 nan\n", r"line 2 \('good'\) holds a number that is not"),
        (b"film 1 2\ngood 1 inf\n", r"line 2 \('good'\) holds a number that is not"),
        (b"film 1 2\nzebra 1\n", "line 2 has 1 numbers, expected 2"),
        (b"film 1 2\nzebra 1 2 3\n", "line 2 has 3 numbers, expected 2"),
        (b"film 1 2\ngood 1 x\n", r"line 2 \('good'\)"),
        (b"2 2\nfilm 1 2\n", "announces 2 words, it has 1"),
        (b"film 1 2\n\xff\xfe 1 2\n", "line 2 is not UTF-8"),
        (b"film\n", "line 1 has 0 numbers"),
        (b"zebra 1 2\n", "none of 4 words has a vector"),
        (b"", "the file is empty"),
    ],
)
def test_bad_text_vectors_are_refused(tmp_path, vocabulary, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.txt: .*{message}"):
        data.from_file(path, vocabulary)


def test_truncated_gzip_is_refused(tmp_path, vocabulary):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        data.from_file(path, vocabulary)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            np.full((4, 2), np.nan),
            r"row 2 \('film'\) holds a number that is not finite",
        ),
        (np.zeros((3, 2)), "3 rows, but a_vocab.txt lists 4 words"),
        (np.zeros(4), r"expected floats \[rows, D\], got float64 \(4,\)"),
        (np.zeros((4, 2), int), r"expected floats \[rows, D\], got int64"),
        (np.array([[{}]]), "not a .npy matrix"),
    ],
)
def test_bad_matrices_are_refused(tmp_path, vocabulary, matrix, message):
    np.save(tmp_path / "a_vectors.npy", matrix)
    (tmp_path / "a_vocab.txt").write_text("".join(word + "\n" for word in WORDS))
    with pytest.raises(ValueError, match=f"a_vectors.npy: .*{message}"):
        data.from_file(tmp_path / "a_vectors.npy", vocabulary)


def test_missing_files_are_named(tmp_path, vocabulary):
    with pytest.raises(FileNotFoundError, match="nosuch.txt: no such file"):
        data.from_file(tmp_path / "nosuch.txt", vocabulary)
    np.save(tmp_path / "a_vectors.npy", np.zeros((4, 2)))
    with pytest.raises(FileNotFoundError, match="one a line, in a_vocab.txt"):
        data.from_file(tmp_path / "a_vectors.npy", vocabulary)
    (tmp_path / "a.bin").write_bytes(b"1 2\n")
    with pytest.raises(ValueError, match="binary word2vec is not read"):
        data.from_file(tmp_path / "a.bin", vocabulary)


def test_random_vectors_follow_their_seed(vocabulary):
    one, again = (data.random_vectors(vocabulary, 300, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.table, again.table)
    assert (one.table != data.random_vectors(vocabulary, 300, seed=2).table)[2:].all()
    assert one.table.shape == (6, 300) and one.vocabulary == vocabulary
    assert not one.table[0].any()
    assert (one.table[2:] ** 2).sum(1) == pytest.approx(np.ones(4), abs=0.3)
    with pytest.raises(ValueError, match="dim is 0"):
        data.random_vectors(vocabulary, 0)


def glove_or_skip(vocabulary):
    try:
        return data.glove(vocabulary)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_glove_covers_split_contractions():
    words = data.Vocabulary.build(["The film doesn't work, it's qqzzxy..."])
    vectors = glove_or_skip(words)
    assert vectors.table.shape == (len(words) - 1, 50)
    assert "qqzzxy" not in vectors.vocabulary.ids and "n't" in vectors.vocabulary.ids
    the = vectors.table[vectors.vocabulary.ids["the"]]
    np.testing.assert_allclose(the[:3], [0.418, 0.24968, -0.41242], rtol=1e-6)


def test_installed_glove_agrees_with_the_shared_cut(shared_data):
    texts = data.load(str(shared_data / "sst5")).train.texts
    words = data.Vocabulary.build(texts)
    ours = glove_or_skip(words)
    cut = data.from_file(
        shared_data / "glove6b_50d" / "core_vectors.npy", ours.vocabulary
    )
    both = cut.vocabulary.words[2:]
    assert len(both) > 0.97 * len(ours.vocabulary)
    rows = [ours.vocabulary.ids[word] for word in both]
    np.testing.assert_allclose(ours.table[rows], cut.table[2:], atol=0.003)
    assert 0 < ours.vocabulary.unknown_shares(texts)["tokens"] < 0.005
