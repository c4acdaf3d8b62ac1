"""What an experiment leaves behind: one JSON object a line in `results/*.jsonl`.

The same fields everywhere, in the order of EXPERIMENT_FIELDS (distillations and
evaluations), of these with COMPARE_FIELDS (comparisons) or ACTIVE_FIELDS (rounds of
active learning) after them, of SPEED_FIELDS (timings), ACQUISITION_FIELDS,
ACCELERATOR_FIELDS or TUNE_FIELDS (trials of a tuner). Files are only ever appended to.

Units: accuracies are fractions in [0, 1]; `fraction_of_train` likewise; `seconds` is
wall time; `ratio_to_torch` is the reference's seconds over this row's, so above 1 is
faster; `accuracies` are `[seeds][inits]` in a comparison, `[inits]` in a round. Where
a field has no meaning for a row (the labels of `majority`, say) it is
null, if its name is in NULLABLE.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

_NUMBER = (int, float)
EXPERIMENT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "preset": str,
    "dataset": str,
    "model": str,
    "method": str,
    "examples": int,
    "examples_per_class": _NUMBER,
    "fraction_of_train": _NUMBER,
    "bytes": int,
    "labels": str,
    "theta_0": str,
    "training": str,
    "selected_on": str,
    "split": str,
    "accuracy_mean": _NUMBER,
    "accuracy_sd": _NUMBER,
    "num_inits": int,
    "num_seeds": int,
    "full_accuracy_mean": _NUMBER,
    "relative_accuracy": _NUMBER,
    "majority_accuracy": _NUMBER,
    "seconds": _NUMBER,
    "device": str,
    "commit": str,
    "command": str,
    "config": dict,
}
# After EXPERIMENT_FIELDS: where distilled and real sets are compared.
COMPARE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "accuracies": list,
    "interval": list,
    "chance_corrected": _NUMBER,
    "labels_read": int,
    "compute_seconds": _NUMBER,
}
# After EXPERIMENT_FIELDS: one round of active learning.
ACTIVE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "round": int,
    "seed": int,
    "num_labelled": int,
    "n_tied_at_cut": int,
    "accuracies": list,
}
SPEED_FIELDS: dict[str, type | tuple[type, ...]] = {
    "config": (str, dict),
    "implementation": str,
    "T": int,
    "minibatch": int,
    "tokens": int,
    "real_batch": int,
    "num_theta_0": int,
    "threads": int,
    "backend": str,
    "seconds_median": _NUMBER,
    "ratio_to_torch": _NUMBER,
    "flops": _NUMBER,
    "temp_bytes": int,
    "compile_seconds": _NUMBER,
    "commit": str,
    "device": str,
}
# Timings of acquisition: sizes that a task does not have are null.
ACQUISITION_FIELDS: dict[str, type | tuple[type, ...]] = {
    "config": str,
    "implementation": str,
    "items": int,
    "passes": int,
    "length": int,
    "features": int,
    "classes": int,
    "picks": int,
    "threads": int,
    "backend": str,
    "seconds_median": _NUMBER,
    "ratio_to_torch": _NUMBER,
    "peak_bytes": int,
    "compiled_peak_bytes": int,
    "call_bytes": int,
    "commit": str,
    "device": str,
}
# A meta-step on an accelerator, or compiled for one: `kind` says which. Flops and
# bytes are of one device. Where nothing was run, `step_seconds`, the two speeds and
# `measured_bytes` are null; where something was, `topology` is.
ACCELERATOR_FIELDS: dict[str, type | tuple[type, ...]] = {
    "config": str,
    "kind": str,
    "topology": str,
    "backend": str,
    "parallel": str,
    "num_devices": int,
    "num_theta_0": int,
    "T": int,
    "minibatch": int,
    "tokens": int,
    "real_batch": int,
    "precision": str,
    "step_seconds": _NUMBER,
    "flops": int,
    "matmul_flops": int,
    "flops_per_second": _NUMBER,
    "peak_flops_per_second": _NUMBER,
    "peak_bytes": int,
    "measured_bytes": int,
    "all_reduces": int,
    "compile_seconds": _NUMBER,
    "commit": str,
    "device": str,
}
# One trial of a tuner. `reports` are `[when, accuracy]`: meta-steps, or real sets.
TUNE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "study": str,
    "trial": int,
    "state": str,
    "dataset": str,
    "model": str,
    "method": str,
    "examples": int,
    "params": dict,
    "accuracy_mean": _NUMBER,
    "best_step": int,
    "reports": list,
    "split": str,
    "num_inits": int,
    "num_seeds": int,
    "seconds": _NUMBER,
    "device": str,
    "commit": str,
    "command": str,
    "config": dict,
}
NULLABLE = frozenset(
    "preset bytes labels theta_0 training selected_on accuracy_sd full_accuracy_mean "
    "relative_accuracy majority_accuracy ratio_to_torch flops temp_bytes "
    "compile_seconds chance_corrected n_tied_at_cut passes length features "
    "classes picks call_bytes compiled_peak_bytes topology step_seconds "
    "flops_per_second peak_flops_per_second measured_bytes best_step".split()
)
CHOICES = {
    "kind": ("measured", "compile-time analysis"),
    "split": ("test", "validation"),
    "selected_on": ("test", "validation"),
    "labels": ("hard", "soft"),
    "theta_0": ("fixed", "random"),
    "training": ("native", "standard"),
    "state": ("complete", "pruned", "not_finite"),
}
FRACTIONS = (
    "fraction_of_train",
    "accuracy_mean",
    "accuracy_sd",
    "full_accuracy_mean",
    "majority_accuracy",
)
POSITIVE = (
    "num_devices",
    "step_seconds",
    "flops_per_second",
    "peak_flops_per_second",
    "measured_bytes",
    "items",
    "passes",
    "length",
    "features",
    "classes",
    "picks",
    "peak_bytes",
    "compiled_peak_bytes",
    "num_inits",
    "num_seeds",
    "T",
    "minibatch",
    "tokens",
    "real_batch",
    "num_theta_0",
    "threads",
    "seconds_median",
    "ratio_to_torch",
)
NOT_NEGATIVE = (
    "matmul_flops",
    "all_reduces",
    "call_bytes",
    "trial",
    "best_step",
    "examples",
    "examples_per_class",
    "bytes",
    "seconds",
    "flops",
    "temp_bytes",
    "compile_seconds",
    "labels_read",
    "compute_seconds",
    "round",
    "seed",
    "num_labelled",
    "n_tied_at_cut",
)


def fields_of(row: Row) -> dict[str, type | tuple[type, ...]]:
    """The fields that a row must have, told by those it has."""
    if "topology" in row:
        return ACCELERATOR_FIELDS
    if "trial" in row:
        return TUNE_FIELDS
    if "implementation" in row:
        return ACQUISITION_FIELDS if "peak_bytes" in row else SPEED_FIELDS
    if not row.keys().isdisjoint(COMPARE_FIELDS.keys() - ACTIVE_FIELDS.keys()):
        return EXPERIMENT_FIELDS | COMPARE_FIELDS
    if not row.keys().isdisjoint(ACTIVE_FIELDS):
        return EXPERIMENT_FIELDS | ACTIVE_FIELDS
    return EXPERIMENT_FIELDS


def check(row: Row) -> None:
    """Raises ValueError, naming the field, if a row is not as the schema says."""
    fields = fields_of(row)
    missing = [name for name in fields if name not in row]
    unknown = [name for name in row if name not in fields]
    if missing or unknown:
        raise ValueError(
            "; ".join(
                f"a row's {what} fields: {', '.join(names)}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
    for name, kind in fields.items():
        value: Any = row[name]
        if value is None and name in NULLABLE:
            continue
        if value is None or isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{name} must be {_names(kind)}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {CHOICES[name]}, got {value!r}")
        if name in FRACTIONS and not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
        if name in POSITIVE and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
        if name in NOT_NEGATIVE and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if "kind" in row and (row["kind"] == "measured") != (row["topology"] is None):
        raise ValueError(
            f"topology must be null if measured, and only then: {row['kind']}, "
            f"got {row['topology']!r}"
        )
    if "kind" in row and (row["topology"] is None) == (row["step_seconds"] is None):
        raise ValueError(
            "step_seconds must be null if nothing was run, and only then: "
            f"{row['kind']}, got {row['step_seconds']}"
        )
    _check_lists(row)
    full: Any = row.get("full_accuracy_mean")
    relative: Any = row.get("relative_accuracy")
    if (full is None) != (relative is None):
        raise ValueError("full_accuracy_mean and relative_accuracy come together")
    if full and not math.isclose(relative, row["accuracy_mean"] / full, abs_tol=1e-4):
        raise ValueError(
            f"relative_accuracy {relative} is not accuracy_mean / full_accuracy_mean "
            f"= {row['accuracy_mean'] / full:.4f}"
        )


def _check_lists(row: Row) -> None:
    """The accuracies are of the shape the row says, and give its mean."""
    if "accuracies" not in row:
        return
    in_round = "round" in row
    shape = (row["num_inits"],) if in_round else (row["num_seeds"], row["num_inits"])
    try:
        values = np.array(row["accuracies"], float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if values.shape != shape or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"accuracies must be numbers in [0, 1] of the shape {list(shape)}"
        )
    if not math.isclose(values.mean(), row["accuracy_mean"], abs_tol=1e-4):
        raise ValueError(
            f"accuracy_mean {row['accuracy_mean']} is not that of the accuracies, "
            f"{values.mean():.4f}"
        )
    interval = row.get("interval", [0, 1])
    if len(interval) != 2 or not all(isinstance(v, _NUMBER) for v in interval):
        raise ValueError(f"interval must be [low, high], got {interval}")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"interval must be ordered and in [0, 1], got {interval}")


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


def read(path: str | Path) -> list[Row]:
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
            row = json.loads(line)
            check(row)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    return rows


def commit() -> str:
    """Short hash of this checkout, "+dirty" if code differs from it, or "unknown".

    Files under `results` do not count: appending a row must not taint the next.
    """
    here = Path(__file__).parents[1]

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
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
    folder = script.resolve().parent
    if script.suffix == ".py" and folder.parent == Path(__file__).resolve().parents[1]:
        start = ["python", "-m", f"{folder.name}.{script.stem}"]
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


def _names(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(k.__name__ for k in kinds)

