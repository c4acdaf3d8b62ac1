"""The fields of the rows in `results/*.jsonl`, and what a row must hold.

The same fields everywhere, in the order of EXPERIMENT_FIELDS (distillations and
evaluations), of these with COMPARE_FIELDS (comparisons) or ACTIVE_FIELDS (rounds of
active learning) after them, of SPEED_FIELDS (timings), ACQUISITION_FIELDS,
ACCELERATOR_FIELDS or TUNE_FIELDS (trials of a tuner). A row of an experiment ends
with `data`, which says by content what was read; rows of before it was written do
without.

Units: accuracies are fractions in [0, 1]; `fraction_of_train` likewise; `seconds` is
wall time; `ratio_to_torch` is the reference's seconds over this row's, so above 1 is
faster; `accuracies` are `[seeds][inits]` in a comparison, `[inits]` in a round. Where
a field has no meaning for a row (the labels of `majority`, say) it is
null, if its name is in NULLABLE.
"""

import math
import re
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
# After all others, in a row that has the field "experiment": sha256 of the texts,
# labels, label order and splits as used, and of the embedder.
DATA_FIELDS: dict[str, type | tuple[type, ...]] = {"data": str}
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
    """The fields that a row must have, in order, told by those it has."""
    if "topology" in row:
        return ACCELERATOR_FIELDS
    if "implementation" in row:
        return ACQUISITION_FIELDS if "peak_bytes" in row else SPEED_FIELDS
    data = DATA_FIELDS if "data" in row else {}
    if "trial" in row:
        return TUNE_FIELDS | data
    if not row.keys().isdisjoint(COMPARE_FIELDS.keys() - ACTIVE_FIELDS.keys()):
        return EXPERIMENT_FIELDS | COMPARE_FIELDS | data
    if not row.keys().isdisjoint(ACTIVE_FIELDS):
        return EXPERIMENT_FIELDS | ACTIVE_FIELDS | data
    return EXPERIMENT_FIELDS | data


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
    if "data" in row and not re.fullmatch("[0-9a-f]{64}", row["data"]):
        raise ValueError(
            f"data must be a sha256, 64 hexadecimal digits, got {row['data']!r}"
        )
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


def _names(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(k.__name__ for k in kinds)
