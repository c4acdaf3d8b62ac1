"""The real examples nearest to k-means centres, within each class or over all."""

import warnings

import jax
import numpy as np

from distill_jax.selection.common import checked, generator, within_classes


def kmeans_medoids(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples, one for each k-means centre within its class.

    A centre is given the example nearest to it; where two would share one, the
    distinct examples of least total distance. Equally many of each class, as in
    `random_balanced`; the order of the corpus does not matter.

    Args:
        features: `[N, D]`, for instance mean word vectors.
        labels: `[N]` integers.
        n: how many, at most N.
        key: random key, for the starts of k-means (the best of 4 is kept).

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist, of all or of one class.
    """
    return within_classes(features, labels, n, key, _medoids)


def kmeans_medoids_global(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples, one for each k-means centre of the whole corpus.

    No label is read, so classes get what falls to them. The order of the corpus does
    not matter.

    Args:
        features, labels, n, key: as for `kmeans_medoids`.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist.
    """
    features, labels = checked(features, labels, n)
    canonical = np.lexsort(features.T)
    seed = int(generator(key).integers(2**31))
    return canonical[_medoids(features[canonical], n, seed)]


def _medoids(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: sums over several are not the same from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct points than centres: the assignment below still gives k.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(k, random_state=seed).set_params(n_init=4).fit(points)
    return linear_sum_assignment(cdist(model.cluster_centers_, points))[1]
