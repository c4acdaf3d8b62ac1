"""Gradient matching (Zhao, Mopuri & Bilen 2021, arXiv:2006.05929).

With g_c(theta; B) the gradient of the loss of class c on the batch B, and g[l] its
part in the weight array l,

    D = mean_c sum_l d(g_c(theta; distilled)[l], g_c(theta; real)[l])
    d(a, b) = sum_i (1 - <a_i, b_i> / (|a_i| |b_i|))                       (Eq. 10)

summed over the thetas of a training on the distilled data, which is not itself
differentiated. The loss of class c is the cross-entropy with all labels but c set to
zero: for hard labels that of the examples of c, as in the paper, for soft ones each
example counts by its share of c.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.core import SGD, inner_step
from distill_jax.objectives.common import whole
from distill_jax.types import Batch, Distilled, LossFn, Objective, Params

# `(gradients of an array [G, ...]) -> [G, I, K]`: I vectors, each compared with its own
GROUPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "layer": lambda a: a.reshape(a.shape[0], 1, -1),
    "node": lambda a: jnp.moveaxis(a, -1, 1).reshape(a.shape[0], a.shape[-1], -1),
}


def gradient_matching(
    loss_fn: LossFn,
    *,
    real_loss_fn: LossFn | None = None,
    by_class: bool = True,
    group: str = "layer",
    num_points: int = 1,
    eps: float = 1e-6,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
) -> Objective:
    """Distance of the distilled data's gradient from the real one (Zhao et al. 2021).

    Classes without a real example in the batch are left out. As in the authors' code,
    arrays of one axis (biases) are not compared. The step sizes get no gradient.

    Args:
        loss_fn: `(theta, batch) -> loss`, linear in the labels as cross-entropy is.
        real_loss_fn: loss on the real batch; `loss_fn` unless given.
        by_class: compare class by class, or one gradient of the whole batch.
        group: `layer` compares each weight array as one vector; `node` each output
            node of it, as the paper, where the last axis lists them (Flax's layers;
            not the filters of `text_cnn`).
        num_points: thetas compared at: theta_0, then one after each pass over the
            distilled minibatches with their step sizes, at most E + 1.
        eps: added to the product of norms, against division by zero.
        inner_tx: direction of those steps.
        inner_grad: makes the gradient that is matched, from `loss_fn`;
            `gradients.mixed_mode` is the same with a cheaper derivative.

    Returns:
        `(distilled, theta_0, real batch) -> mean distance`: each array (or node) adds
        between 0 and 2.

    Raises:
        ValueError: for an unknown group, `num_points` below 1 (here) or above E + 1,
            or a network without an array of two axes (when called).
    """
    if group not in GROUPS:
        raise ValueError(f"unknown group {group!r}; known: {', '.join(sorted(GROUPS))}")
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    vectors = GROUPS[group]
    real_grad_fn = jax.value_and_grad(real_loss_fn or loss_fn)
    grad_fn = inner_grad(loss_fn)

    def gradients(grad_fn, theta: Params, batch: Batch) -> Params:
        """One gradient for each class `[C, ...]`, or of all `[1, ...]`."""
        if not by_class:
            return jax.tree.map(lambda a: a[None], grad_fn(theta, batch)[1])
        only = jnp.eye(batch.y.shape[-1], dtype=batch.y.dtype)[:, None, :]
        return jax.vmap(lambda y: grad_fn(theta, dataclasses.replace(batch, y=y))[1])(
            batch.y[None] * only
        )

    def objective(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        if num_points - 1 > distilled.raw_lr.shape[0]:
            raise ValueError(
                f"num_points must be at most {distilled.raw_lr.shape[0] + 1}, one more "
                f"than there are passes, got {num_points}"
            )
        if by_class:
            counts = (batch.y != 0).any(0).astype(batch.y.dtype)
        else:
            counts = jnp.ones(1, batch.y.dtype)
        examples = whole(distilled)

        def distance(theta):
            ours = gradients(grad_fn, theta, examples)
            real = lax.stop_gradient(gradients(real_grad_fn, theta, batch))
            pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(real), strict=True)
            parts = [
                (1 - _cosine(vectors(a), vectors(b), eps)).sum(-1)
                for a, b in pairs
                if a.ndim > 2  # the first axis is that of the classes
            ]
            if not parts:
                raise ValueError(
                    "the network has no weight array of two axes to compare"
                )
            return (sum(parts) * counts).sum() / jnp.maximum(counts.sum(), 1)

        theta_0 = lax.stop_gradient(theta_0)
        first = distance(theta_0)
        if num_points == 1:
            return first
        fixed = lax.stop_gradient((distilled.batches, distilled.lr))
        step_grad = jax.value_and_grad(loss_fn)

        def one_step(carry, step):
            return inner_step(step_grad, inner_tx, carry, *step)

        def one_pass(carry, lr):
            carry, _ = lax.scan(one_step, carry, (fixed[0], lr))
            return carry, distance(carry[0])

        carry = (theta_0, inner_tx.init(theta_0))
        _, later = lax.scan(one_pass, carry, fixed[1][: num_points - 1])
        return (first + later.sum()) / num_points

    return objective


def _cosine(a: jax.Array, b: jax.Array, eps: float) -> jax.Array:
    return (a * b).sum(-1) / (_norm(a) * _norm(b) + eps)


def _norm(a: jax.Array) -> jax.Array:
    """Norm over the last axis, with derivative zero (not NaN) at zero."""
    square = (a * a).sum(-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
