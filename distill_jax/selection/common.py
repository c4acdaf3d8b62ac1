"""What the selections share: checks, random numbers, and how n is spread."""

from collections.abc import Callable

import jax
import numpy as np

# (points [M, D] of one class, count, seed) -> distinct positions [count] in it
Chooser = Callable[[np.ndarray, int, int], np.ndarray]


def checked(features, labels, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[N, D]` in float64 and labels `[N]`, or a ValueError."""
    features = np.asarray(features, np.float64)
    labels = np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "features must be [N, D] and labels [N], got "
            f"{list(features.shape)} and {list(labels.shape)}"
        )
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    if not 1 <= n <= len(labels):
        raise ValueError(f"asked for {n} examples of {len(labels)}")
    return features, labels


def generator(key: jax.Array) -> np.random.Generator:
    """NumPy random numbers from a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def class_counts(
    labels: np.ndarray, n: int, rng: np.random.Generator
) -> dict[int, int]:
    """How many examples each class gives: n / C, the remainder to random classes.

    Raises:
        ValueError: naming the class that has too few.
    """
    classes, available = np.unique(labels, return_counts=True)
    share, remainder = divmod(n, len(classes))
    counts = np.full(len(classes), share)
    roomy = np.flatnonzero(available > share)
    scarce = available < share
    if not scarce.any() and len(roomy) < remainder:
        scarce = available <= share
    if scarce.any():
        worst = np.flatnonzero(scarce)[0]
        raise ValueError(
            f"class {classes[worst]} has {available[worst]} examples; {n} examples "
            f"over {len(classes)} classes ask for {-(-n // len(classes))} of each"
        )
    counts[rng.choice(roomy, remainder, replace=False)] += 1
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def interleaved(chosen: list[np.ndarray]) -> np.ndarray:
    """The indices of all classes in rounds of one each, so any minibatch of C
    neighbours is as balanced as the whole."""
    rounds = [np.arange(len(indices)) for indices in chosen]
    order = np.argsort(np.concatenate(rounds), kind="stable")
    return np.concatenate(chosen)[order]


def within_classes(
    features: np.ndarray, labels: np.ndarray, n: int, key: jax.Array, choose: Chooser
) -> np.ndarray:
    """Lets `choose` pick within each class, equally many of each.

    The examples reach it sorted by their features, so the order of the corpus does
    not matter. Indices come in rounds of one example of each class.
    """
    features, labels = checked(features, labels, n)
    rng = generator(key)
    canonical = np.lexsort((labels, *features.T))
    features, labels = features[canonical], labels[canonical]
    chosen = []
    for label, count in class_counts(labels, n, rng).items():
        members = np.flatnonzero(labels == label)
        seed = int(rng.integers(2**31))
        if count:
            members = members[choose(features[members], count, seed)]
        chosen.append(canonical[members[:count]])
    return interleaved(chosen)
