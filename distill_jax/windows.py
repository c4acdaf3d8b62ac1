"""Meta-gradients through a window of the inner steps, for long unrolls.

Training takes steps t = 0 .. T - 1. A window of W steps that begins at step s is
differentiated, and what was before it is not: with a stopped theta_s,

    theta_{t+1} = theta_t - lr_t * direction(grad_theta loss(theta_t, d_t)), t < s + W
    G_s = d/d(d, lr) loss(theta_{s+W}, real batch)
        = - g^T sum_{t=s}^{s+W-1} (prod_{j=t+1}^{s+W-1} (1 - lr_j H_j)) lr_t M_t

(the last line for d and SGD, later factors to the left),
with g the real-data gradient at theta_{s+W}, H_j the Hessian at theta_j and M_t the
mixed second derivative in theta and d at step t. Step sizes and minibatches that the
window does not use get a gradient of zero, and so does theta_0. Memory is that of W
steps, whatever T; with W = T it is `core.unrolled`.

    random_window    s uniform, so that every step is reached (RaT-BPTT, Feng et al.
                     2024, arXiv:2311.07025); training ends where the window does

It needs a key, which `core.meta_grad` hands to an objective that is `keyed`.
The start is traced, so one program serves all of them. Under `vmap` the steps before
the windows go on until the latest window of the theta_0 begins.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.core import SGD, frozen_once, inner_step
from distill_jax.types import Batch, Distilled, Keyed, LossFn, Params


def train_window(
    loss_fn: LossFn,
    theta_0: Params,
    batches: Batch,
    lr: jax.Array,
    start: int | jax.Array,
    *,
    window: int,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Params:
    """Trains up to step `start + window`, with a derivative from `start` on.

    Args:
        loss_fn, theta_0, inner_tx, inner_grad, scan: as for `core.unroll`.
        batches: `Batch` with leading axis `[S]`.
        lr: step sizes `[E, S]`, T = E * S of them.
        start: first step of the window, 0 .. T - window; may be traced.
        window: steps of the window, W.

    Returns:
        `theta_{start + window}`.

    Raises:
        ValueError: if the second axis of `lr` is not the number of minibatches.
    """
    S = batches.y.shape[0]
    if lr.ndim != 2 or lr.shape[1] != S:
        raise ValueError(
            f"lr must be [E, S] with S = {S} minibatches, got {list(lr.shape)}"
        )
    grad_fn = inner_grad(loss_fn)
    batches = frozen_once(loss_fn, batches)

    def one_step(carry, step):
        batch, step_lr = step
        carry, _ = inner_step(grad_fn, inner_tx, carry, batch, step_lr)
        return carry, None

    sizes = lr.reshape(-1)
    before = lax.stop_gradient((batches, sizes))

    def step_before(t, carry):
        now = jax.tree.map(
            lambda a, i: lax.dynamic_index_in_dim(a, i, keepdims=False),
            before,
            (jax.tree.map(lambda _: t % S, batches), t),
        )
        return one_step(carry, now)[0]

    carry = lax.stop_gradient((theta_0, inner_tx.init(theta_0)))
    carry = lax.fori_loop(0, start, step_before, carry)

    # The minibatches in the order of the window, each once: it passes over them.
    used = min(S, window)
    if S > 1:
        order = (start + jnp.arange(used)) % S
        batches = jax.tree.map(lambda a: a[order], batches)
    sizes = lax.dynamic_slice_in_dim(sizes, start, window)
    passes, rest = divmod(window, used)
    whole = passes * used
    if passes == 1:
        carry, _ = scan(one_step, carry, (batches, sizes[:whole]))
    else:
        carry, _ = scan(
            lambda carry, pass_lr: scan(one_step, carry, (batches, pass_lr)),
            carry,
            sizes[:whole].reshape(passes, used),
        )
    if rest:
        few = jax.tree.map(lambda a: a[:rest], batches)
        carry, _ = scan(one_step, carry, (few, sizes[whole:]))
    return carry[0]


def random_window(
    loss_fn: LossFn,
    *,
    window: int,
    earliest: int = 0,
    real_loss_fn: LossFn | None = None,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Keyed:
    """Real-data loss after a window at a uniform place (Feng et al. 2024, RaT-BPTT).

    Each theta_0 has a window of its own.

    Args:
        loss_fn, real_loss_fn, inner_tx, inner_grad, scan: as for `core.unrolled`.
        window: steps with a derivative, W, in 1 .. T.
        earliest: least steps before the window, in 0 .. T - W.

    Returns:
        `(distilled, theta_0, real batch, key) -> meta_loss`; it is `Keyed`.

    Raises:
        ValueError: on a window below 1 or a negative `earliest`; from the objective,
            if the two do not fit into T.
    """
    at_least_one(window, earliest)
    real_loss_fn = real_loss_fn or loss_fn

    def objective(
        distilled: Distilled, theta_0: Params, batch: Batch, key: jax.Array
    ) -> jax.Array:
        starts = num_starts(distilled.raw_lr.size, window, earliest)
        theta = train_window(
            loss_fn,
            theta_0,
            distilled.batches,
            distilled.lr,
            earliest + jax.random.randint(key, (), 0, starts),
            window=window,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        return real_loss_fn(theta, batch)

    return Keyed(objective)


def num_starts(steps: int, window: int, earliest: int = 0) -> int:
    """How many places a window has among the inner steps.

    Raises:
        ValueError: if it has none.
    """
    if earliest + window > steps:
        after = f" after the first {earliest}" if earliest else ""
        raise ValueError(
            f"a window of {window}{after} does not fit into T = {steps} inner steps: "
            f"use at most {max(steps - earliest, 0)}, or more passes"
        )
    return steps - window - earliest + 1


def at_least_one(window: int, earliest: int = 0) -> None:
    if window < 1:
        raise ValueError(f"window must be at least 1 inner step, got {window}")
    if earliest < 0:
        raise ValueError(f"earliest must be at least 0, got {earliest}")


WINDOWS: dict[str, Any] = {"random": random_window}
