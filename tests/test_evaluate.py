"""Training of fresh networks, and what their accuracy counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data
from distill_jax.core import meta_init, meta_step, unroll, unrolled
from distill_jax.evaluate import (
    accuracies,
    accuracy,
    majority_accuracy,
    minibatches,
    native,
    one_hot_batch,
    padded,
    standard,
    tune_lr,
)
from distill_jax.gradients import mixed_mode
from distill_jax.losses import cross_entropy
from distill_jax.models.text_cnn import text_cnn
from distill_jax.types import Batch, Distilled
from tests.tiny import LOSS, MODEL, C, real_batch

THETA_0 = MODEL.init(jax.random.key(1))
KEYS = jax.random.split(jax.random.key(2), 3)


def equal(actual, desired):
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def close(actual, desired, rtol=1e-12):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol), actual, desired
    )


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


def test_accuracies_train_one_network_for_each_key():
    seen = padded(real_batch(0, 20), 7)

    def train(theta, key):
        noise = jax.random.normal(key, theta["w"].shape)
        return theta | {"w": theta["w"] + noise}

    got = accuracies(MODEL, MODEL.init, train, KEYS, seen)
    for key, one in zip(KEYS, got, strict=True):
        init_key, train_key = jax.random.split(key)
        theta = train(MODEL.init(init_key), train_key)
        np.testing.assert_allclose(one, accuracy(MODEL, theta, seen))
    assert len(set(np.asarray(got).tolist())) > 1


# Training.


@pytest.mark.parametrize("inner_tx", [optax.identity(), optax.trace(0.9)])
def test_native_is_the_inner_loop(inner_tx):
    batches = minibatches(real_batch(0, 6), 3)
    lr = jnp.linspace(0.1, 0.6, 6).reshape(2, 3)
    train = jax.jit(native(LOSS, batches, lr, inner_tx=inner_tx))
    theta, _ = jax.jit(functools.partial(unroll, LOSS, inner_tx=inner_tx))(
        THETA_0, batches, lr
    )
    close(train(THETA_0, KEYS[0]), theta)
    equal(train(THETA_0, KEYS[1]), train(THETA_0, KEYS[0]))
    assert abs(theta["w"] - THETA_0["w"]).max() > 0.1


def standard_training(tx, num_epochs=4, batch_size=3):
    batch = jax.tree.map(jnp.asarray, real_batch(0, 12))
    return batch, jax.jit(
        standard(LOSS, batch, tx, num_epochs=num_epochs, batch_size=batch_size)
    )


def test_standard_training_lowers_the_loss():
    batch, train = standard_training(optax.adam(0.05))
    before = LOSS(THETA_0, batch)
    after = LOSS(train(THETA_0, KEYS[0]), batch)
    assert after < 0.8 * before


def test_standard_training_reshuffles_by_key():
    _, train = standard_training(optax.adam(0.05))
    one, other = (train(THETA_0, key)["w"] for key in KEYS[:2])
    assert abs(one - other).max() > 1e-6
    equal(train(THETA_0, KEYS[0])["w"], one)


def test_standard_training_takes_numpy_arrays():
    kwargs = {"num_epochs": 1, "batch_size": 3}
    jax.jit(standard(LOSS, real_batch(0, 6), optax.sgd(0.1), **kwargs))(
        THETA_0, KEYS[0]
    )


def how_often(n, num_epochs, batch_size, key):
    """Visits of each of n rows: theta collects one power of ten for each."""
    powers = jnp.asarray(10.0 ** np.arange(n))
    batch = Batch(powers, jnp.ones(n), jnp.ones((n, 1)))
    train = standard(
        lambda theta, rows: -(theta * rows.x).sum(),
        batch,
        optax.sgd(1.0),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
    total = int(jax.jit(train)(jnp.zeros(()), key))
    return [total // 10**i % 10 for i in range(n)]


@pytest.mark.parametrize("batch_size", [1, 3, 6, 100])
def test_an_epoch_visits_each_row_once(batch_size):
    assert how_often(6, 2, batch_size, KEYS[0]) == [2] * 6


def test_what_does_not_fill_a_minibatch_is_left_out_another_time():
    visits = how_often(5, 9, 2, KEYS[0])
    assert sum(visits) == 9 * 4
    assert max(visits) <= 9 and sum(v < 9 for v in visits) > 1


# Baselines and tuning.


def test_majority_is_that_of_validation():
    labels, validation = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 1, 0])
    assert majority_accuracy(labels, validation, 4) == 1 / 5
    assert majority_accuracy(labels, labels, 4) == 3 / 5
    assert majority_accuracy(validation, np.array([3]), 4) == 0


def test_tune_lr_takes_the_best_mean():
    scores = {0.1: [0.2, 0.4], 1.0: [0.9, 0.1], 0.5: [0.5, 0.45]}
    best, mean = tune_lr(lambda lr: jnp.array(scores[lr]), list(scores))
    assert best == 1.0 and mean == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_tune_lr_passes_over_what_is_not_finite(bad, first):
    scores = {0.1: [0.2, 0.4], 1.0: [0.9, bad]}
    grid = [1.0, 0.1] if first else [0.1, 1.0]
    best, mean = tune_lr(lambda lr: jnp.array(scores[lr]), grid)
    assert best == 0.1 and mean == pytest.approx(0.3)


@pytest.mark.parametrize("worst", [0.0, -2.0])
def test_tune_lr_passes_over_nan_where_no_score_is_above_zero(worst):
    scores = {1.0: np.nan, 0.1: worst}
    assert tune_lr(lambda lr: jnp.array(scores[lr]), list(scores)) == (0.1, worst)


# It learns.


@pytest.fixture(scope="module")
def questions(shared_data):
    """600 questions of TREC to learn from and 300 others, with random vectors."""
    corpus = data.load(str(shared_data / "trec6"))
    texts, labels = corpus.train.texts[:900], corpus.train.labels[:900]
    vocabulary = data.Vocabulary.build(texts[:600], max_size=40)
    vectors = 2 * data.random_vectors(vocabulary, 16).table
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

    @jax.jit
    def score(batches, lr):
        train = native(loss_fn, batches, lr)
        return accuracies(model, model.init, train, fresh, chunks)

    distilled = score(state.distilled.batches, state.distilled.lr).mean()
    random = [one_of_each_class(model, seen, seed) for seed in range(3)]

    def of_random(lr):
        rates = jnp.full((passes, 1), lr, jnp.float32)
        return jnp.stack([score(batches, rates) for batches in random])

    # the step size of the random sentences is even tuned on what scores them
    _, tuned = tune_lr(of_random, [0.03, 0.1, 0.3, 1.0, 3.0])
    assert distilled > tuned + 0.1
