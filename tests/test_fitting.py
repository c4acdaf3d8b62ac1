"""One way to train for all methods: the same steps, whatever it is compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import evaluate
from distill_jax.types import Batch
from experiments import fitting
from tests.tiny import LOSS, MODEL, C, real_batch

N = 6


class TinyTask:
    """What a Trainer reads of a Task."""

    model, loss_fn, num_classes = MODEL, LOSS, C


@pytest.fixture(scope="module")
def data() -> Batch:
    return fitting.examples(TinyTask, real_batch(1, N))  # type: ignore[arg-type]


def job(data, seed=0, lr=0.1, batch=4, steps=12):
    order = fitting.minibatch_order(N, batch, steps, np.random.default_rng(seed))
    return fitting.Job(data, jax.random.key(seed), order, lr)


def test_each_epoch_is_a_permutation():
    order = fitting.minibatch_order(7, 2, 8, np.random.default_rng(0))
    assert order.shape == (8, 2) and order.dtype == np.int32
    for epoch in (order[:3], order[3:6]):
        assert len(set(epoch.ravel())) == 6 and set(epoch.ravel()) <= set(range(7))
    assert not np.array_equal(order[:3], order[3:6])
    again = fitting.minibatch_order(7, 2, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(order, again)


def test_few_examples_are_all_in_each_minibatch():
    order = fitting.minibatch_order(3, 5, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(order, [[0, 1, 2, -1, -1]] * 2)


def test_rows_that_fill_up_change_nothing(data):
    """Three examples in minibatches of three, or of five with two empty rows."""
    theta_0 = MODEL.init(jax.random.key(0))

    def trained(batch, room):
        few = jax.tree.map(lambda a: a[:3], real_batch(1, N))
        filled = fitting.examples(TinyTask, few, room=room)  # type: ignore[arg-type]
        order = fitting.minibatch_order(3, batch, 4, np.random.default_rng(0))
        stops = jnp.array([4])
        return fitting.fit(LOSS, filled, jnp.asarray(order), theta_0, 0.1, stops)

    for plain, filled in zip(
        jax.tree.leaves(trained(3, 0)), jax.tree.leaves(trained(5, 5)), strict=True
    ):
        np.testing.assert_allclose(plain, filled, rtol=1e-12)


def test_fit_is_adam_over_the_minibatches(data):
    theta = theta_0 = MODEL.init(jax.random.key(0))
    order = fitting.minibatch_order(N, 4, 5, np.random.default_rng(0))
    tx = optax.adam(0.1)
    state, seen = tx.init(theta), []
    for rows in order:
        minibatch = jax.tree.map(lambda a, rows=rows: a[rows], data)
        updates, state = tx.update(jax.grad(LOSS)(theta, minibatch), state)
        theta = optax.apply_updates(theta, updates)
        seen.append(theta)
    stops = jnp.array([0, 2, 5])
    got = fitting.fit(LOSS, data, jnp.asarray(order), theta_0, 0.1, stops)
    for name in theta:
        expected = [theta_0[name], seen[1][name], seen[4][name]]
        np.testing.assert_allclose(got[name], np.stack(expected), rtol=1e-9)


def test_theta_0_is_that_of_all_other_scores(data):
    """After no step, the accuracies are those of evaluate.accuracies untrained."""
    chunks = evaluate.padded(real_batch(2, 40), 8)
    trainer = fitting.Trainer(TinyTask)  # type: ignore[arg-type]
    jobs = [job(data, seed) for seed in range(4)]
    keys = jnp.stack([j.key for j in jobs])
    untrained = evaluate.accuracies(
        MODEL, MODEL.init, lambda theta, key: theta, keys, chunks
    )
    got = trainer.accuracies(jobs, (0, 12), chunks)
    np.testing.assert_allclose(got[:, 0], untrained)
    assert (got[:, 1] > got[:, 0]).any()


def test_many_at_once_is_one_after_the_other(data, monkeypatch):
    chunks = evaluate.padded(real_batch(2, 40), 8)
    jobs = [job(data, seed, lr=0.01 * (seed + 1)) for seed in range(5)]
    alone = fitting.Trainer(TinyTask)  # type: ignore[arg-type]
    assert alone.width == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fitting, "_WIDTH", 3)
    together = fitting.Trainer(TinyTask)  # type: ignore[arg-type]
    assert together.width == 3
    for stops in ((3, 12), (12, 12)):
        np.testing.assert_allclose(
            together.accuracies(jobs, stops, chunks),
            alone.accuracies(jobs, stops, chunks),
        )


def test_one_program_for_every_recipe(data):
    traces = []

    class Counted(TinyTask):
        @staticmethod
        def loss_fn(theta, batch):
            traces.append(1)
            return LOSS(theta, batch)

    chunks = evaluate.padded(real_batch(2, 16), 8)
    trainer = fitting.Trainer(Counted)  # type: ignore[arg-type]
    trainer.accuracies([job(data)], (3, 12), chunks)
    first = len(traces)
    trainer.accuracies([job(data, 1, lr=0.5)], (5, 5), chunks)
    fitting.tune(trainer, [job(data)], chunks, num_steps=(2, 9))
    assert first > 0 and len(traces) == first


def test_tune_takes_the_first_of_the_best():
    class Made:
        def accuracies(self, jobs, stops, chunks):
            lr = jobs[0].lr
            return np.array([[lr, 0.6 - lr], [lr, 0.6 - lr]])

    jobs = [job(None), job(None)]  # type: ignore[arg-type]
    made: fitting.Trainer = Made()  # type: ignore[assignment]
    best = fitting.tune(
        made,
        jobs,
        None,  # type: ignore[arg-type]
        step_sizes=(0.1, 0.5, 0.3),
        num_steps=(2, 9),
    )
    assert best == ((0.1, 9), 0.5)
