"""Windows of the unroll: the right gradient inside, none outside, memory of W steps."""

import collections
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from distill_jax import contrib, windows
from distill_jax.contrib import clip_by_running_mean
from distill_jax.contrib.windows import (
    Watched,
    adaptive_window,
    placement,
    truncated,
    unwatched,
    watched,
    watching,
)
from distill_jax.core import (
    SGD,
    meta_grad,
    meta_init,
    meta_step,
    unrolled,
)
from distill_jax.gradients import checkpointed_scan, mixed_mode
from distill_jax.parallel import jit_meta_step, pmap_meta_step
from distill_jax.types import Batch, Distilled, Keyed
from distill_jax.windows import num_starts, random_window, train_window
from tests.tiny import LOSS, MODEL, B, C, D, L, real_batch

INNER = {
    "sgd": SGD,
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(eps_root=1e-8),
}
GRADS = {"plain": jax.value_and_grad, "mixed": mixed_mode}
THETA_0 = MODEL.init(jax.random.key(1))
BATCH = real_batch(0, 5)
KEYS = jax.random.split(jax.random.key(4), 4)
WINDOWS = windows.WINDOWS | contrib.WINDOWS
each_kind = pytest.mark.parametrize("kind", sorted(WINDOWS))
keyed_kinds = pytest.mark.parametrize("kind", ["random", "adaptive"])


def learned(E, S):
    r = np.random.default_rng(E * 100 + S)
    return Distilled(
        jnp.asarray(r.normal(size=(S, B, L, D))),
        jnp.asarray(r.normal(size=(S, B, C))),
        jnp.asarray(r.normal(size=(E, S))),  # no two alike
    )


def for_kind(kind, distilled):
    return watched(distilled, 3) if kind == "adaptive" else distilled


def close(actual, desired, rtol=1e-11, least=1e-6):
    """Each leaf within `rtol` of its largest entry, which is not near 0."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and np.isfinite(b).all() and abs(b).max() > least
        assert abs(a - b).max() <= rtol * abs(b).max()


def by_hand(distilled, start, window, inner_tx=SGD):
    """Loss and gradient of a Python loop that stops what is outside the window."""

    def meta_loss(d):
        theta, memory = THETA_0, inner_tx.init(THETA_0)
        E, S = d.raw_lr.shape
        for t in range(start + window):
            lr = jnp.log1p(jnp.exp(d.raw_lr[t // S, t % S]))
            y = jax.nn.softmax(d.y_logits[t % S])
            one = Batch(d.x[t % S], jnp.ones((B, L)), y)
            if t < start:
                one, lr = lax.stop_gradient((one, lr))
            if t == start:
                theta, memory = lax.stop_gradient((theta, memory))
            grad = jax.grad(LOSS)(theta, one)
            step, memory = inner_tx.update(grad, memory, theta)
            theta = jax.tree.map(lambda p, u, lr=lr: p - lr * u, theta, step)
        return LOSS(theta, BATCH)

    return jax.value_and_grad(meta_loss)(distilled)


@functools.cache
def at_start(E, S, window, name="sgd", inner="plain", segment=None):
    """Loss and gradient of `train_window`, one program for all starts."""
    scan = lax.scan if segment is None else checkpointed_scan(segment)
    settings = {"inner_tx": INNER[name], "inner_grad": GRADS[inner], "scan": scan}
    traced = []

    @jax.jit
    def fn(d, start):
        traced.append(start)

        def meta_loss(d):
            theta = train_window(
                LOSS, THETA_0, d.batches, d.lr, start, window=window, **settings
            )
            return LOSS(theta, BATCH)

        return jax.value_and_grad(meta_loss)(d)

    return fn, traced


# The gradient of a window.

CASES = [  # passes, minibatches, window
    (5, 1, 2),  # one minibatch
    (3, 2, 3),  # more than a pass, and a rest
    (3, 2, 4),  # two passes, no rest
    (2, 4, 3),  # less than a pass, over the seam of two
    (1, 5, 2),  # each minibatch once
]


@pytest.mark.parametrize(
    ("E", "S", "window", "name", "inner"),
    [(*case, "sgd", "plain") for case in CASES[:1] + CASES[3:]]
    + [(*case, "adam", "mixed") for case in CASES[1:3]]
    + [(*CASES[0], "momentum", "plain")],
)
def test_a_window_equals_a_loop_with_stopped_gradients(E, S, window, name, inner):
    fn, traced = at_start(E, S, window, name, inner)
    d = learned(E, S)
    last = E * S - window
    for start in {0, last // 2, last}:
        close(fn(d, start), by_hand(d, start, window, INNER[name]))
    assert len(traced) == 1


@pytest.mark.parametrize(("E", "S", "window"), CASES[1:3])
def test_a_recomputed_window_is_the_same(E, S, window):
    d, start = learned(E, S), 2
    close(
        at_start(E, S, window, "adam", "mixed", 2)[0](d, start),
        at_start(E, S, window, "adam", "mixed")[0](d, start),
    )


def test_what_the_window_does_not_use_gets_zero():
    d = learned(1, 5)
    _, grad = at_start(1, 5, 2)[0](d, 2)
    inside = np.array([False, False, True, True, False])
    for leaf in (grad.x, grad.y_logits, grad.raw_lr[0]):
        used = np.abs(np.asarray(leaf)).reshape(5, -1).max(1)
        assert (used[inside] > 1e-6).all() and (used[~inside] == 0).all()
    # A later pass reads all minibatches again: only its step sizes tell.
    _, grad = at_start(3, 2, 3)[0](learned(3, 2), 2)
    np.testing.assert_array_equal(
        np.asarray(grad.raw_lr).ravel() != 0, [0, 0, 1, 1, 1, 0]
    )
    assert grad.x[0].any() and grad.x[1].any()


def test_theta_0_gets_zero():
    def loss(theta_0):
        d = learned(3, 2)
        theta = train_window(LOSS, theta_0, d.batches, d.lr, 0, window=6)
        return LOSS(theta, BATCH)

    assert not any(a.any() for a in jax.tree.leaves(jax.grad(loss)(THETA_0)))


@each_kind
@pytest.mark.parametrize(("name", "sequential"), [("sgd", False), ("adam", True)])
def test_a_window_of_all_steps_is_the_plain_gradient(kind, name, sequential):
    d, settings = learned(3, 2), {"inner_tx": INNER[name], "inner_grad": mixed_mode}
    fn = functools.partial(meta_grad, sequential=sequential)
    objective = WINDOWS[kind](LOSS, window=6, **settings)
    loss, grad = jax.jit(functools.partial(fn, objective, MODEL.init))(
        for_kind(kind, d), KEYS, BATCH
    )
    plain = unrolled(LOSS, inner_tx=INNER[name])
    want = jax.jit(functools.partial(fn, plain, MODEL.init))(d, KEYS, BATCH)
    close((loss, unwatched(grad)), want)


def test_truncated_is_the_last_window():
    d = learned(3, 2)
    for window in (1, 4):
        got = jax.jit(jax.value_and_grad(truncated(LOSS, window=window)))(
            d, THETA_0, BATCH
        )
        close(got, by_hand(d, 6 - window, window))
        plain = jax.jit(jax.value_and_grad(unrolled(LOSS)))(d, THETA_0, BATCH)
        close(got[0], plain[0])
        assert abs(got[1].x - plain[1].x).max() > 1e-3


@each_kind
def test_the_real_loss_may_be_another(kind):
    objective = WINDOWS[kind](LOSS, window=2, real_loss_fn=lambda theta, b: b)
    key = () if kind == "last" else (KEYS[0],)
    assert objective(for_kind(kind, learned(3, 2)), THETA_0, 7.0, *key) == 7.0


# Where the window is.


@functools.cache
def places(kind, earliest=0, explore=0.2, signal=None):
    """First and last step with a gradient, of 400 keys; T = 6, W = 2."""
    settings = {"explore": explore} if kind == "adaptive" else {}
    objective = WINDOWS[kind](LOSS, window=2, earliest=earliest, **settings)
    d = for_kind(kind, learned(3, 2))
    if signal is not None:
        d = d.replace(signal=jnp.asarray(signal))
    grad = jax.jit(
        jax.vmap(lambda key: jax.grad(objective)(d, THETA_0, BATCH, key).raw_lr.ravel())
    )
    used = np.asarray(grad(jax.random.split(jax.random.key(9), 400))) != 0
    assert (used.sum(1) == 2).all()
    first = used.argmax(1)
    assert used[np.arange(400), first + 1].all()
    return first


def far(first, p):
    """Chi-square of the starts against probabilities `p`, over its mean."""
    seen = np.bincount(first, minlength=len(p))
    assert len(seen) == len(p) and not seen[np.asarray(p) == 0].any()
    want = len(first) * np.asarray(p)[np.asarray(p) > 0]
    return ((seen[np.asarray(p) > 0] - want) ** 2 / want).sum() / (len(want) - 1)


@keyed_kinds
def test_windows_are_uniform(kind):
    assert far(places(kind), np.full(5, 1 / 5)) < 3.5
    assert far(places(kind, 2), [0, 0, 1 / 3, 1 / 3, 1 / 3]) < 3.5


def test_adaptive_windows_go_where_the_gradient_was_large():
    # Starts 0, 1 | 2, 3 | 4, by bins of 3. Means 1, 4 and (unseen) their mean, 2.5.
    signal = ((0.5, 2.0, 0.0), (0.5, 0.5, 0.0))
    share = np.array([1, 1, 4, 4, 2.5]) / 12.5
    p = 0.8 * share + 0.2 / 5
    np.testing.assert_allclose(placement(jnp.asarray(signal), 5, 0.2), p)
    assert far(places("adaptive", 0, 0.2, signal), p) < 3.5
    assert far(places("adaptive"), p) > 6


@pytest.mark.parametrize(("starts", "bins"), [(7, 3), (3, 7), (1, 1), (1, 4), (5, 5)])
def test_placement_is_uniform_without_news(starts, bins):
    for signal in (jnp.zeros((2, bins)), jnp.stack([jnp.zeros(bins), jnp.ones(bins)])):
        p = placement(signal, starts, 0.2)
        np.testing.assert_allclose(p, np.full(starts, 1 / starts))


def test_nothing_is_trained_after_the_window():
    seen = collections.Counter()

    def counted(theta, batch):
        jax.debug.callback(lambda: seen.update(["steps"]))
        return LOSS(theta, batch)

    d, steps, firsts = learned(1, 20), [], []
    objective = jax.jit(random_window(counted, window=2, real_loss_fn=LOSS))
    where = jax.jit(jax.grad(random_window(LOSS, window=2)))
    for key in KEYS[:3]:
        seen.clear()
        objective(d, THETA_0, BATCH, key).block_until_ready()
        jax.effects_barrier()
        steps.append(seen["steps"])
        firsts.append(int((where(d, THETA_0, BATCH, key).raw_lr[0] != 0).argmax()))
    assert steps == [first + 2 for first in firsts] and len(set(steps)) == 3


# Memory.


def temp_bytes(maker, passes, steps, **settings):
    """Of the compiled meta-gradient; theta is the largest thing there is."""
    width, hidden, classes = 4, 128, 4

    def loss(theta, batch):
        logits = jnp.tanh(batch.x.mean(1) @ theta[0]) @ theta[1]
        return -(batch.y * jax.nn.log_softmax(logits)).sum()

    objective = maker(loss, **settings)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float64)
    d = Distilled(
        shape((steps, 1, 1, width)), shape((steps, 1, classes)), shape((passes, steps))
    )
    if maker is adaptive_window:
        d = Watched(d.x, d.y_logits, d.raw_lr, shape((2, 10)))
    key = (KEYS[0],) if isinstance(objective, Keyed) else ()
    theta = shape((width, hidden)), shape((hidden, classes))
    batch = Batch(shape((1, 1, width)), shape((1, 1)), shape((1, classes)))
    lowered = jax.jit(jax.grad(objective)).lower(d, theta, batch, *key)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@each_kind
@pytest.mark.parametrize("inner", sorted(GRADS))
def test_memory_is_that_of_the_window(kind, inner):
    settings = {"window": 10, "inner_grad": GRADS[inner]}
    few, many = (temp_bytes(WINDOWS[kind], T, 1, **settings) for T in (100, 1000))
    theta = 8 * 128 * (4 + 4)
    assert many - few < 30_000  # the step sizes themselves, but no theta_t
    assert 10 * theta < few < 40 * theta
    plain = temp_bytes(unrolled, 100, 1, inner_grad=GRADS[inner])
    assert plain > 100 * theta


# The key, through core.


@keyed_kinds
def test_each_theta_0_has_its_window(kind):
    objective = WINDOWS[kind](LOSS, window=2)
    d = for_kind(kind, learned(1, 8))
    fn = functools.partial(meta_grad, objective, MODEL.init)
    one_by_one = [jax.jit(fn)(d, KEYS[i : i + 1], BATCH) for i in range(4)]
    firsts = {int((g.raw_lr[0] != 0).argmax()) for _, g in one_by_one}
    assert len(firsts) > 1
    mean = jax.tree.map(lambda *a: sum(a) / 4, *one_by_one)
    for sequential in (False, True):
        close(
            jax.jit(functools.partial(fn, sequential=sequential))(d, KEYS, BATCH), mean
        )


def test_an_objective_that_is_not_keyed_gets_no_key():
    def objective(d, theta, batch, *more):
        assert not more
        return d.x.sum()

    meta_grad(objective, MODEL.init, learned(1, 2), KEYS, BATCH)

    def keyed(d, theta, batch, *more):
        assert len(more) == 1
        return d.x.sum() * jax.random.normal(more[0]) + theta["w"].sum()

    loss, grad = meta_grad(Keyed(keyed), MODEL.init, learned(1, 2), KEYS, BATCH)
    theta = jax.vmap(MODEL.init)(KEYS)["w"].sum() / 4
    close(loss - grad.x[0, 0, 0, 0] * learned(1, 2).x.sum(), theta)  # the same theta_0
    assert abs(grad.x[0, 0, 0, 0]) > 1e-3


def steps(kind, make, tx=None, num=3, **settings):
    """Some meta-steps from one state, in 4 theta_0; counts the traces."""
    traced = []

    def counted(theta, batch):
        traced.append(batch)
        return LOSS(theta, batch)

    objective = WINDOWS[kind](LOSS, window=2, real_loss_fn=counted, **settings)
    d = for_kind(kind, learned(3, 2))
    tx = tx or optax.adam(0.1)
    tx = watching(tx) if kind == "adaptive" else tx
    step = make(objective, MODEL.init, tx)
    state, after_first = jax.device_get(meta_init(tx, d)), None
    for k in range(num):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(2), k), 4)
        state, info = step(state, keys, BATCH)
        after_first = after_first or len(traced)
    assert int(state.step) == num and not int(state.skipped)
    assert len(traced) == after_first
    return jax.device_get(state), jax.device_get(info)


@keyed_kinds
def test_devices_and_their_number_change_nothing(kind):
    one, four = steps(kind, jit_meta_step), steps(kind, pmap_meta_step)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# What adaptive windows carry.


def test_the_signal_is_a_running_mean_of_the_norms():
    d, decay = watched(learned(3, 2), 2), 0.75
    objective = adaptive_window(LOSS, window=2, decay=decay)
    fn = jax.jit(jax.value_and_grad(objective))
    sums, weights = np.zeros(2), np.zeros(2)
    for key in jax.random.split(jax.random.key(5), 12):
        _, grad = fn(d, THETA_0, BATCH, key)
        start = int((grad.raw_lr.ravel() != 0).argmax())
        b, norm = int(start >= 3), float(optax.tree.norm(unwatched(grad)))  # 0 .. 4
        means = sums[weights > 0] / weights[weights > 0]
        seen = min(norm, 2 * means.max()) if means.size else norm
        sums[b] += (1 - decay) * (seen - sums[b])
        weights[b] += (1 - decay) * (1 - weights[b])
        moved = d.signal + grad.signal
        np.testing.assert_allclose(moved, [sums, weights], rtol=1e-12)
        d = d.replace(signal=moved)
    assert (weights > 0.25).all()


def test_an_outlier_enters_as_twice_the_largest_mean():
    signal = jnp.array([[1e-6, 1e-7], [0.5, 0.5]])
    d = watched(learned(3, 2), 2).replace(signal=signal)
    grad = jax.grad(adaptive_window(LOSS, window=2))(d, THETA_0, BATCH, KEYS[0])
    assert optax.tree.norm(unwatched(grad)) > 1e-3
    b = int(grad.signal[1].argmax())
    np.testing.assert_allclose(grad.signal[0, b], 0.1 * (4e-6 - signal[0, b]))
    assert not grad.signal[:, 1 - b].any()


def test_weights_undo_the_placement():
    """The mean of the weighted gradients is that over uniform windows."""
    signal = jnp.array([[0.5, 2.0, 0.0], [0.5, 0.5, 0.0]])
    d = watched(learned(3, 2), 3).replace(signal=signal)
    p = placement(signal, 5, 0.2)
    plain, weighted = (
        jax.jit(jax.value_and_grad(adaptive_window(LOSS, window=2, weighted=w)))
        for w in (False, True)
    )
    total, starts = jax.tree.map(jnp.zeros_like, learned(3, 2)), set()
    for key in jax.random.split(jax.random.key(6), 40):
        loss, grad = weighted(d, THETA_0, BATCH, key)
        start = int((grad.raw_lr.ravel() != 0).argmax())
        if start in starts:
            continue
        starts.add(start)
        want_loss, want = plain(d, THETA_0, BATCH, key)
        assert loss == want_loss  # of the window, as it is
        np.testing.assert_array_equal(grad.signal, want.signal)
        total = jax.tree.map(lambda t, g, w=p[start]: t + w * g, total, unwatched(grad))
    assert starts == set(range(5))
    each = [by_hand(learned(3, 2), start, 2)[1] for start in range(5)]
    close(total, jax.tree.map(lambda *a: sum(a) / 5, *each))


def test_the_cotangent_scales_the_gradient():
    objective = adaptive_window(LOSS, window=2)
    d = watched(learned(3, 2), 2)
    once = jax.grad(objective)(d, THETA_0, BATCH, KEYS[0])
    thrice = jax.grad(lambda *a: 3 * objective(*a))(d, THETA_0, BATCH, KEYS[0])
    close(unwatched(thrice), jax.tree.map(lambda a: 3 * a, unwatched(once)))


def test_meta_steps_find_where_the_gradient_is():
    """Step sizes of nearly 0 in the last half leave no signal from start 10 on."""
    lr = jnp.where(jnp.arange(20) < 10, 0.5, -12.0)[None]
    d = watched(learned(1, 20).replace(raw_lr=lr), 4)
    tx = watching(optax.chain(clip_by_running_mean(2.0), optax.sgd(0.0)))
    objective = adaptive_window(LOSS, window=2, explore=0.1)
    step = jax.jit(functools.partial(meta_step, objective, MODEL.init, tx))
    state = meta_init(tx, d)
    for k in range(40):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(8), k), 4)
        state, _ = step(state, keys, BATCH)
    np.testing.assert_array_equal(state.distilled.x, d.x)
    p = placement(state.distilled.signal, 19, 0.1)
    assert p[:10].sum() > 0.9 and p.min() > 0.1 / 19 * 0.99
    np.testing.assert_allclose(p.sum(), 1)


def test_the_outer_optimizer_sees_no_signal():
    d, grads = watched(learned(1, 2), 2), learned(1, 2)
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    move = jnp.array([[1e3, 2.0], [0.5, 0.0]])
    given = Watched(grads.x, grads.y_logits, grads.raw_lr, move)
    got, state = watching(tx).update(given, watching(tx).init(d), d)
    want, want_state = tx.update(grads, tx.init(learned(1, 2)), learned(1, 2))
    close(unwatched(got), want, least=1e-8)
    np.testing.assert_array_equal(got.signal, move)
    assert jax.tree.structure(state) == jax.tree.structure(want_state)
    no_params, _ = watching(optax.sgd(1.0)).update(given, watching(tx).init(d))
    assert isinstance(no_params, Watched)


def test_a_gradient_that_is_not_finite_moves_no_signal():
    d = watched(learned(3, 2), 2)
    objective = adaptive_window(
        LOSS, window=2, real_loss_fn=lambda theta, b: jnp.inf * LOSS(theta, b)
    )
    tx = watching(optax.adam(0.1))
    state, _ = meta_step(objective, MODEL.init, tx, meta_init(tx, d), KEYS, BATCH)
    assert int(state.skipped) == 1
    np.testing.assert_array_equal(state.distilled.signal, d.signal)


def test_dtypes_are_kept():
    def single(tree):
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)

    d = watched(single(learned(3, 2)), 2)
    assert d.signal.dtype == jnp.float32
    for weighted in (False, True):
        objective = adaptive_window(LOSS, window=3, weighted=weighted)
        loss, grad = jax.eval_shape(
            jax.value_and_grad(objective), d, single(THETA_0), single(BATCH), KEYS[0]
        )
        dtypes = {a.dtype for a in jax.tree.leaves((loss, grad))}
        assert dtypes == {jnp.dtype("float32")}


# Bad input.


@pytest.mark.parametrize(
    ("maker", "settings", "message"),
    [
        (truncated, {"window": 0}, "window must be at least 1 inner step, got 0"),
        (random_window, {"window": -1}, "at least 1 inner step, got -1"),
        (random_window, {"window": 1, "earliest": -2}, "at least 0, got -2"),
        (adaptive_window, {"window": 0}, "at least 1 inner step, got 0"),
        (adaptive_window, {"window": 1, "explore": 0.0}, r"\(0, 1\], got 0.0"),
        (adaptive_window, {"window": 1, "explore": 1.5}, r"\(0, 1\], got 1.5"),
        (adaptive_window, {"window": 1, "decay": 1.0}, r"\[0, 1\), got 1.0"),
    ],
)
def test_bad_settings_are_refused(maker, settings, message):
    with pytest.raises(ValueError, match=message):
        maker(LOSS, **settings)


@each_kind
def test_a_window_longer_than_training_is_refused(kind):
    objective = WINDOWS[kind](LOSS, window=7)
    key = () if kind == "last" else (KEYS[0],)
    with pytest.raises(ValueError, match="window of 7 does not fit into T = 6 inner"):
        objective(for_kind(kind, learned(3, 2)), THETA_0, BATCH, *key)


def test_a_window_that_must_begin_too_late_is_refused():
    assert [num_starts(6, 6), num_starts(6, 2), num_starts(6, 2, 4)] == [1, 5, 1]
    with pytest.raises(ValueError, match="window of 2 after the first 5 .* most 1,"):
        num_starts(6, 2, 5)


def test_data_without_a_signal_is_refused():
    objective = adaptive_window(LOSS, window=2)
    with pytest.raises(TypeError, match=r"got Distilled: start from windows.watched"):
        objective(learned(3, 2), THETA_0, BATCH, KEYS[0])
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        watched(learned(3, 2), 0)


@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 3, 2)])
def test_step_sizes_of_another_shape_are_refused(shape):
    batches = learned(3, 2).batches
    with pytest.raises(ValueError, match=r"must be \[E, S\] with S = 2 minibatches"):
        train_window(LOSS, THETA_0, batches, jnp.ones(shape), 0, window=1)


def test_an_objective_says_whether_it_needs_a_key():
    for kind, maker in WINDOWS.items():
        objective = maker(LOSS, window=1)
        value = objective.value if isinstance(objective, Keyed) else objective
        names = list(inspect.signature(value).parameters)
        assert isinstance(objective, Keyed) == ("key" in names) == (kind != "last")
