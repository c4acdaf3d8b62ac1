"""Corpora, vocabularies and word vectors."""

from pathlib import Path

import numpy as np

from distill_jax.data.dataset import Dataset, Split, from_lists
from distill_jax.data.embeddings import Vectors, from_file, glove, random_vectors
from distill_jax.data.files import files
from distill_jax.data.samples import bbc_news, imdb, rotten_tomatoes
from distill_jax.data.tfds import tfds
from distill_jax.data.vocabulary import Vocabulary, tokenize

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "Vectors",
    "Vocabulary",
    "bbc_news",
    "encode",
    "files",
    "from_file",
    "from_lists",
    "glove",
    "imdb",
    "load",
    "random_vectors",
    "rotten_tomatoes",
    "tfds",
    "tokenize",
    "unknown_shares",
]

DATASETS = {
    "bbc_news": bbc_news,
    "imdb": imdb,
    "rotten_tomatoes": rotten_tomatoes,
}


def load(
    source: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    deduplicate: bool = True,
) -> Dataset:
    """The corpus of a name, a path, or `tfds:NAME`.

    Args:
        source: a key of `DATASETS`; a folder or file (see `files`); or `tfds:` and a
            name of TensorFlow Datasets (see `tfds`).
        text_column: column or feature of texts; None for `text`, or what TFDS says.
        label_column: the same for labels; None for `label`.
        data_dir: where TFDS keeps prepared data; None for its default.
        download: let TFDS prepare, and fetch, what is not on disk.
        deduplicate: remove texts from train and validation that occur in a later
            split; off, they are only counted in the notes.

    Returns:
        The corpus with train, validation and test, the same at every call.

    Raises:
        ValueError: unknown name, or content that cannot be used.
        FileNotFoundError: no such path, or not prepared.
        ModuleNotFoundError: a package of the source is not installed.
    """
    if source in DATASETS:
        return DATASETS[source](deduplicate=deduplicate)
    if source.startswith("tfds:"):
        return tfds(
            source.removeprefix("tfds:"),
            data_dir=data_dir,
            text_column=text_column,
            label_column=label_column,
            download=download,
            deduplicate=deduplicate,
        )
    path = Path(source).expanduser()
    if not path.exists() and path.name == source and not path.suffix:
        raise ValueError(
            f"unknown dataset {source!r}; expected one of "
            + ", ".join(sorted(DATASETS))
            + ", tfds:NAME, or the path of a folder or file"
        )
    return files(
        path,
        text_column=text_column or "text",
        label_column=label_column or "label",
        deduplicate=deduplicate,
    )


def encode(
    dataset: Dataset, vocabulary: Vocabulary, length: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Token ids and labels of each split.

    Args:
        dataset: with N rows in a split.
        vocabulary: normally built from its train texts.
        length: L, at least 1; longer texts are cut off.

    Returns:
        `{split: (tokens int32 [N, L], labels int32 [N])}`.

    Raises:
        ValueError: `length` is less than 1.
    """
    return {
        name: (vocabulary.encode(split.texts, length), split.labels)
        for name, split in dataset.splits.items()
    }


def unknown_shares(
    dataset: Dataset, vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    """Share of tokens and of distinct words that are unknown, in each split.

    Args:
        dataset: the corpus.
        vocabulary: the words that are known.

    Returns:
        `{split: {"tokens": share, "types": share}}`, in [0, 1].
    """
    return {
        name: vocabulary.unknown_shares(split.texts)
        for name, split in dataset.splits.items()
    }
