"""Learning curves and the areas under them, from rows of active learning alone."""

from collections.abc import Sequence

import numpy as np

from distill_jax import statistics
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
