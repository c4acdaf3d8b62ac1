"""One way to train a network on any labelled set, and one way to tune it.

Distilled, selected, queried and full data all go through `fit`. *Standard* training is
Adam over shuffled minibatches, its step size and number of steps the best of the same
12 on validation; *native* training is the inner loop of distillation, with its order
and step sizes. Networks start from theta_0 that all sets share (`Judge`), and the test
split is read by `Judge.test_accuracies` alone.

Axes: n examples of a set, N of train, T steps, R networks, C classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from distill_jax import losses, parallel
from distill_jax.core import frozen_once, unroll
from distill_jax.fit import (
    Job,
    Trainer,
    Tuned,
    Visit,
    accuracy,
    epochs_order,
    examples,
    fit,
    in_turns,
    majority_accuracy,
    mean_loss,
    minibatch_order,
    native_scorer,
    part_of,
    tune,
)
from distill_jax.protocol import Native, Protocol, TrainingSet, purpose_keys
from distill_jax.task import Task, in_chunks, minibatches
from distill_jax.types import Batch, Params

# The grid that every set is tuned on: 12 recipes.
STEP_SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


NUM_STEPS = (50, 200)


FULL_STEP_SIZES, FULL_BATCH = (1e-3, 3e-3), 64  # of all data


Report = Callable[[str, int, int], None]  # (what, done, of how many)


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
        """All of train, the frozen part of the network done where the loss has one."""
        read = jax.jit(partial(frozen_once, self.task.loss_fn))
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
    return tuple(devices) if isinstance(devices, list | tuple) else devices


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
