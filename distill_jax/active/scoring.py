"""What a network says of every item of a pool, by Monte Carlo dropout or plainly.

With dropout masks w_1 .. w_F, each drawn once and used for every item of the pool,

    log p_f(y | x_i) = log softmax(network(x_i; theta, w_f))

are the class probabilities of F sampled networks (Gal & Ghahramani 2016).

Axes: N items of the pool, in K chunks; F sampled networks, C classes, H features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distill_jax.losses import logits_fn, network_input
from distill_jax.queries import Query
from distill_jax.types import Batch, Model, Params

Score = Callable[[Any, jax.Array], "Scored"]  # (network, key) -> what a query may read

# Items scored at once. Always the same ones together, whatever the chunks: so the
# chunks change no bit. On CPU the windows of so many sentences stay in cache.
_BLOCK = 16


def mc_log_probs(
    model: Model, *, block: int = _BLOCK
) -> Callable[[Params, Batch, jax.Array], jax.Array]:
    """Log class probabilities under F sampled networks (Gal & Ghahramani 2016).

    Each key draws one dropout mask, the same for every item: one sampled network for
    the whole pool. What comes before the first dropout is computed once, not F times.

    Args:
        model: one with dropout; see `has_dropout`.
        block: items computed together. The chunks change no bit of the result; this
            may.

    Returns:
        `(theta, chunks [K, size, ...], keys [F]) -> [F, K * size, C]`, in nats.
    """
    logits = logits_fn(model)

    def one_item(theta, x, mask, key):
        item = Batch(x[None], mask[None], jnp.zeros((1, 1)))
        return logits(theta, item, key=key)[0]

    items = jax.vmap(one_item, (None, 0, 0, None))
    passes = jax.vmap(items, (None, None, None, 0))

    def scores(theta: Params, chunks: Batch, keys: jax.Array) -> jax.Array:
        out = _in_blocks(lambda x, m: passes(theta, x, m, keys), chunks, block, axis=1)
        return _log_softmax(out)

    return scores


def plain_log_probs(
    model: Model, *, block: int = _BLOCK
) -> Callable[[Params, Batch], jax.Array]:
    """Log class probabilities of the network without dropout.

    Returns:
        `(theta, chunks [K, size, ...]) -> [1, K * size, C]`, in nats: one pass.
    """
    logits = logits_fn(model)

    def scores(theta: Params, chunks: Batch) -> jax.Array:
        def one(x, mask):
            return logits(theta, Batch(x, mask, mask))[None]

        return _log_softmax(_in_blocks(one, chunks, block, axis=1))

    return scores


def pool_features(
    model: Model, *, block: int = _BLOCK
) -> Callable[[Params, Batch], jax.Array]:
    """What the output layer reads, without dropout.

    Returns:
        `(theta, chunks [K, size, ...]) -> [K * size, H]`.

    Raises:
        ValueError: if the model does not say what its features are.
    """
    read = model.features
    if read is None:
        raise ValueError(
            "this query reads the features of the network, and the model has none: "
            "give Model(features=(params, x, mask) -> [B, H])"
        )

    def features(theta: Params, chunks: Batch) -> jax.Array:
        def one(x, mask):
            batch = Batch(x, mask, mask)
            return read(theta, network_input(model, theta, batch), mask)

        return _in_blocks(one, chunks, block, axis=0)

    return features


def has_dropout(model: Model, batch: Batch) -> bool:
    """Whether the logits of a few items depend on the key.

    Args:
        model: the network; tried with one random theta_0.
        batch: real text; the first items of it are tried.
    """
    few = jax.tree.map(lambda a: jnp.asarray(a)[:4], batch)
    logits, theta = logits_fn(model), model.init(jax.random.key(0))
    first, *others = (
        logits(theta, few, key=key) for key in jax.random.split(jax.random.key(1), 4)
    )
    return any(bool((first != other).any()) for other in others)


class Scored(NamedTuple):
    """What a network says of the whole pool; None where it was not asked.

    Attributes:
        log_probs: `[F, N, C]`, in nats.
        features: `[N, H]`.
    """

    log_probs: np.ndarray | None = None
    features: np.ndarray | None = None


class Scorers(NamedTuple):
    """The ways to score a pool. Compile each once, and use it for every round:
    `Scorers(*map(jax.jit, scorers(model)))`.

    Attributes:
        mc: see `mc_log_probs`.
        plain: see `plain_log_probs`.
        features: see `pool_features`.
    """

    mc: Callable[[Params, Batch, jax.Array], jax.Array]
    plain: Callable[[Params, Batch], jax.Array]
    features: Callable[[Params, Batch], jax.Array]


def scorers(model: Model) -> Scorers:
    """The ways to score a pool with this model."""

    def features(theta: Params, chunks: Batch) -> jax.Array:
        return pool_features(model)(theta, chunks)

    return Scorers(mc_log_probs(model), plain_log_probs(model), features)


def score_with(
    scorers: Scorers, query: Query, chunks: Batch, num_items: int, passes: int
) -> Score:
    """Scores the whole pool with what this query reads, and no more.

    Args:
        scorers: compiled.
        query: from `QUERIES`, or your own.
        chunks: the pool, from `evaluate.padded`.
        num_items: N, without the padding.
        passes: F; 1 is the network without dropout.

    Raises:
        ValueError: if there are fewer passes than the query needs.
    """
    check_passes(query, passes)

    def score(theta: Params, key: jax.Array) -> Scored:
        log_probs = features = None
        if query.passes and passes == 1:
            log_probs = np.asarray(scorers.plain(theta, chunks))[:, :num_items]
        elif query.passes:
            keys = jax.random.split(key, passes)
            log_probs = np.asarray(scorers.mc(theta, chunks, keys))[:, :num_items]
        if query.features:
            features = np.asarray(scorers.features(theta, chunks))[:num_items]
        return Scored(log_probs, features)

    return score


def check_passes(query: Query, passes: int, name: str = "this query") -> None:
    """Raises a ValueError if a query needs more passes than that."""
    if passes < max(query.passes, 1):
        why = (
            f": {name} scores how far sampled networks disagree, 10 are usual"
            if query.passes > 1
            else ""
        )
        raise ValueError(
            f"passes must be at least {max(query.passes, 1)}, got {passes}{why}"
        )


def _log_softmax(logits: jax.Array) -> jax.Array:
    # Half precision has too few digits for a difference of entropies.
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, "float32")))


def _in_blocks(fn, chunks: Batch, block: int, *, axis: int) -> jax.Array:
    """`fn(x, mask)` over all items, `block` at a time; its items are on `axis`."""
    x, mask = (a.reshape(-1, *a.shape[2:]) for a in (chunks.x, chunks.mask))
    n = x.shape[0]

    def blocks(a):
        a = jnp.pad(a, [(0, -n % block)] + [(0, 0)] * (a.ndim - 1))
        return a.reshape(-1, block, *a.shape[1:])

    out = lax.map(lambda item: fn(*item), (blocks(x), blocks(mask)))
    out = jnp.moveaxis(out, 0, axis)
    merged = out.shape[:axis] + (-1,) + out.shape[axis + 2 :]
    return out.reshape(merged)[(slice(None),) * axis + (slice(n),)]
