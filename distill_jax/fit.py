"""One loop that trains a network on any labelled examples, and one choice of a recipe.

Adam over shuffled minibatches, or (`native_scorer`) the inner loop of distillation.

Axes: n examples of a set, N of train, T steps, K stops, R networks, C classes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax import parallel
from distill_jax.core import SGD, frozen_once, unroll
from distill_jax.losses import num_correct
from distill_jax.task import Task, embedded, in_chunks, take
from distill_jax.types import Batch, InitFn, LossFn, Model, Params

# Networks trained at once on an accelerator.
_WIDTH = 32

Visit = Callable[[Any, Params], tuple[Any, Any]]  # (seen, theta) -> (seen, out)


class Tuned(NamedTuple):
    """The best recipe on validation: step size, minibatches, and its accuracy there."""

    lr: float
    num_steps: int
    accuracy: float


def fit(
    loss_fn: LossFn,
    data: Batch,
    order: jax.Array,
    theta_0: Params,
    tx: optax.GradientTransformation,
    stops: jax.Array,
    *,
    step_key: Callable[[jax.Array], jax.Array] | None = None,
    seen: Any = None,
    visit: Visit = lambda seen, theta: (seen, theta),
) -> tuple[Any, Any]:
    """Trains on the minibatches of `order`, visiting theta on the way.

    The one training loop on real numbers of rows; `core.unroll` is the one that is
    differentiated.

    Args:
        loss_fn: `(theta, batch) -> loss`; takes `key` too if there is a `step_key`.
        data: `[n, ...]`.
        order: rows of the minibatches `[T, B]`.
        theta_0: where it starts.
        tx: the optimizer, its step size included; it and `stops` may be traced, so
            that one program serves all.
        stops: `[K]` numbers of steps, not falling and at most T.
        step_key: `t -> key` of the dropout at step t.
        seen, visit: at each stop `visit(seen, theta) -> (seen, out)`, as a scan's
            body; it hands out the weights unless given.

    Returns:
        The last `seen`, and what `visit` gave, with a leading axis `[K]`.
    """

    def step(t, state):
        theta, opt_state = state
        minibatch = jax.tree.map(lambda a: a[order[t]], data)
        noise = {} if step_key is None else {"key": step_key(t)}
        grad = jax.grad(loss_fn)(theta, minibatch, **noise)
        updates, opt_state = tx.update(grad, opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state

    def stage(carry, stop):
        done, state, seen = carry
        state = lax.fori_loop(done, stop, step, state)
        seen, out = visit(seen, state[0])
        return (stop, state, seen), out

    start = (jnp.zeros((), stops.dtype), (theta_0, tx.init(theta_0)), seen)
    (_, _, seen), out = lax.scan(stage, start, stops)
    return seen, out


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


def epochs_order(key: jax.Array, n: int, batch: int, num_epochs: int) -> jax.Array:
    """As `minibatch_order` for whole epochs, inside a compiled program.

    Returns:
        Rows `[num_epochs * (n // batch), batch]`; `batch` is at most n.
    """
    size = min(batch, n)

    def epoch(key):
        return jax.random.permutation(key, n)[: n - n % size].reshape(-1, size)

    return lax.map(epoch, jax.random.split(key, num_epochs)).reshape(-1, size)


def examples(task: Task, batch: Batch, *, room: int = 0) -> Batch:
    """What is trained on: embedded, with a row after the last that counts for nothing.

    The frozen part of the network is done, where the loss has one.

    Args:
        task: whose word vectors are used for token ids.
        batch: `[n, ...]`.
        room: fill up to this many examples, with rows that count for nothing.
    """
    batch = frozen_once(task.loss_fn, jax.tree.map(jnp.asarray, batch))
    if jnp.issubdtype(batch.x.dtype, jnp.integer):
        batch = embedded(task, batch)
    extra = max(room - len(batch.y), 0) + 1

    def padded(a, mode):
        return jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1), mode=mode)

    # Copies of a sentence without a label: some networks cannot read an empty one.
    filled = jax.tree.map(lambda a: padded(a, "edge"), batch)
    return filled.replace(y=padded(batch.y, "constant"))


def accuracy(model: Model, theta: Params, chunks: Batch) -> jax.Array:
    """Share of real examples classified right, in [0, 1].

    Args:
        model: the network.
        theta: its weights.
        chunks: from `task.padded`, `[K, size, ...]`.
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
        chunks: from `task.padded`, `[K, size, ...]`.
    """

    def add(total, chunk):
        count = (chunk.y != 0).any(-1).sum(dtype=jnp.int32)
        return total + loss_fn(theta, chunk) * count, count

    first = jax.tree.map(lambda a: a[0], chunks)
    zero = jnp.zeros((), jax.eval_shape(loss_fn, theta, first).dtype)
    total, counts = lax.scan(add, zero, chunks)
    return total / counts.sum()


def majority_accuracy(
    labels: np.ndarray, validation: np.ndarray, num_classes: int
) -> float:
    """Accuracy on `labels` of the one class that is most frequent on `validation`."""
    best = np.bincount(validation, minlength=num_classes).argmax()
    return float((np.asarray(labels) == best).mean())


def native_scorer(
    task: Task,
    inner_tx: optax.GradientTransformation = SGD,
    *,
    init_fn: InitFn | None = None,
    devices: parallel.Devices = None,
) -> Callable[..., jax.Array]:
    """Trains fresh networks through minibatches in their order, and scores them.

    Args:
        task: the network and its loss.
        inner_tx: the direction of an inner step.
        init_fn: `(key) -> theta_0`; that of the network unless given.
        devices: that share the keys.

    Returns:
        `(keys [R], batches, lr [E, S], chunks) -> accuracies [R]`, compiled.
    """
    init_fn = init_fn or task.model.init

    def one(key, batches, lr, chunks):
        init_key, _ = jax.random.split(key)
        theta_0 = init_fn(init_key)
        theta, _ = unroll(task.loss_fn, theta_0, batches, lr, inner_tx=inner_tx)
        return accuracy(task.model, theta, chunks)

    return parallel.over_devices(one, devices)


def part_of(task: Task, batch: Batch, *, seed: int, num_examples: int) -> Batch:
    """A random part of a split, cut into chunks to score on.

    Args:
        task: whose network it is for.
        batch: the split, `[N, ...]`.
        seed: of the choice.
        num_examples: how many, at most N.

    Returns:
        A batch `[K, size, ...]`, see `in_chunks`, in the order of the split.
    """
    rng = np.random.default_rng(seed)
    n = min(num_examples, len(batch.y))
    rows = np.sort(rng.choice(len(batch.y), n, replace=False))
    return in_chunks(task, take(batch, rows))


def in_turns(
    score: Callable[..., jax.Array],
    keys: jax.Array,
    *arguments: Any,
    at_once: int,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """`score(keys, *arguments)`, some keys at a time, so that progress can be told."""
    found = []
    for first in range(0, len(keys), at_once):
        found.append(np.asarray(score(keys[first : first + at_once], *arguments)))
        report(min(first + at_once, len(keys)))
    return np.concatenate(found)


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


class Trainer:
    """Trains and scores many networks of one task; compiles once for each n.

    On CPU one after the other on each device, which is the fastest there; elsewhere
    `width` at once.
    """

    def __init__(
        self, task: Task, devices: parallel.Devices = None, width: int | None = None
    ):
        def train(data, key, order, lr, stops):
            init_key, _ = jax.random.split(key)
            theta_0, tx = task.model.init(init_key), optax.adam(lr)
            return fit(task.loss_fn, data, order, theta_0, tx, stops)[1]

        self.devices = parallel.listed(devices)
        on_cpu = self.devices[0].platform == "cpu"
        self.width = width or (1 if on_cpu else _WIDTH)
        score: Callable = partial(accuracy, task.model)
        if self.width > 1:
            train = jax.vmap(train, (0, 0, 0, 0, None))
            score = jax.vmap(score, (0, None))
        self._train, self._score = jax.jit(train), jax.jit(score)

    def weights(self, jobs: Sequence[Job], num_steps: int) -> Params:
        """The trained networks, leaves `[R, ...]`."""
        stops = jnp.asarray([num_steps])
        thetas = [
            self._train(*job._replace(order=jnp.asarray(job.order)), stops)
            if self.width == 1
            else jax.tree.map(
                lambda a: a[0],
                self._train(
                    *jax.tree.map(lambda a: jnp.asarray(a)[None], tuple(job)), stops
                ),
            )
            for job in jobs
        ]
        return jax.tree.map(lambda *leaves: jnp.stack([a[0] for a in leaves]), *thetas)

    def accuracies(
        self,
        jobs: Sequence[Job],
        stops: tuple[int, int],
        chunks: Batch,
        report: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Accuracy of each network after each of two numbers of steps, `[J, 2]`.

        Args:
            jobs: of one shape.
            stops: not falling; equal ones cost nothing more.
            chunks: the real text to score on, from `task.padded`.
            report: told how many networks are done.
        """
        total, jobs = len(jobs), parallel.dealt(jobs)
        several = len(self.devices) > 1
        scored_on = [
            jax.device_put(chunks, d) if several else chunks for d in self.devices
        ]
        pending: list[tuple[int, Any]] = []
        found: list[np.ndarray] = []

        def fetch():
            count, scores = pending.pop(0)
            table = np.stack([np.asarray(s, float).reshape(-1) for s in scores], 1)
            found.append(table[:count])
            report(sum(map(len, found)))

        for turn, first in enumerate(range(0, len(jobs), self.width)):
            some = [
                job._replace(order=jnp.asarray(job.order))
                for job in jobs[first : first + self.width]
            ]
            count = len(some)
            where = turn % len(self.devices)
            arguments = some[0]
            if self.width > 1:
                filled = [*some, *[some[-1]] * (self.width - count)]
                arguments = jax.tree.map(lambda *a: jnp.stack(a), *filled)
            if several:
                arguments = jax.device_put(arguments, self.devices[where])
            thetas = self._train(*arguments, jnp.asarray(stops))
            if self.width > 1:
                thetas = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), thetas)
            pending.append((count, self._each(thetas, stops, scored_on[where])))
            if len(pending) == len(self.devices):
                fetch()
        while pending:
            fetch()
        mine = np.concatenate([np.zeros((0, 2)), *found])
        return parallel.collected(mine, total)

    def _each(self, thetas, stops, chunks):
        """Scores after each stop; the first is not taken where they are equal."""
        at = [jax.tree.map(lambda a, k=k: a[k], thetas) for k in range(len(stops))]
        last = self._score(at[1], chunks)
        return [last if stops[0] == stops[1] else self._score(at[0], chunks), last]


def tune(
    scores: Callable[[float], np.ndarray],
    step_sizes: Sequence[float],
    num_steps: Sequence[int],
) -> Tuned:
    """The step size and number of steps with the best mean; the first of equals.

    Args:
        scores: `lr -> [..., K]` accuracies on validation, one for each of `num_steps`;
            one that is not finite loses.
        step_sizes, num_steps: the grid.
    """
    best: Tuned | None = None
    for lr in step_sizes:
        means = np.asarray(scores(lr)).reshape(-1, len(num_steps)).mean(0)
        for steps, mean in zip(num_steps, means, strict=True):
            mean = float(mean) if math.isfinite(mean) else -math.inf
            if best is None or mean > best.accuracy:
                best = Tuned(lr, steps, mean)
    assert best is not None
    return best


__all__ = [
    "Job",
    "Trainer",
    "Tuned",
    "Visit",
    "accuracy",
    "epochs_order",
    "examples",
    "fit",
    "in_turns",
    "majority_accuracy",
    "mean_loss",
    "minibatch_order",
    "native_scorer",
    "part_of",
    "tune",
]
