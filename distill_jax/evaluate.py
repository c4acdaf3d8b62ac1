"""Trains fresh networks on any labelled set and scores them on real text.

Distilled, selected, random and full data go through the same two ways of training:
*native*, the inner loop of distillation with its order and step sizes, and
*standard*, shuffled minibatches under one optimizer.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax.core import SGD, frozen_once, unroll
from distill_jax.losses import num_correct
from distill_jax.types import Batch, InitFn, LossFn, Model, Params

TrainFn = Callable[[Params, jax.Array], Params]  # (theta_0, key) -> theta


def one_hot_batch(tokens: np.ndarray, labels: np.ndarray, num_classes: int) -> Batch:
    """Real text as a `Batch`: `tokens` `[N, L]` (0 is padding), `labels` `[N]`."""
    x = jnp.asarray(tokens)
    y = jax.nn.one_hot(jnp.asarray(labels), num_classes)
    return Batch(x, (x != 0).astype(y.dtype), y)


def minibatches(batch: Batch, num: int) -> Batch:
    """Cuts `[N, ...]` into `[num, N / num, ...]`, in order.

    Raises:
        ValueError: if `num` does not divide N.
    """
    n = batch.y.shape[0]
    if n % num:
        raise ValueError(f"{num} minibatches do not divide {n} examples")
    return jax.tree.map(lambda a: a.reshape(num, n // num, *a.shape[1:]), batch)


def padded(batch: Batch, size: int) -> Batch:
    """Adds rows that count for nothing, to a multiple of `size`, and cuts into chunks.

    Returns:
        A batch `[ceil(N / size), size, ...]`.
    """
    extra = -batch.y.shape[0] % size
    return minibatches(
        jax.tree.map(
            lambda a: jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1)), batch
        ),
        (batch.y.shape[0] + extra) // size,
    )


def native(
    loss_fn: LossFn,
    batches: Batch,
    lr: jax.Array,
    *,
    inner_tx: optax.GradientTransformation = SGD,
) -> TrainFn:
    """Training as in distillation: the minibatches in order, with these step sizes.

    Args:
        loss_fn: `(theta, batch) -> loss`.
        batches: leading axis `[S]`.
        lr: `[E, S]`.
        inner_tx: direction of the update at unit step.
    """

    def train(theta_0: Params, key: jax.Array) -> Params:
        del key
        return unroll(loss_fn, theta_0, batches, lr, inner_tx=inner_tx)[0]

    return train


def standard(
    loss_fn: LossFn,
    data: Batch,
    tx: optax.GradientTransformation,
    *,
    num_epochs: int,
    batch_size: int,
) -> TrainFn:
    """Ordinary training: minibatches shuffled anew in each epoch, one optimizer.

    What does not fill a minibatch is left out of that epoch, as other rows each time.

    Args:
        loss_fn: `(theta, batch) -> loss`.
        data: `[N, ...]`.
        tx: the optimizer, its step size included.
        num_epochs: passes over the data.
        batch_size: examples in a minibatch; at most N are taken.
    """
    epoch = _epoch(loss_fn, data, tx, batch_size)

    def train(theta_0: Params, key: jax.Array) -> Params:
        keys = jax.random.split(key, num_epochs)
        return lax.scan(epoch, (theta_0, tx.init(theta_0)), keys)[0][0]

    return train


def _epoch(loss_fn, data, tx, batch_size):
    data = frozen_once(loss_fn, jax.tree.map(jnp.asarray, data))
    n = data.y.shape[0]
    size = min(batch_size, n)

    def step(carry, rows):
        theta, opt_state = carry
        grad = jax.grad(loss_fn)(theta, jax.tree.map(lambda a: a[rows], data))
        updates, opt_state = tx.update(grad, opt_state, theta)
        return (optax.apply_updates(theta, updates), opt_state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, n)[: n - n % size].reshape(-1, size)
        return lax.scan(step, carry, order)

    return epoch


def learning_curves(
    model: Model,
    init_fn: InitFn,
    loss_fn: LossFn,
    data: Batch,
    tx: optax.GradientTransformation,
    keys: jax.Array,
    chunks: Batch,
    *,
    num_epochs: int,
    batch_size: int,
) -> jax.Array:
    """Accuracy on `chunks` after each epoch of `standard` training.

    Args:
        model, init_fn, keys, chunks: as for `accuracies`.
        loss_fn, data, tx, num_epochs, batch_size: as for `standard`.

    Returns:
        `[N, num_epochs]`, in [0, 1].
    """
    epoch = _epoch(loss_fn, data, tx, batch_size)

    def one(key):
        init_key, train_key = jax.random.split(key)
        theta_0 = init_fn(init_key)

        def scored_epoch(carry, key):
            carry, _ = epoch(carry, key)
            return carry, accuracy(model, carry[0], chunks)

        keys = jax.random.split(train_key, num_epochs)
        return lax.scan(scored_epoch, (theta_0, tx.init(theta_0)), keys)[1]

    return lax.map(one, keys)


def accuracy(model: Model, theta: Params, chunks: Batch) -> jax.Array:
    """Share of real examples classified right, in [0, 1].

    Args:
        model: the network.
        theta: its weights.
        chunks: from `padded`, `[K, size, ...]`.
    """
    correct = num_correct(model)

    def add(total, chunk):
        count = (chunk.y != 0).any(-1).sum(dtype=jnp.int32)
        return total + correct(theta, chunk), count

    total, counts = lax.scan(add, jnp.zeros((), jnp.int32), chunks)
    return total / counts.sum()


def mean_loss(loss_fn: LossFn, theta: Params, chunks: Batch) -> jax.Array:
    """Mean loss over real examples.

    Args:
        loss_fn: `(theta, batch) -> mean loss over the rows that count`.
        theta: the weights of the network.
        chunks: from `padded`, `[K, size, ...]`.
    """

    def add(total, chunk):
        count = (chunk.y != 0).any(-1).sum(dtype=jnp.int32)
        return total + loss_fn(theta, chunk) * count, count

    zero = jnp.zeros((), jax.eval_shape(loss_fn, theta, _first(chunks)).dtype)
    total, counts = lax.scan(add, zero, chunks)
    return total / counts.sum()


def _first(chunks: Batch) -> Batch:
    return jax.tree.map(lambda a: a[0], chunks)


def accuracies(
    model: Model, init_fn: InitFn, train: TrainFn, keys: jax.Array, chunks: Batch
) -> jax.Array:
    """Accuracy of one freshly trained network for each key.

    Args:
        model: the network.
        init_fn: `(key) -> theta_0`.
        train: `native` or `standard`.
        keys: `[N]`, consumed.
        chunks: the real text to score on, from `padded`.

    Returns:
        `[N]`, in [0, 1].
    """

    def one(key):
        init_key, train_key = jax.random.split(key)
        return accuracy(model, train(init_fn(init_key), train_key), chunks)

    return lax.map(one, keys)


def majority_accuracy(
    labels: np.ndarray, validation: np.ndarray, num_classes: int
) -> float:
    """Accuracy on `labels` of the one class that is most frequent on `validation`."""
    best = np.bincount(validation, minlength=num_classes).argmax()
    return float((np.asarray(labels) == best).mean())


def tune_lr(
    score: Callable[[float], jax.Array], grid: list[float]
) -> tuple[float, float]:
    """The step size with the best mean of `score` (on validation), and that mean.

    A step size with a score that is not finite loses.
    """
    means = [float(jnp.mean(score(lr))) for lr in grid]
    best = max(range(len(grid)), key=lambda i: _or_least(means[i]))
    return grid[best], means[best]


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


__all__ = [
    "TrainFn",
    "accuracies",
    "accuracy",
    "learning_curves",
    "majority_accuracy",
    "mean_loss",
    "minibatches",
    "native",
    "one_hot_batch",
    "padded",
    "standard",
    "tune_lr",
]
