"""What the pages share: rows by their keys, levels, intervals and settings.

A row is one result as `results/*.jsonl` keeps it; of rows that measure the same thing
the last one counts. Accuracies are fractions in [0, 1] and are shown in %.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distill_jax.report.page.blocks import (
    Block,
    Command,
    Folded,
    Section,
    Table,
    Text,
    interval,
    percent,
)
from distill_jax.results import Row
from distill_jax.statistics import summary

RESAMPLES = 2_000
BOOTSTRAP = f"95 % intervals by bootstrap over seeds and θ0, {RESAMPLES:,} draws"
PERCENT = "\u00a0%"  # never alone on a line
SHARED = "dataset model method examples accuracy_mean command config".split()
_MOST_LINES = 6  # in colour; the eye cannot tell more apart
_MOST_VALUES = 12  # of one setting


def settings_section(rows: Sequence[Row]) -> Section:
    configs = [row["config"] for row in rows]
    names = list(dict.fromkeys(name for config in configs for name in config))
    same, other = [], []
    for name in names:
        values = dict.fromkeys(as_json(c[name]) for c in configs if name in c)
        shared = len(values) == 1 and all(name in config for config in configs)
        shown = list(values)[:_MOST_VALUES]
        shown += [f"{len(values) - _MOST_VALUES} more"] * (len(values) > _MOST_VALUES)
        (same if shared else other).append((name, ";  ".join(shown)))
    facts = [
        (field, listed(values))
        for field in ("experiment", "preset", "device", "commit")
        if (values := distinct(row.get(field) for row in rows))
    ]
    commands = distinct(row["command"] for row in rows)
    blocks: list[Block] = [
        Text("To repeat it, in a checkout of this commit:"),
        *(Command(command) for command in commands),
        Table("Where it ran", ["what", "value"], facts, sortable=False),
        Folded("Every setting", [Table("Every setting", ["setting", "value"], same)]),
    ]
    if other:
        table = Table("Settings that differ between rows", ["setting", "values"], other)
        blocks.append(Folded("Settings that differ between rows", [table]))
    return Section("Settings", blocks)


def need(rows: Sequence[Row], fields: Iterable[str]) -> None:
    if not rows:
        raise ValueError("there are no rows to show")
    for number, row in enumerate(rows, 1):
        missing = [name for name in fields if name not in row]
        if missing:
            raise ValueError(f"row {number} lacks {', '.join(missing)}")


def chosen_of(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] not in ("full", "majority")]


def levels_of(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Accuracy with all data, and of the majority class, where a row knows them."""
    full = [r.get("full_accuracy_mean") for r in rows]
    majority = [r.get("majority_accuracy") for r in rows]
    known = ([v for v in values if v is not None] for values in (full, majority))
    first, second = (values[-1] if values else None for values in known)
    return first, second


def point_at(x, values) -> tuple[float, float, float, float]:
    values = np.asarray(values, float)
    if values.size == 1:
        value = float(values.ravel()[0])
        return float(x), value, value, value
    found = summary(values, num_resamples=RESAMPLES)
    return float(x), found.mean, found.low, found.high


def numbers_of(axis: str, curves) -> Table:
    rows = [
        (name, x, percent(mean), interval(low, high))
        for name, points in curves.items()
        for x, mean, low, high in sorted(points)
    ]
    return Table(
        f"Accuracy against {axis}",
        ["method", axis, "accuracy %", "95 % interval"],
        rows,
    )


def faint_of(curves) -> list[str]:
    """The names to draw in grey: neither distilled, nor random, nor the best others."""
    means = {name: np.mean([p[1] for p in points]) for name, points in curves.items()}
    kept = [n for n in means if n.split(" ")[0] in ("distilled", "random")]
    others = sorted((n for n in means if n not in kept), key=lambda n: -means[n])
    return others[max(_MOST_LINES - len(kept), 1) :]


def accuracy_of(row: Row) -> str:
    return f"{100 * row['accuracy_mean']:.1f}{PERCENT}"


def mean_of(row: Row) -> float:
    return row["accuracy_mean"]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
