"""Other ways for the same derivative to flow.

With g(theta, d) = grad_theta loss, the backward pass of one inner step needs, for a
cotangent v on theta, only

    H_tt v = d/dtheta <g, v>     and     H_dt v = d/dd <g, v>,

d being the step's sentences and labels. `mixed_mode` gets both, exactly, from one
forward-over-reverse product (Kemaev et al. 2025, arXiv:2505.00793);
`checkpointed_scan` bounds memory in the number of steps; `chunked` bounds it in the
size of the real batch; `clip_by_running_mean` tames the meta-gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from distill_jax.types import Batch, LossFn, Params, as_loss


def mixed_mode(loss_fn: LossFn) -> Callable[[Params, Batch], tuple[jax.Array, Params]]:
    """Makes the inner gradient whose own derivative is forward-over-reverse.

    A drop-in for `jax.value_and_grad`: same value, same derivative for theta and
    every float leaf of the batch. The loss it returns is a report and carries no
    derivative, and neither does the mask. A `loss_fn` with a `route` makes its
    discrete choices once a step.

    Args:
        loss_fn: `(theta, batch, route=None) -> loss`.

    Returns:
        `(theta, batch) -> (loss, gradient)`.
    """
    route_fn = as_loss(loss_fn).route

    def moving(batch):  # the float leaves but the mask, None for the others
        keep = lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None  # noqa: E731
        return jax.tree.map(keep, batch.replace(mask=None))

    def loss_at(theta, leaves, batch, route):
        choices = {} if route is None else {"route": route}
        batch = jax.tree.map(
            lambda leaf, a: a if leaf is None else leaf,
            leaves,
            batch,
            is_leaf=lambda leaf: leaf is None,
        )
        return loss_fn(theta, batch, **choices)

    @jax.custom_vjp
    def value_and_grad(theta, batch):
        return forward(theta, batch)[0]

    def forward(theta, batch):
        # Tied to theta, or what depends on the sentences alone (all their windows)
        # is hoisted out of the loop and kept for every step.
        t, b = lax.optimization_barrier((theta, batch))
        route = None if route_fn is None else route_fn(t, b)
        out = jax.value_and_grad(loss_at)(t, moving(b), b, route)
        return out, (theta, batch, route)

    def backward(saved, cotangent):
        theta, batch, route = lax.optimization_barrier(saved)
        _, v = cotangent

        def grads(theta):
            return jax.grad(loss_at, (0, 1))(theta, moving(batch), batch, route)

        return jax.jvp(grads, (theta,), (v,))[1]

    value_and_grad.defvjp(forward, backward)
    return value_and_grad


def checkpointed_scan(segment: int | None = None) -> Callable:
    """Makes a `lax.scan` that keeps the carry of every `segment`-th step only.

    The backward pass recomputes a segment from its first carry, so memory grows with
    `length / segment + segment`, least at the square root (Griewank 1992).

    Args:
        segment: steps recomputed together; the square root of the length unless given.

    Returns:
        A function `(f, carry, xs) -> (carry, ys)` equal to `lax.scan`.
    """

    def scan(f, init, xs):
        length = jax.tree.leaves(xs)[0].shape[0]
        size = segment or max(1, round(length**0.5))
        whole = length - length % size
        inner = jax.checkpoint(lambda c, x: lax.scan(f, c, x), prevent_cse=False)
        heads = jax.tree.map(
            lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), xs
        )
        carry, ys = lax.scan(inner, init, heads)
        ys = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)
        if whole == length:
            return carry, ys
        carry, rest = inner(carry, jax.tree.map(lambda a: a[whole:], xs))
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)

    return scan


def chunked(loss_fn: LossFn, size: int) -> LossFn:
    """The same mean loss, taken over chunks of the batch, its gradient beside it.

    Loss and gradient of one chunk are computed together and added up, so memory is
    that of one chunk. First derivatives for theta only: the real batch is data, and
    nothing flows back into it.

    Args:
        loss_fn: `(theta, batch) -> mean loss` over rows whose `y` is not all zero.
        size: examples in a chunk; must divide the batch.

    Raises:
        ValueError: on a batch that `size` does not divide.
    """

    def loss_and_grad(theta, batch):
        n = batch.y.shape[0]
        if n % size:
            raise ValueError(f"chunks of {size} do not divide a batch of {n}")
        chunks = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), batch)

        def add(total, chunk):
            weight = (chunk.y != 0).any(-1).sum().astype(total[0].dtype)
            out = jax.value_and_grad(loss_fn)(theta, chunk)
            total = jax.tree.map(
                lambda t, o: (t + weight * o).astype(t.dtype), total, out
            )
            return total, weight

        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(
                jax.value_and_grad(loss_fn), theta, jax.tree.map(lambda a: a[0], chunks)
            ),
        )
        total, weights = lax.scan(add, zeros, chunks)
        count = jnp.maximum(weights.sum(), 1)
        return jax.tree.map(lambda t: (t / count).astype(t.dtype), total)

    @jax.custom_vjp
    def loss(theta, batch):
        return loss_and_grad(theta, batch)[0]

    def backward(grad, cotangent):
        return jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grad), None

    loss.defvjp(loss_and_grad, backward)
    return loss
