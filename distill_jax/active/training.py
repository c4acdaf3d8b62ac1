"""Training on what is labelled so far, compiled once for sets of any size.

The rows of every minibatch are numbers in the whole training set, so a program is made
for the largest set and takes the steps that a smaller one needs.

Axes: N items, E epochs, S minibatches of an epoch at most, B examples in a minibatch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax.types import Batch, LossFn, Params


class Fitted(NamedTuple):
    """What training gives.

    Attributes:
        theta: the weights after the best epoch.
        score: what the judge said of them; -inf where it never gave a number.
        epoch: which it was, from 1.
    """

    theta: Params
    score: jax.Array
    epoch: jax.Array


class Order(NamedTuple):
    """Which rows each minibatch has.

    Attributes:
        rows: int32 `[E, S, B]`, numbers in the whole training set; -1 is padding.
        num_steps: minibatches of an epoch that count, at most S; the rest is padding.
    """

    rows: np.ndarray
    num_steps: int


def fit(
    loss_fn: LossFn,
    judge: Callable[[Params], jax.Array],
    tx: optax.GradientTransformation,
) -> Callable[[Params, Batch, jax.Array, jax.Array, jax.Array, jax.Array], Fitted]:
    """Training with dropout; the best epoch by the judge is kept (the first of equals).

    Args:
        loss_fn: `(theta, batch, *, key) -> loss`; `losses.cross_entropy` makes one.
        judge: `theta -> number`, higher is better; on validation data.
        tx: the optimizer, its step size included.

    Returns:
        `(theta_0, data, labels, rows, num_steps, key) -> Fitted`, for the whole
        training set `data [N, ...]` (whose own `y [N, C]` only tells C), the labels
        known so far, int `[N]`, and `rows`, `num_steps` of an `Order`.
    """

    def train(theta_0, data, labels, rows, num_steps, key) -> Fitted:
        num_classes = data.y.shape[-1]
        data, labels, rows = jax.tree.map(jnp.asarray, (data, labels, rows))

        def minibatch(rows):
            real = jnp.maximum(rows, 0)
            known = jnp.where(rows < 0, -1, labels[real])
            y = jax.nn.one_hot(known, num_classes, dtype=data.y.dtype)
            return Batch(data.x[real], data.mask[real], y)

        def epoch(carry, now):
            number, rows = now

            def step(i, carry):
                theta, opt_state = carry
                step_key = jax.random.fold_in(jax.random.fold_in(key, number), i)
                grad = jax.grad(loss_fn)(theta, minibatch(rows[i]), key=step_key)
                updates, opt_state = tx.update(grad, opt_state, theta)
                return optax.apply_updates(theta, updates), opt_state

            (theta, opt_state), best = carry
            state = lax.fori_loop(0, num_steps, step, (theta, opt_state))
            score = judge(state[0])
            here = Fitted(state[0], score, number + 1)
            better = score > best.score
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), here, best)
            return (state, best), None

        score = jax.eval_shape(judge, theta_0)
        first = Fitted(theta_0, jnp.full((), -jnp.inf, score.dtype), jnp.int32(0))
        numbers = jnp.arange(rows.shape[0], dtype=jnp.int32)
        start = ((theta_0, tx.init(theta_0)), first)
        return lax.scan(epoch, start, (numbers, rows))[0][1]

    return train


def steps_of_epoch(
    num_items: int, *, batch_size: int, num_epochs: int, min_steps: int = 0
) -> int:
    """Minibatches of an epoch: as many passes over the items as `min_steps` needs.

    Args:
        num_items: n, of the training set.
        batch_size: B; the last minibatch of a pass may have fewer.
        num_epochs: E.
        min_steps: steps of all epochs together, at least.
    """
    one_pass = -(-num_items // batch_size)
    return one_pass * max(1, -(-min_steps // (num_epochs * one_pass)))


def shuffled(
    items: np.ndarray,
    key: jax.Array,
    *,
    batch_size: int,
    num_epochs: int,
    max_steps: int,
    min_steps: int = 0,
) -> Order:
    """The items in another order in each pass, cut into minibatches.

    Args:
        items: `[n]`, their numbers in the whole training set.
        key: of the order.
        batch_size, num_epochs, min_steps: as for `steps_of_epoch`.
        max_steps: S, of the largest training set of the run.
    """
    settings = {"batch_size": batch_size, "num_epochs": num_epochs}
    num_steps = steps_of_epoch(len(items), **settings, min_steps=min_steps)
    one_pass = steps_of_epoch(len(items), **settings)
    if num_steps > max_steps:
        raise ValueError(f"{num_steps} minibatches an epoch, but max_steps {max_steps}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    rows = np.full((num_epochs, max_steps, batch_size), -1, np.int32)
    for epoch in rows:
        for first in range(0, num_steps, one_pass):
            part = np.full(one_pass * batch_size, -1, np.int32)
            part[: len(items)] = rng.permutation(items)
            epoch[first : first + one_pass] = part.reshape(one_pass, batch_size)
    return Order(rows, num_steps)


# Where the network of a round starts from: (fresh theta_0, network before) -> theta_0


def cold(fresh: Params, before: Params) -> Params:
    """A fresh theta_0, so that a round forgets the ones before it."""
    del before
    return fresh


def weights(fresh: Params, before: Params) -> Params:
    """The weights of the round before."""
    del fresh
    return before


def shrink_perturb(
    fresh: Params, before: Params, *, shrink: float = 0.5, perturb: float = 0.1
) -> Params:
    """`shrink * before + perturb * fresh` (Ash & Adams 2020)."""
    return jax.tree.map(lambda a, b: shrink * b + perturb * a, fresh, before)


WARM_STARTS: dict[str, Callable[[Params, Params], Params]] = {
    "none": cold,
    "weights": weights,
    "shrink_perturb": shrink_perturb,
}
