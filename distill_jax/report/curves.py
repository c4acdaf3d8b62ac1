"""Learning curves and the areas under them, from rows of active learning alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill_jax import statistics
from distill_jax.report import plots
from distill_jax.results import Row, newest

# What the rows of one run may differ in: queries, seeds, and where the corpus is.
_FREE = "dataset data_dir download query seed seeds full".split()


def curves(rows: Sequence[Row]) -> dict[str, dict[int, np.ndarray]]:
    """For each query, accuracies `[seeds, inits]` at each number of labels.

    Args:
        rows: of one corpus, network and setting.
    """
    found: dict[str, dict[int, list]] = {}
    for row in sorted(rows, key=lambda row: (row["num_labelled"], row["seed"])):
        points = found.setdefault(row["method"], {})
        points.setdefault(row["num_labelled"], []).append(row["accuracies"])
    return {
        name: {labels: np.array(values) for labels, values in points.items()}
        for name, points in found.items()
    }


def areas(points: dict[int, np.ndarray]) -> np.ndarray | None:
    """Areas under the curves of one query `[seeds, inits]`, as mean accuracies.

    None for a single point.
    """
    if len(points) < 2:
        return None
    labels, table = list(points), np.stack(list(points.values()), -1)
    flat = [statistics.aulc(labels, one) for one in table.reshape(-1, len(labels))]
    return np.array(flat).reshape(table.shape[:2])


def newest_run(rows: Sequence[Row]) -> list[Row]:
    """Those with the settings of the last row of their corpus, network and preset.

    Args:
        rows: of active learning, oldest first.
    """
    group = ("dataset", "model", "preset")

    def run_of(row: Row) -> list:
        settings = {k: v for k, v in row["config"].items() if k not in _FREE}
        return [settings, *(row[name] for name in group)]

    last = [run_of(row) for row in newest(rows, *group)]
    return [row for row in rows if run_of(row) in last]


def table(rows: Sequence[Row]) -> str:
    """Accuracy at the end and area under the curve, with intervals of 95%, as text.

    Args:
        rows: as for `curves`.
    """
    found = curves(rows)
    area_of = {name: areas(points) for name, points in found.items()}
    random = area_of.get("random")
    lines = [
        f"{'':20} {'labels':>7} {'accuracy':>22} {'area under curve':>22} "
        f"{'minus random':>24}"
    ]
    for name, points in found.items():
        last, area = list(points)[-1], area_of[name]
        line = f"{name:20} {last:>7,} {_interval(points[last]):>22}"
        if area is not None:
            line += f" {_interval(area):>22}"
            if random is not None and name != "random" and len(area) > 1:
                pair = statistics.paired_summary(area, random)
                line += (
                    f" {100 * pair.difference:+8.1f} "
                    f"[{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"
                )
        lines.append(line)
    return "\n".join(lines)


def _interval(values: np.ndarray) -> str:
    found = statistics.summary(values)
    return f"{found.mean:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def draw(path: str | Path, rows: Sequence[Row]) -> Path:
    """The curves with bootstrap intervals over seeds and networks, as Figure 4 of the
    comparison paper (Anonymous 2022)."""
    lines = {}
    for name, points in curves(rows).items():
        told = [(x, statistics.summary(values)) for x, values in points.items()]
        lines[name] = [(x, one.mean, one.low, one.high) for x, one in told]
    return plots.plot_curves(
        path,
        lines,
        xlabel="labels",
        full=rows[0]["full_accuracy_mean"],
        majority=rows[0]["majority_accuracy"],
    )
