"""Checkpoints of a run in a folder. The only file that knows Orbax.

A checkpoint is a tree of arrays and a dictionary of facts (JSON). It appears whole or
not at all: what a killed or failed save leaves behind is never read.
"""

import contextlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

KEEP = 2


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written; the ones before it are untouched."""


def save(folder: str | Path, step: int, arrays: Any, facts: dict, fingerprint: dict):
    """Writes one checkpoint, then deletes all but the latest two.

    Args:
        folder: made if it is not there. On several hosts, one folder they share.
        step: its number; replaces a checkpoint of the same step.
        arrays: any tree of arrays.
        facts: what JSON can hold.
        fingerprint: the settings of the run, JSON too; see `restore`.

    Raises:
        CheckpointNotSaved: on a full disk, for example.
    """
    import orbax.checkpoint as ocp

    about = {
        "facts": facts,
        "fingerprint": fingerprint,
        "leaves": _signature(arrays),
    }
    aside = io.StringIO()  # what the library's threads print, of an error we report
    try:
        with (
            contextlib.redirect_stderr(aside),
            _manager(folder, create=True) as manager,
        ):
            manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(_numbered(arrays)),
                    about=ocp.args.JsonSave(about),
                ),
                force=True,
            )
    except Exception as error:  # Orbax reports a full disk as one of several types
        last = latest_step(folder)
        kept = (
            "there is no earlier one"
            if last is None
            else f"the one of step {last} is intact: make room, then resume"
        )
        raise CheckpointNotSaved(
            f"cannot save the checkpoint of step {step} in {folder}; {kept}. "
            f"Cause: {_brief(error)}"
        ) from error
    sys.stderr.write(aside.getvalue())


def latest_step(folder: str | Path) -> int | None:
    """The step of the last whole checkpoint in `folder`, None where there is none."""
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore(folder: str | Path, like: Any, fingerprint: dict) -> tuple[Any, dict]:
    """Reads the last checkpoint of `folder`.

    Args:
        folder: what `save` was given.
        like: a tree with the structure, shapes and dtypes that are expected.
        fingerprint: the settings that the checkpoint must have been saved with.

    Returns:
        The arrays, a tree like `like` of numpy arrays, and the facts.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is of another run or another shape (names the first setting
            or array that differs, and both values), or cannot be read.
    """
    import orbax.checkpoint as ocp

    step = latest_step(folder)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {folder}: start without resume")
    with _manager(folder) as manager:
        about = _read(manager, folder, step, about=ocp.args.JsonRestore())
        _check_fingerprint(folder, about["fingerprint"], fingerprint)
        _check_signature(folder, about["leaves"], _signature(like))
        template = _numbered(like)
        found = _read(manager, folder, step, arrays=ocp.args.StandardRestore(template))
    leaves, structure = jax.tree.flatten(like)
    arrays = jax.tree.unflatten(
        structure, [found.get(_number(i), np.asarray(a)) for i, a in enumerate(leaves)]
    )
    return arrays, about["facts"]


def _manager(folder: str | Path, create: bool = False):
    import orbax.checkpoint as ocp

    # Its threads print tracebacks, some after the error that says it in one line.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    return ocp.CheckpointManager(
        Path(folder).absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            step_prefix="step",
            create=create,
            cleanup_tmp_directories=create,
            enable_async_checkpointing=False,
        ),
    )


def _read(manager, folder, step, **item):
    import orbax.checkpoint as ocp

    (name,) = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as error:  # a damaged file shows as one of many types
        raise ValueError(
            f"cannot read the checkpoint of step {step} in {folder}: delete its folder "
            f"to use the one before. Cause: {_brief(error)}"
        ) from error


def _number(i: int) -> str:
    return f"{i:04d}"


def _numbered(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by number, so that Orbax need not know the types of the tree. It
    refuses arrays of size 0; their shape is all there is to them."""
    arrays = enumerate(map(np.asarray, jax.tree.leaves(tree)))
    return {_number(i): array for i, array in arrays if array.size}


def _signature(tree: Any) -> list:
    return [
        [
            jax.tree_util.keystr(path, simple=True, separator="."),
            list(np.shape(leaf)),
            str(np.asarray(leaf).dtype),
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _check_fingerprint(folder, saved: dict, ours: dict) -> None:
    ours = json.loads(json.dumps(ours))
    absent = object()
    for name in [*ours, *saved]:
        before, now = saved.get(name, absent), ours.get(name, absent)
        if before != now:
            shown = ["absent" if v is absent else repr(v) for v in (before, now)]
            raise ValueError(
                f"the checkpoint in {folder} is of another run: {name} was {shown[0]}, "
                f"now {shown[1]}. Use the same setting, or another folder"
            )


def _check_signature(folder, saved: list, ours: list) -> None:
    saved_leaves = {name: (shape, dtype) for name, shape, dtype in saved}
    our_leaves = {name: (shape, dtype) for name, shape, dtype in ours}
    for name in [*our_leaves, *saved_leaves]:
        before, now = saved_leaves.get(name), our_leaves.get(name)
        if before != now:
            shown = ["absent" if v is None else f"{v[1]} {v[0]}" for v in (before, now)]
            raise ValueError(
                f"the checkpoint in {folder} has another shape: {name} was {shown[0]}, "
                f"now {shown[1]}. Use the same sizes, or another folder"
            )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
