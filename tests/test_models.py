"""Every registered model, and every module that the adapters take, behaves alike."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax import core, gradients, losses
from distill_jax.models import MODELS
from distill_jax.models.adapters import from_linen, from_nnx
from distill_jax.models.bag import bag
from distill_jax.models.bilstm import bilstm
from distill_jax.models.fourier_bag import (
    KERNEL_SCALE,
    SCALE,
    cos,
    fourier_bag,
    fourier_features,
    frequencies,
)
from distill_jax.models.mean_cnn import mean_cnn, reference_windows
from distill_jax.models.text_cnn import text_cnn
from distill_jax.models.transformer import transformer
from distill_jax.types import Batch, Distilled

V, D, L, C = 11, 6, 5, 3
SMALL = {
    "text_cnn": {"widths": (2, 3), "filters": 4, "hidden": 5},
    "kim_cnn": {"widths": (1, 3), "filters": 4},
    "bag": {"hidden": 5},
    "fourier_bag": {"widths": (1, 2), "features": 6, "hidden": 5, "out_scale": 1.0},
    "mean_cnn": {"widths": (1, 2), "filters": 4, "out_scale": 1.0},
    "bilstm": {"hidden": 3, "layers": 2},
    "transformer": {"width": 8, "heads": 2, "layers": 1, "mlp": 8},
}
VECTORS = np.random.default_rng(0).normal(size=(V, D))
VECTORS[0] = 0
TOKENS = jnp.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]])
MASK = (TOKENS > 0).astype(float)

each_model = pytest.mark.parametrize("name", sorted(MODELS))


@functools.cache
def built(name):
    model = MODELS[name](VECTORS, C, **SMALL.get(name, {}))
    return model, jax.jit(model.init)(jax.random.key(3)), jax.jit(model.apply)


def batch_of(model, params, tokens=TOKENS, mask=MASK):
    y = jax.nn.softmax(jax.random.normal(jax.random.key(8), (len(tokens), C)))
    return Batch(model.embed(params, tokens), mask, y)


def close(a, b, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), a, b)


def test_every_model_has_a_small_setting():
    assert set(SMALL) == set(MODELS)


@each_model
def test_logits_and_parameters_have_the_dtype_and_shape_of_the_contract(name):
    model, params, apply = built(name)
    x = model.embed(params, TOKENS)
    logits = apply(params, x, MASK)
    assert x.shape == (3, L, D) and logits.shape == (3, C)
    assert {a.dtype for a in jax.tree.leaves((x, logits, params))} == {x.dtype}
    assert np.isfinite(logits).all() and np.ptp(np.asarray(logits), axis=0).min() > 0
    other = jax.jit(model.init)(jax.random.key(4))
    assert jax.tree.structure(other) == jax.tree.structure(params)
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(params), strict=True)
    )


@each_model
def test_parameters_follow_float32_vectors(name):
    model = MODELS[name](VECTORS.astype(np.float32), C, **SMALL[name])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((2, L, D), jnp.float32)
    mask = jax.ShapeDtypeStruct((2, L), jnp.float32)
    assert jax.eval_shape(model.apply, shapes, x, mask).dtype == jnp.float32


@each_model
def test_what_the_mask_hides_changes_no_logit(name):
    model, params, apply = built(name)
    x = model.embed(params, TOKENS)
    logits = apply(params, x, MASK)
    noise = 7 * jax.random.normal(jax.random.key(1), x.shape)
    close(apply(params, x + noise * (1 - MASK[..., None]), MASK), logits)
    longer = jnp.pad(noise, ((0, 0), (0, 4), (0, 0))).at[:, :L].set(x)
    close(apply(params, longer, jnp.pad(MASK, ((0, 0), (0, 4)))), logits)
    close(apply(params, x, MASK != 0), logits)
    assert abs(apply(params, x + noise, MASK) - logits).max() > 1e-3


@each_model
def test_hidden_tokens_get_no_gradient(name):
    model, params, _ = built(name)
    loss = losses.cross_entropy(model)
    batch = batch_of(model, params)
    grad = jax.jit(jax.grad(lambda x: loss(params, batch.replace(x=x))))(batch.x)
    assert not np.asarray(grad)[np.asarray(MASK) == 0].any()
    assert np.asarray(grad)[:, 0].any(-1).all()


@each_model
def test_first_and_second_derivatives_agree_with_finite_differences(name):
    model, params, _ = built(name)
    loss = losses.cross_entropy(model)
    batch = batch_of(model, params)

    def f(point):
        return loss(point[0], batch.replace(x=point[1]))

    point = (params, batch.x)
    leaves, tree = jax.tree.flatten(point)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    v = tree.unflatten(
        jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)
    )

    @jax.jit
    def derivatives(point):
        (value, grad), (_, second) = jax.jvp(jax.value_and_grad(f), (point,), (v,))
        return value, grad, second

    def moved(eps):
        return derivatives(jax.tree.map(lambda a, b: a + eps * b, point, v))

    eps = 1e-6
    _, grad, second = moved(0.0)
    slope = jax.tree.map(lambda a, b: (a - b) / (2 * eps), moved(eps), moved(-eps))
    along_v = sum(
        (a * b).sum()
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(v), strict=True)
    )
    np.testing.assert_allclose(along_v, slope[0], rtol=1e-6)
    close(second, slope[1], 1e-6)
    assert max(abs(a).max() for a in jax.tree.leaves(second)) > 1e-3


@each_model
def test_an_empty_sentence_is_finite_up_to_second_derivatives(name):
    model, params, apply = built(name)
    tokens = TOKENS.at[1].set(0)
    batch = batch_of(model, params, tokens, (tokens > 0).astype(float))
    assert np.isfinite(apply(params, batch.x, batch.mask)).all()
    loss = losses.cross_entropy(model)

    @jax.jit
    def derivatives(params, batch):
        grad = jax.grad(loss)
        return jax.jvp(lambda p: grad(p, batch), (params,), (params,)), jax.grad(
            lambda x: loss(params, batch.replace(x=x))
        )(batch.x)

    for leaf in jax.tree.leaves(derivatives(params, batch)):
        assert np.isfinite(leaf).all()


@each_model
def test_no_key_no_dropout(name):
    model = MODELS[name](VECTORS, C, **{**SMALL[name], "dropout": 0.5})
    _, params, plain = built(name)
    apply = jax.jit(model.apply)
    x = model.embed(params, TOKENS)
    close(apply(params, x, MASK), plain(params, x, MASK))
    one = apply(params, x, MASK, key=jax.random.key(0))
    two = apply(params, x, MASK, key=jax.random.key(1))
    assert (one == apply(params, x, MASK, key=jax.random.key(0))).all()
    assert abs(one - two).max() > 1e-6
    assert abs(one - plain(params, x, MASK)).max() > 1e-6


@each_model
def test_a_key_changes_nothing_at_rate_zero(name):
    model = MODELS[name](VECTORS, C, **{**SMALL[name], "dropout": 0.0})
    _, params, plain = built(name)
    x = model.embed(params, TOKENS)
    got = jax.jit(model.apply)(params, x, MASK, key=jax.random.key(0))
    close(got, plain(params, x, MASK))


@each_model
def test_jit_equals_eager(name):
    model, params, apply = built(name)
    x = model.embed(params, TOKENS)
    close(model.apply(params, x, MASK), apply(params, x, MASK))


@each_model
def test_vmap_over_theta_equals_a_loop(name):
    model, _, apply = built(name)
    thetas = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    x = model.embed(thetas, TOKENS)
    together = jax.jit(jax.vmap(model.apply, (0, None, None)))(thetas, x, MASK)
    for i in range(2):
        theta = jax.tree.map(lambda a, i=i: a[i], thetas)
        close(together[i], apply(theta, x, MASK), 1e-11)


@each_model
def test_examples_do_not_see_each_other(name):
    model, params, apply = built(name)
    x = model.embed(params, TOKENS)
    order = jnp.array([2, 0])
    close(apply(params, x[order], MASK[order]), apply(params, x, MASK)[order])


@each_model
def test_tokens_and_their_embeddings_give_one_loss(name):
    model, params, _ = built(name)
    loss = jax.jit(losses.cross_entropy(model))
    embedded = batch_of(model, params)
    tokens = embedded.replace(x=TOKENS)
    close(loss(params, tokens), loss(params, embedded))
    assert loss(params, tokens) != loss(params, tokens.replace(x=TOKENS[::-1]))
    np.testing.assert_array_equal(embedded.x, VECTORS[TOKENS])


@pytest.mark.parametrize(
    ("name", "sees"),
    [("bag", False), ("mean_cnn", True), ("bilstm", True), ("transformer", True)],
)
def test_who_sees_the_order_of_words(name, sees):
    model, params, apply = built(name)
    x = model.embed(params, TOKENS[1:2])
    change = abs(apply(params, x[:, ::-1], MASK[1:2]) - apply(params, x, MASK[1:2]))
    assert (change.max() > 1e-6) == sees


def test_defaults_are_the_documented_sizes():
    shapes = {
        f.__name__: jax.eval_shape(f(VECTORS, C).init, jax.random.key(0))
        for f in (bag, bilstm, transformer)
    }
    assert shapes["bag"]["hidden"]["kernel"].shape == (D, 128)
    assert shapes["bilstm"]["layer_0"]["state"].shape == (2, 100, 4, 100)
    assert shapes["transformer"]["qkv_1"]["kernel"].shape == (128, 3, 4, 32)
    assert "layer_1" not in shapes["bilstm"] and "qkv_2" not in shapes["transformer"]


def test_lstm_kernels_are_xavier_gate_by_gate():
    params = bilstm(np.ones((2, 40)), C, hidden=60).init(jax.random.key(0))["layer_0"]
    for kernel, axes, fans in (
        (params["input"], (0, 3), 100),
        (params["state"], (1, 3), 120),
    ):
        bound = (6 / fans) ** 0.5
        assert bound * 0.98 < abs(kernel).max(axes).min()
        assert abs(kernel).max() <= bound
    np.testing.assert_array_equal(params["bias"][:, 1], 1)
    np.testing.assert_array_equal(params["bias"][:, [0, 2, 3]], 0)


def test_a_mean_cnn_of_single_words_is_a_sum_of_functions_of_words():
    settings = {"widths": (1,), "filters": 3, "out_scale": 1.0}
    model = mean_cnn(VECTORS, C, **settings, references=0)
    params = jax.jit(model.init)(jax.random.key(1))
    x = VECTORS[np.asarray(TOKENS[1])]
    params = jax.tree.map(np.asarray, params)
    words = np.maximum(x @ params["conv_1"]["kernel"] + params["conv_1"]["bias"], 0)
    expected = words.mean(0) @ params["out"]["kernel"] + params["out"]["bias"]
    one = (params, jnp.asarray(x[None]), jnp.ones((1, L)))
    close(model.apply(*one)[0], expected)
    close(model.features(*one)[0], words.mean(0))


def test_reference_windows_centre_the_features_of_a_mean_cnn():
    centred, plain = (
        mean_cnn(VECTORS, C, widths=(1, 2), filters=3, references=n) for n in (400, 0)
    )
    params = jax.jit(centred.init)(jax.random.key(1))
    params["conv_2"]["bias"] += 1.0
    rng = np.random.default_rng(3)
    odds = 1 / np.arange(1.0, V)
    rows = 1 + rng.choice(V - 1, (20_000, 2), p=odds / odds.sum())
    for x in (VECTORS[rows[:4]], VECTORS[rows[4:8]]):
        shift = plain.features(params, x, jnp.ones((4, 2))) - centred.features(
            params, x, jnp.ones((4, 2))
        )
        assert np.ptp(np.asarray(shift), axis=0).max() < 1e-12  # the same for all
    pairs = VECTORS[rows]
    means = [
        np.maximum(
            words @ params[name]["kernel"] + np.asarray(params[name]["bias"])[None], 0
        ).mean(0)
        for name, words in (
            ("conv_1", pairs[:, 0]),
            ("conv_2", pairs.reshape(-1, 2 * D)),
        )
    ]
    expected = np.concatenate([np.asarray(mean) for mean in means])
    assert abs(shift[0] - expected).max() < 0.3 < expected.max()
    again = mean_cnn(VECTORS, C, widths=(1, 2), filters=3, references=400)
    x = VECTORS[rows[:4]]
    close(
        again.features(params, x, jnp.ones((4, 2))),
        centred.features(params, x, jnp.ones((4, 2))),
    )


def test_the_filters_of_a_mean_cnn_have_the_scale_asked_for():
    for activation, gain in (("relu", 2.0), ("tanh", 1.0)):
        model = mean_cnn(
            np.ones((2, 50)), C, filters=500, activation=activation, kernel_scale=3.0
        )
        params = jax.jit(model.init)(jax.random.key(0))
        for k in (1, 2, 3):
            deviation = params[f"conv_{k}"]["kernel"].std()
            np.testing.assert_allclose(
                deviation, 3 * (gain / (50 * k)) ** 0.5, rtol=0.02
            )
    settings = {"widths": (1,), "filters": 3, "references": 0}
    model = mean_cnn(VECTORS, C, activation="tanh", **settings)
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(1)))
    words = np.tanh(VECTORS[np.asarray(TOKENS[1])] @ params["conv_1"]["kernel"])
    x = model.embed(params, TOKENS[1:2])
    close(model.features(params, x, jnp.ones((1, L)))[0], words.mean(0))


def test_orthogonal_filters_agree_on_the_linear_kernel():
    """Of D filters or more, W W' is the same for all theta_0, and so is its size."""
    settings = {"widths": (1, 2), "activation": "tanh", "kernel_scale": 2.0}
    model = mean_cnn(VECTORS, C, filters=40, orthogonal=True, **settings)
    for seed in range(2):
        params = jax.jit(model.init)(jax.random.key(seed))
        for k in (1, 2):
            W = np.asarray(params[f"conv_{k}"]["kernel"])
            np.testing.assert_allclose(
                W @ W.T, 40 * 4 / (k * D) * np.eye(k * D), atol=1e-5
            )
    few = mean_cnn(np.ones((2, 50)), C, filters=5, orthogonal=True, **settings)
    W = np.asarray(jax.jit(few.init)(jax.random.key(0))["conv_1"]["kernel"])
    np.testing.assert_allclose(W.T @ W, 4 * np.eye(5), atol=1e-5)


def test_fourier_features_tell_near_words_from_far_ones():
    """Their kernel is exp(-scale^2 |x - y|^2 / 2 D), Rahimi & Recht 2007, theorem 1."""
    words = np.random.default_rng(0).normal(size=(8, 50))
    words *= np.linspace(0.1, 1, 8)[:, None]
    omega = frequencies(50, 20_000, 1.4)
    h = np.asarray(fourier_features(jnp.asarray(words), omega))
    apart = ((words[:, None] - words[None]) ** 2).sum(-1)
    expected = np.exp(-(1.4**2) * apart / (2 * 50))
    assert expected.min() < 0.4
    np.testing.assert_allclose(h @ h.T, expected, atol=0.02)


def test_cosines_are_those_of_numpy_with_their_derivatives():
    z = np.linspace(-50, 50, 4001)
    for dtype, far in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        a = jnp.asarray(z, dtype)
        slope, bend = jax.grad(cos), jax.grad(jax.grad(cos))
        for got, expected in (
            (cos(a), np.cos(z)),
            (jax.vmap(slope)(a), -np.sin(z)),
            (jax.vmap(bend)(a), -np.cos(z)),
        ):
            np.testing.assert_allclose(got, expected, atol=far)


def test_a_fourier_bag_is_its_formula():
    settings = {"widths": (1, 2), "features": 6, "hidden": 5, "out_scale": 1.0}
    model = fourier_bag(VECTORS, C, references=40, **settings)
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(1)))
    words = VECTORS[np.asarray(TOKENS[0, :3])]
    centre = reference_windows(VECTORS, 40, 2)
    d = []
    for k, windows in (
        (1, words),
        (2, np.concatenate([words, [*words[1:], 0 * words[0]]], -1)),
    ):
        omega = frequencies(k * D, 3, KERNEL_SCALE)

        def phi(w, omega=omega):
            return np.concatenate([np.cos(w @ omega), np.sin(w @ omega)], -1) / 3**0.5

        d.append(phi(windows).mean(0) - phi(centre[:, :k].reshape(40, -1)).mean(0))
    h = np.tanh(SCALE * np.concatenate(d) @ params["hidden"]["kernel"])
    close(model.frozen(TOKENS[:1], MASK[:1])[0], np.concatenate(d))
    x = model.embed(params, TOKENS[:1])
    close(model.features(params, x, MASK[:1])[0], h)
    expected = h @ params["out"]["kernel"] + params["out"]["bias"]
    close(model.apply(params, x, MASK[:1])[0], expected)


def test_networks_of_all_theta_0_of_a_fourier_bag_see_the_same_angles():
    model = fourier_bag(VECTORS, C, features=8, hidden=9)
    for seed in range(2):
        W = np.asarray(jax.jit(model.init)(jax.random.key(seed))["hidden"]["kernel"])
        np.testing.assert_allclose(W @ W.T, np.eye(8), atol=1e-6)


def test_a_long_corpus_is_read_in_parts_as_it_is_at_once(monkeypatch):
    model = fourier_bag(VECTORS, C, features=4)
    whole = model.frozen(TOKENS, MASK)
    monkeypatch.setitem(fourier_bag.__globals__, "AT_ONCE", 14)
    monkeypatch.setitem(fourier_bag.__globals__, "PART", 10)
    close(model.frozen(TOKENS, MASK), whole)


@each_model
def test_a_frozen_part_done_before_changes_nothing(name):
    """Nor the order of the axes; without one the batch stays as it is."""
    model, params, apply = built(name)
    tokens = Batch(TOKENS, MASK, jax.nn.softmax(jnp.arange(9.0).reshape(3, 3) % 5))
    done = losses.frozen_part(model, tokens)
    if model.frozen is None:
        assert done is tokens
        return
    assert done.x.ndim == 2 and losses.frozen_part(model, done) is done
    x = model.embed(params, TOKENS)
    close(apply(params, done.x, MASK), apply(params, x, MASK))
    close(model.features(params, done.x, MASK), model.features(params, x, MASK))
    close(losses.frozen_part(model, tokens.replace(x=x)).x, done.x)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), tokens)
    for one in losses.frozen_part(model, stacked).x:
        close(one, done.x)
    key = jax.random.key(1)
    loss = losses.cross_entropy(model)
    for other in (done, tokens.replace(x=x)):
        close(loss(params, other, key=key), loss(params, tokens, key=key))


def test_a_mean_cnn_begins_with_one_answer_for_every_theta_0():
    model = mean_cnn(VECTORS, C, filters=3)
    for seed in range(2):
        params = jax.jit(model.init)(jax.random.key(seed))
        assert not model.apply(params, model.embed(params, TOKENS), MASK).any()
        assert all(abs(params[f"conv_{k}"]["kernel"]).max() > 0.1 for k in (1, 2, 3))


class LinenBag(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, mask, train):
        h = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        h = nn.relu(nn.Dense(5, param_dtype=x.dtype, name="hidden")(h))
        h = nn.Dropout(self.rate, deterministic=not train)(h)
        return nn.Dense(C, param_dtype=x.dtype, name="out")(h)


class NnxBag(nnx.Module):
    def __init__(self, rate, *, rngs):
        dtype = {"param_dtype": jnp.float64}
        self.hidden = nnx.Linear(D, 5, rngs=rngs, **dtype)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(5, C, rngs=rngs, **dtype)

    def __call__(self, x, mask):
        h = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return self.out(self.dropout(nnx.relu(self.hidden(h))))


def adapted(kind, rate=0.0):
    if kind == "linen":
        return from_linen(LinenBag(rate), VECTORS)
    return from_nnx(lambda rngs: NnxBag(rate, rngs=rngs), VECTORS)


each_adapter = pytest.mark.parametrize("kind", ["linen", "nnx"])


@functools.cache
def meta_gradient(kind):
    model = built("bag")[0] if kind == "ours" else adapted(kind)
    objective = core.unrolled(
        losses.cross_entropy(model), inner_grad=gradients.mixed_mode
    )
    keys = jax.random.split(jax.random.key(2), 2)
    distilled = Distilled(
        x=jax.random.normal(keys[0], (2, C, L, D)),
        y_logits=jax.random.normal(keys[1], (2, C, C)),
        raw_lr=jnp.ones((2, 2)),
    )
    theta = built("bag")[1]
    batch = batch_of(model, theta).replace(x=TOKENS)
    return jax.jit(jax.value_and_grad(objective))(distilled, theta, batch)


@each_adapter
def test_an_adapted_module_unrolls_like_ours(kind):
    model = adapted(kind)
    params = jax.jit(model.init)(jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(built("bag")[1])
    close(meta_gradient(kind), meta_gradient("ours"), 1e-11)
    assert abs(meta_gradient(kind)[1].x).max() > 1e-6


@each_adapter
def test_an_adapted_module_drops_out_by_key(kind):
    model = adapted(kind, rate=0.5)
    params = built("bag")[1]
    x = model.embed(params, TOKENS)
    apply = jax.jit(model.apply)
    close(apply(params, x, MASK), built("bag")[2](params, x, MASK))
    one = apply(params, x, MASK, key=jax.random.key(0))
    assert (one == apply(params, x, MASK, key=jax.random.key(0))).all()
    others = [apply(params, x, MASK, key=jax.random.key(i)) for i in range(1, 5)]
    assert max(abs(one - other).max() for other in others) > 1e-6


def test_the_streams_of_an_nnx_module_differ():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Dropout(0.5, rngs=rngs)
            self.two = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, mask):
            return (self.one(x) - self.two(x)).sum(1)

    model = from_nnx(Twice, VECTORS)
    x = jnp.ones((2, 40, D))
    logits = model.apply({}, x, jnp.ones((2, 40)), key=jax.random.key(0))
    assert abs(logits).max() > 0
    assert not model.apply({}, x, jnp.ones((2, 40))).any()


class WithTrain(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(D, C, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x, mask, train):
        return self.out(x.mean(1)) + (100 if train else 0)


def test_an_nnx_module_may_take_train():
    model = from_nnx(WithTrain, VECTORS)
    params = model.init(jax.random.key(0))
    x = model.embed(params, TOKENS)
    with_key = model.apply(params, x, MASK, key=jax.random.key(0))
    close(with_key - 100, model.apply(params, x, MASK), 1e-10)


class LearnedPositions(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        place = self.param("place", nn.initializers.normal(1), x.shape[1:], x.dtype)
        return nn.Dense(C, param_dtype=x.dtype)(
            ((x + place[None]) * mask[..., None]).sum(1)
        )


def test_example_length_reaches_the_module():
    model = from_linen(LearnedPositions(), VECTORS, example_length=L)
    params = model.init(jax.random.key(0))
    assert params["place"].shape == (L, D)
    assert model.apply(params, model.embed(params, TOKENS), MASK).shape == (3, C)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return nn.BatchNorm(use_running_average=True)(x).mean(1)


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(D, rngs=rngs)

    def __call__(self, x, mask):
        return self.norm(x).mean(1)


class NoMask(nn.Module):
    def __call__(self, x):
        return x.mean(1)


class PerToken(nn.Module):
    def __call__(self, x, mask):
        return x


class OtherFlag(nnx.Module):
    def __call__(self, x, mask, deterministic):
        return x.mean(1)


BAD_TABLE = VECTORS.copy()
BAD_TABLE[4, 2] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_linen(LinenNorm(), VECTORS), "keeps state.*batch_stats"),
        (lambda: from_nnx(NnxNorm, VECTORS), "NnxNorm keeps state.*BatchStat"),
        (lambda: from_linen(NoMask(), VECTORS), r"must take \(x, mask\).*takes \(x\)"),
        (lambda: from_nnx(lambda rngs: OtherFlag(), VECTORS), "deterministic"),
        (lambda: from_linen(PerToken(), VECTORS), r"logits \[B, C\]"),
        (lambda: from_linen(LinenBag, VECTORS), "instance of flax.linen.Module"),
        (lambda: from_nnx(NnxBag(0.0, rngs=nnx.Rngs(0)), VECTORS), "lambda rngs"),
        (lambda: from_nnx(lambda rngs: 3, VECTORS), "must return an nnx.Module"),
        (lambda: from_linen(LinenBag(), VECTORS, example_length=0), "example_length"),
        (lambda: bag(VECTORS[0], C), r"\[V, D\] table of floats, got \[6\]"),
        (lambda: bag(np.ones((3, 2), int), C), "floats, got .* of int64"),
        (lambda: bilstm(BAD_TABLE, C), "finite, row 4"),
        (lambda: bag(VECTORS, 0), "num_classes must be .* got 0"),
        (lambda: bag(VECTORS, C, hidden=2.5), "hidden must be .* got 2.5"),
        (lambda: bag(VECTORS, C, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: bilstm(VECTORS, C, layers=0), "layers must be"),
        (lambda: bilstm(VECTORS, C, dropout=-0.1), "dropout"),
        (lambda: transformer(VECTORS, C, width=10, heads=4), "multiple of heads = 4"),
        (lambda: transformer(VECTORS, C, width=9, heads=3), "must be even"),
        (lambda: transformer(VECTORS, C, heads=0), "heads must be"),
        (lambda: text_cnn(VECTORS, C, pooling="mean"), "pooling"),
        (lambda: mean_cnn(VECTORS, C, widths=(2, 2)), r"widths .* got \(2, 2\)"),
        (lambda: mean_cnn(VECTORS, C, widths=()), "widths"),
        (lambda: mean_cnn(VECTORS, C, widths=(0,)), "width must be .* got 0"),
        (lambda: mean_cnn(VECTORS, C, activation="sin"), "tanh, got 'sin'"),
        (lambda: mean_cnn(VECTORS, C, orthogonal=1), "true or false, got 1"),
        (
            lambda: mean_cnn(VECTORS, C, kernel_scale=0),
            "kernel_scale .* above 0, got 0",
        ),
        (lambda: mean_cnn(VECTORS, C, references=-1), "references must be .* got -1"),
        (lambda: mean_cnn(VECTORS, C, out_scale=-1.0), "out_scale .* got -1.0"),
        (lambda: fourier_bag(VECTORS, C, widths=(1, 1)), r"widths .* got \(1, 1\)"),
        (lambda: fourier_bag(VECTORS, C, widths=(1.5,)), "width must be .* got 1.5"),
        (lambda: fourier_bag(VECTORS, C, features=7), "features must be even.* got 7"),
        (lambda: fourier_bag(VECTORS, C, features=0), "features must be .* got 0"),
        (lambda: fourier_bag(VECTORS, C, hidden=0), "hidden must be .* got 0"),
        (lambda: fourier_bag(VECTORS, C, scale=0), "scale must be above 0, got 0"),
        (lambda: fourier_bag(VECTORS, C, kernel_scale=-1), "kernel_scale .* got -1"),
        (lambda: fourier_bag(VECTORS, C, references=-1), "references .* got -1"),
        (lambda: fourier_bag(VECTORS, C, out_scale=-1.0), "out_scale .* got -1.0"),
        (lambda: fourier_bag(VECTORS, C, dropout=1.0), "dropout must be in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
