"""Items spread over a space: cover it, or sample it in proportion to distance.

`k_center` picks the item furthest from all labelled and picked ones, and keeps a
running minimum of the distances, so that n picks cost n passes over the pool.

`badge` does k-means++ on g_i = (p_i - e_y) x h_i (outer product), y = argmax p_i, which
is the gradient of the loss at the output layer, were the likeliest class the label.
With a_i = p_i - e_y no g_i `[C, H]` is ever made:

    |g_i - g_j|^2 = |a_i|^2 |h_i|^2 + |a_j|^2 |h_j|^2 - 2 (a_i . a_j)(h_i . h_j)
"""

import jax
import numpy as np

from distill_jax.queries.common import (
    Context,
    Picked,
    checked_features,
    checked_log_probs,
    generator,
    tied_at_cut,
    unlabelled,
)

_CHUNK = 2**22  # numbers in the largest temporary: 32 MB
_ROUNDING = 1e-13  # of the squared norms: squared distances below it are 0


def k_center(context: Context, n: int, key: jax.Array) -> Picked:
    """The greedy 2-approximate cover of the pool by Euclidean balls around labelled
    items (Sener & Savarese 2018, Algorithm 1; Gonzalez 1985).

    Args:
        context: needs `features` `[N, H]`. With nothing labelled, the first pick is the
            item nearest to the mean of the pool.
        n: how many.
        key: unused: the lowest index breaks ties.

    Returns:
        Picks whose scores are the distance to the nearest labelled or picked item: the
        radius of the cover before the pick (for a first pick, distance to the mean).

    Raises:
        ValueError: for bad input (`common.Context`).
    """
    candidates = unlabelled(context, n)
    features = checked_features(context, "k_center").astype(np.float64)
    # Distances do not change, and lose fewer digits near the origin.
    features -= features.mean(0)
    centres = features[np.asarray(context.labelled)]
    features = features[candidates]
    squares = (features**2).sum(-1)
    nearest = np.full(len(candidates), np.inf)
    step = max(1, _CHUNK // len(candidates))
    for start in range(0, len(centres), step):
        part = centres[start : start + step]
        between = _squared(squares, (part**2).sum(-1), features @ part.T)
        np.minimum(nearest, between.min(-1), out=nearest)

    chosen, scores, tied = [], [], 0
    for _ in range(n):
        if np.isinf(nearest).all():
            worth = -squares
        else:
            worth = nearest
        best = int(worth.argmax())
        tied = tied_at_cut(worth, np.array([best]))
        chosen.append(best)
        scores.append(np.sqrt(abs(worth[best])))
        product = (features @ features[best])[:, None]
        between = _squared(squares, squares[best : best + 1], product)[:, 0]
        np.minimum(nearest, between, out=nearest)
        nearest[chosen] = -1.0
    return Picked(candidates[chosen], np.array(scores), tied)


def badge(context: Context, n: int, key: jax.Array) -> Picked:
    """k-means++ on the gradients of the output layer (Ash et al. 2020, Algorithm 1).

    The first pick has the largest gradient; each further one is drawn with probability
    proportional to its squared distance to the nearest pick. Where all distances are 0
    (copies of picked items), at random.

    Args:
        context: needs `log_probs` `[F, N, C]`, of which it reads the mean over F, and
            `features` `[N, H]`, what the output layer reads.
        n: how many.
        key: for the draws.

    Returns:
        Picks whose scores are the squared distance to the nearest earlier pick (the
        first: the squared norm). `n_tied_at_cut` is 0: the draw decides, no cut.

    Raises:
        ValueError: for bad input (`common.Context`).
    """
    candidates = unlabelled(context, n)
    log_probs = checked_log_probs(context, 1, "badge")
    features = checked_features(context, "badge")[candidates].astype(np.float64)
    a = np.zeros((len(candidates), log_probs.shape[-1]))
    for one in log_probs:
        a += np.exp(one[candidates].astype(np.float64)) / len(log_probs)
    a[np.arange(len(a)), a.argmax(-1)] -= 1
    squares = (a**2).sum(-1) * (features**2).sum(-1)
    rng = generator(key)

    nearest, chosen, scores = squares.copy(), [], []
    for _ in range(n):
        if chosen and nearest.max() > 0:
            weight = np.maximum(nearest, 0)
            best = int(rng.choice(len(weight), p=weight / weight.sum()))
        else:
            best = int(rng.choice(np.flatnonzero(nearest == nearest.max())))
        scores.append(nearest[best])
        product = ((a @ a[best]) * (features @ features[best]))[:, None]
        between = _squared(squares, squares[best : best + 1], product)[:, 0]
        nearest = np.minimum(nearest, between) if chosen else between
        chosen.append(best)
        nearest[chosen] = -1.0
    return Picked(candidates[chosen], np.array(scores), 0)


def _squared(left: np.ndarray, right: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Squared distances `[N, M]` from squared norms and inner products."""
    scale = left[:, None] + right
    between = scale - 2 * product
    return np.where(between > _ROUNDING * scale, between, 0.0)
