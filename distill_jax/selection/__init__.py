"""Label-aware choice of n real examples, to set beside n distilled ones.

Each is a function `(features [N, D], labels [N], n, key) -> indices [n]`: distinct,
the same for the same key, and never a look at anything but the training set.
"""

from collections.abc import Callable

import jax
import numpy as np

from distill_jax.selection.coverage import k_center
from distill_jax.selection.difficulty import el2n, el2n_scores
from distill_jax.selection.kmeans import kmeans_medoids, kmeans_medoids_global
from distill_jax.selection.moments import herding
from distill_jax.selection.uniform import random, random_balanced

__all__ = [
    "SELECTIONS",
    "Selection",
    "el2n",
    "el2n_scores",
    "get",
    "herding",
    "k_center",
    "kmeans_medoids",
    "kmeans_medoids_global",
    "random",
    "random_balanced",
]

Selection = Callable[[np.ndarray, np.ndarray, int, jax.Array], np.ndarray]

SELECTIONS: dict[str, Selection] = {
    "random": random,
    "random_balanced": random_balanced,
    "kmeans_medoids": kmeans_medoids,
    "kmeans_medoids_global": kmeans_medoids_global,
    "k_center": k_center,
    "herding": herding,
    "el2n": el2n,
}


def get(name: str) -> Selection:
    """The selection of that name; ValueError lists the known ones."""
    if name not in SELECTIONS:
        raise ValueError(
            f"unknown selection {name!r}; known: {', '.join(sorted(SELECTIONS))}"
        )
    return SELECTIONS[name]
