"""Losses and scores of a `Model` on a `Batch`."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from distill_jax.types import Batch, Loss, Model, Params


def logits_fn(model: Model) -> Callable[..., jax.Array]:
    """Makes `(theta, batch, *, key=None, route=None) -> logits [B, C]`.

    Integer `batch.x` is embedded here and nowhere else.
    """

    def logits(theta: Params, batch: Batch, *, key=None, route=None) -> jax.Array:
        choices = {} if model.route is None else {"route": route}
        x = network_input(model, theta, batch)
        return model.apply(theta, x, batch.mask, key=key, **choices)

    return logits


def route_fn(model: Model) -> Callable[[Params, Batch], object] | None:
    """Makes `(theta, batch) -> route`, or None where the model has no choices."""
    choose = model.route
    if choose is None:
        return None

    def route(theta: Params, batch: Batch):
        return choose(theta, network_input(model, theta, batch), batch.mask)

    return route


def cross_entropy(model: Model) -> Loss:
    """Makes the mean cross-entropy in nats, for hard and soft labels alike.

    Rows of `batch.y` that are all zero (padding of a last batch) count for nothing.
    With a `key` there is dropout. The result carries the model's `route` for
    `gradients.mixed_mode`, and its `frozen` part for `core.frozen_once`.
    """
    logits = logits_fn(model)

    def loss(theta: Params, batch: Batch, route=None, *, key=None) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits(theta, batch, key=key, route=route))
        count = jnp.maximum((batch.y != 0).any(-1).sum(), 1)
        return -(batch.y * log_probs).sum() / count

    frozen = None if model.frozen is None else partial(frozen_part, model)
    return Loss(loss, route_fn(model), frozen)


def num_correct(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """Makes `(theta, batch) -> how many examples are classified right`, int32."""
    logits = logits_fn(model)

    def correct(theta: Params, batch: Batch) -> jax.Array:
        hit = logits(theta, batch).argmax(-1) == batch.y.argmax(-1)
        return (hit & (batch.y != 0).any(-1)).sum(dtype=jnp.int32)

    return correct


def embedded(model: Model, theta: Params, batch: Batch) -> jax.Array:
    """`batch.x` as word vectors `[..., B, L, D]`: integers are looked up."""
    if jnp.issubdtype(batch.x.dtype, jnp.integer):
        return model.embed(theta, batch.x)
    return batch.x


def network_input(model: Model, theta: Params, batch: Batch) -> jax.Array:
    """`batch.x` as the network takes it: word vectors, or its frozen part done."""
    if model.frozen is not None:
        return frozen_part(model, batch).x
    return embedded(model, theta, batch)


def frozen_part(model: Model, batch: Batch) -> Batch:
    """The batch with what has no parameters in the network done, once and for all.

    Args:
        model: the network; without a `frozen` part the batch is given back.
        batch: of any leading axes `[...]`.

    Returns:
        The batch with `x` `[..., B, M]`.
    """
    x, mask = batch.x, batch.mask
    is_done = jnp.issubdtype(x.dtype, jnp.floating) and x.ndim == mask.ndim
    if model.frozen is None or is_done:
        return batch
    rows = x.reshape(-1, *x.shape[mask.ndim - 1 :])
    d = model.frozen(rows, mask.reshape(-1, mask.shape[-1]))
    return dataclasses.replace(batch, x=d.reshape(*mask.shape[:-1], -1))
