"""Losses and scores of a model on a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax.losses import cross_entropy, logits_fn, num_correct, route_fn
from distill_jax.models.text_cnn import text_cnn
from distill_jax.types import Batch
from tests.tiny import MODEL, C, D, L

R = np.random.default_rng(2)
THETA = MODEL.init(jax.random.key(0))
N = 4
X = R.normal(size=(N, L, D))
MASK = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1.0]])
SOFT = R.dirichlet(np.ones(C), N)
HARD = np.eye(C)[[0, 2, 1, 0]]
TOKENS = R.integers(0, D, (N, L))
LOSS = jax.jit(cross_entropy(MODEL))
CORRECT = jax.jit(num_correct(MODEL))
VECTORS = R.normal(size=(6, D))
CNN = text_cnn(VECTORS, C, widths=(2,), filters=3, hidden=None, dropout=0.5)


def by_hand(x, mask, y, rows):
    mask = np.asarray(mask)
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    logits = mean @ np.asarray(THETA["w"]) + np.asarray(THETA["b"])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(y * log_probs)[rows].sum() / len(rows), logits


def zeroed(y, row):
    return np.where(np.arange(N)[:, None] == row, 0, y)


@pytest.mark.parametrize("y", [SOFT, HARD], ids=["soft", "hard"])
def test_cross_entropy_is_its_formula(y):
    expected, _ = by_hand(X, MASK, y, np.arange(N))
    np.testing.assert_allclose(LOSS(THETA, Batch(X, MASK, y)), expected, rtol=1e-12)
    assert expected > 0.1


def test_a_uniform_guess_costs_log_c():
    zero = jax.tree.map(jnp.zeros_like, THETA)
    for y in (SOFT, HARD):
        np.testing.assert_allclose(LOSS(zero, Batch(X, MASK, y)), np.log(C), rtol=1e-12)


@pytest.mark.parametrize("row", [0, 3])
def test_a_row_without_a_label_counts_for_nothing(row):
    rows = np.delete(np.arange(N), row)
    batch = Batch(X, MASK, zeroed(SOFT, row))
    expected, _ = by_hand(X, MASK, SOFT, rows)
    np.testing.assert_allclose(LOSS(THETA, batch), expected, rtol=1e-12)
    grad = jax.grad(lambda x: LOSS(THETA, batch.replace(x=x)))(jnp.asarray(X))
    assert not grad[row].any() and grad[rows].any((1, 2)).all()


def test_no_label_at_all_costs_nothing():
    batch = Batch(X, MASK, np.zeros((N, C)))
    loss, grad = jax.value_and_grad(LOSS)(THETA, batch)
    assert loss == 0 and not any(g.any() for g in jax.tree.leaves(grad))
    assert CORRECT(THETA, batch) == 0


def test_permuting_the_examples_changes_no_loss():
    order = np.array([2, 0, 3, 1])
    loss = LOSS(THETA, Batch(X, MASK, SOFT))
    same = LOSS(THETA, Batch(X[order], MASK[order], SOFT[order]))
    np.testing.assert_allclose(same, loss, rtol=1e-13)
    assert abs(LOSS(THETA, Batch(X[order], MASK[order], SOFT)) - loss) > 1e-3


def test_what_the_mask_hides_changes_no_loss():
    batch = Batch(X, MASK, SOFT)
    noisy = Batch(X + 9 * (1 - MASK[..., None]), MASK, SOFT)
    np.testing.assert_allclose(LOSS(THETA, noisy), LOSS(THETA, batch), rtol=1e-13)
    assert abs(LOSS(THETA, Batch(X + 9, MASK, SOFT)) - LOSS(THETA, batch)) > 1e-3


def test_its_gradient_agrees_with_finite_differences():
    def f(theta, x, y):
        return LOSS(theta, Batch(x, MASK, y))

    check_grads(f, (THETA, X, SOFT), order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_huge_logits_stay_finite():
    theta = jax.tree.map(lambda a: 1e5 * a, THETA)
    loss, grad = jax.value_and_grad(LOSS)(theta, Batch(X, MASK, HARD))
    assert 1e2 < loss < np.inf
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_integers_are_embedded_and_floats_are_not():
    tokens = Batch(TOKENS, np.ones((N, L)), SOFT)
    embedded = tokens.replace(x=np.eye(D)[TOKENS])
    np.testing.assert_allclose(LOSS(THETA, tokens), LOSS(THETA, embedded), rtol=1e-13)
    expected, logits = by_hand(embedded.x, tokens.mask, SOFT, np.arange(N))
    np.testing.assert_allclose(LOSS(THETA, tokens), expected, rtol=1e-12)
    np.testing.assert_allclose(logits_fn(MODEL)(THETA, tokens), logits, rtol=1e-12)


def test_num_correct_counts():
    _, logits = by_hand(X, MASK, HARD, np.arange(N))
    for y in (HARD, SOFT, np.eye(C)[logits.argmax(-1)]):
        got = CORRECT(THETA, Batch(X, MASK, y))
        assert got == (logits.argmax(-1) == y.argmax(-1)).sum()
        assert jnp.issubdtype(got.dtype, jnp.integer)
    assert got == N


def test_num_correct_leaves_out_rows_without_a_label():
    # A row of zeros has its largest entry at 0, where class 0 is guessed for all.
    theta = {"w": jnp.zeros((D, C)), "b": jnp.array([1.0, 0, 0])}
    y = np.eye(C)[[0, 0, 1, 2]]
    assert CORRECT(theta, Batch(X, MASK, y)) == 2
    assert CORRECT(theta, Batch(X, MASK, zeroed(y, 0))) == 1
    assert CORRECT(theta, Batch(X, MASK, zeroed(y, 3))) == 2


def test_the_key_reaches_the_dropout_and_the_route_the_model():
    theta = jax.jit(CNN.init)(jax.random.key(0))
    logits = jax.jit(logits_fn(CNN))
    batch = Batch(X, MASK, SOFT)
    plain = logits(theta, batch)
    keyed = [logits(theta, batch, key=jax.random.key(k)) for k in (0, 1)]
    assert abs(keyed[0] - plain).max() > 1e-6 and abs(keyed[0] - keyed[1]).max() > 1e-6

    route = jax.jit(route_fn(CNN))(theta, batch)
    np.testing.assert_allclose(logits(theta, batch, route=route), plain, rtol=1e-12)
    other = {"2": (route["2"] + 1) % L}
    assert abs(logits(theta, batch, route=other) - plain).max() > 1e-6
    tokens = Batch(TOKENS, MASK, SOFT)
    embedded = tokens.replace(x=VECTORS[TOKENS])
    np.testing.assert_array_equal(
        route_fn(CNN)(theta, tokens)["2"], route_fn(CNN)(theta, embedded)["2"]
    )


def test_the_loss_carries_the_route_where_there_is_one():
    assert cross_entropy(MODEL).route is None and route_fn(MODEL) is None
    assert callable(cross_entropy(CNN).route)
    assert cross_entropy(text_cnn(VECTORS, C, pooling="dense")).route is None
