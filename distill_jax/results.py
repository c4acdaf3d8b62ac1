"""What an experiment leaves behind: one JSON object a line in a `.jsonl` file.

`build` makes the row of an experiment, `append` and `read` are the file, `newest`,
`find` and `same` say which row counts. Files are only ever appended to, so a row
further down is newer. What a row holds is `schema`'s.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distill_jax.schema import Row, check, fields_of

_Row = TypeVar("_Row", bound=Row)


class Result(dict[str, Any]):
    """A row whose fields are attributes too: `result.accuracy_mean`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"no field {name!r} in this row, it has: {', '.join(self)}"
            ) from None


def build(
    *,
    experiment: str,
    dataset: str,
    model: str,
    method: str,
    examples: int,
    num_classes: int,
    num_train: int,
    accuracies: Any,
    labels: str | None,
    training: str | None,
    theta_0: str | None = "random",
    bytes: int | None = None,
    preset: str | None = None,
    selected_on: str | None = "validation",
    split: str = "test",
    full: float | None = None,
    majority: float | None = None,
    seconds: float,
    config: Mapping[str, Any],
    data: str | None = None,
    **more: Any,
) -> Result:
    """The row of an experiment: what it is told, and what follows from it.

    Args:
        experiment, dataset, model, method: names.
        examples: how many labelled examples were trained on.
        num_classes, num_train: C, and the examples of the corpus' train split.
        accuracies: `[seeds, inits]`, or `[inits]` of one seed, in [0, 1].
        labels, training, theta_0: of `schema.CHOICES`; None where nothing is trained.
        bytes: what the set takes; None where that has no meaning.
        full, majority: accuracies of all training data and of the commonest class.
        seconds: wall time.
        config: the settings, as JSON has them.
        data: sha256 of what was read, see `schema.DATA_FIELDS`; a row without it is
            never the answer for a later run.
        more: the further fields of a comparison (`interval`, `chance_corrected`, ...)
            or of a round of active learning (`round`, `seed`, ...), all but
            `accuracies`.

    Returns:
        The row, its fields in the order of the schema.

    Raises:
        ValueError: naming the field that is not as the schema says.
    """
    values = np.atleast_2d(accuracies)
    mean = float(values.mean())
    row = {
        "experiment": experiment,
        "preset": preset,
        "dataset": dataset,
        "model": model,
        "method": method,
        "examples": examples,
        "examples_per_class": examples / num_classes,
        "fraction_of_train": examples / num_train,
        "bytes": bytes,
        "labels": labels,
        "theta_0": theta_0,
        "training": training,
        "selected_on": selected_on,
        "split": split,
        "accuracy_mean": mean,
        "accuracy_sd": float(values.std(ddof=1)) if values.size > 1 else None,
        "num_inits": values.shape[1],
        "num_seeds": values.shape[0],
        "full_accuracy_mean": full or None,
        "relative_accuracy": mean / full if full else None,
        "majority_accuracy": majority,
        "seconds": seconds,
        "device": device(),
        "commit": commit(),
        "command": command(),
        "config": dict(config),
    } | more
    if "accuracies" in fields_of(row):
        of_one = "round" in row and len(values) == 1
        row["accuracies"] = (values[0] if of_one else values).tolist()
    if data is not None:
        row["data"] = data
    check(row)
    return Result((name, row[name]) for name in fields_of(row))


def newest(rows: Iterable[_Row], *key: str | Callable[[_Row], Any]) -> list[_Row]:
    """Of rows that agree in the key, the last one; in the order of the first ones.

    Args:
        rows: oldest first.
        key: fields, or functions of a row.
    """
    found: dict[tuple, _Row] = {}
    for row in rows:
        found[tuple(_hashable(k(row) if callable(k) else row[k]) for k in key)] = row
    return list(found.values())


def grouped(rows: Iterable[_Row], *key: str) -> dict[tuple, list[_Row]]:
    """The rows by the values of these fields, in the order they first came."""
    groups: dict[tuple, list[_Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_hashable(row[k]) for k in key), []).append(row)
    return groups


def find(rows: Iterable[_Row], **wanted: Any) -> _Row | None:
    """The newest row that has all these values, or None.

    A row for a run to go on from is asked for with its `data`, see `same`.

    Args:
        rows: oldest first.
        wanted: values by field; of `config` the given settings alone count.
    """
    found = None
    for row in rows:
        if _agrees(row, wanted):
            found = row
    return found


def same(row: Row, wanted: Mapping[str, Any]) -> bool:
    """Whether a row answers a run: all wanted values are equal, `data` among them.

    Rows of before `data` was written name their corpus only, and two files can have
    one name: they answer no run.

    Raises:
        ValueError: if `wanted` does not say which data.
    """
    if not wanted.get("data"):
        raise ValueError(
            "a wanted row must name its `data`: the sha256 of what is read"
        )
    return _agrees(row, wanted)


def _agrees(row: Row, wanted: Mapping[str, Any]) -> bool:
    """As they would be in a file: paths cut, tuples as lists."""
    for name, value in wanted.items():
        if name not in row:
            return False
        there, value = portable(row[name]), portable(value)
        if name == "config":
            there = {key: there[key] for key in value if key in there}
        if there != value:
            return False
    return True


def _hashable(value: Any) -> Hashable:
    return (
        json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
    )


def place(name: str, *, publish: bool = False, given: str | Path | None = None) -> Path:
    """Where a run appends its rows: `runs/NAME.jsonl`, unless told otherwise.

    Args:
        name: of the experiment.
        publish: to the rows of the project instead, `results/NAME.jsonl`.
        given: a file of the user's choice, before both.
    """
    return Path(given or f"{'results' if publish else 'runs'}/{name}.jsonl")


def append(path: str | Path, rows: Iterable[Row]) -> None:
    """Adds rows to the end of a file: all of them, or none.

    Paths of this machine are cut from every string on the way, see `portable`.

    Args:
        path: a `.jsonl` file; made, with its folder, if absent.
        rows: each with exactly the fields of one schema.

    Raises:
        ValueError: naming what is wrong with a row; nothing is written.
        OSError: if the disk is full; the file is as it was.
    """
    path = Path(path)
    lines = []
    for row in rows:
        check(row)
        ordered = {name: portable(row[name]) for name in fields_of(row)}
        try:
            lines.append(json.dumps(ordered, allow_nan=False, ensure_ascii=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a row's config must hold finite JSON values: {error}"
            ) from error
    content = "".join(line + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, content)
            if written != len(content):
                raise OSError(f"only {written} of {len(content)} bytes fitted")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise OSError(
                error.errno, f"no rows were added ({error}); free some space", str(path)
            ) from error
    finally:
        os.close(descriptor)


def read(path: str | Path) -> list[Result]:
    """All rows of a file, oldest first; none if there is no file.

    Raises:
        ValueError: naming the line that is not JSON or not as the schema says.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = Result(json.loads(line))
            check(row)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    return rows


def commit() -> str:
    """Short hash of this checkout, "+dirty" if code differs from it, or "unknown".

    Files under `results` do not count: appending a row must not taint the next. A
    package that is installed in someone else's checkout does not take its hash.
    """
    here = Path(__file__).parents[1]

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__)))
        head = git("rev-parse", "--short", "HEAD")
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+dirty" if changed else "")


def device() -> str:
    """What the numbers were made on: "cpu:2 cores", or "1 x NVIDIA H200"."""
    import jax

    devices = jax.devices()
    if devices[0].platform == "cpu":
        count = getattr(os, "sched_getaffinity", None)
        cores = len(count(0)) if count else os.cpu_count()
        return f"cpu:{cores} cores"
    return f"{len(devices)} x {devices[0].device_kind}"


def command(argv: Sequence[str] | None = None) -> str:
    """The command line of this run, such as `python -m experiments.distill --x=1`.

    Args:
        argv: `sys.argv` unless given.
    """
    program, *arguments = sys.argv if argv is None else argv
    script = Path(program)
    folder, package = script.resolve().parent, Path(__file__).resolve().parent
    if folder == package / "experiments":  # in a wheel
        start = ["python", "-m", "distill_jax", script.stem]
    elif script.suffix == ".py" and folder.parent == package.parent:
        inside = [] if script.stem == "__main__" else [script.stem]
        start = ["python", "-m", ".".join([folder.name, *inside])]
    else:
        start = ["python", script.name]
    return shlex.join([*start, *(portable(argument) for argument in arguments)])


def portable(value: Any) -> Any:
    """Cuts this machine's folders from strings, in lists and dicts too.

    Below the working folder a path becomes relative to it; elsewhere its last part is
    kept.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<![\w./~:])~?(/[\w.+@-]+)+/?", _shortened, value)


def _shortened(match: re.Match[str]) -> str:
    path = Path(match[0])
    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return str(path.relative_to(Path.cwd()))
    return path.name
