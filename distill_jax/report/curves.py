"""Learning curves and the areas under them, from rows of active learning alone."""

from collections.abc import Sequence

import numpy as np

from distill_jax import statistics
from distill_jax.results import Row


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
