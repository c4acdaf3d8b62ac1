"""One way to train on any n examples, real or distilled, and to tune it.

Adam for a number of steps over minibatches of at most `batch` examples, shuffled anew
in each epoch. The examples are embedded beforehand, so that every method at one budget,
whatever its sentences, labels, step size and number of steps, is one compiled program.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax import evaluate, losses
from distill_jax.task import Task, embedded
from distill_jax.types import Batch, LossFn, Params

# The grid that every method is tuned on: 12 recipes.
STEP_SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NUM_STEPS = (50, 200)
_WIDTH = 32  # networks trained at once on an accelerator


class Recipe(NamedTuple):
    """What is chosen on validation: Adam's step size, and how many minibatches."""

    lr: float
    num_steps: int


class Tuned(NamedTuple):
    """The best recipe, and its mean accuracy on validation."""

    recipe: Recipe
    accuracy: float


class Job(NamedTuple):
    """One network to train.

    Attributes:
        data: from `examples`, `[n + 1, ...]`.
        key: of its theta_0.
        order: from `minibatch_order`, `[T, batch]`.
        lr: Adam's step size.
    """

    data: Batch
    key: jax.Array
    order: np.ndarray
    lr: float


def examples(task: Task, batch: Batch, *, room: int = 0) -> Batch:
    """What is trained on: embedded, with a row after the last that counts for nothing.

    What of the network is frozen is done.

    Args:
        task: whose word vectors are used for token ids.
        batch: `[n, ...]`.
        room: fill up to this many examples, with rows that count for nothing.
    """
    batch = losses.frozen_part(task.model, jax.tree.map(jnp.asarray, batch))
    if jnp.issubdtype(batch.x.dtype, jnp.integer):
        batch = embedded(task, batch)
    extra = max(room - len(batch.y), 0) + 1

    def padded(a, mode):
        return jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1), mode=mode)

    # Copies of a sentence without a label: some networks cannot read an empty one.
    x, mask = padded(batch.x, "edge"), padded(batch.mask, "edge")
    return Batch(x, mask, padded(batch.y, "constant"))


def minibatch_order(
    n: int, batch: int, num_steps: int, rng: np.random.Generator
) -> np.ndarray:
    """The rows of each minibatch, in epochs that are shuffled anew.

    What does not fill a minibatch is left out of that epoch, as other rows each time.
    With no more than `batch` examples each minibatch holds all of them, filled up with
    -1, the last row of `examples`.

    Args:
        n: examples.
        batch: examples in a minibatch.
        num_steps: minibatches.
        rng: of the shuffling.

    Returns:
        Rows `[num_steps, batch]`, int32.
    """
    if n <= batch:
        rows = np.full(batch, -1, np.int32)
        rows[:n] = np.arange(n)
        return np.broadcast_to(rows, (num_steps, batch))
    per_epoch = n // batch
    epochs = -(-num_steps // per_epoch)
    order = [rng.permutation(n)[: per_epoch * batch] for _ in range(epochs)]
    return np.concatenate(order).reshape(-1, batch)[:num_steps].astype(np.int32)


def fit(
    loss_fn: LossFn,
    data: Batch,
    order: jax.Array,
    theta: Params,
    lr: jax.Array | float,
    stops: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> Params:
    """Trains by Adam on the first minibatches of `order`, keeping theta on the way.

    Args:
        loss_fn: `(theta, batch) -> loss`; takes `key` too if there is a `dropout_key`.
        data: `[n, ...]`.
        order: rows of the minibatches `[T, batch]`.
        theta: where it starts.
        lr: step size. It and `stops` may be traced: one program serves all.
        stops: `[K]` numbers of steps, not falling and at most T.
        dropout_key: trains with dropout.

    Returns:
        The weights after each of `stops`, with a leading axis `[K]`.
    """
    tx = optax.adam(lr)

    def step(t, state):
        theta, opt_state = state
        minibatch = jax.tree.map(lambda a: a[order[t]], data)
        noise = {}
        if dropout_key is not None:
            noise["key"] = jax.random.fold_in(dropout_key, t)
        grad = jax.grad(loss_fn)(theta, minibatch, **noise)
        updates, opt_state = tx.update(grad, opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state

    def stage(carry, stop):
        done, state = carry
        state = lax.fori_loop(done, stop, step, state)
        return (stop, state), state[0]

    start = (jnp.zeros((), stops.dtype), (theta, tx.init(theta)))
    return lax.scan(stage, start, stops)[1]


class Trainer:
    """Trains and scores many networks of one task; compiles once for each n.

    On CPU one after the other, which is the fastest there; elsewhere many at once.
    """

    def __init__(self, task: Task):
        def train(data, key, order, lr, stops):
            init_key, _ = jax.random.split(key)  # as evaluate.accuracies does
            theta_0 = task.model.init(init_key)
            return fit(task.loss_fn, data, order, theta_0, lr, stops)

        def score(theta, chunks):
            return evaluate.accuracy(task.model, theta, chunks)

        self.width = 1 if jax.default_backend() == "cpu" else _WIDTH
        if self.width > 1:
            train = jax.vmap(train, (0, 0, 0, 0, None))
            score = jax.vmap(score, (0, None))
        self._train, self._score = jax.jit(train), jax.jit(score)

    def accuracies(
        self, jobs: Sequence[Job], stops: tuple[int, int], chunks: Batch
    ) -> np.ndarray:
        """Accuracy of each network after each of two numbers of steps, `[J, 2]`.

        Args:
            jobs: of one shape.
            stops: not falling; equal ones cost nothing more.
            chunks: the real text to score on, from `evaluate.padded`.
        """
        parts = []
        for first in range(0, len(jobs), self.width):
            some = [job._replace(order=jnp.asarray(job.order)) for job in jobs]
            some = some[first : first + self.width]
            if self.width == 1:
                thetas = self._train(*some[0], jnp.asarray(stops))
                parts.append([self._each(thetas, stops, chunks)])
                continue
            filled = [*some, *[some[-1]] * (self.width - len(some))]
            thetas = self._train(*_stacked(filled), jnp.asarray(stops))
            thetas = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), thetas)
            scores = np.stack(self._each(thetas, stops, chunks), 1)
            parts.append(scores[: len(some)])
        return np.concatenate([np.asarray(part, float) for part in parts])

    def _each(self, thetas, stops, chunks):
        """Scores after each stop; the first is not taken where they are equal."""
        at = [jax.tree.map(lambda a, k=k: a[k], thetas) for k in range(len(stops))]
        last = np.asarray(self._score(at[1], chunks))
        return [
            last if stops[0] == stops[1] else np.asarray(self._score(at[0], chunks)),
            last,
        ]


def _stacked(jobs: Sequence[Job]) -> Job:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *jobs)


def tune(
    trainer: Trainer,
    jobs: Sequence[Job],
    validation: Batch,
    *,
    step_sizes: Sequence[float] = STEP_SIZES,
    num_steps: tuple[int, int] = NUM_STEPS,
) -> Tuned:
    """The recipe with the best mean accuracy on validation; the first of equals.

    Args:
        trainer: of the task.
        jobs: one network for each theta_0 (and set) to tune with; `lr` is not read.
        validation: from `evaluate.padded`.
        step_sizes, num_steps: the grid.
    """
    best: Tuned | None = None
    for lr in step_sizes:
        tried = [job._replace(lr=lr) for job in jobs]
        means = trainer.accuracies(tried, num_steps, validation).mean(0)
        for steps, mean in zip(num_steps, means, strict=True):
            if best is None or mean > best.accuracy:
                best = Tuned(Recipe(lr, steps), float(mean))
    assert best is not None
    return best
