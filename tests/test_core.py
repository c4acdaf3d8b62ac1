"""The inner loop, its derivative, and the meta-step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from distill_jax import gradients
from distill_jax.core import (
    SGD,
    inner_step,
    meta_grad,
    meta_init,
    meta_step,
    unroll,
    unrolled,
)
from distill_jax.types import Batch, Distilled, Loss
from distill_jax.windows import train_window
from tests.tiny import LOSS, MODEL, OBJECTIVE, B, C, D, E, L, S, problem, real_batch

INNER = {
    "sgd": SGD,
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(eps_root=1e-8),
}
GRADS = {"plain": jax.value_and_grad, "mixed": gradients.mixed_mode}
THETA_0 = MODEL.init(jax.random.key(1))
BATCH = real_batch(0, 5)

each_inner = pytest.mark.parametrize("name", sorted(INNER))
both_orders = pytest.mark.parametrize("sequential", [False, True])


def distilled(scale=1.0):
    start = jax.tree.map(jnp.asarray, problem()[0].distilled)
    steps = jnp.linspace(-1.0, 1.0, E * S).reshape(E, S)  # no two alike
    return start.replace(x=scale * start.x, raw_lr=steps)


def close(actual, desired, rtol=1e-12):
    """Each leaf within `rtol` of its largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and np.isfinite(b).all()
        assert abs(a - b).max(initial=0) <= rtol * max(abs(b).max(initial=0), 1e-3)


def equal(actual, desired):
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


@functools.cache
def value_and_grad(name="sgd", inner="plain"):
    objective = unrolled(LOSS, inner_tx=INNER[name], inner_grad=GRADS[inner])
    return jax.jit(jax.value_and_grad(objective))


@functools.cache
def train():
    return jax.jit(functools.partial(unroll, LOSS))


# The meta-gradient.


@each_inner
@pytest.mark.parametrize("inner", sorted(GRADS))
def test_meta_gradient_agrees_with_finite_differences(name, inner):
    objective = unrolled(LOSS, inner_tx=INNER[name], inner_grad=GRADS[inner])
    check_grads(
        jax.jit(lambda d: objective(d, THETA_0, BATCH)),
        (distilled(),),
        order=1,
        modes=["rev"],
        atol=1e-7,
        rtol=1e-6,
        eps=1e-5,
    )
    grad = value_and_grad(name, inner)(distilled(), THETA_0, BATCH)[1]
    assert min(abs(g).max() for g in jax.tree.leaves(grad)) > 1e-4


def direction_by_hand(name, grad, memory, t):
    tree = jax.tree.map
    if name == "sgd":
        return grad, memory
    if name == "momentum":
        memory = tree(lambda m, g: 0.9 * m + g, memory, grad)
        return memory, memory
    mean, square = memory
    mean = tree(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
    square = tree(lambda v, g: 0.999 * v + 0.001 * g * g, square, grad)

    def unbiased(m, v):
        root = jnp.sqrt(v / (1 - 0.999**t) + 1e-8)
        return m / (1 - 0.9**t) / (root + 1e-8)

    return tree(unbiased, mean, square), (mean, square)


@each_inner
def test_unroll_equals_a_python_loop(name):
    def by_hand(d, theta, batch):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        memory = {"sgd": None, "momentum": zeros, "adam": (zeros, zeros)}[name]
        seen = []
        for e in range(E):
            for s in range(S):
                one = Batch(d.x[s], jnp.ones((B, L)), jax.nn.softmax(d.y_logits[s]))
                loss, grad = jax.value_and_grad(LOSS)(theta, one)
                step, memory = direction_by_hand(name, grad, memory, 1 + e * S + s)
                lr = jnp.log1p(jnp.exp(d.raw_lr[e, s]))
                theta = jax.tree.map(lambda p, u, lr=lr: p - lr * u, theta, step)
                seen.append(loss)
        return LOSS(theta, batch), (theta, jnp.stack(seen).reshape(E, S))

    (loss, (theta_T, losses)), grad = jax.jit(
        jax.value_and_grad(by_hand, has_aux=True)
    )(distilled(), THETA_0, BATCH)
    close(value_and_grad(name)(distilled(), THETA_0, BATCH), (loss, grad), 1e-11)
    got = jax.jit(functools.partial(unroll, LOSS, inner_tx=INNER[name]))(
        THETA_0, distilled().batches, distilled().lr
    )
    close(got, (theta_T, losses), 1e-11)


def test_meta_gradient_of_a_quadratic_has_its_closed_form():
    r = np.random.default_rng(0)
    E, S, D = 2, 3, 4
    curvature, theta_0, target = (
        r.uniform(0.5, 1.5, D),
        r.normal(size=D),
        r.normal(size=D),
    )
    x, raw_lr = r.normal(size=(S, D)), r.normal(size=(E, S))
    lr = np.log1p(np.exp(raw_lr)).reshape(-1)

    # theta_t+1 = (1 - lr_t a) theta_t + lr_t a x_s; after[t] is d theta_T / d theta_t+1
    thetas = [theta_0]
    for t in range(E * S):
        thetas.append(thetas[-1] - lr[t] * curvature * (thetas[-1] - x[t % S]))
    after = [np.prod(1 - np.outer(lr[t + 1 :], curvature), 0) for t in range(E * S)]
    error = thetas[-1] - target
    d_x, d_lr = np.zeros((S, D)), np.zeros(E * S)
    for t in range(E * S):
        d_x[t % S] += lr[t] * curvature * after[t] * error
        d_lr[t] = -(curvature * (thetas[t] - x[t % S]) * after[t] * error).sum()

    def inner_loss(theta, batch):
        return 0.5 * (curvature * (theta - batch.x) ** 2).sum()

    def real_loss(theta, batch):
        return 0.5 * ((theta - batch) ** 2).sum()

    objective = unrolled(inner_loss, real_loss_fn=real_loss)
    d = Distilled(jnp.asarray(x), jnp.zeros((S, 1)), jnp.asarray(raw_lr))
    loss, grad = jax.jit(jax.value_and_grad(objective))(d, theta_0, target)
    close(loss, 0.5 * (error**2).sum())
    close(grad.x, d_x)
    close(grad.raw_lr, d_lr.reshape(E, S) / (1 + np.exp(-raw_lr)))
    assert not grad.y_logits.any()


@both_orders
def test_meta_grad_is_the_mean_over_the_starts(sequential):
    keys = jax.random.split(jax.random.key(3), 3)
    each = [value_and_grad()(distilled(), MODEL.init(k), BATCH) for k in keys]
    assert abs(each[0][0] - each[1][0]) > 1e-3
    mean = jax.tree.map(lambda *a: sum(a) / 3, *each)
    fn = functools.partial(meta_grad, OBJECTIVE, MODEL.init, sequential=sequential)
    close(jax.jit(fn)(distilled(), keys, BATCH), mean)


@both_orders
def test_a_fixed_start_ignores_its_key(sequential):
    keys = jax.random.split(jax.random.key(3), 3)
    fn = functools.partial(
        meta_grad, OBJECTIVE, lambda key: THETA_0, sequential=sequential
    )
    one = value_and_grad()(distilled(), THETA_0, BATCH)
    close(jax.jit(fn)(distilled(), keys, BATCH), one)


# The loop is a loop.


def test_no_pass_returns_the_start():
    theta, losses = train()(THETA_0, distilled().batches, jnp.zeros((0, S)))
    equal(theta, THETA_0)
    assert losses.shape == (0, S)


def test_two_chained_unrolls_are_one():
    lr = jnp.linspace(0.1, 0.9, 3 * S).reshape(3, S)
    batches = distilled().batches
    theta, losses = train()(THETA_0, batches, lr)
    half, first = train()(THETA_0, batches, lr[:1])
    rest, last = train()(half, batches, lr[1:])
    close((rest, jnp.concatenate([first, last])), (theta, losses))
    assert abs(rest["w"] - half["w"]).max() > 1e-2


def test_one_step_is_one_step():
    batches = distilled().batches
    one = jax.tree.map(lambda a: a[0], batches)
    _, grad = jax.value_and_grad(LOSS)(THETA_0, one)
    (theta, _), loss = inner_step(
        jax.value_and_grad(LOSS), SGD, (THETA_0, SGD.init(THETA_0)), one, jnp.array(0.5)
    )
    close(theta, jax.tree.map(lambda p, g: p - 0.5 * g, THETA_0, grad))
    close(loss, LOSS(THETA_0, one))


def test_gradient_in_the_sentences_vanishes_with_the_step_size():
    def grad(raw):
        d = distilled().replace(raw_lr=jnp.full((E, S), raw))
        return value_and_grad()(d, THETA_0, BATCH)[1]

    none = grad(-800.0)
    assert not none.x.any() and not none.y_logits.any()
    small, smaller = grad(np.log(1e-4)).x, grad(np.log(1e-5)).x
    assert abs(smaller).max() > 1e-8
    close(small / 10, smaller, 1e-2)


def test_the_carry_keeps_its_dtype():
    theta_0 = jax.tree.map(lambda a: a.astype(jnp.float32), THETA_0)
    d = jax.tree.map(lambda a: a.astype(jnp.float32), distilled())
    lr = distilled().lr
    assert lr.dtype == jnp.float64
    theta, losses = jax.eval_shape(
        functools.partial(unroll, LOSS), theta_0, d.batches, lr
    )
    assert {a.dtype for a in jax.tree.leaves((theta, losses))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(S,), (E, S + 1), (S + 1, 1), (1, E, S)])
def test_step_sizes_of_another_shape_are_refused(shape):
    with pytest.raises(
        ValueError, match=rf"S = {S} minibatches, got \[.*{shape[-1]}\]"
    ):
        unroll(LOSS, THETA_0, distilled().batches, jnp.ones(shape))


# Symmetries.


def test_permuting_the_examples_of_a_minibatch_changes_nothing():
    order = jnp.array([1, 0])
    d = distilled()
    swapped = d.replace(x=d.x[:, order], y_logits=d.y_logits[:, order])
    assert abs(swapped.x - d.x).max() > 0.1
    loss, grad = value_and_grad()(d, THETA_0, BATCH)
    loss_2, grad_2 = value_and_grad()(swapped, THETA_0, BATCH)
    close(loss_2, loss)
    close(grad_2.x[:, order], grad.x)
    close(grad_2.y_logits[:, order], grad.y_logits)
    close(grad_2.raw_lr, grad.raw_lr)


def test_permuting_the_minibatches_changes_something():
    d = distilled()
    swapped = d.replace(x=d.x[::-1], y_logits=d.y_logits[::-1])
    one, other = (value_and_grad()(a, THETA_0, BATCH)[0] for a in (d, swapped))
    assert abs(one - other) > 1e-6


# Labels and step sizes.


def test_labels_and_step_sizes_are_probabilities_and_positive():
    d = distilled()
    close(d.y.sum(-1), np.ones((S, B)))
    close(d.y, np.exp(d.y_logits) / np.exp(d.y_logits).sum(-1, keepdims=True))
    close(d.lr, np.log1p(np.exp(d.raw_lr)))
    assert (d.replace(raw_lr=jnp.full((E, S), -30.0)).lr > 0).all()
    assert (d.batches.mask == 1).all() and d.batches.mask.shape == (S, B, L)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_labels_are_exact_and_stay(dtype):
    labels = np.arange(S * B).reshape(S, B) % C
    hard = np.where(np.eye(C)[labels] == 1, 0.0, -1e4)
    d = jax.tree.map(
        lambda a: jnp.asarray(a, dtype), distilled().replace(y_logits=hard)
    )
    equal(d.y, np.eye(C)[labels])
    theta_0 = jax.tree.map(lambda a: a.astype(dtype), THETA_0)
    _, grad = value_and_grad()(
        d, theta_0, jax.tree.map(lambda a: a.astype(dtype), BATCH)
    )
    assert grad.x.any() and not grad.y_logits.any()


# The meta-step.


@functools.cache
def step_fn(sequential=False):
    tx = optax.adam(0.1)
    fn = functools.partial(meta_step, OBJECTIVE, MODEL.init, tx, sequential=sequential)
    return tx, jax.jit(fn)


KEYS = jax.random.split(jax.random.key(5), 2)


def test_meta_step_is_the_outer_optimizer_on_the_meta_gradient():
    tx, step = step_fn()
    state = meta_init(tx, distilled())
    assert (state.step, state.skipped, state.skipped_in_a_row) == (0, 0, 0)
    loss, grad = jax.jit(functools.partial(meta_grad, OBJECTIVE, MODEL.init))(
        state.distilled, KEYS, BATCH
    )
    updates, opt_state = tx.update(grad, state.opt_state, state.distilled)
    after, info = step(state, KEYS, BATCH)
    close(after.distilled, optax.apply_updates(state.distilled, updates))
    close(after.opt_state, opt_state)
    close(info.meta_loss, loss)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grad)))
    close(info.grad_norm, norm)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 0, 0)
    assert all(jax.tree.leaves(info.finite))


def test_a_step_size_that_overflows_is_skipped_and_counted():
    tx, step = step_fn()
    state, _ = step(meta_init(tx, distilled()), KEYS, BATCH)
    good = state.distilled
    bad = good.replace(x=1e3 * good.x, raw_lr=good.raw_lr.at[0, 0].set(1e308))
    state = state.replace(distilled=bad)
    for k in (1, 2):
        after, info = step(state, KEYS, BATCH)
        assert not np.isfinite(info.grad_norm)
        assert not all(jax.tree.leaves(info.finite))
        equal((after.distilled, after.opt_state), (state.distilled, state.opt_state))
        assert (after.step, after.skipped, after.skipped_in_a_row) == (1 + k, k, k)
        state = after
    after, info = step(state.replace(distilled=good), KEYS, BATCH)
    assert np.isfinite(info.grad_norm)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (4, 2, 0)
    assert abs(after.distilled.x - good.x).max() > 1e-3


@pytest.mark.parametrize(
    ("batch", "loss_is_finite", "a_is_finite", "b_is_finite"),
    [(1.0, True, True, True), (0.0, True, True, False), (np.inf, False, True, False)],
)
def test_which_gradient_is_not_finite_is_told(
    batch, loss_is_finite, a_is_finite, b_is_finite
):
    def objective(d, theta_0, batch):
        return (d["a"] * theta_0).sum() + jnp.sqrt(d["b"] * batch).sum()

    tx = optax.sgd(0.1)
    state = meta_init(tx, {"a": jnp.ones(2), "b": jnp.ones(2)})
    after, info = meta_step(
        objective, lambda key: jnp.ones(2), tx, state, KEYS, jnp.array(batch)
    )
    assert bool(np.isfinite(info.meta_loss)) == loss_is_finite
    assert bool(info.finite["a"]) == a_is_finite
    assert bool(info.finite["b"]) == b_is_finite
    moved = bool((after.distilled["a"] != 1).all())
    assert moved == (b_is_finite and loss_is_finite) == (after.skipped == 0)


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is():
    def objective(d, theta_0, batch):
        return d.sum() + batch

    tx = optax.sgd(0.1)
    state = meta_init(tx, jnp.ones(2))
    after, info = meta_step(objective, lambda key: 0, tx, state, KEYS, jnp.inf)
    assert info.finite and not np.isfinite(info.meta_loss)
    equal(after.distilled, state.distilled)
    assert after.skipped == 1


def test_a_gradient_whose_square_overflows_is_skipped():
    def objective(d, theta_0, batch):
        return (d * batch).sum()

    tx = optax.adam(0.1)
    state = meta_init(tx, jnp.ones(2))
    after, info = meta_step(objective, lambda key: 0, tx, state, KEYS, jnp.array(1e200))
    assert np.isfinite(info.meta_loss) and not np.isfinite(info.grad_norm)
    equal(after.opt_state, state.opt_state)


@both_orders
def test_it_compiles_once(sequential):
    traces = []

    def objective(d, theta_0, batch):
        traces.append(d)
        return (d * theta_0 * batch).sum()

    tx = optax.adam(0.1)
    step = jax.jit(
        functools.partial(
            meta_step, objective, jax.random.normal, tx, sequential=sequential
        ),
        donate_argnums=0,
    )
    state = meta_init(tx, jnp.ones(D))
    counts = []
    for k in range(3):
        keys = jax.random.split(jax.random.key(k), 2)
        state, _ = step(state, keys, jnp.full(D, k + 1.0))
        counts.append(len(traces))
    # sequential reads the shapes of its sum from one more trace
    assert counts == [2 if sequential else 1] * 3
    assert int(state.step) == 3


def test_the_frozen_part_of_a_network_is_done_once_and_not_at_each_step():
    """By every loop over steps; its derivative for the sentences is not lost."""
    calls = []

    def squared(batch):
        calls.append(batch.x.shape)
        return batch.replace(x=batch.x**2)

    def frozen_loss(theta, batch, route=None):
        return LOSS(theta, batch)

    frozen_loss = Loss(frozen_loss, frozen=squared)

    def plain_loss(theta, batch, route=None):
        return LOSS(theta, batch.replace(x=batch.x**2))

    def loops(loss):
        tx = INNER["momentum"]

        def whole(d):
            return jax.tree.leaves(unroll(loss, THETA_0, d.batches, d.lr, inner_tx=tx))

        def windowed(d):
            return jax.tree.leaves(
                train_window(loss, THETA_0, d.batches, d.lr, 1, window=2)
            )

        return [
            jax.jit(jax.value_and_grad(lambda d, f=f: sum((a**2).sum() for a in f(d))))
            for f in (whole, windowed)
        ]

    for once, each in zip(loops(frozen_loss), loops(plain_loss), strict=True):
        calls.clear()
        close(once(distilled()), each(distilled()))
        assert len(calls) == 1
