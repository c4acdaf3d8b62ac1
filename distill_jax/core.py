"""Dataset distillation by gradient descent through gradient descent.

With synthetic minibatches d_1 .. d_S, step sizes lr and a random start theta_0,

    theta_{t+1} = theta_t - lr_t * direction(grad_theta loss(theta_t, d_t))     (inner)
    d* = argmin_d  E_{theta_0} [ loss(theta_T(d), real batch) ]                 (meta)

over T = E * S steps: E passes over S minibatches (Wang et al. 2018, Alg. 1; soft
labels as Sucholutsky & Schonlau 2019; text as Li & Li 2021). Read this file from top
to bottom and you have read the method. Nothing here jits, draws data or knows devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.types import (
    Batch,
    Distilled,
    InitFn,
    Keyed,
    LossFn,
    MetaInfo,
    MetaState,
    Objective,
    Params,
    as_loss,
)

SGD = optax.identity()


def inner_step(
    grad_fn: Callable[[Params, Batch], tuple[jax.Array, Params]],
    inner_tx: optax.GradientTransformation,
    carry: tuple[Params, optax.OptState],
    batch: Batch,
    lr: jax.Array,
) -> tuple[tuple[Params, optax.OptState], jax.Array]:
    """One update of the network on one minibatch.

    Args:
        grad_fn: `(theta, batch) -> (loss, gradient)`.
        inner_tx: direction of the update at unit step; identity is SGD.
        carry: `(theta, opt_state)`.
        batch: one minibatch `[B, ...]`.
        lr: step size, a scalar.

    Returns:
        The new carry, and the loss before the step.
    """
    theta, opt_state = carry
    loss, grad = grad_fn(theta, batch)
    direction, opt_state = inner_tx.update(grad, opt_state, theta)
    theta = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), theta, direction)
    return (theta, opt_state), loss


def frozen_once(loss_fn: LossFn, batches: Batch) -> Batch:
    """The batches with the frozen part of the network done, where `loss_fn` has one.

    It is the same at every step, so it is not left to the steps.
    """
    frozen = as_loss(loss_fn).frozen
    return batches if frozen is None else frozen(batches)


def unroll(
    loss_fn: LossFn,
    theta_0: Params,
    batches: Batch,
    lr: jax.Array,
    *,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> tuple[Params, jax.Array]:
    """Trains from `theta_0` for E passes over S minibatches, in order.

    Any stack of batches will do, so distilled, selected, random and full data all
    train through this one loop.

    Args:
        loss_fn: `(theta, batch) -> loss`.
        theta_0: where training starts.
        batches: `Batch` with leading axis `[S]`.
        lr: step sizes `[E, S]`.
        inner_tx: direction of the update at unit step; identity is SGD.
        inner_grad: makes the inner gradient of `loss_fn`; `gradients.mixed_mode`
            is the same derivative with a cheaper derivative of its own.
        scan: `lax.scan`, or a scan that recomputes, `gradients.checkpointed_scan`.

    Returns:
        `theta_T`, and the losses before each step, `[E, S]`.

    Raises:
        ValueError: if the second axis of `lr` is not the number of minibatches.
    """
    if lr.ndim != 2 or lr.shape[1] != batches.y.shape[0]:
        raise ValueError(
            f"lr must be [E, S] with S = {batches.y.shape[0]} minibatches, "
            f"got {list(lr.shape)}"
        )
    grad_fn = inner_grad(loss_fn)
    batches = frozen_once(loss_fn, batches)

    def one_step(carry, step):
        batch, step_lr = step
        return inner_step(grad_fn, inner_tx, carry, batch, step_lr)

    def one_pass(carry, pass_lr):
        return scan(one_step, carry, (batches, pass_lr))

    carry = (theta_0, inner_tx.init(theta_0))
    if lr.shape[0] == 1:  # no loop over one pass, nor its second copy of each theta_t
        (theta_T, _), losses = one_pass(carry, lr[0])
        return theta_T, losses[None]
    (theta_T, _), losses = scan(one_pass, carry, lr)
    return theta_T, losses


def unrolled(
    loss_fn: LossFn,
    *,
    real_loss_fn: LossFn | None = None,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Objective:
    """The objective of Wang et al. (2018), Eq. 3: real-data loss after the unroll.

    Args:
        loss_fn: loss of the inner steps.
        real_loss_fn: loss on the real batch; `loss_fn` unless given. See
            `gradients.chunked` for large real batches.
        inner_tx, inner_grad, scan: as for `unroll`.

    Returns:
        `(distilled, theta_0, real batch) -> meta_loss`.
    """
    real_loss_fn = real_loss_fn or loss_fn

    def objective(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        theta_T, _ = unroll(
            loss_fn,
            theta_0,
            distilled.batches,
            distilled.lr,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        return real_loss_fn(theta_T, batch)

    return objective


def meta_grad(
    objective: Objective,
    init_fn: InitFn,
    distilled: Any,
    keys: jax.Array,
    batch: Batch,
    *,
    sequential: bool = False,
) -> tuple[jax.Array, Any]:
    """Mean objective and mean gradient over the random starts of `keys`.

    Args:
        objective: `(distilled, theta_0, batch) -> scalar`; a `Keyed`
            one takes a key of its own after the batch.
        init_fn: `(key) -> theta_0`; a fixed start ignores its key.
        distilled: what the gradient is taken for.
        keys: `[N]`, one for each theta_0; consumed.
        batch: the real batch, the same for each theta_0.
        sequential: one theta_0 after the other (a scan, for CPU: faster there, and
            the memory of one) rather than all at once (`vmap`, for accelerators).

    Returns:
        Mean meta-loss, and the mean gradient, a tree like `distilled`.
    """

    def loss_and_grad(key):
        own = ()
        if isinstance(objective, Keyed):  # theta_0 stays what it is without
            own = (jax.random.fold_in(key, jnp.uint32(2**32 - 1)),)
        return jax.value_and_grad(objective)(distilled, init_fn(key), batch, *own)

    if not sequential:
        return jax.tree.map(lambda a: a.mean(0), jax.vmap(loss_and_grad)(keys))

    def add(total, key):
        return jax.tree.map(jnp.add, total, loss_and_grad(key)), None

    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(loss_and_grad, keys[0])
    )
    total, _ = lax.scan(add, zeros, keys)
    return jax.tree.map(lambda a: a / keys.shape[0], total)


def meta_init(meta_tx: optax.GradientTransformation, distilled: Any) -> MetaState:
    """The state before the first meta-step."""
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]  # three, as each is donated
    return MetaState(distilled, meta_tx.init(distilled), *counts)


def meta_step(
    objective: Objective,
    init_fn: InitFn,
    meta_tx: optax.GradientTransformation,
    state: MetaState,
    keys: jax.Array,
    batch: Batch,
    *,
    sequential: bool = False,
    axis_name: str | None = None,
) -> tuple[MetaState, MetaInfo]:
    """One update of the distilled data.

    A meta-gradient that is not finite is skipped and counted: the distilled data
    and the optimizer keep their values.

    Args:
        objective, init_fn, keys, batch, sequential: as for `meta_grad`.
        meta_tx: the outer optimizer.
        state: from `meta_init` or the step before.
        axis_name: the device axis to average over, inside `pmap` or `shard_map`.

    Returns:
        The next state, and what happened.
    """
    loss, grad = meta_grad(
        objective, init_fn, state.distilled, keys, batch, sequential=sequential
    )
    if axis_name is not None:
        loss, grad = lax.pmean((loss, grad), axis_name)
    finite = jax.tree.map(lambda g: jnp.isfinite(g).all(), grad)
    norm = optax.tree.norm(grad)  # finite leaves may still have a norm that is not
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = meta_tx.update(grad, state.opt_state, state.distilled)
    distilled = optax.apply_updates(state.distilled, updates)
    kept = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (distilled, opt_state),
        (state.distilled, state.opt_state),
    )
    bad = jnp.where(good, 0, 1).astype(jnp.int32)
    next_state = MetaState(
        *kept,
        step=state.step + 1,
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    return next_state, MetaInfo(loss, norm, finite)
