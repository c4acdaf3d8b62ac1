"""Distilled sentences that start from means of the real ones."""

import warnings

import jax
import numpy as np

from distill_jax.selection import (
    kmeans_medoids,
)
from distill_jax.starts import Corpus, Started

_CHUNK = 1000  # sentences embedded at once


def class_means(corpus: Corpus, n: int, key: jax.Array) -> Started:
    """At each position the mean word vector of a k-means cluster of the class.

    One sentence of a class is the mean of all its sentences. A position that none of
    them reaches gets the mean over all their words.

    Args:
        corpus: all its sentences are read, some at a time.
        n: how many sentences; k is those of a class.
        key: random key, for the starts of k-means (the best of 4 is kept).

    Returns:
        Means, shorter than word vectors where many sentences meet; balanced classes.

    Raises:
        ValueError: if n is below 1, or more than there are of a class.
    """
    labels = np.asarray(corpus.labels)
    rows = kmeans_medoids(corpus.features, labels, n, key)
    seeds = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    x = np.zeros_like(np.asarray(corpus.sentences(rows).x))
    for label in np.unique(labels[rows]):
        members = np.flatnonzero(labels == label)
        places = np.flatnonzero(labels[rows] == label)
        seed = int(seeds.integers(2**31))
        cluster = _clusters(np.asarray(corpus.features)[members], len(places), seed)
        for k, place in enumerate(places):
            own = members[cluster == k]
            # Too few distinct points leave clusters empty: then the medoid alone.
            x[place] = _mean(corpus, own if len(own) else rows[place : place + 1])
    return Started(x, labels[rows])


def _clusters(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The k-means cluster of each point, `[M]` integers below k."""
    if k == 1:
        return np.zeros(len(points), int)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: sums over several are not the same from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(k, random_state=seed).set_params(n_init=4)
        return model.fit_predict(np.asarray(points, np.float64))


def _mean(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Mean word vector at each position of some sentences, `[L, D]`."""
    total, count = 0.0, 0.0
    size = min(_CHUNK, len(corpus.labels))
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        # Filled up to one shape, which is compiled once.
        batch = corpus.sentences(np.resize(some, size))
        mask = np.asarray(batch.mask, np.float64)[: len(some)]
        x = np.asarray(batch.x)[: len(some)]
        total = total + np.einsum("nl,nld->ld", mask, x)
        count = count + mask.sum(0)
    total, count = np.asarray(total), np.asarray(count)[:, None]
    overall = total.sum(0, keepdims=True) / np.maximum(count.sum(), 1)
    return np.where(count > 0, total / np.maximum(count, 1), overall)
