"""A labelled corpus, and the rules that every source follows to become one.

The rules, in order: white space is folded, rows without text are dropped, a split
whose labels are all missing is discarded, missing test and validation splits are
carved from train (each a tenth of it, at most 2,500 rows), and texts that occur in
several splits stay only in the last of train, validation, test. None depends on a
random generator, so splits never change.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNLABELLED = -1
_MOST_CARVED = 2_500


@dataclass(frozen=True)
class Split:
    """Texts and their labels.

    Attributes:
        texts: N strings, white space folded to single spaces.
        labels: int32 `[N]`, indices into `Dataset.label_names`.
    """

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """A corpus for text classification.

    Attributes:
        name: short, without a path.
        label_names: C names, in the order of the label indices.
        train: what may be learnt from.
        validation: what settings are selected on.
        test: what is scored once, at the end.
        provenance: where the text comes from.
        sha256: digest of every file that was read, by its name.
        notes: what was dropped, carved or found twice.
    """

    name: str
    label_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    provenance: str
    sha256: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.label_names)


def make_split(texts: Iterable[str], labels: Sequence[int] | np.ndarray) -> Split:
    """A `Split` with white space folded and labels as int32 `[N]`."""
    split = Split(
        tuple(" ".join(text.split()) for text in texts),
        np.asarray(labels, np.int32).reshape(-1),
    )
    if len(split.texts) != len(split.labels):
        raise ValueError(
            f"{len(split.texts)} texts but {len(split.labels)} labels; "
            "each text needs one label"
        )
    return split


def carve(split: Split, wanted: int) -> tuple[Split, Split]:
    """Cuts a stratified part off a split; the same part on every machine.

    Within each class the rows whose text has the smallest sha256 go, so equal texts
    go together. A class with two rows or more keeps one and gives one.

    Args:
        split: at least one row.
        wanted: how many rows to cut off, before rounding within classes.

    Returns:
        `(rest, carved)`, both in the order of `split`.
    """
    digests = [hashlib.sha256(t.lower().encode()).digest() for t in split.texts]
    carved = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        # Integers only: a float could round differently elsewhere.
        share = (2 * len(rows) * wanted + len(split)) // (2 * len(split))
        if len(rows) > 1:
            share = min(max(share, 1), len(rows) - 1)
        else:
            share = 0
        carved[sorted(rows, key=lambda i: (digests[i], i))[:share]] = True
    return _take(split, ~carved), _take(split, carved)


def assemble(
    name: str,
    label_names: Sequence[str],
    splits: Mapping[str, Split],
    *,
    provenance: str,
    sha256: Mapping[str, str],
    deduplicate: bool = True,
    notes: Sequence[str] = (),
) -> Dataset:
    """Applies the rules of this module to what a source read.

    Args:
        name: of the corpus; error messages begin with it.
        label_names: C names.
        splits: `train`, and `validation` and `test` where the source has them. A
            label of -1 means unlabelled.
        provenance: where the text comes from.
        sha256: digests of what was read.
        deduplicate: remove rows of train that are also in validation or test, and
            rows of validation that are also in test. Either way they are counted in
            `notes`. Case and white space do not count as a difference.
        notes: what the source itself has to say.

    Returns:
        The corpus, with all three splits.

    Raises:
        ValueError: no rows, unlabelled rows, only one class, or a label in
            validation or test that train does not have.
    """
    told = list(notes)
    parts = dict(splits)
    for part in list(parts):
        kept = np.array([bool(text) for text in parts[part].texts], bool)
        if not kept.all():
            told.append(f"{part}: dropped {(~kept).sum()} rows without text")
            parts[part] = _take(parts[part], kept)
        if not len(parts[part]):
            raise ValueError(f"{name}: the {part} split has no rows with text")
        unlabelled = int((parts[part].labels == UNLABELLED).sum())
        if unlabelled == len(parts[part]) and part != "train":
            told.append(f"{part}: discarded, its {unlabelled} rows have no labels")
            del parts[part]
        elif unlabelled:
            raise ValueError(
                f"{name}: {unlabelled} of {len(parts[part])} rows of {part} have no "
                "label (-1); label or remove them"
            )
    if "train" not in parts:
        raise ValueError(f"{name}: has no train split")
    wanted = min((len(parts["train"]) + 5) // 10, _MOST_CARVED)
    for part in ("test", "validation"):
        if part not in parts:
            parts["train"], parts[part] = carve(parts["train"], wanted)
            told.append(
                f"{part}: {len(parts[part])} rows carved from train, stratified"
            )
            if not len(parts[part]):
                raise ValueError(
                    f"{name}: train is too small to carve a {part} split from it; "
                    "give at least 3 rows a class, or a file for each split"
                )

    word = "removed" if deduplicate else "kept"
    for part, others in (("train", ("validation", "test")), ("validation", ("test",))):
        seen = {text.lower() for other in others for text in parts[other].texts}
        twice = np.array([text.lower() in seen for text in parts[part].texts], bool)
        if twice.any():
            told.append(
                f"{part}: {word} {twice.sum()} rows whose text is also in "
                + " or ".join(others)
            )
        if deduplicate:
            parts[part] = _take(parts[part], ~twice)
            if not len(parts[part]):
                raise ValueError(
                    f"{name}: every row of {part} is also in {' or '.join(others)}; "
                    "the splits must differ"
                )

    names = tuple(label_names)
    in_train = set(parts["train"].labels.tolist())
    if len(in_train) < 2:
        only = ", ".join(repr(names[i]) for i in in_train)
        raise ValueError(
            f"{name}: train has one class only ({only}); at least 2 are needed"
        )
    for part in ("validation", "test"):
        unseen = sorted(set(parts[part].labels.tolist()) - in_train)
        if unseen:
            raise ValueError(
                f"{name}: {part} has labels not seen in train: "
                + ", ".join(repr(names[i]) for i in unseen)
            )
    without = [names[i] for i in range(len(names)) if i not in in_train]
    if without:
        told.append("train: no rows of " + ", ".join(without))
    return Dataset(
        name,
        names,
        parts["train"],
        parts["validation"],
        parts["test"],
        provenance,
        dict(sha256),
        tuple(told),
    )


def from_lists(
    texts: Sequence[str],
    labels: Sequence[int | str] | np.ndarray,
    *,
    name: str = "lists",
    validation: tuple[Sequence[str], Sequence[int | str]] | None = None,
    test: tuple[Sequence[str], Sequence[int | str]] | None = None,
) -> Dataset:
    """A corpus from lists of texts and labels.

    Args:
        texts: N strings to train on.
        labels: `[N]`, whole numbers or names; classes are in their sorted order.
        name: of the corpus.
        validation, test: `(texts, labels)`; carved from the first unless given.

    Raises:
        ValueError: for labels of both kinds, and as `assemble` does.
    """
    given = {"train": (texts, labels), "validation": validation, "test": test}
    parts = {part: pair for part, pair in given.items() if pair is not None}
    found = {label for _, of_part in parts.values() for label in np.asarray(of_part)}
    kinds = {isinstance(label, str) for label in found}
    if len(kinds) > 1 or not all(isinstance(f, str | np.integer) for f in found):
        odd = next(f for f in found if not isinstance(f, str))
        raise ValueError(
            f"{name}: labels must be all whole numbers or all strings, got {odd!r}"
        )
    order = {label: i for i, label in enumerate(sorted(found))}
    splits = {
        part: make_split(some, [order[label] for label in np.asarray(of_part)])
        for part, (some, of_part) in parts.items()
    }
    return assemble(
        name, [str(label) for label in order], splits, provenance="lists", sha256={}
    )


def digest(path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take(split: Split, kept: np.ndarray) -> Split:
    return Split(
        tuple(split.texts[i] for i in np.flatnonzero(kept)), split.labels[kept]
    )
