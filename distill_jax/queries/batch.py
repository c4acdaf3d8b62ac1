"""Items that say most about the weights together, not each by itself.

BatchBALD grows a batch b by the item with the largest joint mutual information of the
labels and the weights. By the chain rule it is a sum of gains, each a BALD averaged
over the configurations s of the labels already in the batch:

    I(y_b, y_i; w) = I(y_b; w) + sum_s w_s ( H[sum_f q_sf p_f] - sum_f q_sf H[p_f] )

w_s is the probability of configuration s, and q_s the posterior over the F networks
once s was seen. With W_sf = w_s q_sf, which starts as one row of 1/F and grows by one
factor p_f(y) a pick, the gain is

    sum_sy h(sum_f W_sf p_f(y)) - sum_s h(w_s) - sum_f (sum_s W_sf) H[p_f],
    h(x) = -x log x.

It is never negative, and never grows as the batch does (the joint information is
submodular), so that the gain an item had for a smaller batch bounds the one it has now.
"""

import jax
import numpy as np

from distill_jax.queries.common import (
    Context,
    Picked,
    checked_log_probs,
    generator,
    unlabelled,
)

_CHUNK = 2**21  # numbers in the largest temporary: 16 MB
_ROUNDING = 1e-12  # gains below it are equal to 0


def batch_bald(
    context: Context, n: int, key: jax.Array, *, configurations: int = 10_000
) -> Picked:
    """The greedy batch of largest joint mutual information (Kirsch et al. 2019).

    Exact while the C^b label configurations of a batch of b are at most
    `configurations`. Beyond, the earlier picks' labels are sampled: `configurations //
    C` times, stratified, each sample extended by one label a pick; an item's last gain
    still counts as its bound, within the noise of sampling. No joint information
    exceeds log F: with few passes the gains reach 0 after some picks, and the rest are
    random; F should grow with n.

    Args:
        context: needs `log_probs` `[F, N, C]` with F of at least 2.
        n: how many.
        key: for the samples and the order of ties.
        configurations: the largest table of an item, which bounds time and memory.

    Returns:
        Picks whose scores are the joint mutual information, in nats, of all picks so
        far: non-decreasing, the first one the highest BALD.

    Raises:
        ValueError: for bad input (`common.Context`), or `configurations` below C.
    """
    candidates = unlabelled(context, n)
    log_probs = checked_log_probs(context, 2, "batch_bald")
    num_passes, _, num_classes = log_probs.shape
    if configurations < num_classes:
        raise ValueError(
            f"configurations must be at least the {num_classes} classes, got "
            f"{configurations}"
        )
    rng = generator(key)
    # A random order, of which argmax takes the first: so ties are broken by the key.
    candidates = rng.permutation(candidates)
    probs = np.exp(log_probs[:, candidates].astype(np.float64)).transpose(1, 0, 2)
    entropies = _h(probs).sum(-1)

    weights = np.full((1, num_passes), 1 / num_passes)
    bounds = np.full(len(candidates), np.inf)
    picks, scores, joint, tied = [], [], 0.0, 0
    for left in range(n, 0, -1):
        gains = _best_gains(bounds, probs, entropies, weights)
        best = int(gains.argmax())
        tied = int((gains == gains[best]).sum())
        joint += float(gains[best])
        picks.append(best)
        scores.append(joint)
        bounds = gains
        bounds[best] = -np.inf
        if left > 1:
            weights = _extended(weights, probs[best], configurations, rng)
    n_tied = tied if tied > 1 else 0
    return Picked(candidates[picks], np.array(scores), n_tied)


def _best_gains(
    bounds: np.ndarray, probs: np.ndarray, entropies: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`bounds`, but of every item that could be the best, its gain."""
    bounds = bounds.copy()
    size = max(1, _CHUNK // (weights.shape[0] * probs.shape[-1]))
    order = np.argsort(-bounds, kind="stable")
    best = -np.inf
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        chunk = chunk[bounds[chunk] >= max(best, 0.0)]
        if not len(chunk):
            break
        bounds[chunk] = _gains(probs[chunk], entropies[chunk], weights)
        best = max(best, bounds[chunk].max())
    return bounds


def _gains(probs: np.ndarray, entropies: np.ndarray, weights: np.ndarray) -> np.ndarray:
    joint = _h(weights @ probs).sum((-2, -1))
    gains = joint - _h(weights.sum(-1)).sum() - entropies @ weights.sum(0)
    return np.where(gains > _ROUNDING, gains, 0.0)


def _extended(
    weights: np.ndarray, probs: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """W after one more pick with `probs` `[F, C]`; sampled where it grows too large."""
    num_classes = probs.shape[-1]
    rows = (weights[:, None, :] * probs.T[None]).reshape(-1, weights.shape[1])
    if len(rows) * num_classes <= most:
        return rows
    # One draw from each of `count` strata of equal probability: a row that was itself a
    # sample, of probability 1 / count, is extended by exactly one of its labels.
    count = max(1, most // num_classes)
    share = rows.sum(-1)
    edges = np.cumsum(share)
    points = (np.arange(count) + rng.random(count)) / count * edges[-1]
    last = np.flatnonzero(share)[-1]
    chosen = np.searchsorted(edges, points, side="right").clip(max=last)
    return rows[chosen] / (share[chosen, None] * count)


def _h(x: np.ndarray) -> np.ndarray:
    """-x log x, 0 at 0."""
    out = np.log(np.maximum(x, np.finfo(x.dtype).tiny))
    out *= x
    return np.negative(out, out=out)
