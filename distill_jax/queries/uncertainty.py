"""How unsure one or several networks are of an item: scores `[N]`, higher first.

With p_f = softmax(logits_f) of F sampled networks and their mean p = mean_f p_f:

    variation_ratio      1 - max_c #{f : argmax p_f = c} / F
    predictive_entropy   H[p] = -sum_c p_c log p_c
    bald                 H[p] - mean_f H[p_f]  =  mean_f KL(p_f || p)
    margin               -(p_(1) - p_(2)), the two largest
    least_confidence     1 - max_c p_c

All start from log-probabilities l_f [F, N, C], and add no epsilon inside a logarithm.
The log of the mean is l = m + log1p(mean_f expm1(l_f - m)) with m = max_f l_f, so that
equal passes give l = l_f exactly. `bald` is a difference of nearly equal numbers, which
float32 gets wrong and often negative; the same number is a sum of terms >= 0 (the added
p - p_f sum to zero over the classes):

    bald = mean_f sum_c p_c phi(l_fc - l_c),    phi(d) = d e^d - e^d + 1 >= 0
"""

import math

import jax
import jax.numpy as jnp

# exp of it is 0 in every float type: it stands for log 0 and has finite derivatives.
_LOG_ZERO = -1e4


def variation_ratio(
    log_probs: jax.Array, key: jax.Array | None = None, *, mode: str = "votes"
) -> jax.Array:
    """Share of passes that do not vote for the modal class (Freeman 1965).

    It has at most F levels, so in a large pool most picks are ties.

    Args:
        log_probs: `[F, N, C]` log class probabilities.
        key: unused; every score has the same signature.
        mode: "votes" counts argmax votes; "mean" is 1 - max_c p_c of the mean p (Gal et
            al. 2017), the same as `least_confidence`.

    Returns:
        Scores `[N]`, in [0, 1 - 1/C].

    Raises:
        ValueError: for another mode.
    """
    if mode == "mean":
        return least_confidence(log_probs)
    if mode != "votes":
        raise ValueError(f"mode must be 'votes' or 'mean', got {mode!r}")
    log_probs = _at_least_float32(log_probs)
    num_passes, _, num_classes = log_probs.shape
    votes = jax.nn.one_hot(log_probs.argmax(-1), num_classes, dtype=log_probs.dtype)
    return (num_passes - votes.sum(0).max(-1)) / num_passes


def predictive_entropy(
    log_probs: jax.Array, key: jax.Array | None = None, *, base: float | None = None
) -> jax.Array:
    """Entropy of the mean prediction (Shannon 1948; Gal et al. 2017).

    Args:
        log_probs: `[F, N, C]` log class probabilities.
        key: unused.
        base: of the logarithm; None is e (nats), 2 gives bits. The order of the items
            does not depend on it.

    Returns:
        Scores `[N]`, in [0, log C].

    Raises:
        ValueError: if the base is not above 1.
    """
    if base is not None and not 1 < base < math.inf:
        raise ValueError(f"base must be a number above 1, or None for nats: {base!r}")
    log_mean, _ = _log_mean(log_probs)
    nats = -(jnp.exp(log_mean) * log_mean).sum(-1)
    return nats if base is None else nats / math.log(base)


def bald(log_probs: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Mutual information between label and weights (Houlsby et al. 2011, Eq. 2).

    Args:
        log_probs: `[F, N, C]` log class probabilities.
        key: unused.

    Returns:
        Scores `[N]` in nats, in [0, min(H[p], log C, log F)]; 0 where all passes agree.
    """
    log_mean, deviation = _log_mean(log_probs)
    # The derivative of phi is d e^d; below -80 it is 0 to within any float.
    terms = _phi(jnp.maximum(deviation, -80.0)).mean(0)
    return (jnp.exp(log_mean) * terms).sum(-1)


def margin(log_probs: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Minus the lead of the likeliest class over the next, "breaking ties" (Scheffer et
    al. 2001), of the mean prediction.

    Args:
        log_probs: `[F, N, C]` log class probabilities.
        key: unused.

    Returns:
        Scores `[N]`, in [-1, 0].
    """
    log_mean, _ = _log_mean(log_probs)
    if log_mean.shape[-1] == 1:
        return -jnp.exp(log_mean[:, 0])
    first, second = jax.lax.top_k(log_mean, 2)[0].T
    return jnp.exp(first) * jnp.expm1(second - first)


def least_confidence(log_probs: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """1 - max_c p_c of the mean prediction (Lewis & Gale 1994).

    Args:
        log_probs: `[F, N, C]` log class probabilities.
        key: unused.

    Returns:
        Scores `[N]`, in [0, 1 - 1/C].
    """
    log_mean, _ = _log_mean(log_probs)
    return -jnp.expm1(log_mean.max(-1))


def _log_mean(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p `[N, C]` of the mean over F, and l_f - log p `[F, N, C]`."""
    log_probs = jnp.maximum(_at_least_float32(log_probs), _LOG_ZERO)
    top = jax.lax.stop_gradient(log_probs.max(0))
    below = log_probs - top[None]
    shift = jnp.log1p(jnp.expm1(below).mean(0))
    return top + shift, below - shift[None]


def _phi(d: jax.Array) -> jax.Array:
    series = d * d * (1 / 2 + d * (1 / 3 + d * (1 / 8 + d / 30)))
    return jnp.where(jnp.abs(d) < 1e-2, series, d * jnp.exp(d) - jnp.expm1(d))


def _at_least_float32(log_probs: jax.Array) -> jax.Array:
    log_probs = jnp.asarray(log_probs)
    return log_probs.astype(jnp.promote_types(log_probs.dtype, jnp.float32))
