"""Partly trained theta_0, in place of fresh ones.

`partly_trained` trains anew for each key, `from_experts` draws from what was recorded,
both on real data. `aged` and `after_training` are the model pool of Zhou et al. (2022)
without its state: networks trained on the distilled data as it is now, for a random
number of steps.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.core import SGD, inner_step
from distill_jax.types import (
    Batch,
    Distilled,
    InitFn,
    Keyed,
    LossFn,
    Objective,
    Params,
)


def partly_trained(
    loss_fn: LossFn,
    init_fn: InitFn,
    data: Batch,
    *,
    max_steps: int,
    lr: float,
    batch_size: int = 32,
    inner_tx: optax.GradientTransformation = SGD,
) -> InitFn:
    """Makes `(key) -> theta` after 0 to `max_steps` steps on real data.

    The number of steps is uniform, each on a random minibatch.

    Args:
        loss_fn: `(theta, batch) -> loss`.
        init_fn: `(key) -> theta_0`.
        data: real examples `[N, ...]`.
        max_steps: most steps, at least 0.
        lr: step size.
        batch_size: examples in a minibatch, with replacement.
        inner_tx: direction of a step at unit size.

    Raises:
        ValueError: on a number out of its range.
    """
    _check_steps(max_steps)
    if not lr > 0 or batch_size < 1:
        raise ValueError(
            f"lr must be over 0 and batch_size at least 1, got {lr} and {batch_size}"
        )
    data = jax.tree.map(jnp.asarray, data)
    grad_fn = jax.value_and_grad(loss_fn)

    def init(key: jax.Array) -> Params:
        init_key, steps_key, data_key = jax.random.split(key, 3)
        theta_0 = init_fn(init_key)

        def step(t, carry):
            rows = jax.random.randint(
                jax.random.fold_in(data_key, t), (batch_size,), 0, data.y.shape[0]
            )
            batch = jax.tree.map(lambda a: a[rows], data)
            return inner_step(grad_fn, inner_tx, carry, batch, jnp.asarray(lr))[0]

        steps = jax.random.randint(steps_key, (), 0, max_steps + 1)
        return lax.fori_loop(0, steps, step, (theta_0, inner_tx.init(theta_0)))[0]

    return init


def from_experts(experts: Params, *, max_epoch: int | None = None) -> InitFn:
    """Makes `(key) -> theta` of a random expert at a random epoch.

    Args:
        experts: leaves `[K, M + 1, ...]`, from `experts.load`.
        max_epoch: the last to draw, at most M; M unless given.

    Raises:
        ValueError: on an epoch they do not have.
    """
    K, epochs = jax.tree.leaves(experts)[0].shape[:2]
    last = epochs - 1 if max_epoch is None else max_epoch
    if not 0 <= last < epochs:
        raise ValueError(
            f"max_epoch must be in 0 .. {epochs - 1}, as the experts have, got {last}"
        )

    def init(key: jax.Array) -> Params:
        expert_key, epoch_key = jax.random.split(key)
        k = jax.random.randint(expert_key, (), 0, K)
        epoch = jax.random.randint(epoch_key, (), 0, last + 1)
        return jax.tree.map(lambda a: a[k, epoch], experts)

    return init


@flax.struct.dataclass
class Aged:
    """A fresh theta_0, and how many steps it is to be trained first."""

    theta_0: Params
    steps: jax.Array


def aged(init_fn: InitFn, max_steps: int) -> InitFn:
    """Makes `(key) -> Aged` of 0 to `max_steps` steps, for `after_training`.

    Raises:
        ValueError: if `max_steps` is negative.
    """
    _check_steps(max_steps)

    def init(key: jax.Array) -> Aged:
        init_key, steps_key = jax.random.split(key)
        steps = jax.random.randint(steps_key, (), 0, max_steps + 1)
        return Aged(init_fn(init_key), steps)

    return init


def after_training(
    objective: Objective,
    loss_fn: LossFn,
    *,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
) -> Objective:
    """Takes an objective at networks trained on the distilled data (Zhou et al. 2022).

    That training goes through the distilled minibatches in order, over and over, each
    with its first step size. It is not differentiated.

    Args:
        objective: `(distilled, theta_0, batch) -> scalar`.
        loss_fn: `(theta, batch) -> loss`.
        inner_tx: direction of a step.
        inner_grad: makes the gradient of `loss_fn`.

    Returns:
        `(distilled, Aged, batch) -> scalar`.
    """
    grad_fn = inner_grad(loss_fn)

    def trained(
        distilled: Distilled, theta_0: Aged, batch: Batch, *own_key
    ) -> jax.Array:
        batches, lr = lax.stop_gradient((distilled.batches, distilled.lr[0]))
        start = lax.stop_gradient(theta_0.theta_0)

        def step(t, carry):
            now = jax.tree.map(lambda a: a[t % lr.shape[0]], (batches, lr))
            return inner_step(grad_fn, inner_tx, carry, *now)[0]

        theta, _ = lax.fori_loop(0, theta_0.steps, step, (start, inner_tx.init(start)))
        return objective(distilled, theta, batch, *own_key)

    return Keyed(trained) if isinstance(objective, Keyed) else trained


def _check_steps(max_steps: int) -> None:
    if max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}")
