"""A corpus from TensorFlow Datasets, read without TensorFlow.

Prepared data is found on disk before any builder is made, so neither the network nor
a builder's own requirements matter once it is there.
"""

import difflib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_jax.data.dataset import Dataset, Split, assemble, digest, make_split

_SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    download: bool = False,
    deduplicate: bool = True,
) -> Dataset:
    """A text classification corpus that TensorFlow Datasets knows or has prepared.

    Args:
        name: as TFDS writes it: `ag_news_subset`, `glue/sst2`, `trec:1.0.0`,
            `huggingface:NAME`.
        data_dir: where prepared data lies; None for TFDS's own default.
        text_column: text feature; None for the supervised one or the only one.
        label_column: class label feature; None for the supervised one, or the only
            one, or of several the one with the fewest classes, which is noted.
        download: prepare what is not on disk, from the network where it must.
        deduplicate: see `assemble`.

    Returns:
        The corpus; splits that are missing or unlabelled are carved from train.

    Raises:
        FileNotFoundError: not prepared, and `download` is off.
        ModuleNotFoundError: the builder itself needs a package that is missing.
        ValueError: unknown name, no usable text or label feature, or prepared files
            that hold fewer rows than they promise.
        RuntimeError: preparing failed.
    """
    # Both: the older text builders register when the second is imported.
    import tensorflow_datasets
    import tensorflow_datasets.text  # noqa: F401
    from tensorflow_datasets.core import constants

    root = Path(data_dir or constants.DATA_DIR).expanduser()
    folder = _find_prepared(name, root)
    if folder is None:
        folder = _prepare(tensorflow_datasets, name, root, download)
    builder = tensorflow_datasets.builder_from_directory(str(folder))
    notes: list[str] = []
    connector: Any = builder.info.features
    features: dict[str, Any] = dict(connector)
    text, label = _choose(
        tensorflow_datasets.features,
        features,
        builder.info.supervised_keys or (),
        name,
        text_column,
        label_column,
        notes,
    )
    splits, sha256 = {}, {}
    for part, names in _SPLITS.items():
        found = next((n for n in names if n in builder.info.splits), None)
        if found is not None:
            splits[part] = _read(builder, name, found, text, label)
            for file in builder.info.splits[found].filepaths:
                sha256[Path(file).name] = digest(file)
    used = {n for names in _SPLITS.values() for n in names}
    others = sorted(set(builder.info.splits) - used)
    if others:
        notes.append("splits not read: " + ", ".join(others))
    if "train" not in splits:
        raise ValueError(
            f"tfds:{name}: has no train split; its splits are "
            + ", ".join(sorted(builder.info.splits))
        )
    return assemble(
        f"tfds:{name}",
        features[label].names,
        splits,
        provenance=f"TensorFlow Datasets {builder.info.full_name}, {text} and {label}",
        sha256=sha256,
        deduplicate=deduplicate,
        notes=notes,
    )


def _find_prepared(name: str, root: Path) -> Path | None:
    """Folder of the newest prepared version, `root/NAME[/CONFIG]/VERSION`."""
    path, _, version = name.rpartition(":")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        path, version = name, ""
    # As TFDS names the folder of a Hugging Face dataset.
    if path.startswith("huggingface:"):
        path = re.sub(r"[^\w/]", "_", path.removeprefix("huggingface:").lower())
    base = root / path
    found: dict[Path, list[Path]] = {}
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json"):
        for info in base.glob(pattern):
            if version in ("", info.parent.name) and _version(info.parent):
                found.setdefault(info.parent.parent, []).append(info.parent)
    if base in found:
        found = {base: found[base]}
    if len(found) > 1:
        raise ValueError(
            f"tfds:{name}: several are prepared, name one: "
            + ", ".join(f"tfds:{path}/{config.name}" for config in sorted(found))
        )
    versions = [folder for folders in found.values() for folder in folders]
    return max(versions, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(map(int, parts)) if all(p.isdecimal() for p in parts) else ()


def _prepare(library, name: str, root: Path, download: bool) -> Path:
    if name.startswith("huggingface:") and not download:
        raise FileNotFoundError(_not_prepared(name, root))
    try:
        # array_record is what can be written and read without TensorFlow.
        builder = library.builder(name, data_dir=str(root), file_format="array_record")
    except library.core.DatasetNotFoundError:
        known = library.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, 5)
        raise ValueError(
            f"tfds:{name}: TensorFlow Datasets has no dataset of this name, and none "
            f"is prepared under {root}"
            + (f"; did you mean {', '.join(close)}?" if close else "")
        ) from None
    except (ValueError, AssertionError) as error:  # no such config or version
        raise ValueError(f"tfds:{name}: {str(error).splitlines()[0]}") from error
    except ImportError as error:
        raise ModuleNotFoundError(_needs(name, error)) from error
    except RuntimeError as error:
        raise RuntimeError(f"tfds:{name}: could not be made: {error}") from error
    if Path(builder.data_dir, "dataset_info.json").is_file():
        return Path(builder.data_dir)
    if not download:
        raise FileNotFoundError(_not_prepared(name, root))
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ModuleNotFoundError(_needs(name, error)) from error
    except Exception as error:
        raise RuntimeError(f"tfds:{name}: could not be prepared: {error}") from error
    return Path(builder.data_dir)


def _not_prepared(name: str, root: Path) -> str:
    return (
        f"tfds:{name}: not prepared under {root}; pass its data_dir, or "
        f'download=True, or run `python -c "import tensorflow_datasets.text, '
        f"tensorflow_datasets as t; t.builder({name!r}, "
        "file_format='array_record').download_and_prepare()\"` once"
    )


def _needs(name: str, error: ImportError) -> str:
    # TFDS raises a new error with the old message, and loses its `name`.
    found = re.search(r"No module named '(\w+)", str(error))
    package = found[1] if found else "in: " + str(error)
    return (
        f"tfds:{name}: this builder itself needs the package {package} to make the "
        "data; install it, prepare the data once, and reading needs it no more"
    )


def _choose(
    kinds,
    features: dict[str, Any],
    supervised: tuple,
    name: str,
    text_column: str | None,
    label_column: str | None,
    notes: list[str],
) -> tuple[str, str]:
    # Sorted, because prepared data does not keep the order of its features.
    texts, labels = (
        sorted(key for key, value in features.items() if isinstance(value, kind))
        for kind in (kinds.Text, kinds.ClassLabel)
    )
    chosen: dict[str, Any] = {}
    for kind, given, known in (
        ("text", text_column, texts),
        ("label", label_column, labels),
    ):
        default = [key for key in known if key in supervised]
        if given is not None:
            if given not in known:
                raise ValueError(
                    f"tfds:{name}: no {kind} feature {given!r}; it has "
                    + (", ".join(map(repr, known)) or "none")
                )
            chosen[kind] = given
        elif len(default) == 1:
            chosen[kind] = default[0]
        elif len(known) == 1:
            chosen[kind] = known[0]
        elif kind == "label" and known:
            chosen[kind] = min(known, key=lambda key: features[key].num_classes)
            notes.append(f"label: {chosen[kind]}, of " + ", ".join(known))
        else:
            raise ValueError(
                f"tfds:{name}: cannot tell which feature is the {kind}; pass "
                f"{kind}_column, one of "
                + (", ".join(map(repr, known)) or "none: it is no text classification")
            )
    return chosen["text"], chosen["label"]


def _read(builder, name: str, split: str, text: str, label: str) -> Split:
    info = builder.info.splits[split]
    kind = builder.info.file_format.value
    lost = [path.name for path in map(Path, info.filepaths) if not path.is_file()]
    if lost:
        raise ValueError(f"tfds:{name}: prepared files are missing: {', '.join(lost)}")
    if kind == "array_record":
        try:
            source = builder.as_data_source(split)
            rows = source.__getitems__(range(len(source)))
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"tfds:{name}: the prepared files of {split} are not whole "
                f"({str(error).splitlines()[0]}); delete them and prepare it again"
            ) from error
    elif kind == "tfrecord":
        decode = builder.info.features.deserialize_example_np
        rows = [decode(record) for path in info.filepaths for record in _records(path)]
    else:
        raise ValueError(
            f"tfds:{name}: prepared as {kind}, which is not read; prepare it again "
            "with file_format='array_record'"
        )
    if len(rows) != info.num_examples:
        raise ValueError(
            f"tfds:{name}: {split} holds {len(rows)} rows of the {info.num_examples} "
            "it promises; prepare it again with file_format='array_record'"
        )
    texts = []
    for number, row in enumerate(rows):
        value = row[text]
        try:
            texts.append(value if isinstance(value, str) else value.decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(
                f"tfds:{name}: {split} row {number}: {text!r} is not UTF-8"
            ) from None
    return make_split(texts, [int(row[label]) for row in rows])


def _records(path) -> Iterator[bytes]:
    """Payloads of a TFRecord file: length, checksum, payload, checksum."""
    with open(path, "rb") as file:
        while head := file.read(12):
            size = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            payload = file.read(size)
            if len(head) < 12 or len(payload) < size or len(file.read(4)) < 4:
                raise ValueError(f"{path}: ends in the middle of a record")
            yield payload
