"""Examples that leave no other far from the nearest of them.

s_1     = argmin_i |x_i - mean|
s_{t+1} = argmax_i min_{s <= t} |x_i - x_s|
"""

from collections.abc import Sequence

import jax
import numpy as np

from distill_jax.selection.common import within_classes


def k_center(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples by greedy k-center (Sener and Savarese 2018), within each class.

    A class starts from the example nearest to its mean, and goes on with the one that
    is furthest from those it has. Equally many of each class, as in
    `random_balanced`; the order of the corpus matters only between equal examples.

    Args:
        features: `[N, D]`, for instance mean word vectors; distances are Euclidean.
        labels: `[N]` integers.
        n: how many, at most N.
        key: random key, for which classes give one more where C does not divide n.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist, of all or of one class.
    """
    return within_classes(features, labels, n, key, _from_the_mean)


def furthest_first(points: np.ndarray, count: int, centres: Sequence[int]) -> list[int]:
    """Picks, time after time, the point furthest from the centres and the picks.

    The smallest distances are kept, so a pick costs one distance for each point.

    Args:
        points: `[M, D]`.
        count: how many to pick, at most M less the centres.
        centres: positions that are there already, at least one.

    Returns:
        Positions in the order picked; the first of equally far ones.
    """
    from scipy.spatial.distance import cdist

    taken = list(centres)
    nearest = cdist(points, points[taken], "sqeuclidean").min(1)
    # Below every distance, so that among equal points none is picked twice.
    nearest[taken] = -1.0
    picked = []
    for _ in range(count):
        position = int(nearest.argmax())
        picked.append(position)
        new = cdist(points, points[position : position + 1], "sqeuclidean")[:, 0]
        nearest = np.minimum(nearest, new)
        nearest[position] = -1.0
    return picked


def _from_the_mean(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    start = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    return np.array([start, *furthest_first(points, count - 1, [start])])
