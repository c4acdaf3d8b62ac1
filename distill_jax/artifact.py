"""A distilled set on disk: a folder with `distilled.safetensors` and `card.json`.

The tensors are `x [S, B, L, D]`, `y [S, B, C]` (probabilities), `lr [E, S]` (step
sizes), and what they were learned as, `y_logits [S, B, C]` and `raw_lr [E, S]`; where
sentences have learned their lengths also `mask [S, B, L]`, 1 for each word. The card
says where they come from and how to train on them. Neither file needs this package:
safetensors is a length, a JSON header and raw numbers.
"""

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from distill_jax.types import Distilled

FORMAT = "distill_jax/1"
TENSORS = "distilled.safetensors"
CARD = "card.json"
AXES = {
    "x": ("S", "B", "L", "D"),
    "y": ("S", "B", "C"),
    "lr": ("E", "S"),
    "y_logits": ("S", "B", "C"),
    "raw_lr": ("E", "S"),
}
CARD_FIELDS = {
    "corpus": ("name", "sha256"),
    "label_names": (),
    "vocabulary": ("sha256", "vectors"),
    "model": ("name", "settings"),
    "preprocessing": ("tokeniser", "length"),
    "results": (),
}
_PACKAGES = ("distill_jax", "jax", "flax", "optax", "numpy", "safetensors")


class Artifact(NamedTuple):
    """A loaded artefact.

    Attributes:
        arrays: the tensors by name, as in the module's docstring.
        card: what `card.json` holds.
    """

    arrays: dict[str, np.ndarray]
    card: dict[str, Any]


def from_distilled(distilled: Distilled) -> dict[str, np.ndarray]:
    """The arrays that `save` stores.

    Args:
        distilled: what was learned.

    Returns:
        `x`, `y`, `lr`, `y_logits` and `raw_lr` as numpy arrays, and `mask` where the
        sentences have their own lengths. Types that numpy lacks, such as bfloat16,
        become float32.
    """
    names = [*AXES, "mask"] if distilled.ragged else AXES
    arrays = {name: np.asarray(getattr(distilled, name)) for name in names}
    arrays |= {f"more.{name}": np.asarray(a) for name, a in distilled.more.items()}
    return {
        name: a if a.dtype.kind == "f" else a.astype(np.float32)
        for name, a in arrays.items()
    }


def to_distilled(artifact: Artifact) -> Distilled:
    """The learned leaves of an artefact, to train from or to learn on."""
    arrays = artifact.arrays
    return Distilled(
        jnp.asarray(arrays["x"]),
        jnp.asarray(arrays["y_logits"]),
        jnp.asarray(arrays["raw_lr"]),
        more={
            name.removeprefix("more."): jnp.asarray(a)
            for name, a in arrays.items()
            if name.startswith("more.")
        },
        ragged="mask" in arrays,
    )


def save(
    path_dir: str | Path, arrays: dict[str, np.ndarray], card: dict[str, Any]
) -> Path:
    """Writes an artefact; one that was there before stays whole until this one is.

    Args:
        path_dir: the folder, made if absent. Its other files are left alone.
        arrays: at least those of `AXES`, from `from_distilled`.
        card: at least the fields of `CARD_FIELDS`: `corpus` (`name`, `sha256`),
            `label_names`, `vocabulary` (`sha256`, `vectors`), `model` (`name`,
            `settings`), `preprocessing` (`tokeniser`, `length`), `results`. Shapes,
            schedule, step sizes, versions and the hash of the tensors are added.

    Returns:
        The folder.

    Raises:
        ValueError: if an array or a field of the card is missing or does not fit.
        OSError: if it cannot be written, for instance on a full disk.
    """
    folder = Path(path_dir)
    sizes = _check_arrays(arrays)
    _check_card(card, sizes)
    tensors = safetensors.numpy.save(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()},
        metadata={"format": FORMAT},
    )
    full_card = {
        "format": FORMAT,
        **card,
        "schedule": {
            "order": "pass by pass, in each the minibatches 0 .. S-1 as stored",
            **card.get("schedule", {}),
            "num_minibatches": sizes["S"],
            "num_passes": sizes["E"],
            "examples_per_minibatch": sizes["B"],
            "step_sizes": np.asarray(arrays["lr"]).tolist(),
        },
        "versions": {**_versions(), **card.get("versions", {})},
        "tensors": {
            "file": TENSORS,
            "bytes": len(tensors),
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "shapes": {name: list(a.shape) for name, a in arrays.items()},
        },
    }
    try:
        text = json.dumps(full_card, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the card must hold JSON values only, and finite numbers: {error}"
        ) from error

    new_tensors, new_card = folder / (TENSORS + ".new"), folder / (CARD + ".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(new_tensors, tensors)
        _write(new_card, (text + "\n").encode())
    except OSError as error:
        new_tensors.unlink(missing_ok=True)
        new_card.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"the artefact was not saved ({error.strerror}); one that was there "
            "before is unchanged. Free some space or choose another folder",
            str(folder),
        ) from error
    # Both are on disk now. Stopped between these lines, `load` finds the new card.
    os.replace(new_tensors, folder / TENSORS)
    os.replace(new_card, folder / CARD)
    _sync_folder(folder)
    return folder


def load(path_dir: str | Path) -> Artifact:
    """Reads an artefact and checks it against its own card.

    Args:
        path_dir: the folder that `save` wrote.

    Returns:
        The arrays and the card.

    Raises:
        FileNotFoundError: if the folder or one of its two files is missing.
        ValueError: if the card is damaged or of a newer format, or if the tensors
            are truncated, changed, or of other shapes than the card says.
    """
    folder = Path(path_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no artefact at {folder}: there is no such folder")
    if not (folder / TENSORS).is_file():
        raise _missing(folder, TENSORS)
    tensors = (folder / TENSORS).read_bytes()
    sha256 = hashlib.sha256(tensors).hexdigest()
    card = _card_for(folder, sha256)
    stored = card["tensors"]
    if len(tensors) < stored["bytes"]:
        raise ValueError(
            f"{folder / TENSORS} is truncated: {len(tensors):,} of "
            f"{stored['bytes']:,} bytes; copy it again"
        )
    if sha256 != stored["sha256"]:
        raise ValueError(
            f"{folder / TENSORS} is not the file its card describes: sha256 "
            f"{sha256[:12]}…, the card says {stored['sha256'][:12]}…; copy both again"
        )
    try:
        arrays = safetensors.numpy.load(tensors)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / TENSORS} is not safetensors: {error}") from error
    shapes = {name: list(a.shape) for name, a in arrays.items()}
    if shapes != stored["shapes"]:
        raise ValueError(
            f"{folder / CARD} does not fit its tensors: it says {stored['shapes']}, "
            f"the file holds {shapes}"
        )
    _check_card(card, _check_arrays(arrays))
    return Artifact(arrays, card)


def _missing(folder: Path, name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"no artefact at {folder}: {name} is missing; an artefact is a folder with "
        f"{TENSORS} and {CARD}"
    )


def _card_for(folder: Path, sha256: str) -> dict[str, Any]:
    """The card of these tensors: the new one if a save stopped half way."""
    fallback = folder / (CARD + ".new")
    if fallback.is_file():
        try:
            card = _parse(fallback)
        except ValueError:
            card = None  # the save stopped before the card was whole
        if card is not None and card["tensors"]["sha256"] == sha256:
            return card
    if not (folder / CARD).is_file():
        raise _missing(folder, CARD)
    return _parse(folder / CARD)


def _parse(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        stored = card["tensors"]
        complete = {"bytes", "sha256", "shapes"} <= set(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the card of an artefact, or is damaged: {error}"
        ) from error
    if not complete:
        raise ValueError(f"{path} is damaged: `tensors` lacks bytes, sha256 or shapes")
    if card.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {card.get('format')!r}, this version reads "
            f"{FORMAT!r}: update distill_jax"
        )
    return card


def _check_arrays(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """Checks names, axes and values; returns the size of each axis."""
    missing = [name for name in AXES if name not in arrays]
    if missing:
        raise ValueError(
            f"the artefact lacks {', '.join(missing)}; it holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )
    sizes: dict[str, int] = {}
    for name, axes in AXES.items():
        a = arrays[name]
        expected = [sizes.get(axis, axis) for axis in axes]
        fits = a.ndim == len(axes) and all(
            sizes.setdefault(axis, size) == size
            for axis, size in zip(axes, a.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} must be [{', '.join(map(str, expected))}], got {list(a.shape)}"
            )
        if a.dtype.kind != "f" or not np.isfinite(a).all():
            raise ValueError(f"{name} must be finite floats, got {a.dtype}, or has NaN")
    for name, a in arrays.items():
        if not name.startswith("more."):
            continue
        if a.shape[:2] != (sizes["S"], sizes["B"]):
            raise ValueError(
                f"{name} must be [{sizes['S']}, {sizes['B']}, ...], got {list(a.shape)}"
            )
        if a.dtype.kind != "f" or not np.isfinite(a).all():
            raise ValueError(f"{name} must be finite floats, got {a.dtype}, or has NaN")
    if (arrays["y"] < 0).any() or (abs(arrays["y"].sum(-1) - 1) > 1e-2).any():
        raise ValueError("each row of y must be probabilities that sum to 1")
    if (arrays["lr"] < 0).any():
        raise ValueError(f"lr must not be negative, got {arrays['lr'].min()}")
    return sizes


def _check_card(card: dict[str, Any], sizes: dict[str, int]) -> None:
    missing = [
        ".".join(filter(None, (field, part)))
        for field, parts in CARD_FIELDS.items()
        for part in (parts or ("",))
        if field not in card or (part and part not in card[field])
    ]
    if missing:
        raise ValueError(f"the card lacks {', '.join(missing)}")
    if len(card["label_names"]) != sizes["C"]:
        raise ValueError(
            f"the card names {len(card['label_names'])} labels, y has {sizes['C']}"
        )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
