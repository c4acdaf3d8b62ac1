"""Training of networks on any labelled set, and what their accuracy counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import distill_jax as dj
from distill_jax import data as corpora
from distill_jax.core import meta_init, meta_step, unroll, unrolled
from distill_jax.fit import (
    Job,
    Trainer,
    accuracy,
    epochs_order,
    examples,
    fit,
    in_turns,
    majority_accuracy,
    minibatch_order,
    native_scorer,
    tune,
)
from distill_jax.gradients import mixed_mode
from distill_jax.losses import cross_entropy
from distill_jax.models.text_cnn import text_cnn
from distill_jax.task import minibatches, one_hot_batch, padded
from distill_jax.train import Judge, Protocol, as_set
from distill_jax.types import Batch, Distilled
from tests.tiny import LOSS, MODEL, C, real_batch

THETA_0 = MODEL.init(jax.random.key(1))
KEYS = jax.random.split(jax.random.key(2), 3)
N = 6


def equal(actual, desired):
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def close(actual, desired, rtol=1e-12):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol), actual, desired
    )


class TinyTask:
    """What training reads of a Task."""

    model, loss_fn, num_classes = MODEL, LOSS, C


@pytest.fixture(scope="module")
def data() -> Batch:
    return examples(TinyTask, real_batch(1, N))  # type: ignore[arg-type]


def job(data, seed=0, lr=0.1, batch=4, steps=12):
    order = minibatch_order(N, batch, steps, np.random.default_rng(seed))
    return Job(data, jax.random.key(seed), order, lr)


# Batches.


def test_one_hot_batch():
    batch = one_hot_batch(np.array([[3, 4, 0], [5, 0, 0]]), np.array([2, 0]), 3)
    equal(batch.x, [[3, 4, 0], [5, 0, 0]])
    equal(batch.mask, [[1, 1, 0], [1, 0, 0]])
    equal(batch.y, [[0, 0, 1], [1, 0, 0]])
    assert jnp.issubdtype(batch.x.dtype, jnp.integer)
    assert batch.mask.dtype == batch.y.dtype == jnp.float64


def test_minibatches_are_cut_in_order():
    batch = real_batch(0, 6)
    cut = minibatches(batch, 3)
    assert cut.x.shape[:2] == (3, 2)
    equal(jax.tree.map(lambda a: a.reshape(6, *a.shape[2:]), cut), batch)


def test_minibatches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 minibatches do not divide 6 examples"):
        minibatches(real_batch(0, 6), 4)


@pytest.mark.parametrize(("n", "chunks"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_padded_adds_rows_of_zeros_at_the_end(n, chunks):
    batch = real_batch(0, n)
    got = padded(batch, 3)
    assert got.y.shape == (chunks, 3, C)
    flat = jax.tree.map(lambda a: a.reshape(chunks * 3, *a.shape[2:]), got)
    equal(jax.tree.map(lambda a: a[:n], flat), batch)
    assert not any(a[n:].any() for a in jax.tree.leaves(flat))


# Accuracy.


def guesses(theta, batch):
    logits = np.asarray(batch.x).mean(1) @ np.asarray(theta["w"])
    return (logits + np.asarray(theta["b"])).argmax(-1)


@pytest.mark.parametrize("size", [3, 7, 20])
def test_accuracy_is_a_count(size):
    batch = real_batch(0, 17)
    truth = batch.y.argmax(-1)
    got = accuracy(MODEL, THETA_0, padded(batch, size))
    expected = (guesses(THETA_0, batch) == truth).mean()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert 0 < expected < 1


def test_padded_rows_count_for_nothing():
    # Class 0 is guessed for all, which is also what a row of zeros looks like.
    theta = jax.tree.map(jnp.zeros_like, THETA_0) | {"b": jnp.array([1.0, 0, 0])}
    batch = real_batch(0, 7)
    batch = batch.replace(y=np.eye(C)[[0, 1, 2, 1, 2, 1, 2]])
    np.testing.assert_allclose(accuracy(MODEL, theta, padded(batch, 4)), 1 / 7)


# Training.


@pytest.mark.parametrize("inner_tx", [optax.identity(), optax.trace(0.9)])
def test_native_is_the_inner_loop(inner_tx):
    batches, seen = minibatches(real_batch(0, 6), 3), padded(real_batch(0, 20), 7)
    lr = jnp.linspace(0.1, 0.6, 6).reshape(2, 3)
    score = native_scorer(TinyTask, inner_tx)  # type: ignore[arg-type]
    got = score(KEYS, batches, lr, seen)
    for key, one in zip(KEYS, got, strict=True):
        theta_0 = MODEL.init(jax.random.split(key)[0])
        theta, _ = unroll(LOSS, theta_0, batches, lr, inner_tx=inner_tx)
        np.testing.assert_allclose(one, accuracy(MODEL, theta, seen))
    assert len(set(np.asarray(got).tolist())) > 1
    some = in_turns(score, KEYS, batches, lr, seen, at_once=2)
    np.testing.assert_array_equal(some, got)


def how_often(n, num_epochs, batch_size, key):
    """Visits of each of n rows: theta collects one power of ten for each."""
    powers = jnp.asarray(10.0 ** np.arange(n))
    rows = Batch(powers, jnp.ones(n), jnp.ones((n, 1)))
    order = epochs_order(key, n, batch_size, num_epochs)

    def loss(theta, rows):
        return -(theta * rows.x).sum()

    stops = jnp.asarray([len(order)])
    _, total = fit(loss, rows, order, jnp.zeros(()), optax.sgd(1.0), stops)
    return [int(total[0]) // 10**i % 10 for i in range(n)]


@pytest.mark.parametrize("batch_size", [1, 3, 6, 100])
def test_an_epoch_visits_each_row_once(batch_size):
    assert how_often(6, 2, batch_size, KEYS[0]) == [2] * 6


def test_what_does_not_fill_a_minibatch_is_left_out_another_time():
    visits = how_often(5, 9, 2, KEYS[0])
    assert sum(visits) == 9 * 4
    assert max(visits) <= 9 and sum(v < 9 for v in visits) > 1


def test_each_epoch_is_a_permutation():
    order = minibatch_order(7, 2, 8, np.random.default_rng(0))
    assert order.shape == (8, 2) and order.dtype == np.int32
    for epoch in (order[:3], order[3:6]):
        assert len(set(epoch.ravel())) == 6 and set(epoch.ravel()) <= set(range(7))
    assert not np.array_equal(order[:3], order[3:6])
    again = minibatch_order(7, 2, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(order, again)


def test_few_examples_are_all_in_each_minibatch():
    order = minibatch_order(3, 5, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(order, [[0, 1, 2, -1, -1]] * 2)


def test_rows_that_fill_up_change_nothing(data):
    """Three examples in minibatches of three, or of five with two empty rows."""
    theta_0 = MODEL.init(jax.random.key(0))

    def trained(batch, room):
        few = jax.tree.map(lambda a: a[:3], real_batch(1, N))
        filled = examples(TinyTask, few, room=room)  # type: ignore[arg-type]
        order = minibatch_order(3, batch, 4, np.random.default_rng(0))
        stops = jnp.array([4])
        tx = optax.adam(0.1)
        return fit(LOSS, filled, jnp.asarray(order), theta_0, tx, stops)[1]

    for plain, filled in zip(
        jax.tree.leaves(trained(3, 0)), jax.tree.leaves(trained(5, 5)), strict=True
    ):
        np.testing.assert_allclose(plain, filled, rtol=1e-12)


def test_fit_is_adam_over_the_minibatches(data):
    theta = theta_0 = MODEL.init(jax.random.key(0))
    order = minibatch_order(N, 4, 5, np.random.default_rng(0))
    tx = optax.adam(0.1)
    state, seen = tx.init(theta), []
    for rows in order:
        minibatch = jax.tree.map(lambda a, rows=rows: a[rows], data)
        updates, state = tx.update(jax.grad(LOSS)(theta, minibatch), state)
        theta = optax.apply_updates(theta, updates)
        seen.append(theta)
    stops = jnp.array([0, 2, 5])
    _, got = fit(LOSS, data, jnp.asarray(order), theta_0, tx, stops)
    for name in theta:
        expected = [theta_0[name], seen[1][name], seen[4][name]]
        np.testing.assert_allclose(got[name], np.stack(expected), rtol=1e-9)


def test_visits_carry_what_they_have_seen(data):
    """Such as the best of all epochs, of which one theta is kept."""
    order = jnp.asarray(minibatch_order(N, 4, 6, np.random.default_rng(0)))
    stops = jnp.arange(1, 7)

    def visit(best, theta):
        loss = LOSS(theta, data)
        return jnp.minimum(best, loss), loss

    best, losses = fit(
        LOSS, data, order, THETA_0, optax.sgd(-1.0), stops, seen=jnp.inf, visit=visit
    )
    assert best == losses[0] < losses[-1] and losses.shape == (6,)  # it ascends


def test_theta_0_is_that_of_all_other_scores(data):
    """After no step, the accuracies are those of native training with no step size."""
    chunks = padded(real_batch(2, 40), 8)
    jobs = [job(data, seed) for seed in range(4)]
    keys = jnp.stack([j.key for j in jobs])
    batches = minibatches(real_batch(0, 6), 1)
    score = native_scorer(TinyTask)  # type: ignore[arg-type]
    untrained = score(keys, batches, jnp.zeros((1, 1)), chunks)
    got = Trainer(TinyTask).accuracies(jobs, (0, 12), chunks)  # type: ignore[arg-type]
    np.testing.assert_allclose(got[:, 0], untrained)
    assert (got[:, 1] > got[:, 0]).any()


@pytest.mark.parametrize("devices, width", [(None, 3), ("two", 1), ("two", 3)])
def test_many_at_once_is_one_after_the_other(data, devices, width):
    chunks = padded(real_batch(2, 40), 8)
    jobs = [job(data, seed, lr=0.01 * (seed + 1)) for seed in range(5)]
    alone = Trainer(TinyTask)  # type: ignore[arg-type]
    assert alone.width == 1
    devices = jax.devices()[:2] if devices else None
    together = Trainer(TinyTask, devices, width)  # type: ignore[arg-type]
    for stops in ((3, 12), (12, 12)):
        seen: list[int] = []
        np.testing.assert_allclose(
            together.accuracies(jobs, stops, chunks, seen.append),
            alone.accuracies(jobs, stops, chunks),
        )
        assert seen[-1] == 5 and seen == sorted(seen)
    weights = together.weights(jobs, 12)
    for k, one in enumerate(jobs):
        theta = jax.tree.map(lambda a, k=k: a[k], weights)
        expected = alone.accuracies([one], (12, 12), chunks)[0, 1]
        np.testing.assert_allclose(accuracy(MODEL, theta, chunks), expected)


def test_one_program_for_every_recipe(data):
    traces = []

    class Counted(TinyTask):
        @staticmethod
        def loss_fn(theta, batch):
            traces.append(1)
            return LOSS(theta, batch)

    chunks = padded(real_batch(2, 16), 8)
    trainer = Trainer(Counted)  # type: ignore[arg-type]
    trainer.accuracies([job(data)], (3, 12), chunks)
    first = len(traces)
    trainer.accuracies([job(data, 1, lr=0.5)], (5, 5), chunks)
    trainer.accuracies([job(data)], (2, 9), chunks)
    assert first > 0 and len(traces) == first


# Tuning.


def test_majority_is_that_of_validation():
    labels, validation = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 1, 0])
    assert majority_accuracy(labels, validation, 4) == 1 / 5
    assert majority_accuracy(labels, labels, 4) == 3 / 5
    assert majority_accuracy(validation, np.array([3]), 4) == 0


def test_tune_takes_the_first_of_the_best():
    scores = lambda lr: np.array([[lr, 0.6 - lr], [lr, 0.6 - lr]])  # noqa: E731
    assert tune(scores, (0.1, 0.5, 0.3), (2, 9)) == (0.1, 9, 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_tune_passes_over_what_is_not_finite(bad, first):
    scores = {0.1: [0.2, 0.4], 1.0: [0.9, bad]}
    grid = [1.0, 0.1] if first else [0.1, 1.0]
    best = tune(lambda lr: np.array(scores[lr]), grid, (7,))
    assert best.lr == 0.1 and best.accuracy == pytest.approx(0.3)


@pytest.mark.parametrize("worst", [0.0, -2.0])
def test_tune_passes_over_nan_where_no_score_is_above_zero(worst):
    scores = {1.0: np.nan, 0.1: worst}
    assert tune(lambda lr: np.array([scores[lr]]), list(scores), (7,)) == (
        0.1,
        7,
        worst,
    )


# Lists of one's own.


@pytest.fixture(scope="module")
def lists():
    """Four words tell two classes apart."""
    r = np.random.default_rng(0)
    labels = np.array(["bad", "good"])[np.arange(160) % 2]
    words = {"bad": ["awful", "dull"], "good": ["great", "fine"]}
    texts = [
        " ".join([r.choice(words[label]), f"n{i}", *r.choice(["a", "the", "film"], 3)])
        for i, label in enumerate(labels)
    ]
    return texts, labels


def test_lists_make_a_task_that_trains_and_scores(lists):
    task = dj.make_task(lists, "bag", embedder="random", length=6, hidden=8)
    few = (["great film", "an awful film", "fine", "dull"], ["good", "bad"] * 2)
    protocol = Protocol(test_inits=2, tuning_inits=1)
    accuracies = dj.evaluate(task, few, protocol=protocol)
    assert accuracies.shape == (2,) and accuracies.min() > 0.7
    judge = Judge(task, protocol)
    tuned = judge.tuned([as_set(task, few).batch])
    thetas = dj.train(task, few, keys=judge.test_keys, tuned=tuned)
    theta = jax.tree.map(lambda a: a[1], thetas)
    assert accuracy(task.model, theta, judge.test) == accuracies[1]
    with pytest.raises(ValueError, match="unknown label 'best'; lists has bad, good"):
        dj.evaluate(task, (["x"], ["best"]))


def test_devices_change_no_number(lists):
    task = dj.make_task(lists, "bag", embedder="random", length=6, hidden=8)
    again = dj.make_task(lists, "bag", embedder="random", length=6, hidden=8)
    few = (["great film", "an awful film"], ["good", "bad"])
    protocol = Protocol(test_inits=3, tuning_inits=1)
    on_all = dj.evaluate(again, few, protocol=protocol, devices=jax.devices())
    np.testing.assert_array_equal(on_all, dj.evaluate(task, few, protocol=protocol))


def test_what_a_task_is_told_by_is_its_content(lists):
    texts, labels = lists

    def sha256(texts, labels, **settings):
        return dj.make_task((texts, labels), embedder="random", **settings).sha256

    known = sha256(texts, labels)
    assert known == sha256(list(texts), list(labels), length=9)  # of how it is read
    other = np.where(np.arange(160) == 3, "bad", labels)
    assert known != sha256(texts, other) != sha256(texts[:-1], labels[:-1])
    assert known != sha256(texts, np.where(labels == "bad", "mean", "nice"))


# It learns.


@pytest.fixture(scope="module")
def questions(shared_data):
    """600 questions of TREC to learn from and 300 others, with random vectors."""
    corpus = corpora.load(str(shared_data / "trec6"))
    texts, labels = corpus.train.texts[:900], corpus.train.labels[:900]
    vocabulary = corpora.Vocabulary.build(texts[:600], max_size=40)
    vectors = 2 * corpora.random_vectors(vocabulary, 16).table
    batch = one_hot_batch(vocabulary.encode(texts, 8), labels, corpus.num_classes)
    batch = batch.replace(mask=jnp.float32(batch.mask), y=jnp.float32(batch.y))
    model = text_cnn(
        vectors, corpus.num_classes, widths=(1, 2), filters=16, hidden=None
    )
    seen, unseen = (
        jax.tree.map(lambda a, part=part: a[part], batch)
        for part in (slice(600), slice(600, None))
    )
    return model, seen, unseen


def one_of_each_class(model, batch, seed):
    """A minibatch `[1, C, ...]` of real sentences, embedded."""
    r, labels = np.random.default_rng(seed), np.asarray(batch.y.argmax(-1))
    rows = np.array(
        [r.choice(np.flatnonzero(labels == c)) for c in range(labels.max() + 1)]
    )
    one = jax.tree.map(lambda a: a[None, rows], batch)
    return one.replace(x=model.embed(None, one.x))


def test_it_learns_and_beats_as_many_random_sentences(questions):
    model, seen, unseen = questions
    loss_fn, passes = cross_entropy(model), 4
    objective = unrolled(loss_fn, inner_grad=mixed_mode)
    first = one_of_each_class(model, seen, 0)
    start = Distilled(first.x, 4 * first.y, jnp.zeros((passes, 1), jnp.float32))
    tx = optax.adam(0.05)

    @jax.jit
    def steps(state, key):
        def one(state, key):
            rows_key, *keys = jax.random.split(key, 3)
            rows = jax.random.choice(rows_key, seen.y.shape[0], (150,), replace=False)
            batch = jax.tree.map(lambda a: a[rows], seen)
            state, info = meta_step(
                objective,
                model.init,
                tx,
                state,
                jnp.stack(keys),
                batch,
                sequential=True,
            )
            return state, info.meta_loss

        return jax.lax.scan(one, state, jax.random.split(key, 100))

    state, losses = steps(meta_init(tx, start), jax.random.key(0))
    assert state.skipped == 0
    assert losses[-10:].mean() < 0.9 * losses[:5].mean()

    chunks = padded(unseen, 100)
    fresh = jax.random.split(jax.random.key(99), 4)

    class Questions:
        pass

    Questions.model, Questions.loss_fn = model, loss_fn  # type: ignore[attr-defined]
    native = native_scorer(Questions)  # type: ignore[arg-type]

    def score(batches, lr):
        return native(fresh, batches, lr, chunks)

    distilled = score(state.distilled.batches, state.distilled.lr).mean()
    random = [one_of_each_class(model, seen, seed) for seed in range(3)]

    def of_random(lr):
        rates = jnp.full((passes, 1), lr, jnp.float32)
        return np.stack([score(batches, rates) for batches in random])[..., None]

    # the step size of the random sentences is even tuned on what scores them
    best = tune(of_random, [0.03, 0.1, 0.3, 1.0, 3.0], [passes])
    assert distilled > best.accuracy + 0.1
