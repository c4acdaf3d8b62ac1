"""One way to train a network on any labelled set, and one way to tune it.

Distilled, selected, queried and full data all go through `fit`. *Standard* training is
Adam over shuffled minibatches, its step size and number of steps the best of the same
12 on validation; *native* training is the inner loop of distillation, with its order
and step sizes. Networks start from theta_0 that all sets share (`Judge`), and the test
split is read by `Judge.test_accuracies` alone.

Axes: n examples of a set, N of train, T steps, R networks, C classes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax import losses, parallel
from distill_jax.core import SGD, unroll
from distill_jax.losses import num_correct
from distill_jax.recipe import setting
from distill_jax.task import Task, embedded, in_chunks, minibatches, take
from distill_jax.types import Batch, Distilled, InitFn, LossFn, Model, Params

# The grid that every set is tuned on: 12 recipes.
STEP_SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NUM_STEPS = (50, 200)
FULL_STEP_SIZES, FULL_BATCH = (1e-3, 3e-3), 64  # of all data
_WIDTH = 32  # networks trained at once on an accelerator

Visit = Callable[[Any, Params], tuple[Any, Any]]  # (seen, theta) -> (seen, out)
Report = Callable[[str, int, int], None]  # (what, done, of how many)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every set is trained on and judged, the same for all that are compared."""

    seed: int = setting(0, "Of everything random.")
    test_inits: int = setting(20, "Fresh random theta_0 for each number reported.")
    tuning_inits: int = setting(3, "Theta_0 for each recipe tried on validation.")
    selection_seeds: int = setting(5, "Draws of each choice of real examples.")
    batch: int = setting(
        32, "Examples in a minibatch of ordinary training.", flag="fit_batch"
    )
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    full_epochs: int = setting(8, "Epochs tried for full data, at most.")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 0 if field.name == "seed" else 1
            if getattr(self, field.name) < least:
                raise ValueError(
                    f"{field.name} must be at least {least}, got "
                    f"{getattr(self, field.name)}"
                )


class Native(NamedTuple):
    """A set in its own order: S minibatches, E passes, and the inner optimizer."""

    distilled: Distilled
    inner_tx: optax.GradientTransformation


class TrainingSet(NamedTuple):
    """What is trained on, in one way.

    Attributes:
        batch: `[n, ...]`, token ids or embedded sentences; its `y` hard or soft.
        native: train in its order and step sizes; None for standard training.
        labels_read: labels of train that were looked at to make it.
        bytes: that it takes on disk.
        texts: the sentences, where they are text.
        seconds: that it took, if it was made before.
    """

    batch: Batch
    native: Native | None = None
    labels_read: int | None = None
    bytes: int | None = None
    texts: tuple[str, ...] | None = None
    seconds: float | None = None

    @property
    def labels(self) -> str:
        """`hard` where each row of `y` is 0 and 1, else `soft`."""
        return "hard" if float(self.batch.y.max(-1).min()) > 1 - 1e-6 else "soft"

    @property
    def training(self) -> str:
        """`standard` or `native`."""
        return "standard" if self.native is None else "native"


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
    many at once.
    """

    def __init__(self, task: Task, devices: parallel.Devices = None):
        def train(data, key, order, lr, stops):
            init_key, _ = jax.random.split(key)
            theta_0, tx = task.model.init(init_key), optax.adam(lr)
            return fit(task.loss_fn, data, order, theta_0, tx, stops)[1]

        self.devices = parallel.listed(devices)
        self.width = 1 if self.devices[0].platform == "cpu" else _WIDTH
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
        return np.concatenate(found)

    def _each(self, thetas, stops, chunks):
        """Scores after each stop; the first is not taken where they are equal."""
        at = [jax.tree.map(lambda a, k=k: a[k], thetas) for k in range(len(stops))]
        last = self._score(at[1], chunks)
        return [last if stops[0] == stops[1] else self._score(at[0], chunks), last]


class Judge:
    """Tunes and scores sets of one task by a protocol, from theta_0 that all share.

    Args:
        task: the corpus and the network.
        protocol: the same for all sets that are compared.
        devices: that share the networks; see `parallel.listed`.
        report: told the progress of what takes long.
    """

    def __init__(
        self,
        task: Task,
        protocol: Protocol = Protocol(),  # noqa: B008 - frozen
        *,
        devices: parallel.Devices = None,
        report: Report = lambda what, done, total: None,
    ):
        self.task, self.protocol, self.devices = task, protocol, devices
        self.report = report
        keys = purpose_keys(protocol.seed)
        self.tuning_keys = jax.random.split(keys.tuning, protocol.tuning_inits)
        self.test_keys = jax.random.split(keys.test, protocol.test_inits)
        self.trainer = task.once(
            ("trainer", _hashable(devices)), lambda: Trainer(task, devices)
        )
        self.majority = majority_accuracy(
            task.dataset.test.labels, task.dataset.validation.labels, task.num_classes
        )

    @property
    def validation(self) -> Batch:
        """The part of validation that recipes are chosen on, in chunks."""
        p = self.protocol
        facts = {"seed": p.seed, "num_examples": p.validation_examples}
        return self.task.once(
            ("validation", *facts.values()),
            lambda: part_of(self.task, self.task.validation, **facts),
        )

    @property
    def test(self) -> Batch:
        """The test split in chunks."""
        return self.task.once("test", lambda: in_chunks(self.task, self.task.test))

    def order(self, n: int, rng, *, among: int | None = None) -> np.ndarray:
        """Minibatches of as many steps as any recipe takes."""
        size = min(self.protocol.batch, n)
        return minibatch_order(among or n, size, max(NUM_STEPS), rng)

    def jobs(
        self, batch: Batch, keys: jax.Array, purpose: int, which: Sequence[int]
    ) -> list[Job]:
        """Networks to train on a set, from the theta_0 of some keys.

        Args:
            batch: the set `[n, ...]`.
            keys: of theta_0.
            purpose: 0 to tune, 1 to test: the order of the examples differs.
            which: numbers of keys.
        """
        data, n = examples(self.task, batch), len(batch.y)
        seed = self.protocol.seed
        return [
            Job(
                data,
                keys[r],
                self.order(n, np.random.default_rng([seed, purpose, r])),
                0.0,
            )
            for r in which
        ]

    def tuned(self, batches: Sequence[Batch]) -> Tuned:
        """The recipe with the best mean accuracy on validation; the first of equals.

        Args:
            batches: one for each seed of a method; theta_0 take them in turn.
        """
        jobs = [
            job
            for r in range(len(self.tuning_keys))
            for job in self.jobs(batches[r % len(batches)], self.tuning_keys, 0, [r])
        ]
        total = len(STEP_SIZES) * len(jobs)
        done = [0]

        def scores(lr):
            found = self.trainer.accuracies(
                [job._replace(lr=lr) for job in jobs],
                NUM_STEPS,
                self.validation,
                lambda now: self.report("tuning", done[0] + now, total),
            )
            done[0] += len(jobs)
            return found

        return tune(scores, STEP_SIZES, NUM_STEPS)

    def test_accuracies(
        self, sets: Sequence[TrainingSet], tuned: Tuned | None, inits: list[list[int]]
    ) -> np.ndarray:
        """Reads test: the accuracy of a network for each set and theta_0, `[S, R]`.

        Args:
            sets: one for each seed of a method.
            tuned: for standard training.
            inits: which theta_0 each set is trained from.
        """
        found, total = [], sum(map(len, inits))
        for one, which in zip(sets, inits, strict=True):
            before = sum(map(len, found))
            if one.native is not None:
                keys, before = (
                    self.test_keys[jnp.asarray(which)],
                    len(found) * len(which),
                )
                found.append(self._native(one.native, keys, self.test, before, total))
                continue
            assert tuned is not None
            jobs = self.jobs(one.batch, self.test_keys, 1, which)
            jobs = [job._replace(lr=tuned.lr) for job in jobs]
            stops = (tuned.num_steps, tuned.num_steps)
            scored = self.trainer.accuracies(
                jobs,
                stops,
                self.test,
                lambda now, before=before: self.report("networks", before + now, total),
            )
            found.append(scored[:, 1])
        return np.stack(found)

    def native(self, inner_tx: optax.GradientTransformation):
        """`native_scorer` of this task and these devices."""
        return self.task.once(
            ("native", inner_tx, _hashable(self.devices)),
            lambda: native_scorer(self.task, inner_tx, devices=self.devices),
        )

    def native_validation(self, native: Native) -> float:
        """Mean accuracy on validation in its own order."""
        keys = self.tuning_keys
        return float(self._native(native, keys, self.validation, 0, len(keys)).mean())

    def _native(self, native: Native, keys, chunks, before: int, total: int):
        d, score = native.distilled, self.native(native.inner_tx)
        return in_turns(
            score,
            keys,
            d.batches,
            d.lr,
            chunks,
            at_once=len(self.trainer.devices),
            report=lambda done: self.report("networks", before + done, total),
        )

    def tuned_full(self) -> dict[str, Any]:
        """Adam on all of train: step size and number of epochs best on validation."""
        return self.task.once(("tuned_full", self.protocol), self._tuned_full)

    def _tuned_full(self) -> dict[str, Any]:
        task, p = self.task, self.protocol
        keys = jax.random.split(jax.random.fold_in(jax.random.key(p.seed), 3), 3)
        epochs = range(1, p.full_epochs + 1)

        def one(key, lr, data, chunks):
            score = lambda seen, theta: (seen, accuracy(task.model, theta, chunks))  # noqa: E731
            return _on_all(task, key, lr, data, p.full_epochs, True, score)

        curves = parallel.over_devices(one, self.devices)
        total = len(keys) * len(FULL_STEP_SIZES)

        def scores(lr):
            before = FULL_STEP_SIZES.index(lr) * len(keys)
            return in_turns(
                curves,
                keys,
                lr,
                self.all_data,
                self.validation,
                at_once=len(self.trainer.devices),
                report=lambda now: self.report("tuning on all", before + now, total),
            )

        best = tune(scores, FULL_STEP_SIZES, epochs)
        return {
            "optimizer": "adam",
            "lr": best.lr,
            "num_epochs": best.num_steps,
            "batch": FULL_BATCH,
        }

    @property
    def all_data(self) -> Batch:
        """All of train, with what is frozen of the network done."""
        read = jax.jit(partial(losses.frozen_part, self.task.model))
        return self.task.once("all data", lambda: read(self.task.train))

    def full_accuracies(self) -> np.ndarray:
        """Reads test after training on all of train, `[1, R]`."""
        task, tuned = self.task, self.tuned_full()

        def one(key, lr, data, chunks):
            score = lambda seen, theta: (seen, accuracy(task.model, theta, chunks))  # noqa: E731
            return _on_all(task, key, lr, data, tuned["num_epochs"], False, score)[0]

        score = parallel.over_devices(one, self.devices)
        return in_turns(
            score,
            self.test_keys,
            tuned["lr"],
            self.all_data,
            self.test,
            at_once=len(self.trainer.devices),
            report=lambda now: self.report("all data", now, len(self.test_keys)),
        )[None]

    def teacher_labels(self) -> np.ndarray:
        """Class probabilities of all of train by one such network, `[N, C]` float32."""
        task, tuned = self.task, self.tuned_full()
        key = purpose_keys(self.protocol.seed).teacher
        logits, chunks = losses.logits_fn(task.model), in_chunks(task, task.train)

        @jax.jit
        def probabilities(lr, data, chunks):
            last = lambda seen, theta: (seen, theta)  # noqa: E731
            theta = _on_all(task, key, lr, data, tuned["num_epochs"], False, last)
            theta = jax.tree.map(lambda a: a[0], theta)
            return lax.map(lambda c: jax.nn.softmax(logits(theta, c)), chunks)

        probs = probabilities(tuned["lr"], self.all_data, chunks)
        flat = np.asarray(probs, np.float32).reshape(-1, task.num_classes)
        return flat[: len(task.train.y)]


def _on_all(task, key, lr, data, num_epochs: int, every: bool, visit: Visit):
    """Trains on all of train, visiting after each epoch or after the last."""
    init_key, train_key = jax.random.split(key)
    n = data.y.shape[0]
    order = epochs_order(train_key, n, FULL_BATCH, num_epochs)
    stops = len(order) // num_epochs * jnp.arange(1, num_epochs + 1)
    stops = stops if every else stops[-1:]
    theta_0 = task.model.init(init_key)
    return fit(task.loss_fn, data, order, theta_0, optax.adam(lr), stops, visit=visit)[
        1
    ]


class Keys(NamedTuple):
    """One key for each purpose, so that none meets another."""

    tuning: jax.Array
    test: jax.Array
    select: jax.Array
    query: jax.Array
    teacher: jax.Array


def purpose_keys(seed: int) -> Keys:
    """The keys of a comparison with that seed."""
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), 20), 5))


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


def train(
    task: Task,
    data: Any,
    *,
    keys: jax.Array,
    tuned: Tuned | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    devices: parallel.Devices = None,
) -> Params:
    """Trains a fresh network for each key on any labelled set.

    Args:
        task: the corpus and the network.
        data: a `TrainingSet`, a `Batch` `[n, ...]`, or `(texts, labels)`.
        keys: `[R]`, of theta_0.
        tuned: the recipe of standard training; chosen on validation unless given.
        protocol: how it is tuned.
        devices: see `parallel.listed`.

    Returns:
        The weights, leaves `[R, ...]`.
    """
    one = as_set(task, data)
    if one.native is not None:
        d, tx = one.native

        def run(key):
            theta_0 = task.model.init(jax.random.split(key)[0])
            return unroll(task.loss_fn, theta_0, d.batches, d.lr, inner_tx=tx)[0]

        return jax.jit(lambda keys: lax.map(run, keys))(keys)
    judge = Judge(task, protocol, devices=devices)
    tuned = tuned or judge.tuned([one.batch])
    jobs = judge.jobs(one.batch, keys, 1, range(len(keys)))
    jobs = [job._replace(lr=tuned.lr) for job in jobs]
    return judge.trainer.weights(jobs, tuned.num_steps)


def evaluate(
    task: Task,
    data: Any,
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    devices: parallel.Devices = None,
) -> np.ndarray:
    """Test accuracies `[R]` of fresh networks trained on a set; reads the test split.

    Standard training is tuned on validation first; see `train` for the arguments.
    """
    one = as_set(task, data)
    judge = Judge(task, protocol, devices=devices)
    tuned = judge.tuned([one.batch]) if one.native is None else None
    return judge.test_accuracies([one], tuned, [list(range(protocol.test_inits))])[0]


def as_set(task: Task, data: Any) -> TrainingSet:
    """A `TrainingSet` of what `train` takes.

    Raises:
        ValueError: for labels that are not those of the task.
    """
    if isinstance(data, TrainingSet):
        return data
    if isinstance(data, Batch):
        return TrainingSet(data)
    texts, labels = data
    names = list(task.dataset.label_names)
    unknown = sorted({str(label) for label in labels} - set(names))
    if unknown:
        raise ValueError(
            f"unknown label {unknown[0]!r}; {task.dataset.name} has {', '.join(names)}"
        )
    rows = [names.index(str(label)) for label in labels]
    tokens = task.vectors.vocabulary.encode(list(texts), task.length)
    x = jnp.asarray(tokens)
    y = jax.nn.one_hot(jnp.asarray(rows), task.num_classes)
    return TrainingSet(Batch(x, (x != 0).astype(y.dtype), y), texts=tuple(texts))


def _hashable(devices: parallel.Devices):
    return tuple(devices) if isinstance(devices, list) else devices


__all__ = [
    "Job",
    "Judge",
    "Native",
    "Protocol",
    "Trainer",
    "TrainingSet",
    "Tuned",
    "accuracy",
    "as_set",
    "epochs_order",
    "evaluate",
    "examples",
    "fit",
    "majority_accuracy",
    "mean_loss",
    "minibatch_order",
    "minibatches",
    "native_scorer",
    "part_of",
    "purpose_keys",
    "train",
    "tune",
]
