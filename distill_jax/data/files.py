"""A corpus from the user's own files.

Read are TSV (no quoting), CSV (quoted), JSON lines, parquet, each also with .gz
(parquet without), and trees of one folder a class with one .txt a text.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.data.dataset import UNLABELLED, Dataset, assemble, digest, make_split

_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".tsv.gz", ".csv.gz", ".jsonl.gz")
_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
Rows = tuple[list[str], list[str]]  # texts, labels as written


def files(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    deduplicate: bool = True,
) -> Dataset:
    """A corpus from a folder of splits, one file, or a tree of class folders.

    A folder holds `train.SUFFIX` and, if there are any, `validation.SUFFIX` (or
    valid, val, dev) and `test.SUFFIX`; or the folders train, validation, test, each
    with a folder of .txt files a class; or class folders alone. Label names are the
    label values in train, sorted (as numbers where all are integers), unless a
    `manifest.json` beside the folder lists them under
    `datasets.FOLDER.labels`; integer labels are then indices into that list.

    Args:
        path: folder or file.
        text_column: name of the column of texts.
        label_column: name of the column of labels, integers or strings.
        deduplicate: see `assemble`.

    Returns:
        The corpus; splits that are missing are carved from train.

    Raises:
        FileNotFoundError: no such path, or no train split in the folder.
        ValueError: a file that is empty, not UTF-8, or without the columns; labels
            that are missing or not seen in train; one class only.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    notes: list[str] = []
    manifest: Mapping[str, Any] = {}
    if path.is_file():
        _suffix(path)
        name, sources = path.name.removesuffix(_suffix(path)), {"train": path}
    else:
        path = path.resolve()
        name, manifest = path.name, _manifest(path)
        sources = _find_splits(path)
    raw, sha256 = {}, {}
    for part, source in sources.items():
        if source.is_dir():
            raw[part], sha256[source.name] = read_tree(source, notes=notes)
        else:
            raw[part] = _read(source, text_column, label_column)
            sha256[source.name] = digest(source)
    names, labels = _index(name, {p: rows[1] for p, rows in raw.items()}, manifest)
    return assemble(
        name,
        names,
        {part: make_split(raw[part][0], labels[part]) for part in raw},
        provenance=str(manifest.get("provenance") or f"files: {', '.join(sha256)}"),
        sha256=sha256,
        deduplicate=deduplicate,
        notes=notes,
    )


def read_tree(
    folder: Path, encoding: str = "utf-8", notes: list[str] | None = None
) -> tuple[Rows, str]:
    """Texts and labels of a folder with one folder of .txt files a class.

    Args:
        folder: what holds the class folders. One called `unsup` (the unlabelled part
            of the original IMDB archive) is passed over.
        encoding: of the texts.
        notes: what was passed over is appended here.

    Returns:
        `((texts, labels), sha256)`, in the order of class and file names; the digest
        covers names and contents.
    """
    texts, labels, sha256 = [], [], hashlib.sha256()
    for group in sorted(p for p in folder.iterdir() if p.is_dir()):
        if group.name == "unsup":
            if notes is not None:
                notes.append(f"{folder.name}/unsup: unlabelled, not read")
            continue
        for file in sorted(group.glob("*.txt")):
            data = file.read_bytes()
            texts.append(_decode(data, file, encoding))
            labels.append(group.name)
            line = hashlib.sha256(data).hexdigest()
            sha256.update(f"{group.name}/{file.name} {line}\n".encode())
    if not texts:
        raise ValueError(f"{folder}: no .txt files in folders named by their class")
    return (texts, labels), sha256.hexdigest()


def _suffix(path: Path) -> str:
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return suffix
    raise ValueError(
        f"{path}: cannot tell its format; the name must end in " + ", ".join(_SUFFIXES)
    )


def _manifest(folder: Path) -> Mapping[str, Any]:
    path = folder.parent / "manifest.json"
    if not path.is_file():
        return {}
    try:
        entry = json.loads(path.read_text("utf-8"))["datasets"][folder.name]
        if not isinstance(entry, dict):
            return {}
    except (ValueError, KeyError, TypeError):
        # Many programs write a manifest.json; one without this entry is not ours.
        return {}
    return entry


def _find_splits(folder: Path) -> dict[str, Path]:
    found = {}
    for part, names in _NAMES.items():
        candidates = [folder / (n + s) for n in names for s in _SUFFIXES]
        candidates = [p for p in candidates if p.is_file()]
        candidates += [folder / n for n in names if (folder / n).is_dir()]
        if len(candidates) > 1:
            raise ValueError(
                f"{folder}: several files for the {part} split: "
                + ", ".join(p.name for p in candidates)
                + "; keep one"
            )
        if candidates:
            found[part] = candidates[0]
    if "train" in found:
        return found
    if not found and any(folder.glob("*/*.txt")):
        return {"train": folder}
    raise FileNotFoundError(
        f"{folder}: no train split; expected train with one of "
        + ", ".join(_SUFFIXES)
        + ", or a folder of .txt files for each class"
    )


def _read(path: Path, text_column: str, label_column: str) -> Rows:
    suffix = _suffix(path)
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    if suffix == ".parquet":
        rows = _parquet(path, text_column, label_column)
    else:
        content = _decode(_bytes(path, suffix), path)
        reader = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl}
        rows = reader[suffix.removesuffix(".gz")](
            content, path, text_column, label_column
        )
    texts, labels = [], []
    for where, text, label in rows:
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{path}: {where}: column {text_column!r} holds {text!r}, expected text"
            )
        texts.append(text or "")
        labels.append(_label(label, path, where, label_column))
    if not texts:
        raise ValueError(f"{path}: the file has no rows")
    return texts, labels


def _bytes(path: Path, suffix: str) -> bytes:
    data = path.read_bytes()
    if suffix.endswith(".gz"):
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    return data


def _decode(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _columns(path: Path, found: Sequence[str], *wanted: str) -> list[int]:
    for column in wanted:
        if column not in found:
            raise ValueError(
                f"{path}: no column {column!r}; its columns are "
                + ", ".join(map(repr, found))
            )
    return [list(found).index(column) for column in wanted]


def _tsv(content: str, path: Path, *wanted: str) -> Iterator[tuple[str, Any, Any]]:
    lines = content.split("\n")
    header = lines[0].rstrip("\r").split("\t")
    text, label = _columns(path, header, *wanted)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip("\r"):
            continue
        cells = line.rstrip("\r").split("\t")
        _same_width(path, number, cells, header)
        yield f"line {number}", cells[text], cells[label]


def _csv(content: str, path: Path, *wanted: str) -> Iterator[tuple[str, Any, Any]]:
    # The module's own limit, 128 KiB a cell, is less than a long document.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        header = next(reader, [])
        text, label = _columns(path, header, *wanted)
        for cells in reader:
            if cells:
                _same_width(path, reader.line_num, cells, header)
                yield f"line {reader.line_num}", cells[text], cells[label]
    except csv.Error as error:
        raise ValueError(f"{path}: not a well-formed CSV file ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _same_width(path: Path, line: int, cells: list[str], header: list[str]) -> None:
    if len(cells) != len(header):
        raise ValueError(
            f"{path}: line {line} has {len(cells)} columns, the header {len(header)}"
        )


def _jsonl(content: str, path: Path, *wanted: str) -> Iterator[tuple[str, Any, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object")
        _columns(path, list(row), *wanted)
        yield f"line {number}", row[wanted[0]], row[wanted[1]]


def _parquet(path: Path, *wanted: str) -> Iterator[tuple[str, Any, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _columns(path, file.schema_arrow.names, *wanted)
            table = file.read(list(wanted))
        columns = [table.column(name).to_pylist() for name in wanted]
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: column {wanted[0]!r} holds bytes that are not UTF-8"
        ) from None
    for number, (text, label) in enumerate(zip(*columns, strict=True), 1):
        yield f"row {number}", text, label


def _label(value: Any, path: Path, where: str, column: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | str) and str(value).strip():
        return str(value).strip()
    raise ValueError(
        f"{path}: {where}: column {column!r} holds {value!r}, "
        "expected an integer or a name"
    )


def _index(
    name: str, labels: Mapping[str, list[str]], manifest: Mapping[str, Any]
) -> tuple[list[str], dict[str, list[int]]]:
    in_train = set(labels["train"])
    numbers = all(re.fullmatch(r"[+-]?\d+", value) for value in in_train)
    if manifest.get("labels"):
        names = [str(value) for value in manifest["labels"]]
        index = {value: i for i, value in enumerate(names)}
        index |= {str(i): i for i in range(len(names)) if str(i) not in index}
    else:
        names = sorted(in_train, key=int) if numbers else sorted(in_train)
        index = {value: i for i, value in enumerate(names)}
    indices = {}
    for part, values in labels.items():
        unseen = sorted(set(values) - set(index))
        if unseen == ["-1"] and set(values) == {"-1"} and part != "train":
            indices[part] = [UNLABELLED] * len(values)
            continue
        if unseen:
            known = "the labels of manifest.json" if "labels" in manifest else "train"
            raise ValueError(
                f"{name}: {part} has labels not seen in {known}: "
                + ", ".join(map(repr, unseen[:10]))
            )
        indices[part] = [index[value] for value in values]
    return names, indices
