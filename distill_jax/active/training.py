"""Training on what is labelled so far, compiled once for sets of any size.

The rows of every minibatch are numbers in the whole training set, so a program is made
for the largest set and takes the steps that a smaller one needs.

Axes: N items, E epochs, S minibatches of an epoch, B examples in a minibatch, R
networks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax.active.pool import Pool
from distill_jax.active.scoring import Score, Scored, Scorers, score_with, scorers
from distill_jax.fit import accuracy, fit, mean_loss, part_of
from distill_jax.names import resolve
from distill_jax.queries import Query
from distill_jax.recipe import setting
from distill_jax.task import Task, in_chunks
from distill_jax.types import Batch, LossFn, Params

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


@dataclasses.dataclass(frozen=True)
class Training:
    """How the networks of a round are trained and measured."""

    epochs: int = setting(30, "Epochs of a round, at most: the best is kept.")
    min_steps: int = setting(
        300, "Steps of a round, at least: an epoch of few items is several passes."
    )
    batch_size: int = setting(32, "Examples in a minibatch, at most.")
    lr: float = setting(3e-3, "Adam's step size.")
    select: str = setting(
        "accuracy", "What the best epoch is best in.", choices=("accuracy", "loss")
    )
    warm_start: Any = setting(
        "none",
        "Where the network of a round starts.",
        choices=tuple(WARM_STARTS),
    )
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    num_inits: int = setting(3, "Networks measured in a round; the first one asks.")
    validation_seed: int = 0  # which these are, the same for all that are compared

    def __post_init__(self):
        for name in ("epochs", "batch_size", "validation_examples", "num_inits"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.min_steps < 0:
            raise ValueError(f"min_steps must not be negative, got {self.min_steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if self.select not in ("accuracy", "loss"):
            raise ValueError(f"select must be accuracy or loss, got {self.select!r}")
        resolve(self.warm_start, WARM_STARTS, "warm_start")

    def steps(self, num_items: int) -> int:
        """Minibatches of an epoch: as many passes over the items as the steps need."""
        one_pass = -(-num_items // self.batch_size)
        needed = -(-self.min_steps // (self.epochs * one_pass))
        return one_pass * max(1, needed)

    def most_steps(self, num_items: int) -> int:
        """The same of up to so many items: where `min_steps` rounds up, fewer items
        may take more."""
        passes = range(1, -(-num_items // self.batch_size) + 1)
        return max(self.steps(one_pass * self.batch_size) for one_pass in passes)


class Order(NamedTuple):
    """Which rows each minibatch has.

    Attributes:
        rows: int32 `[E * most, B]`, numbers in the whole training set; -1 counts for
            nothing. Epochs follow each other; the rest is not used.
        num_steps: minibatches of an epoch, S.
    """

    rows: np.ndarray
    num_steps: int


def shuffled(items: np.ndarray, key: jax.Array, training: Training, most: int) -> Order:
    """The items in another order in each pass, cut into minibatches.

    Args:
        items: `[n]`, their numbers in the whole training set.
        key: of the order.
        training: the numbers of epochs, steps and examples.
        most: minibatches of an epoch there is room for.
    """
    B, num_steps = training.batch_size, training.steps(len(items))
    if num_steps > most:
        raise ValueError(f"{num_steps} minibatches an epoch, but room for {most}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    one_pass = -(-len(items) // B)
    rows = np.full((training.epochs * most, B), -1, np.int32)
    for first in range(0, training.epochs * num_steps, one_pass):
        part = rows[first : first + one_pass].reshape(-1)
        part[: len(items)] = rng.permutation(items)
    return Order(rows, num_steps)


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


def best_epoch(
    loss_fn: LossFn,
    judge: Callable[[Params], jax.Array],
    tx: optax.GradientTransformation,
    num_epochs: int,
) -> Callable[..., Fitted]:
    """`train.fit` with dropout, from which the best epoch is kept, the first of equals.

    Args:
        loss_fn: `(theta, batch, *, key) -> loss`; `losses.cross_entropy` makes one.
        judge: `theta -> number`, higher is better; on validation data.
        tx: the optimizer, its step size included.
        num_epochs: E.

    Returns:
        `(theta_0, data, labels, rows, num_steps, key) -> Fitted`, for the whole
        training set `data [N, ...]` (whose own `y [N, C]` only tells C), the labels
        known so far, int `[N]`, and `rows`, `num_steps` of an `Order`.
    """

    def run(theta_0, data, labels, rows, num_steps, key) -> Fitted:
        # The last row is the one that -1 means: a sentence without a label.
        x, mask = (jnp.concatenate([a, a[:1]]) for a in (data.x, data.mask))
        known = jnp.append(jnp.asarray(labels), -1)
        y = jax.nn.one_hot(known, data.y.shape[-1], dtype=data.y.dtype)

        def step_key(t):
            of_epoch = jax.random.fold_in(key, t // num_steps)
            return jax.random.fold_in(of_epoch, t % num_steps)

        def visit(seen, theta):
            best, epoch = seen
            here = Fitted(theta, judge(theta), epoch + 1)
            better = here.score > best.score
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), here, best)
            return (best, here.epoch), None

        score = jax.eval_shape(judge, theta_0)
        none = Fitted(theta_0, jnp.full((), -jnp.inf, score.dtype), jnp.int32(0))
        (best, _), _ = fit(
            loss_fn,
            Batch(x, mask, y),
            jnp.asarray(rows),
            theta_0,
            tx,
            num_steps * jnp.arange(1, num_epochs + 1),
            step_key=step_key,
            seen=(none, none.epoch),
            visit=visit,
        )
        return best

    return run


class Learner:
    """Trains, scores and measures the networks of a task, each compiled once.

    Attributes:
        task: the corpus and the network.
        training: how they are trained.
        most: minibatches of an epoch there is room for.
    """

    def __init__(self, task: Task, training: Training, most: int):
        self.task, self.training, self.most = task, training, most
        validation = part_of(
            task,
            task.validation,
            seed=training.validation_seed,
            num_examples=training.validation_examples,
        )
        test = task.once("test", lambda: in_chunks(task, task.test))

        def judge(theta):
            if training.select == "loss":
                return -mean_loss(task.loss_fn, theta, validation)
            return accuracy(task.model, theta, validation)

        def accuracies(thetas):
            return lax.map(lambda theta: accuracy(task.model, theta, test), thetas)

        self.init = jax.jit(jax.vmap(task.model.init))
        self.fit = jax.jit(
            best_epoch(task.loss_fn, judge, optax.adam(training.lr), training.epochs)
        )
        self.accuracies = jax.jit(accuracies)
        self.chunks = task.once("pool", lambda: in_chunks(task, task.train))
        self.scorers = Scorers(*map(jax.jit, scorers(task.model)))

    def train(
        self,
        pool: Pool,
        key: jax.Array,
        before: Params | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Params:
        """Trains R networks on what is labelled.

        Args:
            pool: who has which label.
            key: of theta_0, the order and the dropout.
            before: what this gave in the round before, for a warm start.
            report: told how many networks are done, of how many.

        Returns:
            Their weights, leaves `[R, ...]`.

        Raises:
            ArithmeticError: if the loss of every epoch was not a number.
        """
        items, settings = np.flatnonzero(pool.labelled), self.training
        R = settings.num_inits
        init_keys, order_keys, dropout_keys = jax.random.split(key, (3, R))
        starts = self.init(init_keys)
        if before is not None:
            warm = resolve(settings.warm_start, WARM_STARTS, "warm_start")
            starts = warm(starts, before)
        # On the host: each slice of a device's array would be a program of its own.
        starts, labels, found = jax.device_get(starts), np.asarray(pool.labels), []
        report(0, R)
        for r in range(R):
            order = shuffled(items, order_keys[r], settings, self.most)
            fitted = self.fit(
                jax.tree.map(lambda a, r=r: a[r], starts),
                self.task.train,
                labels,
                *order,
                dropout_keys[r],
            )
            if not np.isfinite(fitted.score):
                raise ArithmeticError(
                    f"training on {len(items)} items gave no finite loss in "
                    f"{settings.epochs} epochs: lower lr={settings.lr}"
                )
            found.append(jax.device_get(fitted.theta))
            report(r + 1, R)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    def score_with(self, query: Query, passes: int) -> Score:
        """Scores the pool with the first of the networks, as the query needs."""
        N = len(self.task.train.y)
        score = score_with(self.scorers, query, self.chunks, N, passes)

        def first(thetas: Params, key: jax.Array) -> Scored:
            return score(jax.tree.map(lambda a: a[0], thetas), key)

        return first


def learner_of(task: Task, training: Training, num_items: int) -> Learner:
    """The learner of a task for up to so many labels, compiled once for all runs.

    Only one that is asked for more labels than those before is made anew.
    """
    most, name = training.most_steps(num_items), ("learner", training)
    if name in task.memo and task.memo[name].most < most:
        del task.memo[name]
    return task.once(name, lambda: Learner(task, training, most))
