"""Fewer bytes: what is stored comes back, and factors are learned as sentences are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from distill_jax import artifact, compact, core, losses, parallel
from distill_jax.types import Batch, Distilled
from tests import tiny

S, B, L, D, C, E = 2, 3, 5, 8, 4, 6


@pytest.fixture
def distilled():
    r = np.random.default_rng(0)
    x = r.normal(size=(S, B, L, D)) * 10.0 ** r.integers(-4, 3, (S, B, L, 1))
    x[0, 0, 0] = 0
    y_logits = 3 * r.normal(size=(S, B, C))
    return Distilled(x, y_logits, r.normal(size=(E, S)))


@pytest.mark.parametrize("kind", compact.KINDS)
def test_the_error_is_at_most_what_the_numbers_allow(distilled, kind):
    got = compact.restore(compact.quantise(distilled, kind))
    error = abs(np.asarray(got.x, np.float64) - distilled.x)
    if kind == "int8":
        row = abs(distilled.x).max(-1, keepdims=True)
        assert (error <= row / 254 * 1.0001).all() and error.max() > 1e-3
    else:
        bound = {"float32": 2.0**-24, "float16": 2.0**-11}[kind]
        subnormal = {"float32": 2.0**-149, "float16": 2.0**-24}[kind]
        assert (error <= bound * abs(distilled.x) + subnormal).all()
    np.testing.assert_allclose(got.y_logits, distilled.y_logits, rtol=2.0**-10)
    np.testing.assert_allclose(got.lr, distilled.lr, rtol=2e-3)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(got))
    assert (np.asarray(got.x)[0, 0, 0] == 0).all()
    again = compact.restore(compact.quantise(got, kind))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, again)


def test_the_bytes(distilled):
    n, rest = S * B * L * D, S * B * C + E * S
    sizes = {
        k: compact.num_bytes(compact.quantise(distilled, k)) for k in compact.KINDS
    }
    assert sizes == {
        "float32": 4 * (n + rest),
        "float16": 2 * (n + rest),
        "int8": n + 4 * S * B * L + 2 * rest,
    }


def test_a_row_at_the_edge_of_int8():
    x = np.array([[[[-1.0, 1.0, 0.5, 127.0 / 254]]]])
    one = Distilled(x, np.zeros((1, 1, 2)), np.zeros((1, 1)))
    arrays = compact.quantise(one, "int8")
    assert arrays["x"].tolist() == [[[[-127, 127, 64, 64]]]]
    tiny_ones = Distilled(x * 1e-44, np.zeros((1, 1, 2)), np.zeros((1, 1)))
    assert np.isfinite(compact.restore(compact.quantise(tiny_ones, "int8")).x).all()


def test_what_a_kind_cannot_hold(distilled):
    with pytest.raises(ValueError, match="unknown kind 'int4'; known: float32"):
        compact.quantise(distilled, "int4")
    large = Distilled(distilled.x * 1e6, distilled.y_logits, distilled.raw_lr)
    with pytest.raises(ValueError, match="x must be finite and at most 65504"):
        compact.quantise(large, "float16")
    got = compact.restore(compact.quantise(large, "int8"))
    np.testing.assert_allclose(got.x, large.x, atol=abs(large.x).max() / 250)
    bad = Distilled(distilled.x * np.nan, distilled.y_logits, distilled.raw_lr)
    with pytest.raises(ValueError, match="x must be finite"):
        compact.quantise(bad, "int8")
    arrays = compact.quantise(distilled, "int8")
    with pytest.raises(ValueError, match="where it is int8; got raw_lr, x, y_logits"):
        compact.restore({k: v for k, v in arrays.items() if k != "x.scale"})
    with pytest.raises(ValueError, match=r"x.scale must be \[2, 3, 5, 1\]"):
        compact.restore(arrays | {"x.scale": arrays["x.scale"][..., 0]})
    with pytest.raises(ValueError, match="unknown kind 'float64'"):
        compact.restore(compact.quantise(distilled, "float32") | {"x": distilled.x})
    with pytest.raises(ValueError, match="got nothing"):
        compact.restore({})


@pytest.mark.parametrize("make", [compact.low_rank, compact.shared_basis])
@pytest.mark.parametrize("kind", compact.KINDS)
def test_factors_are_stored_as_factors(make, kind, tmp_path):
    r = np.random.default_rng(2)
    one = Distilled(
        jnp.asarray(r.normal(size=(S, B, L, D))),
        jnp.zeros((S, B, C)),
        jnp.zeros((E, S)),
    )
    p = make(2)
    factored = compact.compress(one, p)
    arrays = compact.quantise(factored, kind)
    size = {"float32": 4, "float16": 2, "int8": 1}[kind]
    numbers = sum(a.size for a in jax.tree.leaves(factored.x))
    scales = sum(a.nbytes for name, a in arrays.items() if name.endswith(".scale"))
    rest = max(size, 2) * (S * B * C + E * S)
    assert compact.num_bytes(arrays) == size * numbers + scales + rest
    assert (scales > 0) == (kind == "int8")
    path = compact.save(tmp_path / "a.safetensors", factored, {}, kind=kind)
    got = artifact.to_distilled(compact.load(path)).x
    expected = np.asarray(compact.expand(factored, p).x)
    atol = {"float32": 1e-5, "float16": 1e-2, "int8": 0.06}[kind]
    np.testing.assert_allclose(got, expected, atol=atol)


@pytest.mark.parametrize("kind", compact.KINDS)
def test_a_file_is_an_artefact(distilled, kind, tmp_path):
    card = {"corpus": {"name": "made up"}, "label_names": list("abcd")}
    path = compact.save(tmp_path / "new" / "a.safetensors", distilled, card, kind=kind)
    got = compact.load(path)
    assert {k: got.card[k] for k in card} == card
    stored = compact.num_bytes(compact.quantise(distilled, kind))
    assert got.card["compact"] == {"kind": kind, "bytes": stored}
    assert stored < path.stat().st_size < stored + 800
    expected = compact.restore(compact.quantise(distilled, kind))
    jax.tree.map(np.testing.assert_array_equal, artifact.to_distilled(got), expected)
    assert set(got.arrays) == set(artifact.AXES)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damaged_files(distilled, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no compact file at"):
        compact.load(path)
    with pytest.raises(ValueError, match="the card must hold finite JSON"):
        compact.save(path, distilled, {"a": np.nan}, kind="int8")
    assert not path.exists()
    compact.save(path, distilled, {}, kind="int8")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="is not whole safetensors"):
        compact.load(path)
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match="was changed"):
        compact.load(path)
    path.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}))
    with pytest.raises(ValueError, match="has format None"):
        compact.load(path)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (compact.low_rank, lambda r: S * B * r * (L + D)),
        (compact.shared_basis, lambda k: k * (S * B * L + D)),
    ],
)
def test_factors_are_the_closest(distilled, make, size):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(S, B, L, D)))
    errors = []
    for rank in (1, 2, L):
        p = make(rank)
        factors = p.compress(x)
        assert sum(a.size for a in jax.tree.leaves(factors)) == size(rank)
        got = p.expand(factors)
        assert got.shape == x.shape
        matrices = x if make is compact.low_rank else x.reshape(-1, D)
        left_out = jnp.linalg.svd(matrices, compute_uv=False)[..., rank:]
        errors.append(float(((got - x) ** 2).sum()))
        assert errors[-1] == pytest.approx(float((left_out**2).sum()), abs=1e-9)
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[1]
    np.testing.assert_allclose(
        compact.low_rank(L).expand(compact.low_rank(L).compress(x)), x, atol=1e-12
    )


def test_ranks_that_make_no_sense(distilled):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        compact.low_rank(0)
    with pytest.raises(ValueError, match="k must be at least 1, got -1"):
        compact.shared_basis(-1)
    with pytest.raises(ValueError, match="rank must be at most 5 for .* 5 x 8"):
        compact.low_rank(6).compress(distilled.x)
    with pytest.raises(ValueError, match="k must be at most 8 for .* 30 x 8"):
        compact.shared_basis(9).compress(distilled.x)


@pytest.mark.parametrize("make", [compact.low_rank, compact.shared_basis])
def test_the_meta_gradient_of_factors(make):
    """By the chain rule, and by finite differences, in float64."""
    state, batch = tiny.problem()
    p = make(2)
    factored = compact.compress(jax.tree.map(jnp.asarray, state.distilled), p)
    objective = compact.composed(tiny.OBJECTIVE, p)
    theta_0 = tiny.MODEL.init(jax.random.key(0))
    whole = compact.expand(factored, p)

    @jax.jit
    def both(factored, whole):
        direct = jax.grad(objective)(factored, theta_0, batch)
        of_x = jax.grad(tiny.OBJECTIVE)(whole, theta_0, batch)
        (chained,) = jax.vjp(p.expand, factored.x)[1](of_x.x)
        return direct, chained, of_x

    direct, chained, of_x = both(factored, whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), direct.x, chained
    )
    np.testing.assert_allclose(direct.y_logits, of_x.y_logits, rtol=1e-10)
    step = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(2), a.shape), factored
    )
    along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), direct, step)))
    value = jax.jit(objective)
    ends = [
        value(jax.tree.map(lambda a, b, s=s: a + s * b, factored, step), theta_0, batch)
        for s in (1e-5, -1e-5)
    ]
    assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(float(along), rel=1e-6)


@pytest.mark.parametrize("make", [compact.low_rank, compact.shared_basis])
def test_factors_learn_by_the_usual_meta_step(make):
    """With an optimizer for each leaf, as experiments have."""
    state, batch = tiny.problem()
    p = make(1)
    factored = compact.compress(jax.tree.map(jnp.asarray, state.distilled), p)
    leaves = {"x": optax.adam(0.1), "y": optax.adam(0.1), "lr": optax.set_to_zero()}
    tx = optax.multi_transform(leaves, Distilled("x", "y", "lr"))  # type: ignore
    objective = compact.composed(tiny.OBJECTIVE, p)
    step = parallel.jit_meta_step(objective, tiny.MODEL.init, tx)
    state = core.meta_init(tx, jax.tree.map(jnp.array, factored))
    found = []
    for number in range(30):
        keys = jax.random.split(jax.random.key(number), 2)
        state, info = step(state, keys, batch)
        found.append(float(info.meta_loss))
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])
    np.testing.assert_array_equal(state.distilled.raw_lr, factored.raw_lr)
    x = compact.expand(state.distilled, p).x
    flat = x if make is compact.low_rank else x.reshape(-1, x.shape[-1])
    assert (np.linalg.matrix_rank(np.asarray(flat), tol=1e-8) <= 1).all()


def test_a_restored_set_trains_as_before():
    """Accuracy on made-up text from int8 sentences is that from float32 ones."""
    best, keys = tiny.run().best, jax.random.split(jax.random.key(1), 8)
    accuracy = {
        kind: np.array([tiny.validate(restored, key) for key in keys])
        for kind in compact.KINDS
        for restored in [compact.restore(compact.quantise(best, kind))]
    }
    assert accuracy["float32"].mean() > 0.6
    for kind in ("float16", "int8"):
        np.testing.assert_allclose(accuracy[kind], accuracy["float32"], atol=0.05)


def test_a_batch_of_restored_sentences(distilled):
    """What comes back is a batch that a loss takes."""
    got = compact.restore(compact.quantise(tiny.problem()[0].distilled, "float16"))
    loss = losses.cross_entropy(tiny.MODEL)
    first = jax.tree.map(lambda a: a[0], got.batches)
    assert isinstance(first, Batch)
    assert np.isfinite(loss(tiny.MODEL.init(jax.random.key(0)), first))


# Sentences that learn their lengths.


@pytest.fixture
def ragged(distilled):
    x = np.array(distilled.x)
    x[0, 1, 2:] = 0
    x[1, 2, 0] = 0
    return Distilled(x, distilled.y_logits, distilled.raw_lr, ragged=True)


@pytest.mark.parametrize("kind", compact.KINDS)
def test_only_the_words_are_stored(ragged, kind, tmp_path):
    words = S * B * L - 1 - 3 - 1
    arrays = compact.quantise(ragged, kind)
    assert arrays["x"].shape == (words, D) and arrays["x.kept"].sum() == words
    rest = S * B * C + E * S
    size = {"float32": 4, "float16": 2, "int8": 1}[kind]
    scales = 4 * words if kind == "int8" else 0
    assert compact.num_bytes(arrays) == (
        size * words * D + scales + S * B * L + (4 if kind == "float32" else 2) * rest
    )
    got = compact.restore(arrays)
    assert got.ragged
    np.testing.assert_array_equal(got.mask, ragged.mask)
    plain = Distilled(ragged.x, ragged.y_logits, ragged.raw_lr)
    np.testing.assert_array_equal(
        got.x, compact.restore(compact.quantise(plain, kind)).x
    )
    path = compact.save(tmp_path / "set.safetensors", ragged, {"a": 1}, kind=kind)
    again = artifact.to_distilled(compact.load(path))
    assert again.ragged
    np.testing.assert_array_equal(again.x, got.x)


def test_what_does_not_fit_sentences_of_learned_lengths(ragged):
    with pytest.raises(ValueError, match="stored whole, not factored"):
        compact.compress(ragged, compact.low_rank(1))
    arrays = compact.quantise(ragged, "float32")
    for kept in (arrays["x.kept"] * 0, arrays["x.kept"].astype(np.int32)):
        with pytest.raises(ValueError, match="x.kept must mark the 25 words"):
            compact.restore(arrays | {"x.kept": kept})
    for kept in (0, 1.5):
        with pytest.raises(ValueError, match=rf"kept must be in \(0, 1\], got {kept}"):
            compact.drop_words(kept, 3)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        compact.drop_words(0.5, 0)
    tx = compact.drop_words(0.5, 3)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(jnp.ones((2, 3)), tx.init(None))


def test_the_shortest_of_all_words_go_and_stay_gone():
    """K is 8 * (1/4 + 3/4 * (1 - k / 2)^3): 3 and then 2 of 8 words."""
    x = np.zeros((1, 2, 4, 2))
    x[0, :, :, 0] = [[3.0, 2.5, -2.0, 1.5], [1.0, 0.5, 0.2, 0.1]]
    tx = compact.drop_words(0.25, 2)
    state, x = tx.init(x), jnp.asarray(x)
    for up, expected in (
        (0.1, [[3.1, 2.6, -1.9, 0], [1.1, 0, 0, 0]]),
        (0.1, [[3.2, 2.7, 0, 0], [1.2, 0, 0, 0]]),  # 1.2: each keeps its longest
        (5.0, [[8.2, 7.7, 0, 0], [6.2, 0, 0, 0]]),
    ):
        updates, state = tx.update(jnp.zeros_like(x).at[..., 0].set(up), state, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x[0, :, :, 0], expected, atol=1e-12)
        assert not np.asarray(x)[0][np.asarray(expected) == 0].any()


def test_a_word_that_is_gone_is_as_one_that_never_was():
    """In training, and for the derivative of what is left."""
    d = jax.tree.map(jnp.asarray, tiny.problem()[0].distilled)
    gone = d.replace(x=d.x.at[:, :, -1].set(0), ragged=True)
    short = d.replace(x=d.x[:, :, :-1])
    theta, batch = tiny.MODEL.init(jax.random.key(0)), tiny.real_batch(0)
    objective = jax.jit(jax.value_and_grad(tiny.OBJECTIVE))
    (a, of_gone), (b, of_short) = (objective(x, theta, batch) for x in (gone, short))
    np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(of_gone.x[:, :, :-1], of_short.x, rtol=1e-9)
    assert not np.asarray(of_gone.x)[:, :, -1].any()
    np.testing.assert_allclose(of_gone.raw_lr, of_short.raw_lr, rtol=1e-9)
