"""Examples whose mean follows the mean of their class.

w_0 = mean,   s_t = argmax_i <w_t, x_i>,   w_{t+1} = w_t + mean - x_{s_t}
"""

import jax
import numpy as np

from distill_jax.selection.common import within_classes


def herding(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples by herding (Welling 2009, Eq. 6 and 7), within each class.

    Nothing is picked twice. Equally many of each class, as in `random_balanced`; the
    order of the corpus matters only between ties. Features are taken as they are:
    inner products favour long ones, so scale them first.

    Args:
        features: `[N, D]`, for instance mean word vectors.
        labels: `[N]` integers.
        n: how many, at most N.
        key: random key, for which classes give one more where C does not divide n.
            Nothing else is random.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist, of all or of one class.
    """
    return within_classes(features, labels, n, key, _herd)


def _herd(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    mean = points.mean(0)
    w = mean.copy()
    free = np.ones(len(points), bool)
    picked = []
    for _ in range(count):
        position = int(np.where(free, points @ w, -np.inf).argmax())
        picked.append(position)
        free[position] = False
        w += mean - points[position]
    return np.array(picked)
