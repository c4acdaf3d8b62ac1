"""Containers and function types. Imports nothing of ours.

Axes: S minibatches, E passes over them, T = E * S inner steps, B examples in a
minibatch, L tokens, D embedding width, C classes, N random theta_0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = Any
Scalar = jax.Array


@flax.struct.dataclass
class Batch:
    """Labelled text.

    Attributes:
        x: token ids `[..., B, L]` (integers, 0 is padding), embeddings
            `[..., B, L, D]` (floats), or what the frozen part of a network made of
            them, `[..., B, M]` (floats).
        mask: `[..., B, L]`, 1 where there is a token, 0 where there is padding.
        y: class probabilities `[..., B, C]`. A row of zeros counts for nothing.
        more: further leaves by name, with the same leading axes: `[..., B, ...]`.
    """

    x: jax.Array
    mask: jax.Array
    y: jax.Array
    more: dict[str, jax.Array] = flax.struct.field(default_factory=dict, kw_only=True)


@flax.struct.dataclass
class Distilled:
    """Synthetic sentences with their labels and step sizes.

    Attributes:
        x: `[S, B, L, D]` sentences as matrices in embedding space.
        y_logits: `[S, B, C]`; the labels are their softmax.
        raw_lr: `[E, S]`; the inner step sizes are their softplus.
        more: further learned leaves by name, each `[S, B, ...]`.
        ragged: each sentence has its own length: a row of zeros in `x` is no word.
    """

    x: jax.Array
    y_logits: jax.Array
    raw_lr: jax.Array
    more: dict[str, jax.Array] = flax.struct.field(default_factory=dict, kw_only=True)
    ragged: bool = flax.struct.field(pytree_node=False, default=False, kw_only=True)

    @property
    def lr(self) -> jax.Array:
        """Inner step sizes `[E, S]`, positive by construction."""
        return jax.nn.softplus(self.raw_lr)

    @property
    def y(self) -> jax.Array:
        """Class probabilities `[S, B, C]`."""
        return jax.nn.softmax(self.y_logits)

    @property
    def batches(self) -> Batch:
        """The S minibatches as the inner loop reads them."""
        return Batch(self.x, self.mask, self.y, more=self.more)

    @property
    def mask(self) -> jax.Array:
        """`[S, B, L]`, 1 where there is a word."""
        if self.ragged:
            return jnp.asarray(self.x != 0).any(-1).astype(self.x.dtype)
        return jnp.ones(self.x.shape[:-1], self.x.dtype)


class Model(NamedTuple):
    """A network as pure functions; text enters as token ids or as embeddings.

    Attributes:
        init: `(key) -> params`.
        embed: `(params, tokens [B, L]) -> x [B, L, D]`.
        apply: `(params, x [B, L, D], mask [B, L], *, key=None) -> logits [B, C]`.
            With `key=None` there is no dropout.
        route: optional, `(params, x, mask) -> integers`: the discrete choices of
            the network (which window wins a max), made without a derivative. A
            model that has it takes `apply(..., route=None)`, so that the choices
            are made once in an inner step and read again by its derivatives.
        features: optional, `(params, x, mask) -> [B, H]`: what the output layer
            reads, without dropout.
        frozen: optional, `(tokens [B, L] or x [B, L, D], mask [B, L]) -> d [B, M]`: the
            part of the network that has no parameters. A model that has it takes `d`
            in place of `x`, so that it is done once for a text, not at every step.
    """

    init: Callable[[jax.Array], Params]
    embed: Callable[[Params, jax.Array], jax.Array]
    apply: Callable[..., jax.Array]
    route: Callable[..., Any] | None = None
    features: Callable[..., jax.Array] | None = None
    frozen: Callable[..., jax.Array] | None = None


@flax.struct.dataclass
class MetaState:
    """What one meta-step hands to the next.

    Attributes:
        distilled: what is learned.
        opt_state: state of the outer optimizer.
        step: meta-steps taken or skipped, int32.
        skipped: meta-steps skipped for a gradient that was not finite, int32.
        skipped_in_a_row: of these, the ones since the last good step, int32.
    """

    distilled: Any
    opt_state: optax.OptState
    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


@flax.struct.dataclass
class MetaInfo:
    """What one meta-step reports.

    Attributes:
        meta_loss: mean real-data loss over the theta_0, in nats.
        grad_norm: global norm of the mean meta-gradient, before clipping.
        finite: a tree like `distilled`: is that leaf's gradient finite?
    """

    meta_loss: jax.Array
    grad_norm: jax.Array
    finite: Any


LossFn = Callable[..., Scalar]  # (theta, batch, route=None) -> mean loss; or a Loss
InitFn = Callable[[jax.Array], Params]  # (key) -> theta_0
Objective = Callable[..., Scalar]  # (distilled, theta_0, real batch); or a Keyed


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and its parts; called, it is `value`.

    Attributes:
        value: `(theta, batch, route=None) -> mean loss`.
        route: optional, `(theta, batch) -> route`: as of `Model`.
        frozen: optional, `(batch) -> batch`, with the frozen part of the network done.
    """

    value: Callable[..., Scalar]
    route: Callable[[Params, Batch], Any] | None = None
    frozen: Callable[[Batch], Batch] | None = None

    def __call__(self, *args, **kwargs) -> Scalar:
        return self.value(*args, **kwargs)


def as_loss(loss_fn: LossFn) -> Loss:
    """A plain function as a `Loss` without parts; a `Loss` as it is."""
    return loss_fn if isinstance(loss_fn, Loss) else Loss(loss_fn)


@dataclasses.dataclass(frozen=True)
class Keyed:
    """An objective that draws; called, it is `value`.

    Attributes:
        value: `(distilled, theta_0, real batch, key) -> scalar`.
    """

    value: Callable[..., Scalar]

    def __call__(self, *args) -> Scalar:
        return self.value(*args)
