"""Every other way for the derivative to flow gives the same derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from distill_jax.contrib import clip_by_running_mean
from distill_jax.core import meta_grad, unroll, unrolled
from distill_jax.gradients import (
    checkpointed_scan,
    chunked,
    mixed_mode,
)
from distill_jax.losses import cross_entropy
from distill_jax.models.text_cnn import text_cnn
from distill_jax.types import Batch, Distilled, Loss, Model
from tests.tiny import LOSS, MODEL, problem, real_batch

V, S, E, B, L, D, C, N = 7, 3, 2, 2, 4, 4, 3, 4
R = np.random.default_rng(6)
VECTORS = R.normal(size=(V, D))


def learned_table() -> Model:
    """A linear model without a route, that learns its word vectors too."""

    def init(key):
        keys = jax.random.split(key)
        table = jax.random.normal(keys[0], (V, D))
        return MODEL.init(keys[1]) | {"table": table}

    return Model(init, lambda params, tokens: params["table"][tokens], MODEL.apply)


MODELS = {
    "text_cnn": text_cnn(VECTORS, C, widths=(2, 3), filters=3, hidden=4),
    "linear": learned_table(),
}
MASK = jnp.asarray(np.arange(L) < R.integers(1, L + 1, (S, B, 1)), float)
REAL = Batch(R.integers(0, V, (N, L)), jnp.ones((N, L)), R.dirichlet(np.ones(C), N))


def close(actual, desired, rtol=1e-12, least=1e-6):
    """Each leaf within `rtol` of its largest entry, which is not near 0."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and np.isfinite(b).all() and abs(b).max() > least
        assert abs(a - b).max() <= rtol * abs(b).max()


# mixed_mode


@pytest.mark.parametrize("words", ["embeddings", "tokens"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_mixed_mode_equals_plain(name, words):
    model = MODELS[name]
    loss = cross_entropy(model)
    r = np.random.default_rng(7)
    tokens = words == "tokens"
    x = r.integers(0, V, (S, B, L)) if tokens else r.normal(size=(S, B, L, D))
    y, lr = r.dirichlet(np.ones(C), (S, B)), r.uniform(0.2, 0.8, (E, S))

    def derivative(inner_grad):
        def meta_loss(theta_0, y, lr, x):
            batches = Batch(x, MASK, y)
            theta_T, losses = unroll(loss, theta_0, batches, lr, inner_grad=inner_grad)
            return loss(theta_T, REAL), losses

        wrt = (0, 1, 2) if tokens else (0, 1, 2, 3)
        fn = jax.jit(jax.value_and_grad(meta_loss, wrt, has_aux=True))
        return fn(model.init(jax.random.key(1)), y, lr, x)

    close(derivative(mixed_mode), derivative(jax.value_and_grad))


def test_mixed_mode_chooses_once_and_reads_it_again():
    chosen = []

    def loss(theta, batch, route=None):
        assert route is not None
        return (batch.y * theta[route] ** 3 * batch.x).sum()

    def route(theta, batch):
        chosen.append(theta)
        return jnp.array([2, 0])

    loss = Loss(loss, route)
    theta = jnp.array([2.0, 3.0, 5.0])
    batch = Batch(jnp.array([1.0, 4.0]), jnp.ones(2), jnp.array([0.5, 1.0]))
    (value, grad), pull = jax.vjp(mixed_mode(loss), theta, batch)
    assert len(chosen) == 1
    d_theta, d_batch = pull((jnp.zeros(()), jnp.array([1.0, 10.0, 100.0])))
    assert len(chosen) == 1
    # loss = 4 theta_0 ** 3 + theta_2 ** 3 / 2
    np.testing.assert_allclose(value, 4 * 8 + 125 / 2)
    np.testing.assert_allclose(grad, [4 * 12, 0, 75 / 2])
    np.testing.assert_allclose(d_theta, [4 * 12, 0, 100 * 15])
    np.testing.assert_allclose(d_batch.x, [100 * 75 / 2, 12])
    np.testing.assert_allclose(d_batch.y, [100 * 75, 4 * 12])


def test_the_loss_of_mixed_mode_and_its_mask_carry_no_derivative():
    batch = real_batch(0, 2)
    theta = MODEL.init(jax.random.key(0))
    _, pull = jax.vjp(mixed_mode(LOSS), theta, batch)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    d_theta, d_batch = pull((jnp.ones(()), zeros))
    assert not any(a.any() for a in jax.tree.leaves((d_theta, d_batch)))
    _, d_batch = pull((jnp.zeros(()), jax.tree.map(jnp.ones_like, theta)))
    assert d_batch.x.any() and not d_batch.mask.any()


# checkpointed_scan


def wave(carry, x):
    carry = jnp.sin(carry * x["a"]) + x["b"]
    return carry, {"sum": carry.sum(), "square": carry**2}


def scanned(scan, length):
    r = np.random.default_rng(length)
    carry = jnp.asarray(r.normal(size=3))
    xs = {"a": jnp.asarray(r.normal(size=length)), "b": r.normal(size=(length, 3))}

    def f(carry, xs):
        carry, ys = scan(wave, carry, xs)
        weighted = (ys["sum"] * jnp.arange(1.0, length + 1)).sum()
        return (carry**2).sum() + weighted + (ys["square"] ** 2).sum(), (carry, ys)

    return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(carry, xs)


@functools.cache
def plainly_scanned(length):
    return scanned(lax.scan, length)


@pytest.mark.parametrize(
    ("segment", "length"),
    [(1, 6), (2, 6), (3, 7), (6, 6), (10, 6), (None, 9), (None, 7)],
)
def test_checkpointed_scan_equals_scan(segment, length):
    close(scanned(checkpointed_scan(segment), length), plainly_scanned(length))


def test_checkpointed_scan_of_nothing():
    carry, ys = checkpointed_scan()(
        wave, jnp.ones(3), {"a": jnp.ones(0), "b": jnp.ones((0, 3))}
    )
    np.testing.assert_array_equal(carry, jnp.ones(3))
    assert ys["square"].shape == (0, 3)


@functools.cache
def of_unroll(segment, mixed=False, E=3):
    scan = lax.scan if segment == "no" else checkpointed_scan(segment)
    inner_grad = mixed_mode if mixed else jax.value_and_grad
    r = np.random.default_rng(8)
    d = Distilled(
        jnp.asarray(r.normal(size=(5, B, 3, D))),
        jnp.asarray(r.normal(size=(5, B, C))),
        jnp.asarray(r.normal(size=(E, 5))),
    )
    objective = unrolled(LOSS, inner_grad=inner_grad, scan=scan)
    fn = jax.jit(jax.value_and_grad(objective))
    return fn(d, MODEL.init(jax.random.key(0)), real_batch(1, 4))


@pytest.mark.parametrize(
    ("segment", "mixed", "passes"), [(None, False, 3), (2, True, 3), (2, False, 1)]
)
def test_checkpointed_unroll_equals_the_plain_one(segment, mixed, passes):
    # 3 passes and 5 steps: segments of 2 divide neither
    close(of_unroll(segment, mixed, passes), of_unroll("no", False, passes))


def temp_bytes(scan, passes, steps, inner_grad=jax.value_and_grad):
    """Of the compiled meta-gradient; theta is the largest thing there is."""
    width, hidden, classes = 4, 128, 4

    def loss(theta, batch):
        logits = jnp.tanh(batch.x.mean(1) @ theta[0]) @ theta[1]
        return -(batch.y * jax.nn.log_softmax(logits)).sum()

    objective = unrolled(loss, inner_grad=inner_grad, scan=scan)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float64)
    d = Distilled(
        shape((steps, 1, 1, width)), shape((steps, 1, classes)), shape((passes, steps))
    )
    theta = shape((width, hidden)), shape((hidden, classes))
    batch = Batch(shape((1, 1, width)), shape((1, 1)), shape((1, classes)))
    lowered = jax.jit(jax.grad(objective)).lower(d, theta, batch)
    return lowered.compile().memory_analysis().temp_size_in_bytes


LAYOUTS = {"passes": lambda T: (T, 1), "steps": lambda T: (1, T)}


@pytest.mark.parametrize("inner_grad", [jax.value_and_grad, mixed_mode])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_memory_grows_with_the_root_of_the_steps(layout, inner_grad):
    few, many = LAYOUTS[layout](16), LAYOUTS[layout](256)
    plain = [temp_bytes(lax.scan, *t, inner_grad) for t in (few, many)]
    least = [temp_bytes(checkpointed_scan(), *t, inner_grad) for t in (few, many)]
    theta = 8 * 128 * (4 + 4)
    assert plain[1] - plain[0] > 0.9 * theta * (256 - 16)
    assert least[1] <= 4.4 * least[0]
    assert least[1] < plain[1] / 4


def test_memory_of_passes_and_steps_grows_with_the_root_too():
    few, many = (temp_bytes(checkpointed_scan(), n, n) for n in (4, 16))
    assert many <= 4.4 * few


# chunked


def labelled(zero_rows, n=6):
    batch = real_batch(2, n)
    y = np.random.default_rng(9).dirichlet(np.ones(C), n)
    y[list(zero_rows)] = 0
    return batch.replace(y=y)


@functools.cache
def by_chunks(size):
    loss = LOSS if size is None else chunked(LOSS, size)
    return jax.jit(jax.value_and_grad(lambda theta, b: 3 * loss(theta, b)))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("zero_rows", [(), (5,), (0, 1, 2, 4)])
def test_chunked_equals_the_mean_over_the_batch(size, zero_rows):
    theta, batch = MODEL.init(jax.random.key(0)), labelled(zero_rows)
    close(by_chunks(size)(theta, batch), by_chunks(None)(theta, batch), least=1e-3)


def test_chunked_without_a_label_is_zero():
    theta = MODEL.init(jax.random.key(0))
    for leaf in jax.tree.leaves(by_chunks(2)(theta, labelled(range(6)))):
        assert not leaf.any()


def test_a_meta_gradient_through_chunks_is_the_same():
    d = jax.tree.map(jnp.asarray, problem()[0].distilled)
    keys = jax.random.split(jax.random.key(0), 2)

    def of(real_loss_fn, sequential):
        fn = functools.partial(
            meta_grad,
            unrolled(LOSS, real_loss_fn=real_loss_fn),
            MODEL.init,
            sequential=sequential,
        )
        return jax.jit(fn)(d, keys, labelled((1, 3)))

    plain = of(None, False)
    close(of(chunked(LOSS, 2), False), plain)
    close(of(chunked(LOSS, 3), True), plain)


def test_chunked_takes_tokens():
    loss = cross_entropy(MODELS["linear"])
    theta = MODELS["linear"].init(jax.random.key(0))
    grad = jax.jit(jax.grad(chunked(loss, 2)))(theta, REAL)
    close(grad, jax.grad(loss)(theta, REAL))


def test_chunks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="chunks of 4 do not divide a batch of 6"):
        chunked(LOSS, 4)(MODEL.init(jax.random.key(0)), labelled(()))


# clip_by_running_mean


def gradient(norm):
    """Two leaves of one dtype each, 3 : 4."""
    return {"a": jnp.full(1, 0.6 * norm, jnp.float32), "b": jnp.array(0.8 * norm)}


def clipped_norms(norms, **settings):
    tx = clip_by_running_mean(**settings)
    state = tx.init(gradient(0.0))
    passed, means = [], []
    for norm in norms:
        updates, state = tx.update(gradient(norm), state)
        assert updates["a"].dtype == jnp.float32
        np.testing.assert_allclose(updates["a"] * 4, updates["b"] * 3, rtol=1e-5)
        passed.append(float(optax.tree.norm(updates)))
        means.append(float(state.mean))
    return passed, means


def test_the_first_gradient_passes_and_sets_the_scale():
    for first in (1e-3, 5.0, 1e4):
        passed, means = clipped_norms([first])
        np.testing.assert_allclose(passed + means, [first, first], rtol=1e-6)


def test_an_outlier_is_clipped_and_does_not_raise_the_bar():
    passed, means = clipped_norms([5.0, 8.0, 1e6, 1e6, 1.0], factor=2.0, decay=0.9)
    mean = [5.0, 0.9 * 5 + 0.1 * 8]
    mean.append(0.9 * mean[-1] + 0.1 * 2 * mean[-1])
    mean.append(0.9 * mean[-1] + 0.1 * 2 * mean[-1])
    mean.append(0.9 * mean[-1] + 0.1 * 1)
    np.testing.assert_allclose(means, mean, rtol=1e-6)
    np.testing.assert_allclose(passed, [5, 8, 2 * mean[1], 2 * mean[2], 1], rtol=1e-6)


def test_factor_and_decay_are_read():
    passed, means = clipped_norms([1.0, 100.0, 100.0], factor=3.0, decay=0.5)
    np.testing.assert_allclose(passed, [1, 3, 6], rtol=1e-6)
    np.testing.assert_allclose(means, [1, 2, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 1.0}, "factor must be over 1, got 1.0"),
        ({"factor": np.nan}, "factor must be over 1, got nan"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"decay": -0.1}, r"decay must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_settings_of_the_clip_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        clip_by_running_mean(**settings)


def test_a_first_gradient_of_zero_sets_no_bar():
    passed, _ = clipped_norms([0.0, 1.0])
    assert passed[1] > 0


def test_chunked_keeps_the_dtype_of_the_weights():
    """A float64 loss of float32 weights: the running total stays as it began."""

    def loss(theta, batch):
        return (theta.sum() ** 2 * batch.y).mean()

    batch = Batch(jnp.zeros((4, 1), jnp.int32), jnp.ones((4, 1)), jnp.ones((4, 1)))
    theta = jnp.ones(1, jnp.float32)
    value, grad = jax.value_and_grad(chunked(loss, 2))(theta, batch)
    assert (value, grad[0]) == (1, 2) and grad.dtype == jnp.float32
