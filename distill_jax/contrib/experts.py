"""Trajectories of networks trained on real data, kept in a folder.

An expert is a file `expert-0000.safetensors`: each weight array by its name, with the
epochs as first axis, `[M + 1, ...]`, the start first. Its metadata hold the settings it
was trained with. A file appears whole or not at all, so recording can be stopped at
any time and goes on where it was.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distill_jax.types import Params


def trajectory(
    train: Callable[[Params, jax.Array], Params],
    theta_0: Params,
    key: jax.Array,
    num_epochs: int,
) -> Params:
    """The weights before and after each epoch.

    Args:
        train: one epoch, `(theta, key) -> theta`, as of `evaluate.standard`. It knows
            nothing of the epoch before, so its optimizer is plain SGD.
        theta_0: where it starts.
        key: consumed.
        num_epochs: M.

    Returns:
        A tree like `theta_0`, leaves `[M + 1, ...]`.
    """

    def epoch(theta, key):
        theta = train(theta, key)
        return theta, theta

    _, later = lax.scan(epoch, theta_0, jax.random.split(key, num_epochs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), theta_0, later)


def record(
    folder: str | Path,
    make: Callable[[jax.Array], Params],
    key: jax.Array,
    num: int,
    settings: dict[str, Any],
    *,
    report: Callable[[int], None] = lambda done: None,
) -> Params:
    """Trains the experts that are not in the folder yet, and reads all.

    Args:
        folder: made if it is not there.
        make: `(key) -> trajectory`, leaves `[M + 1, ...]`; compile it.
        key: expert k gets `fold_in(key, k)`, whatever was recorded before.
        num: experts wanted.
        settings: what they are trained with, as JSON; `key` is added.
        report: told how many there are, after each.

    Returns:
        As `load`.

    Raises:
        ValueError: if the folder holds experts of other settings, or a weight is not
            finite.
        OSError: if a file cannot be written.
    """
    if num < 1:
        raise ValueError(f"the number of experts must be at least 1, got {num}")
    folder = Path(folder)
    settings = settings | {"key": jax.random.key_data(key).tolist()}
    like = jax.eval_shape(make, key)
    for k in range(num):
        path = _path(folder, k)
        if path.exists():
            _read(path, like, settings)
        else:
            _write(path, make(jax.random.fold_in(key, k)), settings)
        report(k + 1)
    return load(folder, like, settings, num=num)


def load(
    folder: str | Path,
    like: Params,
    settings: dict[str, Any] | None = None,
    *,
    num: int | None = None,
) -> Params:
    """Reads experts.

    Args:
        folder: where `record` put them.
        like: one trajectory, or its shapes (`jax.eval_shape`).
        settings: what they must have been trained with; anything unless given.
        num: how many; all that are there unless given.

    Returns:
        A tree like `like`, leaves `[K, M + 1, ...]`.

    Raises:
        FileNotFoundError: if there are none, or too few.
        ValueError: if one is of other settings or shapes, or cannot be read.
    """
    folder = Path(folder)
    there = len(list(folder.glob("expert-*.safetensors")))
    if there < (num or 1):
        raise FileNotFoundError(
            f"{folder} holds {there} experts, needed {num or 1}: record them first"
        )
    read = [_read(_path(folder, k), like, settings) for k in range(num or there)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *read)


def _path(folder: Path, k: int) -> Path:
    return folder / f"expert-{k:04d}.safetensors"


def _named(tree: Params) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _write(path: Path, thetas: Params, settings: dict[str, Any]) -> None:
    import safetensors.numpy

    arrays = {name: np.asarray(a, order="C") for name, a in _named(thetas).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{path.stem} has weights in {name} that are not finite: train with a "
                "smaller step size"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"settings": json.dumps(settings)}
    part = path.with_suffix(".part")
    try:
        part.write_bytes(safetensors.numpy.save(arrays, metadata=metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, like: Params, settings: dict[str, Any] | None) -> Params:
    import safetensors

    wanted = {name: (a.shape, str(a.dtype)) for name, a in _named(like).items()}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            saved = json.loads((file.metadata() or {}).get("settings", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(f"no expert at {path}: record it") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"cannot read the expert {path}: delete it, and record it again ({error})"
        ) from error
    if settings is not None:
        ours = json.loads(json.dumps(settings))
        for name in sorted({*saved, *ours}):
            if saved.get(name) != ours.get(name):
                raise ValueError(
                    f"{path} was recorded with {name} = {saved.get(name)!r}, now "
                    f"{ours.get(name)!r}: use the same, or another folder"
                )
    found = {name: (a.shape, str(a.dtype)) for name, a in arrays.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} has {name} as {found.get(name)}, expected {wanted.get(name)}: "
                "it is of another network or number of epochs"
            )
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [arrays[name] for name in _named(like)])
