"""The winners of the max over time, and what flows through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax.losses import cross_entropy
from distill_jax.models.text_cnn import (
    kim_cnn,
    max_over_time,
    max_over_time_dense,
    text_cnn,
    winners,
)
from distill_jax.types import Batch

B, L, D, F, K, C = 4, 5, 3, 4, 2, 3
R = np.random.default_rng(4)
X = R.normal(size=(B, L, D))
MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0] * 5], float)
KERNEL, BIAS = R.normal(size=(F, K * D)), R.normal(size=F)
VECTORS = R.normal(size=(7, D))
find = jax.jit(lambda x, mask, kernel: winners(x, mask, {"": kernel})[""])


def scores_by_hand(x, mask, kernel):
    """Every window that counts, and -inf for those that do not."""
    k = kernel.shape[1] // x.shape[2]
    scores = np.full((*x.shape[:2], len(kernel)), -np.inf)
    for b in range(len(x)):
        rows = np.concatenate([x[b] * mask[b][:, None], np.zeros((k - 1, x.shape[2]))])
        for p in range(x.shape[1]):
            if mask[b, p] or p == 0:
                scores[b, p] = kernel @ rows[p : p + k].reshape(-1)
    return scores


def loss_of(pooling):
    model = text_cnn(VECTORS, C, widths=(1, 2, 3), filters=F, hidden=4, pooling=pooling)
    return model, cross_entropy(model)


def random_like(tree, seed):
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(r.normal(size=a.shape)), tree)


def close(actual, desired, rtol=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(b).all() and abs(b).max() > 1e-6
        assert abs(a - b).max() <= rtol * abs(b).max()


@functools.cache
def derivatives(pooling):
    """Loss, gradient, and both ways of the product of the Hessian and a vector."""
    model, loss = loss_of(pooling)
    theta = random_like(jax.eval_shape(model.init, jax.random.key(0)), 1)  # no zeros
    y = jax.nn.softmax(random_like(jnp.zeros((B, C)), 2))
    point = (theta, jnp.asarray(X))
    v = random_like(point, 3)

    def f(point):
        return loss(point[0], Batch(point[1], MASK, y))

    def slope(point):
        return sum(
            map(jnp.vdot, jax.tree.leaves(jax.grad(f)(point)), jax.tree.leaves(v))
        )

    @jax.jit
    def all_of_them(point):
        (value, grad), (_, forward) = jax.jvp(jax.value_and_grad(f), (point,), (v,))
        return value, grad, forward, jax.grad(slope)(point)

    return all_of_them(point)


@pytest.mark.parametrize(
    ("order", "what"),
    list(
        enumerate(["value", "gradient", "forward over reverse", "reverse over reverse"])
    ),
)
def test_winners_equal_the_dense_form(order, what):
    close(derivatives("winners")[order], derivatives("dense")[order])


def test_both_ways_of_the_second_derivative_agree():
    close(derivatives("winners")[2], derivatives("winners")[3], 1e-11)


def test_max_over_time_is_the_largest_score():
    expected = scores_by_hand(X, MASK, KERNEL).max(1) + BIAS
    for pool in (max_over_time, max_over_time_dense):
        np.testing.assert_allclose(pool(X, MASK, KERNEL, BIAS), expected, rtol=1e-12)


def test_the_winners_are_looked_for_only_where_something_is_differentiated():
    def pooled(x, kernel):
        return max_over_time(x, MASK, kernel, BIAS)

    def gathers(f):
        return "gather[" in str(jax.make_jaxpr(f)(X, KERNEL))

    assert not gathers(pooled)
    assert gathers(jax.grad(lambda x, kernel: pooled(x, kernel).sum(), (0, 1)))
    (value, back), (given, back_given) = map(
        lambda route: jax.vjp(
            lambda x, kernel: max_over_time(x, MASK, kernel, BIAS, route), X, KERNEL
        ),
        (None, find(X, MASK, KERNEL)),
    )
    close(value, given)
    cotangent = np.random.default_rng(2).normal(size=(B, F))
    close(back(cotangent), back_given(cotangent))


def test_winners_are_the_argmax():
    np.testing.assert_array_equal(
        find(X, MASK, KERNEL), scores_by_hand(X, MASK, KERNEL).argmax(1)
    )
    assert find(X, MASK, KERNEL).dtype == jnp.int32


def test_the_first_of_equals_wins():
    r = np.random.default_rng(0)
    x, kernel = r.integers(-1, 2, (B, L, D)), r.integers(-1, 2, (F, K * D))
    scores = scores_by_hand(x.astype(float), np.ones((B, L)), kernel)
    ties = (scores == scores.max(1, keepdims=True)).sum(1) > 1
    assert ties.sum() > 3
    got = find(x.astype(float), np.ones((B, L)), kernel.astype(float))
    np.testing.assert_array_equal(got, scores.argmax(1))


def test_the_window_at_the_last_token_counts():
    x = np.zeros((1, L, D))
    x[0, -1] = 1
    kernel = np.concatenate([np.ones((1, D)), -np.ones((1, D))], 1)
    assert find(x, np.ones((1, L)), kernel) == L - 1
    short = (jnp.arange(L) < 3).astype(float)[None]
    x[0, 2] = 1
    assert find(x, short, kernel) == 2
    np.testing.assert_allclose(max_over_time(x, short, kernel, np.zeros(1)), D)


def test_padding_never_wins():
    x = -np.ones((1, L, D))  # every real window scores less than the zeros after it
    mask = jnp.array([[1, 1, 0, 0, 0.0]])
    kernel = np.ones((1, K * D))
    assert find(x, mask, kernel) == 1
    np.testing.assert_allclose(max_over_time(x, mask, kernel, np.zeros(1)), -D)
    x[0, 2:] = 100
    assert find(x, mask, kernel) == 1
    np.testing.assert_allclose(max_over_time(x, mask, kernel, np.zeros(1)), -D)


def test_an_empty_sentence_is_one_window_of_zeros():
    got = max_over_time(100 + X, jnp.zeros((B, L)), KERNEL, BIAS)
    np.testing.assert_array_equal(got, np.broadcast_to(BIAS, (B, F)))
    assert not find(100 + X, np.zeros((B, L)), KERNEL).any()


@pytest.mark.parametrize("what", ["kernel", "one word"])
def test_scores_that_are_nan_stay_in_bounds(what):
    x, kernel = X.copy(), KERNEL.copy()
    if what == "kernel":
        kernel[1] = np.nan
    else:
        x[0, 1] = np.nan
    found = np.asarray(find(x, MASK, kernel))
    assert found.min() >= 0 and found.max() < L
    value = np.asarray(max_over_time(x, MASK, kernel, BIAS))
    bad = np.zeros((B, F), bool)
    if what == "kernel":
        bad[:, 1] = True
    else:
        bad[0] = True
    good = scores_by_hand(X, MASK, KERNEL).max(1) + BIAS
    np.testing.assert_allclose(value[~bad], good[~bad], rtol=1e-12)


def test_a_word_that_is_nan_is_seen_where_the_mask_shows_it():
    x = X.copy()
    x[0, :] = np.nan
    assert np.isnan(max_over_time(x, MASK, KERNEL, BIAS)[0]).all()


def test_scores_at_a_given_route_and_their_derivatives():
    route = np.random.default_rng(1).integers(0, L, (B, F)).astype(np.int32)
    rows = np.concatenate([X * MASK[..., None], np.zeros((B, K - 1, D))], 1)
    expected = np.array(
        [
            [KERNEL[f] @ rows[b, p : p + K].reshape(-1) for f, p in enumerate(route[b])]
            for b in range(B)
        ]
    )
    f = jax.jit(lambda x, kernel, bias: max_over_time(x, MASK, kernel, bias, route))
    np.testing.assert_allclose(f(X, KERNEL, BIAS), expected + BIAS, rtol=1e-12)
    point = (X, KERNEL, BIAS)
    check_grads(f, point, order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_route_of_the_model_is_that_of_each_width():
    model, _ = loss_of("winners")
    theta = random_like(jax.eval_shape(model.init, jax.random.key(0)), 1)
    route = model.route(theta, X, MASK)
    assert set(route) == {"1", "2", "3"}
    given = model.apply(theta, X, MASK, route=route)
    np.testing.assert_allclose(given, model.apply(theta, X, MASK), rtol=1e-12)
    for name, found in route.items():
        kernel = np.asarray(theta["conv"][name]["kernel"])
        np.testing.assert_array_equal(found, scores_by_hand(X, MASK, kernel).argmax(1))


def test_logits_are_their_equations():
    model, _ = loss_of("winners")
    theta = random_like(jax.eval_shape(model.init, jax.random.key(0)), 1)
    t = jax.tree.map(np.asarray, theta)
    h = [
        scores_by_hand(X, MASK, t["conv"][k]["kernel"]).max(1) + t["conv"][k]["bias"]
        for k in ("1", "2", "3")
    ]
    h = np.maximum(np.concatenate(h, 1), 0)
    for layer in ("hidden", "out"):  # no nonlinearity between the two
        h = h @ t[layer]["kernel"] + t[layer]["bias"]
    np.testing.assert_allclose(model.apply(theta, X, MASK), h, rtol=1e-11)


def test_a_window_may_be_longer_than_the_sentence():
    kernel = np.random.default_rng(3).normal(size=(F, 4 * D))
    x, mask = X[:, :2], MASK[:, :2]
    expected = scores_by_hand(x, mask, kernel)
    np.testing.assert_array_equal(find(x, mask, kernel), expected.argmax(1))
    got = max_over_time(x, mask, kernel, BIAS)
    np.testing.assert_allclose(got, expected.max(1) + BIAS, rtol=1e-12)


def test_settings_are_those_of_the_papers():
    li = jax.eval_shape(text_cnn(VECTORS, C).init, jax.random.key(0))
    assert {k: g["kernel"].shape for k, g in li["conv"].items()} == {
        "2": (128, 2 * D),
        "3": (128, 3 * D),
    }
    assert li["hidden"]["kernel"].shape == (256, 256)
    assert li["out"]["kernel"].shape == (256, C)
    kim = jax.eval_shape(kim_cnn(VECTORS, C).init, jax.random.key(0))
    assert {k: g["bias"].shape for k, g in kim["conv"].items()} == dict.fromkeys(
        ("3", "4", "5"), (100,)
    )
    assert "hidden" not in kim and kim["out"]["kernel"].shape == (300, C)
    assert "hidden" in jax.eval_shape(
        kim_cnn(VECTORS, C, hidden=2, filters=3).init, jax.random.key(0)
    )


def test_filters_are_drawn_for_their_fan_in():
    model = text_cnn(np.ones((2, 40)), C, widths=(5,), filters=64, hidden=None)
    kernel = jax.jit(model.init)(jax.random.key(0))["conv"]["5"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (5 * 40) ** -0.5, rtol=0.05)


def test_a_mask_may_be_a_numpy_array():
    got = max_over_time(X, np.asarray(MASK), KERNEL, BIAS)
    np.testing.assert_array_equal(got, max_over_time(X, MASK, KERNEL, BIAS))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="'winners' or 'dense', got 'mean'"):
        text_cnn(VECTORS, C, pooling="mean")


def test_groups_of_filters_share_their_windows():
    """Narrower filters read the windows of the widest: the same winners as alone."""
    rng = np.random.default_rng(3)
    x, mask = jnp.asarray(rng.normal(size=(4, 6, 3))), np.ones((4, 6))
    mask[1, 2:] = 0
    kernels = {f"{k}": jnp.asarray(rng.normal(size=(5, 3 * k))) for k in (2, 4, 3)}
    together = jax.jit(winners)(x, jnp.asarray(mask), kernels)
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(together[name], find(x, mask, kernel))
        scores = np.asarray(max_over_time_dense(x, mask, kernel, jnp.zeros(5)))
        k = int(name)
        padded = np.pad(x * mask[..., None], ((0, 0), (0, k - 1), (0, 0)))
        for b, f in np.ndindex(4, 5):
            p = int(together[name][b, f])
            window = padded[b, p : p + k].ravel()
            assert scores[b, f] == pytest.approx(float(window @ kernel[f]), rel=1e-12)


def test_features_are_what_the_output_layer_reads():
    model, _ = loss_of("winners")
    params = model.init(jax.random.key(0))
    h = model.features(params, X, MASK)
    out = params["out"]
    close(h @ out["kernel"] + out["bias"][None], model.apply(params, X, MASK))
