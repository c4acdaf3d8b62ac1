"""Examples at random, from the whole corpus or evenly from its classes."""

import jax
import numpy as np

from distill_jax.selection.common import checked, class_counts, generator, interleaved


def random(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples, each as likely as any other.

    Args:
        features: `[N, D]`, unused but for N.
        labels: `[N]` integers, unused.
        n: how many, at most N.
        key: random key.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist.
    """
    _, labels = checked(features, labels, n)
    return generator(key).choice(len(labels), n, replace=False)


def random_balanced(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array
) -> np.ndarray:
    """n examples, equally many of each class and at random within it.

    Where C does not divide n, random classes give one more; n below C leaves classes
    out. Indices come in rounds of one example of each class.

    Args:
        features: `[N, D]`, unused but for N.
        labels: `[N]` integers.
        n: how many, at most N.
        key: random key.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: if more are asked for than exist, of all or of one class.
    """
    _, labels = checked(features, labels, n)
    rng = generator(key)
    return interleaved(
        [
            rng.choice(np.flatnonzero(labels == label), count, replace=False)
            for label, count in class_counts(labels, n, rng).items()
        ]
    )
