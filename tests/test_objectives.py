"""What every objective owes, and what each one means."""

import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax.test_util import check_grads

from distill_jax import contrib, data, objectives
from distill_jax.contrib import (
    Aged,
    Segment,
    after_training,
    aged,
    experts,
    from_experts,
    partly_trained,
    segments,
)
from distill_jax.core import meta_grad, meta_init, meta_step, unroll
from distill_jax.fit import accuracy, epochs_order, fit
from distill_jax.gradients import chunked, mixed_mode
from distill_jax.losses import cross_entropy
from distill_jax.models import bag, text_cnn
from distill_jax.objectives import make as make_kind
from distill_jax.parallel import pmap_meta_step
from distill_jax.task import one_hot_batch, padded
from distill_jax.types import Distilled, Keyed

S, E, B, L, D, C, H = 2, 2, 3, 3, 4, 3, 5
VECTORS = np.random.default_rng(0).normal(size=(9, D))
MODEL = bag(VECTORS, C, hidden=H)
LOSS = cross_entropy(MODEL)
TX = optax.adam(0.1)
THETA_0 = MODEL.init(jax.random.key(1))

OBJECTIVES = objectives.OBJECTIVES | contrib.OBJECTIVES
SEGMENTED = "trajectory_matching"  # its theta_0 is a Segment
each = pytest.mark.parametrize("name", sorted(OBJECTIVES))
both_labels = pytest.mark.parametrize("labels", ["soft", "hard"])


def distilled(labels="soft", seed=0):
    r = np.random.default_rng(seed)
    y_logits = jnp.asarray(r.normal(size=(S, B, C)))
    if labels == "hard":  # every class is there, and the others have exactly nothing
        y_logits = 1e4 * (jax.nn.one_hot(jnp.arange(S * B) % C, C) - 1)
        y_logits = y_logits.reshape(S, B, C)
    x = jnp.asarray(r.normal(size=(S, B, L, D)))
    return Distilled(x, y_logits, jnp.linspace(-1.0, 0.5, E * S).reshape(E, S))


def real(seed=0, size=8):
    r = np.random.default_rng([5, seed])
    tokens = r.integers(1, len(VECTORS), size=(size, L))
    return one_hot_batch(tokens, np.arange(size) % C, C)


BATCH = real()


def make(name, model, **settings):
    return make_kind(OBJECTIVES[name], model, **settings)


def one_epoch(loss_fn, data, lr, batch):
    """Plain SGD through the data once, `(theta, key) -> theta`."""

    def train(theta, key):
        order = epochs_order(key, len(data.y), batch, 1)
        stops, tx = jnp.array([len(order)]), optax.sgd(lr)
        _, thetas = fit(loss_fn, data, order, theta, tx, stops)
        return jax.tree.map(lambda a: a[0], thetas)

    return train


@functools.cache
def recorded():
    """Two experts of three epochs, leaves `[2, 4, ...]`."""
    train = one_epoch(LOSS, real(7, 12), 0.5, 4)

    @jax.jit
    def one(key):
        a, b = jax.random.split(key)
        return experts.trajectory(train, MODEL.init(a), b, 3)

    return jax.vmap(one)(jax.random.split(jax.random.key(5), 2))


@functools.cache
def drawn(name):
    """What gives this objective its theta_0."""
    if name == SEGMENTED:
        return segments(recorded(), span=2)
    return MODEL.init


def start(name, seed=1):
    return drawn(name)(jax.random.key(seed))


@functools.cache
def value_and_grad(name):
    return jax.jit(jax.value_and_grad(make(name, MODEL)))


def close(actual, desired, rtol=1e-9, atol=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        actual,
        desired,
    )


# What every objective owes.


@each
@both_labels
def test_gradient_agrees_with_finite_differences(name, labels):
    made, at = make(name, MODEL), start(name)
    check_grads(
        jax.jit(lambda d: made(d, at, BATCH)),
        (distilled(labels),),
        order=1,
        modes=["rev"],
        atol=1e-7,
        rtol=1e-6,
        eps=1e-5,
    )
    _, grad = value_and_grad(name)(distilled(labels), at, BATCH)
    assert jnp.abs(grad.x).max() > 1e-4
    assert (jnp.abs(grad.y_logits).max() > 1e-4) == (labels == "soft")
    assert bool(jnp.abs(grad.raw_lr).max() > 1e-5) == OBJECTIVES[name].learns_lr


@each
def test_jit_changes_nothing(name):
    plain = jax.value_and_grad(make(name, MODEL))(distilled(), start(name), BATCH)
    close(plain, value_and_grad(name)(distilled(), start(name), BATCH))


@each
def test_pmap_on_four_devices_equals_vmap(name):
    made = make(name, MODEL)
    fresh = lambda: jax.device_get(meta_init(TX, distilled()))  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 8)
    on_one = jax.jit(partial(meta_step, made, drawn(name), TX))
    on_four = pmap_meta_step(made, drawn(name), TX)
    one, four = on_one(fresh(), keys, BATCH), on_four(fresh(), keys, BATCH)
    close(jax.device_get(four), jax.device_get(one))
    assert not np.allclose(one[0].distilled.x, distilled().x)
    two_keys = [
        value_and_grad(name)(distilled(), start(name, seed), BATCH)[0]
        for seed in (1, 2)
    ]
    assert two_keys[0] != two_keys[1]  # theta_0 matters, or nothing was averaged


@each
@both_labels
def test_gradient_is_finite_where_features_and_classes_are_missing(name, labels):
    """Dead units, a class no example has, rows of padding."""
    dead = jax.tree.map(lambda a: a, THETA_0)
    dead["hidden"]["bias"] = dead["hidden"]["bias"] - 100.0
    theta = Segment(dead, THETA_0) if name == SEGMENTED else dead
    without = jax.tree.map(lambda a: a[np.flatnonzero(BATCH.y[:, 0] == 0)], BATCH)
    rows = without.replace(y=without.y.at[0].set(0.0))
    some = distilled(labels)
    if labels == "hard":
        some = some.replace(y_logits=some.y_logits.at[..., 1].set(-1e5))
        assert (some.y[..., 1] > 0).sum() == 0
    for at in (theta, start(name)):
        value, grad = value_and_grad(name)(some, at, rows)
        assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((value, grad)))


@each
def test_it_minimises_in_float32(name):
    small = jax.tree.map(lambda a: a.astype(jnp.float32), distilled())
    down = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree
    )
    model = bag(VECTORS.astype(np.float32), C, hidden=H)
    value, grad = jax.jit(jax.value_and_grad(make(name, model)))(
        small, down(start(name)), down(BATCH)
    )
    assert value.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(grad)} == {jnp.dtype("float32")}
    expected = value_and_grad(name)(distilled(), start(name), BATCH)
    close(value, np.float32(expected[0]), rtol=1e-3)


@each
@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2]])
def test_order_of_examples_in_a_minibatch_does_not_count(name, order):
    one = distilled()
    other = one.replace(x=one.x[:, order], y_logits=one.y_logits[:, order])
    values = [value_and_grad(name)(d, start(name), BATCH)[0] for d in (one, other)]
    np.testing.assert_allclose(*values, rtol=1e-10)


# The registry.


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'mmd'; known: feature_regression, unrolled"):
        objectives.get("mmd")
    with pytest.raises(ValueError, match="no setting 'span'; known: by_class, eps"):
        make("gradient_matching", MODEL, span=1)
    with pytest.raises(ValueError, match="no setting 'a'; known: none"):
        make("distribution_matching", MODEL, a=1)
    blind = MODEL._replace(features=None)
    for name in ("distribution_matching", "feature_regression"):
        with pytest.raises(ValueError, match="set Model.features"):
            make(name, blind)
    with pytest.raises(ValueError, match="ridge must be over 0, got 0"):
        make("feature_regression", MODEL, ridge=0)
    with pytest.raises(ValueError, match="labels, logits, got names"):
        make("feature_regression", MODEL, targets="names")
    with pytest.raises(ValueError, match="'bias'; known: layer, node"):
        make("gradient_matching", MODEL, group="bias")


# Gradient matching.


gradient = jax.jit(jax.grad(LOSS))


def one_class(batch, c):
    """The batch of the examples of one hard class."""
    rows = np.flatnonzero(np.asarray(batch.y[:, c]) > 0)
    return jax.tree.map(lambda a: a[rows], batch)


@pytest.mark.parametrize("group", ["layer", "node"])
def test_gradient_matching_by_hand(group):
    some = distilled("hard")
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), some.batches)
    total = 0.0
    for c in range(C):
        ours, theirs = (jax.grad(LOSS)(THETA_0, one_class(b, c)) for b in (flat, BATCH))
        for layer in ("hidden", "out"):
            a, b = (np.asarray(g[layer]["kernel"]) for g in (ours, theirs))
            if group == "layer":
                a, b = a.reshape(-1, 1), b.reshape(-1, 1)
            for i in range(a.shape[1]):
                u, v = a[:, i], b[:, i]
                norms = np.linalg.norm(u) * np.linalg.norm(v)
                total += 1 - u @ v / (norms + 1e-6)
    got = jax.jit(make("gradient_matching", MODEL, group=group))(some, THETA_0, BATCH)
    np.testing.assert_allclose(got, total / C, rtol=1e-9)


def test_gradient_matching_is_zero_on_the_real_data_itself():
    x = MODEL.embed(THETA_0, BATCH.x)
    same = Distilled(x[None], 1e4 * (BATCH.y - 1)[None], jnp.zeros((1, 1)))
    for by_class in (True, False):
        made = jax.jit(make("gradient_matching", MODEL, by_class=by_class, eps=1e-30))
        assert abs(made(same, THETA_0, BATCH)) < 1e-12
        assert made(distilled(), THETA_0, BATCH) > 0.1


def test_gradient_matching_along_a_training_that_is_not_differentiated():
    some = distilled()
    thetas = [THETA_0]
    for e in range(E):
        theta, _ = unroll(LOSS, thetas[-1], some.batches, some.lr[e : e + 1])
        thetas.append(theta)
    at = value_and_grad("gradient_matching")
    expected = jax.tree.map(
        lambda *a: sum(a) / 3, *[at(some, theta, BATCH) for theta in thetas]
    )
    made = make("gradient_matching", MODEL, num_points=3)
    close(jax.jit(jax.value_and_grad(made))(some, THETA_0, BATCH), expected)
    with pytest.raises(ValueError, match="at most 3, one more than .* got 4"):
        make("gradient_matching", MODEL, num_points=4)(some, THETA_0, BATCH)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make("gradient_matching", MODEL, num_points=0)


def test_gradient_matching_with_cheaper_derivatives_is_the_same():
    network = text_cnn(VECTORS, C, widths=(1, 2), filters=4, hidden=None)
    theta = network.init(jax.random.key(0))
    loss = cross_entropy(network)
    plain, cheap = (
        jax.jit(jax.value_and_grad(make("gradient_matching", network, **s)))(
            distilled(), theta, BATCH
        )
        for s in ({}, {"inner_grad": mixed_mode, "real_loss_fn": chunked(loss, 4)})
    )
    close(cheap, plain)


# Distribution matching and feature regression.


def test_distribution_matching_by_hand():
    some = distilled("hard")
    read = lambda x: MODEL.features(THETA_0, x, jnp.ones(x.shape[:2]))  # noqa: E731
    ours = np.asarray(read(some.x.reshape(-1, L, D)))
    theirs = np.asarray(read(MODEL.embed(THETA_0, BATCH.x)))
    mine, labels = np.arange(S * B) % C, np.asarray(BATCH.y.argmax(-1))
    gaps = [ours[mine == c].mean(0) - theirs[labels == c].mean(0) for c in range(C)]
    got = make("distribution_matching", MODEL)(some, THETA_0, BATCH)
    np.testing.assert_allclose(got, (np.stack(gaps) ** 2).sum(), rtol=1e-10)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_feature_regression_is_ridge_regression(ridge):
    from sklearn.linear_model import Ridge

    some = distilled()
    read = lambda x: MODEL.features(THETA_0, x, jnp.ones(x.shape[:2]))  # noqa: E731
    ours = np.asarray(read(some.x.reshape(-1, L, D)))
    theirs = np.asarray(read(MODEL.embed(THETA_0, BATCH.x)))
    y = np.asarray(some.y).reshape(-1, C) - 1 / C
    alpha = ridge * (ours**2).sum() / len(ours)
    fitted = Ridge(alpha=alpha, fit_intercept=False).fit(ours, y)
    error = np.asarray(BATCH.y) - 1 / C - fitted.predict(theirs)
    got = make("feature_regression", MODEL, ridge=ridge)(some, THETA_0, BATCH)
    np.testing.assert_allclose(got, (error**2).sum(-1).mean() / 2, rtol=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_feature_regression_on_logits_is_ridge_regression(ridge):
    from sklearn.linear_model import Ridge

    some = distilled()
    read = lambda x: MODEL.features(THETA_0, x, jnp.ones(x.shape[:2]))  # noqa: E731
    ours = np.asarray(read(some.x.reshape(-1, L, D)))
    theirs = np.asarray(read(MODEL.embed(THETA_0, BATCH.x)))
    ours, theirs = (np.append(h, np.ones((len(h), 1)), 1) for h in (ours, theirs))
    logits = np.asarray(some.y_logits).reshape(-1, C)
    alpha = ridge * (ours**2).sum() / len(ours)
    fitted = Ridge(alpha=alpha, fit_intercept=False).fit(
        ours, logits - logits.mean(1, keepdims=True)
    )
    log_probs = jax.nn.log_softmax(fitted.predict(theirs))
    expected = -(np.asarray(BATCH.y) * np.asarray(log_probs)).sum(-1).mean()
    objective = make("feature_regression", MODEL, ridge=ridge, targets="logits")
    np.testing.assert_allclose(objective(some, THETA_0, BATCH), expected, rtol=1e-8)
    moved = some.replace(y_logits=some.y_logits + 3.0)  # softmax sees no difference
    np.testing.assert_allclose(objective(moved, THETA_0, BATCH), expected, rtol=1e-8)
    grad = jax.jit(jax.grad(objective))(some, THETA_0, BATCH)
    assert abs(grad.x).max() > 1e-4 and abs(grad.y_logits).max() > 1e-4
    padded = BATCH.replace(y=BATCH.y.at[0].set(0))
    without = jax.tree.map(lambda a: a[1:], BATCH)
    np.testing.assert_allclose(
        objective(some, THETA_0, padded), objective(some, THETA_0, without), rtol=1e-12
    )


@pytest.mark.parametrize(
    "name", ["unrolled", "gradient_matching", "feature_regression"]
)
def test_rows_of_padding_count_for_nothing(name):
    extra = BATCH.replace(
        x=jnp.concatenate([BATCH.x, BATCH.x[:2]]),
        mask=jnp.concatenate([BATCH.mask, BATCH.mask[:2]]),
        y=jnp.concatenate([BATCH.y, jnp.zeros((2, C))]),
    )
    close(
        value_and_grad(name)(distilled(), start(name), extra),
        value_and_grad(name)(distilled(), start(name), BATCH),
    )


# Trajectory matching and its experts.


def test_trajectory_matching_is_one_at_the_start_and_zero_on_the_target():
    made = make("trajectory_matching", MODEL)
    some, segment = distilled(), start("trajectory_matching")
    still = some.replace(raw_lr=jnp.full((E, S), -1e4))
    assert made(still, segment, BATCH) == 1.0
    end, _ = unroll(LOSS, segment.start, some.batches, some.lr)
    assert made(some, Segment(segment.start, end), BATCH) == 0.0
    flat = lambda t: jax.flatten_util.ravel_pytree(t)[0]  # noqa: E731
    far, near = (
        jnp.linalg.norm(flat(t) - flat(segment.target)) ** 2
        for t in (segment.start, end)
    )
    np.testing.assert_allclose(made(some, segment, BATCH), near / far, rtol=1e-12)


def test_segments_are_drawn_from_each_expert_and_epoch_alike():
    init = segments(recorded(), span=2)
    flat = lambda t: np.asarray(jax.flatten_util.ravel_pytree(t)[0])  # noqa: E731
    at = lambda k, epoch: flat(jax.tree.map(lambda a: a[k, epoch], recorded()))  # noqa: E731
    seen = set()
    drawn = jax.vmap(init)(jax.random.split(jax.random.key(0), 40))
    for i in range(40):
        one = jax.tree.map(lambda a, i=i: a[i], drawn)
        (which,) = [
            (k, e)
            for k in range(2)
            for e in range(2)
            if np.array_equal(flat(one.start), at(k, e))
        ]
        np.testing.assert_array_equal(flat(one.target), at(which[0], which[1] + 2))
        seen.add(which)
    assert len(seen) == 4
    early = jax.vmap(segments(recorded(), span=1, max_start=0))(
        jax.random.split(jax.random.key(0), 9)
    )
    starts = {np.asarray(a).tobytes() for a in early.start["out"]["kernel"]}
    firsts = np.asarray(recorded()["out"]["kernel"])[:, 0]
    assert starts == {a.tobytes() for a in firsts}


def test_segments_that_do_not_exist_are_refused():
    for span, first in ((4, None), (0, None), (2, 2), (1, -1)):
        with pytest.raises(ValueError, match="experts of 3 epochs have no segments"):
            segments(recorded(), span=span, max_start=first)
    still = jax.tree.map(lambda a: a.at[1].set(a[1, :1]), recorded())
    with pytest.raises(ValueError, match="expert 1 stands still from epoch 0 to 1"):
        segments(still, span=1)


def one_expert(lr=0.5):
    train = one_epoch(LOSS, real(7, 12), lr, 4)

    def one(key):
        a, b = jax.random.split(key)
        return experts.trajectory(train, MODEL.init(a), b, 3)

    return jax.jit(one)


def test_trajectory_is_the_training_epoch_by_epoch():
    train = one_epoch(LOSS, real(7, 12), 0.5, 4)
    got = experts.trajectory(train, THETA_0, jax.random.key(3), 2)
    keys = jax.random.split(jax.random.key(3), 2)
    thetas = [THETA_0]
    for key in keys:
        thetas.append(train(thetas[-1], key))
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *thetas))


def test_recording_goes_on_where_it_stopped(tmp_path):
    make_one, key, settings = one_expert(), jax.random.key(0), {"lr": 0.5}
    whole = experts.record(tmp_path / "a", make_one, key, 3, settings)
    calls = []

    def counted(key):
        if not isinstance(key, jax.core.Tracer):
            calls.append(key)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return make_one(key)

    with pytest.raises(KeyboardInterrupt):
        experts.record(tmp_path / "b", counted, key, 3, settings)
    (tmp_path / "b" / "expert-0001.part").write_bytes(b"half")  # as a kill leaves it
    told = []
    resumed = experts.record(
        tmp_path / "b", counted, key, 3, settings, report=told.append
    )
    assert len(calls) == 4 and told == [1, 2, 3]
    close(resumed, whole, rtol=0, atol=0)
    for k in range(3):
        name = f"expert-{k:04d}.safetensors"
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    assert {p.suffix for p in (tmp_path / "b").iterdir()} == {".safetensors"}
    like = jax.eval_shape(make_one, key)
    close(experts.load(tmp_path / "a", like), whole, rtol=0, atol=0)
    fewer = experts.load(tmp_path / "a", like, num=2)
    close(fewer, jax.tree.map(lambda a: a[:2], whole), rtol=0, atol=0)
    assert jax.tree.leaves(whole)[0].shape[:2] == (3, 4)
    assert not np.array_equal(*[np.asarray(whole["out"]["kernel"][k]) for k in (0, 1)])


def test_experts_of_another_run_are_refused(tmp_path):
    make_one, key = one_expert(), jax.random.key(0)
    like = jax.eval_shape(make_one, key)
    with pytest.raises(FileNotFoundError, match="holds 0 experts, needed 1: record"):
        experts.load(tmp_path / "none", like)
    experts.record(tmp_path, make_one, key, 1, {"lr": 0.5})
    with pytest.raises(FileNotFoundError, match="holds 1 experts, needed 2"):
        experts.load(tmp_path, like, num=2)
    with pytest.raises(ValueError, match="recorded with lr = 0.5, now 0.1: use the"):
        experts.record(tmp_path, make_one, key, 1, {"lr": 0.1})
    with pytest.raises(ValueError, match="recorded with key = "):
        experts.record(tmp_path, make_one, jax.random.key(1), 1, {"lr": 0.5})
    shorter = jax.eval_shape(lambda t: jax.tree.map(lambda a: a[:2], t), like)
    with pytest.raises(ValueError, match="hidden.bias as .* another network or number"):
        experts.load(tmp_path, shorter)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        experts.record(tmp_path, make_one, key, 0, {})
    path = tmp_path / "expert-0000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read the expert .* delete it"):
        experts.load(tmp_path, like)


def test_an_expert_that_is_not_finite_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="not finite: train with a smaller"):
        bad = lambda key: {"w": jnp.full((2, 3), jnp.nan)}  # noqa: E731
        experts.record(tmp_path, bad, jax.random.key(0), 1, {})
    assert list(tmp_path.iterdir()) == []


def test_an_expert_can_be_read_without_this_package(tmp_path):
    made = experts.record(tmp_path, one_expert(), jax.random.key(0), 1, {"lr": 0.5})
    path = tmp_path / "expert-0000.safetensors"
    arrays = safetensors.numpy.load_file(path)
    assert sorted(arrays) == ["hidden.bias", "hidden.kernel", "out.bias", "out.kernel"]
    np.testing.assert_array_equal(arrays["out.kernel"], made["out"]["kernel"][0])
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["settings"])["lr"] == 0.5


# Partly trained theta_0.


def test_partly_trained_runs_from_none_to_all_steps():
    source = real(7, 12)
    settings = {"max_steps": 2, "lr": 0.5, "batch_size": 4}
    init = partly_trained(LOSS, MODEL.init, source, **settings)
    keys = jax.random.split(jax.random.key(0), 12)
    got = jax.jit(jax.vmap(init))(keys)
    seen, fresh = set(), jax.jit(MODEL.init)
    for i, key in enumerate(keys):
        init_key, _, data_key = jax.random.split(key, 3)
        theta, path = fresh(init_key), []
        for t in range(3):
            path.append(theta)
            rows = jax.random.randint(jax.random.fold_in(data_key, t), (4,), 0, 12)
            batch = jax.tree.map(lambda a, rows=rows: a[rows], source)
            grad = gradient(theta, batch)
            theta = jax.tree.map(lambda p, g: p - 0.5 * g, theta, grad)
        mine = np.asarray(got["out"]["kernel"][i])
        (steps,) = [
            t for t in range(3) if np.allclose(mine, path[t]["out"]["kernel"], 1e-10)
        ]
        seen.add(steps)
    assert seen == {0, 1, 2}
    for wrong in ({"max_steps": -1}, {"lr": 0.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be|and batch_size"):
            partly_trained(LOSS, MODEL.init, source, **(settings | wrong))


def test_from_experts_draws_every_epoch_up_to_the_last():
    keys = jax.random.split(jax.random.key(0), 60)
    for last, epochs in ((None, 4), (1, 2)):
        init = from_experts(recorded(), max_epoch=last)
        got = jax.vmap(init)(keys)["hidden"]["kernel"]
        drawn = {np.asarray(a).tobytes() for a in got}
        known = np.asarray(recorded()["hidden"]["kernel"])[:, :epochs]
        assert drawn == {a.tobytes() for a in known.reshape(-1, D, H)}
    with pytest.raises(ValueError, match=r"in 0 .. 3, as the experts have, got 4"):
        from_experts(recorded(), max_epoch=4)


@pytest.mark.parametrize("steps", [0, 3])
def test_after_training_is_the_objective_at_the_trained_network(steps):
    """Value and gradient: the training before it is not differentiated."""
    some, name = distilled(), "unrolled"  # which itself stops no gradient
    theta = THETA_0
    for t in range(steps):
        batch = jax.tree.map(lambda a, t=t: a[t % S], some.batches)
        grad = gradient(theta, batch)
        lr = some.lr[0, t % S]
        theta = jax.tree.map(lambda p, g, lr=lr: p - lr * g, theta, grad)
    made = after_training(make(name, MODEL), LOSS)
    got = jax.jit(jax.value_and_grad(made))(
        some, Aged(THETA_0, jnp.array(steps)), BATCH
    )
    close(got, value_and_grad(name)(some, theta, BATCH))
    fresh = value_and_grad(name)(some, THETA_0, BATCH)[0]
    assert (abs(fresh - got[0]) < 1e-12) == (steps == 0)


def test_aged_networks_go_through_a_meta_step():
    init = aged(MODEL.init, 2)
    keys = jax.random.split(jax.random.key(0), 6)
    assert set(np.asarray(jax.jit(jax.vmap(init))(keys).steps)) == {0, 1, 2}
    made = after_training(make("distribution_matching", MODEL), LOSS)
    one, other = (
        jax.jit(partial(meta_grad, made, init, sequential=s))(distilled(), keys, BATCH)
        for s in (False, True)
    )
    close(one, other)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        aged(MODEL.init, -1)


def test_after_training_hands_on_the_key_that_an_objective_asks_for():
    def keyed(distilled, theta_0, batch, key):
        return distilled.x.sum() * jax.random.uniform(key)

    made = after_training(Keyed(keyed), LOSS)
    assert isinstance(made, Keyed)
    assert not isinstance(after_training(make("unrolled", MODEL), LOSS), Keyed)
    at, key = Aged(THETA_0, jnp.array(1)), jax.random.key(4)
    expected = keyed(distilled(), THETA_0, BATCH, key)
    assert made(distilled(), at, BATCH, key) == expected


# It learns.


@functools.cache
def questions(folder):
    """600 questions of TREC to learn from and 600 others, with random vectors."""
    corpus = data.load(folder)
    texts, labels = corpus.train.texts[:1200], corpus.train.labels[:1200]
    vocabulary = data.Vocabulary.build(texts[:600], max_size=40)
    vectors = 2 * data.random_vectors(vocabulary, 16).table
    batch = one_hot_batch(vocabulary.encode(texts, 8), labels, corpus.num_classes)
    batch = batch.replace(mask=jnp.float32(batch.mask), y=jnp.float32(batch.y))
    model = bag(vectors, corpus.num_classes, hidden=32)
    seen, unseen = (
        jax.tree.map(lambda a, part=part: a[part], batch)
        for part in (slice(600), slice(600, None))
    )
    classes = np.asarray(seen.y.argmax(-1))
    r = np.random.default_rng(0)
    rows = [r.choice(np.flatnonzero(classes == c)) for c in range(corpus.num_classes)]
    one_each = jax.tree.map(lambda a: a[np.array(rows)][None], seen)
    begin = Distilled(
        model.embed(None, one_each.x),
        4 * one_each.y,
        jnp.full((20, 1), -1.0, jnp.float32),
    )
    loss_fn, chunks = cross_entropy(model), padded(unseen, 100)
    fresh = jax.random.split(jax.random.key(99), 8)

    @jax.jit
    def score(some):
        def one(key):
            theta, _ = unroll(loss_fn, model.init(key), some.batches, some.lr)
            return accuracy(model, theta, chunks)

        return jax.lax.map(one, fresh).mean()

    return model, seen, begin, score


@functools.cache
def experts_of_questions(folder):
    model, seen, *_ = questions(folder)
    train = one_epoch(cross_entropy(model), seen, 0.5, 16)

    @jax.jit
    def all_of(keys):
        return jax.lax.map(
            lambda key: experts.trajectory(train, model.init(key), key, 8), keys
        )

    return all_of(jax.random.split(jax.random.key(0), 4))


@each
def test_it_learns(name, shared_data):
    """From one real question of each class: objective down, accuracy of fresh up."""
    folder = str(shared_data / "trec6")
    model, seen, begin, score = questions(folder)
    made, init = make(name, model), model.init
    if name == SEGMENTED:
        init = segments(experts_of_questions(folder), span=4, max_start=1)
    tx = optax.multi_transform(  # labels stay: what moves is the sentences
        {"learn": optax.adam(0.03), "keep": optax.set_to_zero()},
        Distilled("learn", "keep", "learn"),
    )

    @jax.jit
    def steps(state, key):
        def one(state, key):
            rows_key, *keys = jax.random.split(key, 3)
            rows = jax.random.choice(rows_key, 600, (150,), replace=False)
            batch = jax.tree.map(lambda a: a[rows], seen)
            step = partial(meta_step, made, init, tx, sequential=True)
            state, info = step(state, jnp.stack(keys), batch)
            return state, info.meta_loss

        return jax.lax.scan(one, state, jax.random.split(key, 100))

    state, losses = steps(meta_init(tx, begin), jax.random.key(0))
    assert state.skipped == 0
    assert losses[-10:].mean() < 0.85 * losses[:5].mean()
    # The step sizes tuned alike, as most objectives do not learn theirs.
    before, after = (
        max(score(d), *(score(d.replace(raw_lr=begin.raw_lr + k)) for k in (0, 1, 2)))
        for d in (begin, state.distilled)
    )
    assert after > before + 0.05, (before, after)
