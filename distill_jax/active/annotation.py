"""Labels by hand: a CSV file of questions, and the answers read back from it."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.active.pool import Oracle
from distill_jax.data import Dataset, Split

COLUMNS = ("id", "text", "label")


class AwaitingLabels(Exception):
    """Somebody has to label a file before the run can go on.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, count: int, label_names: Sequence[str]):
        self.path = path
        names = ", ".join(f"{i} or {name}" for i, name in enumerate(label_names))
        super().__init__(
            f"{count} sentences wait for a label in {path}.\n"
            f"Fill its column 'label' (one of: {names}), then run the same command "
            "with --resume."
        )


def by_hand(
    folder: str | Path, texts: Sequence[str], label_names: Sequence[str]
) -> Oracle:
    """An oracle that is somebody who fills in `folder/queried-0.csv`, -1, ...

    A question writes the next file and raises `AwaitingLabels`; asked the same again,
    it reads the answers.

    Args:
        folder: of the files.
        texts: `[N]`, of all items.
        label_names: C names.
    """

    def answers(ids: np.ndarray) -> np.ndarray:
        asked, number = [int(i) for i in ids], 0
        while (path := Path(folder) / f"queried-{number}.csv").exists():
            there = {cells["id"].strip() for _, cells in _rows(path, COLUMNS)}
            # No item is asked twice, so the file of another round shares none.
            if not there or there & {str(i) for i in asked}:
                return read_answers(path, asked, label_names)
            number += 1
        write_questions(path, asked, [texts[i] for i in asked])
        raise AwaitingLabels(path, len(asked), label_names)

    return answers


def write_questions(path: str | Path, ids: Sequence[int], texts: Sequence[str]) -> None:
    """Writes `id,text,label` with empty labels; all of it, or nothing."""
    path = Path(path)
    content = io.StringIO(newline="")
    table = csv.writer(content)
    table.writerow(COLUMNS)
    table.writerows((int(i), text, "") for i, text in zip(ids, texts, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with open(fresh, "w", encoding="utf-8", newline="") as file:
        file.write(content.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def read_answers(
    path: str | Path, ids: Sequence[int], label_names: Sequence[str]
) -> np.ndarray:
    """The labels somebody has filled in.

    Args:
        path: what `write_questions` wrote.
        ids: `[n]`, what was asked.
        label_names: C names; an answer is one of them, or its number.

    Returns:
        int32 `[n]`, in the order of `ids`.

    Raises:
        ValueError: for ids that were not asked, are missing or come twice, and for
            labels that are missing or unknown; says which and where.
    """
    path = Path(path)
    asked = {int(i) for i in ids}
    answers: dict[int, tuple[str, str]] = {}
    for where, cells in _rows(path, COLUMNS):
        item = cells["id"].strip()
        if not item.isdecimal() or int(item) not in asked:
            raise ValueError(
                f"{where}: the id {item!r} was not asked; leave the ids as they were"
            )
        if int(item) in answers:
            raise ValueError(f"{where}: the id {item} comes twice; keep one of them")
        answers[int(item)] = (where, cells["label"].strip())
    absent = [i for i in sorted(asked) if i not in answers]
    if absent:
        raise ValueError(
            f"{path}: the rows of {len(absent)} ids are missing, the first is "
            f"{absent[0]}; every sentence asked needs its row"
        )
    empty = [(i, where) for i, (where, label) in answers.items() if not label]
    if empty:
        raise ValueError(
            f"{empty[0][1]}: no label for id {empty[0][0]} ({len(empty)} of "
            f"{len(asked)} are missing); fill them in, then --resume"
        )
    return np.array([_index(*answers[int(i)], label_names) for i in ids], np.int32)


def _index(where: str, label: str, label_names: Sequence[str]) -> int:
    names = list(label_names)
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    known = ", ".join(f"{i} or {name}" for i, name in enumerate(names))
    raise ValueError(f"{where}: unknown label {label!r}; known: {known}")


def read_texts(path: str | Path, column: str) -> list[str]:
    """Sentences without labels: a .txt file, one a line, or a column of .csv or .tsv.

    Raises:
        FileNotFoundError, ValueError: for no file, another kind, or no text in it.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".csv", ".tsv"):
        raise ValueError(f"--pool must be a .txt, .csv or .tsv file, got {path}")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".txt":
        texts = _decoded(path).splitlines()
    else:
        texts = [cells[column] for _, cells in _rows(path, (column,))]
    texts = [text for text in (" ".join(text.split()) for text in texts) if text]
    if not texts:
        raise ValueError(f"{path} has no text")
    return texts


def with_pool(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """The corpus with unlabelled text in the place of train, all of class 0.

    Texts that are in validation or test, in whatever case, are left out.

    Raises:
        ValueError: if none is left.
    """
    held_out = (*dataset.validation.texts, *dataset.test.texts)
    seen = {text.lower() for text in held_out}
    kept = tuple(text for text in texts if text.lower() not in seen)
    if not kept:
        raise ValueError("every text of the pool is in validation or test")
    unknown = Split(kept, np.zeros(len(kept), np.int32))
    return dataclasses.replace(dataset, train=unknown)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields `(where, {column: cell})`; spreadsheets may have changed the comma."""
    content = _decoded(path)
    header = content.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    absent = [name for name in columns if name not in (table.fieldnames or ())]
    if absent:
        raise ValueError(
            f"{path} has no column {absent[0]!r}; it needs {', '.join(columns)}"
        )
    for cells in table:
        if any(cell is None for cell in cells.values()) or None in cells:
            raise ValueError(
                f"{path}, line {table.line_num}: its columns are not those of the "
                "header; put a text with a comma in quotes"
            )
        yield f"{path}, line {table.line_num}", cells


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets add a mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
