"""What every registered query must do, and what each score and mechanism promises."""

import inspect
import itertools
import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax import queries
from distill_jax.queries import QUERIES, Context, batch, geometry, uncertainty

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "active_learning.json"
SCORES = ("variation_ratio", "predictive_entropy", "bald", "margin", "least_confidence")
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}

every = pytest.mark.parametrize("name", sorted(QUERIES))
every_score = pytest.mark.parametrize("name", SCORES)
both = pytest.mark.parametrize("dtype", sorted(TOLERANCES))
reads_probabilities = pytest.mark.parametrize(
    "name", sorted(name for name, query in QUERIES.items() if query.passes)
)
reads_features = pytest.mark.parametrize(
    "name", sorted(name for name, query in QUERIES.items() if query.features)
)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the golden values are not beside this checkout")
    return json.loads(GOLDEN.read_text())


def log(probs, dtype="float64"):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, dtype))


def random_log_probs(seed, F, N, C, spread=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(1, N, C)) + spread * rng.normal(size=(F, N, C))
    return np.array(jax.nn.log_softmax(logits))


def pool(seed=0, F=4, N=23, C=3, H=5, labelled=6):
    rng = np.random.default_rng(seed)
    mark = np.zeros(N, bool)
    mark[rng.choice(N, labelled, replace=False)] = True
    return Context(mark, random_log_probs(seed, F, N, C), rng.normal(size=(N, H)))


def unlabelled(N):
    return np.zeros(N, bool)


def pick(name, context, n, seed=0):
    return QUERIES[name].pick(context, n, jax.random.key(seed))


# Golden values


@both
def test_golden_scores(golden, dtype):
    close = dict(rtol=0, atol=TOLERANCES[dtype])
    log_probs = log(golden["probs"], dtype)
    scores = {name: getattr(queries, name)(log_probs) for name in SCORES}
    scores["variation_ratio_mean_prob_variant"] = queries.variation_ratio(
        log_probs, mode="mean"
    )
    scores["predictive_entropy_bits"] = queries.predictive_entropy(log_probs, base=2)
    scores["bald_bits"] = scores["bald"] / math.log(2)
    scores["margin"] = -scores["margin"]
    of_each = [queries.predictive_entropy(one[None]) for one in log_probs]
    scores["expected_entropy"] = np.mean(of_each, 0)
    for name, got in scores.items():
        assert got.dtype == dtype
        np.testing.assert_allclose(got, golden[name], err_msg=name, **close)


@both
def test_golden_rankings(golden, dtype):
    log_probs = log(golden["probs"], dtype)
    ranked = dict(golden["rankings"], margin=golden["rankings"]["margin_ascending"])
    for name in sorted(set(SCORES) & set(ranked)):
        scores = np.round(np.asarray(getattr(queries, name)(log_probs), float), 6)
        order = np.argsort(-scores, kind="stable")
        assert order.tolist() == ranked[name], name


@both
def test_bald_is_not_what_the_comparison_paper_prints(golden, dtype):
    """With the sign it prints, the second term is added: H + E[H], not H - E[H]."""
    log_probs = log(golden["probs"], dtype)
    probs = np.exp(log_probs)
    of_each = -np.where(probs > 0, probs * np.maximum(log_probs, -99), 0).sum(-1)
    printed = np.asarray(queries.predictive_entropy(log_probs)) + of_each.mean(0)
    np.testing.assert_allclose(
        printed, golden["bald_WRONG_sign_as_printed"], atol=TOLERANCES[dtype]
    )
    picked = QUERIES["bald"].pick(Context(unlabelled(6), log_probs), 4, key(0))
    order = np.argsort(-np.round(printed, 6), kind="stable").tolist()
    assert order == golden["rankings"]["bald_WRONG_sign"]
    assert picked.indices.tolist() == golden["rankings"]["bald"][:4] != order[:4]
    assert printed.max() > np.log(3) > picked.scores.max()


@both
def test_golden_extreme_logits(golden, dtype):
    want = golden["extreme_logits"]
    logits = jnp.asarray(want["logits"], dtype)
    log_probs = jax.nn.log_softmax(logits)
    for name in ("predictive_entropy", "bald"):
        got = getattr(queries, name)(log_probs)
        np.testing.assert_allclose(got, want[name], rtol=0, atol=TOLERANCES[dtype])
    got = np.asarray(queries.bald(log_probs))
    np.testing.assert_allclose(got, want["bald"], rtol=1e-5)
    for name in SCORES:
        score = getattr(queries, name)
        gradient = jax.grad(lambda x, f=score: f(jax.nn.log_softmax(x)).sum())(logits)
        assert np.isfinite(gradient).all(), name


@both
def test_golden_batch_bald(golden, dtype):
    """Every joint information of every step, by leaving only that batch to pick."""
    want = golden["batchbald_exact"]
    log_probs = log(golden["probs"], dtype)
    got = pick("batch_bald", Context(unlabelled(6), log_probs), 3)
    assert got.indices.tolist() == want["order"]
    values = [step["value"] for step in want["steps"]]
    np.testing.assert_allclose(got.scores, values, rtol=0, atol=TOLERANCES[dtype])
    for step, so_far in enumerate([[], [2], [2, 3]]):
        for item, value in enumerate(want["steps"][step]["scores"]):
            if value is None:
                continue
            labelled = ~np.isin(np.arange(6), [*so_far, item])
            joint = pick("batch_bald", Context(labelled, log_probs), step + 1).scores
            assert joint[-1] == pytest.approx(value, abs=TOLERANCES[dtype])


@both
def test_golden_k_center(golden, dtype):
    want = golden["kcenter_greedy"]
    points = np.asarray(want["points"], dtype)
    labelled = np.isin(np.arange(len(points)), want["labelled"])
    got = pick("k_center", Context(labelled, features=points), want["k"])
    assert got.indices.tolist() == want["selected_in_order"]
    centres = points[[*want["labelled"], *got.indices]]
    after = distances(points, centres).min(1).max()
    assert after == pytest.approx(want["cover_radius_after"], abs=1e-6)


@both
def test_golden_badge(golden, dtype):
    want = golden["badge"]
    close = dict(rel=0, abs=TOLERANCES[dtype])
    log_probs = log([want["probs_NC"]], dtype)
    context = Context(unlabelled(6), log_probs, np.asarray(want["embedding_ND"], dtype))
    for item, norm in enumerate(want["norm"]):
        alone = context._replace(labelled=np.arange(6) != item)
        assert pick("badge", alone, 1).scores[0] ** 0.5 == pytest.approx(norm, **close)
    seconds = set()
    for seed in range(40):
        got = pick("badge", context, 2, seed)
        first, second = got.indices
        assert first == np.argmax(want["norm"])
        assert first != np.argmax(want["norm_WRONG_without_one_hot"])
        assert got.scores[1] == pytest.approx(
            want["pairwise_sq_dist"][first][second], **close
        )
        seconds.add(second)
    assert seconds == {0, 1, 2, 3, 4}


# Scores


def key(seed):
    return jax.random.key(seed)


@every_score
def test_a_permuted_pool_pass_or_class(name):
    score = getattr(queries, name)
    log_probs = random_log_probs(1, 4, 9, 3)
    want = np.asarray(score(log_probs))
    assert want.shape == (9,) and len(set(want.round(9))) > 2
    rng = np.random.default_rng(2)
    items, passes, classes = (rng.permutation(k) for k in (9, 4, 3))
    np.testing.assert_allclose(score(log_probs[:, items]), want[items], atol=1e-14)
    np.testing.assert_allclose(score(log_probs[passes]), want, atol=1e-14)
    np.testing.assert_allclose(score(log_probs[:, :, classes]), want, atol=1e-14)
    twice = np.concatenate([log_probs, log_probs])
    np.testing.assert_allclose(score(twice), want, atol=1e-14)


@every_score
@both
def test_jit_and_vmap_change_nothing(name, dtype):
    score = getattr(queries, name)
    log_probs = random_log_probs(3, 3, 7, 4).astype(dtype)
    want = score(log_probs)
    atol = {"float64": 1e-14, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(jax.jit(score)(log_probs), want, rtol=0, atol=atol)
    one_by_one = jax.vmap(lambda item: score(item[:, None])[0], in_axes=1)
    np.testing.assert_allclose(one_by_one(log_probs), want, rtol=0, atol=atol)


@both
@pytest.mark.parametrize("F", [1, 3, 10])
def test_equal_passes_have_no_mutual_information(dtype, F):
    one = random_log_probs(4, 1, 200, 5).astype(dtype)
    same = np.repeat(one, F, 0)
    assert (np.asarray(queries.bald(same)) == 0).all()
    assert (np.asarray(queries.variation_ratio(same)) == 0).all()
    np.testing.assert_array_equal(
        queries.predictive_entropy(same), queries.predictive_entropy(one)
    )


@both
def test_bounds_of_bald(dtype):
    slack = TOLERANCES[dtype]
    for F, spread in itertools.product((2, 3, 8), (0.1, 1.0, 30.0)):
        log_probs = random_log_probs(5, F, 100, 5, spread).astype(dtype)
        got = np.asarray(queries.bald(log_probs))
        entropy = np.asarray(queries.predictive_entropy(log_probs))
        assert (got >= 0).all()
        assert (got <= np.minimum(entropy, np.log(min(5, F))) + slack).all()
        assert (entropy >= 0).all() and (entropy <= np.log(5) + slack).all()
    assert got.max() > 0.9 * np.log(5)


@both
def test_bald_of_one_hot_passes_is_the_entropy(dtype):
    votes = np.eye(3)[np.random.default_rng(6).integers(0, 3, (5, 20))]
    log_probs = log(votes, dtype)
    want = queries.predictive_entropy(log_probs)
    assert (np.asarray(want) > 0.4).any()
    np.testing.assert_allclose(
        queries.bald(log_probs), want, rtol=0, atol=TOLERANCES[dtype]
    )


def test_bald_is_the_mean_divergence_from_the_mean():
    log_probs = random_log_probs(7, 6, 30, 4)
    probs = np.exp(log_probs)
    mean = probs.mean(0)
    divergence = (probs * (log_probs - np.log(mean))).sum(-1).mean(0)
    np.testing.assert_allclose(queries.bald(log_probs), divergence, atol=1e-14)
    entropy = -(mean * np.log(mean)).sum(-1)
    np.testing.assert_allclose(queries.predictive_entropy(log_probs), entropy)


def test_small_disagreement_in_float32():
    """The difference of entropies is negative for some and off by 1e-7; ours is not."""
    single = random_log_probs(8, 10, 20_000, 5, spread=1e-3).astype(np.float32)
    exact = np.asarray(queries.bald(single.astype(np.float64)))
    got = np.asarray(queries.bald(single))
    probs = np.exp(single)
    mean = probs.mean(0)
    naive = -(mean * np.log(mean)).sum(-1) + (probs * single).sum(-1).mean(0)
    assert (naive < 0).any() and np.abs(naive - exact).max() > 1e-7
    assert (got > 0).all() and np.abs(got - exact).max() < 3e-9
    np.testing.assert_allclose(got, exact, rtol=1e-2)


@every_score
def test_gradients(name):
    score = getattr(queries, name)

    def total(logits):
        return (score(jax.nn.log_softmax(logits)) * jnp.arange(1.0, 5.0)).sum()

    logits = np.random.default_rng(9).normal(size=(3, 4, 3))
    if name != "variation_ratio":  # piecewise constant
        check_grads(jax.jit(total), (logits,), 1, modes=["rev"])
    zeros = log([[[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [0, 1, 0]]])
    assert np.isfinite(jax.grad(lambda x: score(x).sum())(zeros)).all()


def test_series_and_closed_form_of_phi_meet():
    d = np.array([-0.01, 0.01])
    below, above = (uncertainty._phi(jnp.asarray(d * s)) for s in (1 - 1e-9, 1 + 1e-9))
    np.testing.assert_allclose(below, above, rtol=1e-8)


@every_score
def test_half_precision_is_scored_in_float32(name):
    log_probs = jnp.asarray(random_log_probs(10, 2, 5, 3), jnp.bfloat16)
    assert getattr(queries, name)(log_probs).dtype == jnp.float32


@every_score
def test_one_class(name):
    scores = np.asarray(getattr(queries, name)(np.zeros((2, 4, 1))))
    np.testing.assert_array_equal(scores, np.full(4, -1.0 if name == "margin" else 0))


def test_arguments_of_scores():
    log_probs = random_log_probs(11, 2, 3, 2)
    with pytest.raises(ValueError, match="'votes' or 'mean', got 'median'"):
        queries.variation_ratio(log_probs, mode="median")
    for base in (1, 0, -2, 0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="base must be a number above 1"):
            queries.predictive_entropy(log_probs, base=base)


# Every query


@every
@pytest.mark.parametrize("n", [1, 4, 16, 17])
def test_distinct_unlabelled_and_repeatable(name, n):
    for seed in range(3):
        context = pool(seed)
        got = pick(name, context, n, seed)
        assert got.indices.shape == got.scores.shape == (n,)
        assert got.indices.dtype.kind == "i" and got.scores.dtype.kind == "f"
        assert len(set(got.indices.tolist())) == n
        assert not context.labelled[got.indices].any()
        assert np.isfinite(got.scores).all()
        assert type(got.n_tied_at_cut) is int and got.n_tied_at_cut != 1
        again = pick(name, context, n, seed)
        np.testing.assert_array_equal(got.indices, again.indices)
        np.testing.assert_array_equal(got.scores, again.scores)
        assert n < 17 or got.n_tied_at_cut == 0


@every
def test_inputs_are_read_only(name):
    context = pool()
    for array in context:
        array.flags.writeable = False
    before = [array.copy() for array in context]
    pick(name, context, 5)
    for array, copy in zip(context, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@every
def test_takes_no_more_than_it_says(name):
    """It works without what it does not need, and with jax arrays."""
    query, full = QUERIES[name], pool(F=2)
    least = Context(
        full.labelled,
        jnp.asarray(full.log_probs[: query.passes]) if query.passes else None,
        jnp.asarray(full.features) if query.features else None,
    )
    got = query.pick(least, 3, key(0)).indices
    full = full._replace(log_probs=full.log_probs[: max(query.passes, 1)])
    np.testing.assert_array_equal(got, query.pick(full, 3, key(0)).indices)


@every
def test_identical_items(name):
    """All tied: still the right count, and any labelled one stays out."""
    context = Context(
        np.arange(8) == 2,
        np.repeat(random_log_probs(0, 3, 1, 3), 8, 1),
        np.ones((8, 4)),
    )
    got = pick(name, context, 7)
    assert sorted(got.indices) == [0, 1, 3, 4, 5, 6, 7]
    got = pick(name, context, 3)
    assert len(set(got.indices.tolist())) == 3
    random_by_weight = name in ("random", "power", "badge")
    assert got.n_tied_at_cut == (0 if random_by_weight else tied_of(name))


def tied_of(name):
    """What is still there when the last of 3 of 7 equal items is picked."""
    return 5 if name in ("batch_bald", "k_center") else 7


@every
@both
def test_certain_networks_and_identical_texts(name, dtype):
    """Nothing left to learn: all p are one-hot and equal, half the texts are copies."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(5, 3)), 2, 0).astype(dtype)
    certain = np.tile(log([1, 0, 0], dtype), (3, 10, 1))
    got = pick(name, Context(np.arange(10) < 2, certain, features), 8)
    assert sorted(got.indices) == list(range(2, 10))


@every
def test_bad_counts(name):
    context = pool()
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"must be at least 1: {n}"):
            pick(name, context, n)
    for n in (2.0, "3", None, True, float("nan")):
        with pytest.raises(ValueError, match="must be an integer: "):
            pick(name, context, n)
    with pytest.raises(ValueError, match="asked for 18 items, but 17 of the 23 in"):
        pick(name, context, 18)
    everything = context._replace(labelled=np.ones(23, bool))
    with pytest.raises(ValueError, match="asked for 1 items, but 0 of the 23 in"):
        pick(name, everything, 1)
    empty = Context(np.zeros(0, bool), np.zeros((3, 0, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="asked for 1 items, but 0 of the 0 in"):
        pick(name, empty, 1)
    assert len(pick(name, context, np.int64(2)).indices) == 2


@every
def test_bad_labelled(name):
    context = pool()
    for labelled in (context.labelled.astype(int), context.labelled[None]):
        with pytest.raises(ValueError, match=r"labelled must be bool \[N\]"):
            pick(name, context._replace(labelled=labelled), 2)


@reads_probabilities
def test_bad_log_probs(name):
    context = pool()
    good = context.log_probs
    with pytest.raises(ValueError, match="which are None; score the pool"):
        pick(name, context._replace(log_probs=None), 2)
    for wrong in (good[0], good[:, :-1], good[:0], good[:, :, :0]):
        with pytest.raises(ValueError, match=r"must be \[F, N, C\] with N = 23, got"):
            pick(name, context._replace(log_probs=wrong), 2)
    with pytest.raises(ValueError, match="float32 or float64, got float16"):
        pick(name, context._replace(log_probs=good.astype(np.float16)), 2)
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[3, 12, 1] = bad[0, 17, 2] = value
        with pytest.raises(ValueError, match="item 12 .* class 1 in pass 3"):
            pick(name, context._replace(log_probs=bad), 2)
    for wrong in (np.exp(good), 2 * good, good + 100):
        with pytest.raises(ValueError, match="item 0 are no log-probabilities"):
            pick(name, context._replace(log_probs=wrong), 2)
    bad = good.copy()
    bad[2, 20] = -np.inf
    with pytest.raises(ValueError, match="item 20 .* sum to 0 in pass 2"):
        pick(name, context._replace(log_probs=bad), 2)


@reads_probabilities
def test_one_pass_cannot_disagree(name):
    context = pool(F=1)
    if QUERIES[name].passes == 2:
        with pytest.raises(ValueError, match=f"{called(name)} needs .* F = 2 .*F = 1"):
            pick(name, context, 2)
    else:
        assert len(pick(name, context, 2).indices) == 2


def called(name):
    return "bald" if name == "power" else name


@reads_features
def test_bad_features(name):
    context = pool()
    with pytest.raises(ValueError, match=f"{name} reads Context.features"):
        pick(name, context._replace(features=None), 2)
    for wrong in (context.features[0], context.features[:-1], context.features[:, :0]):
        with pytest.raises(ValueError, match=r"must be \[N, H\] with N = 23, got"):
            pick(name, context._replace(features=wrong), 2)
    with pytest.raises(ValueError, match="must be numbers, got <U"):
        pick(name, context._replace(features=context.features.astype(str)), 2)
    bad = context.features.copy()
    bad[19, 0] = np.nan
    bad[11, 4] = -np.inf
    with pytest.raises(ValueError, match="features of item 11 are not finite"):
        pick(name, context._replace(features=bad), 2)


def test_names():
    needs = {name: (query.passes, query.features) for name, query in QUERIES.items()}
    assert needs == {
        "random": (0, False),
        "variation_ratio": (2, False),
        "predictive_entropy": (1, False),
        "bald": (2, False),
        "margin": (1, False),
        "least_confidence": (1, False),
        "batch_bald": (2, False),
        "badge": (1, True),
        "k_center": (0, True),
        "power": (2, False),
    }
    assert queries.get("bald") is QUERIES["bald"]
    with pytest.raises(ValueError, match="unknown query 'magic'; known: badge, bald"):
        queries.get("magic")


def test_scores_have_one_signature():
    for name in SCORES:
        names = list(inspect.signature(getattr(queries, name)).parameters)
        assert names[:2] == ["log_probs", "key"]


# Mechanisms


def test_random_is_uniform():
    context = Context(np.arange(6) < 2)
    drawn = Counter()
    for seed in range(400):
        drawn.update(pick("random", context, 2, seed).indices.tolist())
    assert set(drawn) == {2, 3, 4, 5}
    assert max(abs(count - 200) for count in drawn.values()) < 45


@every_score
def test_the_highest_scores_in_order(name):
    context = pool(F=7, N=40)
    scores = np.asarray(getattr(queries, name)(context.log_probs))
    got = pick(name, context, 9)
    rest = np.setdiff1d(np.flatnonzero(~context.labelled), got.indices)
    assert (np.diff(got.scores) <= 0).all()
    assert got.scores.min() >= scores[rest].max()
    np.testing.assert_allclose(got.scores, scores[got.indices], atol=1e-14)


def test_ties_are_broken_by_the_key_and_counted():
    """Votes of 2 passes: 0, or 1/2 for the odd items."""
    agree, differ = [[1, 0], [1, 0]], [[1, 0], [0, 1]]
    log_probs = log([agree, differ] * 10).transpose(1, 0, 2)
    context = Context(np.arange(20) >= 18, log_probs)
    firsts = Counter()
    for seed in range(200):
        got = pick("variation_ratio", context, 3, seed)
        assert (got.indices % 2 == 1).all() and got.n_tied_at_cut == 9
        firsts[int(got.indices[0])] += 1
    assert set(firsts) == set(range(1, 18, 2)) and max(firsts.values()) < 45
    assert pick("variation_ratio", context, 9).n_tied_at_cut == 0
    got = pick("variation_ratio", context, 10)
    assert got.n_tied_at_cut == 9 and (got.indices % 2).tolist() == [1] * 9 + [0]


def test_any_score_of_the_whole_pool_with_one_compile():
    shapes, seen = [], []

    def last_class(log_probs, key):
        shapes.append(log_probs.shape)
        return log_probs[0, :, -1] + 0 * jax.random.uniform(key)

    query = queries.by_score(jax.jit(last_class), passes=1)
    context = pool()
    for _ in range(3):
        got = query.pick(context, 4, key(0))
        context.labelled[got.indices] = True
        seen += got.indices.tolist()
    assert shapes == [(4, 23, 3)]
    assert len(set(seen)) == 12
    want = np.sort(context.log_probs[0, seen, -1])[::-1]
    np.testing.assert_allclose(context.log_probs[0, seen, -1], want)


@pytest.mark.parametrize("lift", [queries.by_score, queries.power])
def test_bad_scores_are_named(lift):
    context = pool()

    def broken(log_probs, key):
        return np.where(np.arange(23) == 7, np.nan, 1.0)

    with pytest.raises(ValueError, match="broken scores item 7 with nan"):
        lift(broken, passes=1).pick(context, 2, key(0))

    def short(log_probs, key):
        return np.ones(22)

    with pytest.raises(ValueError, match=r"short must return scores .* got \[22\]"):
        lift(short, passes=1).pick(context, 2, key(0))


# Power


def constant(values):
    return lambda log_probs, key: np.asarray(values, float)


@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_power_draws_in_proportion(beta):
    scores = np.array([1.0, 2, 4, 0, 8])
    query = queries.power(constant(scores), beta, passes=1)
    context = Context(unlabelled(5), random_log_probs(0, 1, 5, 2))
    draws = [query.pick(context, 2, key(seed)).indices for seed in range(600)]
    first = np.bincount([d[0] for d in draws], minlength=5) / 600
    weight = scores**beta
    np.testing.assert_allclose(first, weight / weight.sum(), atol=0.06)
    # The second, by the same weights among those left.
    second = np.bincount([d[1] for d in draws if d[0] == 4], minlength=5)
    left = weight * (np.arange(5) != 4)
    np.testing.assert_allclose(second / second.sum(), left / left.sum(), atol=0.09)


def test_power_of_a_large_beta_is_the_top():
    context = pool(F=6)
    got = queries.power(queries.bald, 1e4).pick(context, 5, key(0))
    want = pick("bald", context, 5)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-14)


def test_power_takes_zeros_last():
    scores = [0, 3.0, 0, 0, 1.0]
    query = queries.power(constant(scores), passes=1)
    context = Context(unlabelled(5), random_log_probs(0, 1, 5, 2))
    thirds = set()
    for seed in range(40):
        got = query.pick(context, 3, key(seed))
        assert set(got.indices[:2]) == {1, 4} and got.n_tied_at_cut == 3
        np.testing.assert_array_equal(got.scores, np.take(scores, got.indices))
        thirds.add(int(got.indices[2]))
    assert thirds == {0, 2, 3}
    assert query.pick(context, 2, key(0)).n_tied_at_cut == 0
    assert query.pick(context, 5, key(0)).n_tied_at_cut == 0


def test_bad_power():
    for beta in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta must be a number above 0"):
            queries.power(queries.bald, beta)
    query = queries.power(queries.margin, passes=1)
    with pytest.raises(ValueError, match="at least 0, got -.* for item 0; shift"):
        query.pick(pool(), 2, key(0))


# Batches


def joint_information(log_probs, items):
    """I(y_items; w) by summing over every configuration of the labels."""
    probs = np.exp(log_probs[:, items])
    F, b, C = probs.shape
    joint = 0.0
    for labels in itertools.product(range(C), repeat=b):
        p = probs[:, np.arange(b), labels].prod(-1).mean()
        joint -= p * np.log(p)
    return joint + (probs * np.log(probs)).sum() / F


@pytest.mark.parametrize("seed", range(4))
def test_batch_bald_is_the_greedy_batch(seed):
    log_probs = random_log_probs(seed, 4, 9, 3, spread=1.5)
    context = Context(np.arange(9) == seed, log_probs)
    got = pick("batch_bald", context, 4)
    chosen, left = [], np.flatnonzero(~context.labelled).tolist()
    for index, score in zip(got.indices, got.scores, strict=True):
        joint = {i: joint_information(log_probs, [*chosen, i]) for i in left}
        best = max(joint, key=joint.get)
        assert index == best
        assert score == pytest.approx(joint[best], abs=1e-12)
        chosen.append(best)
        left.remove(best)


def test_batch_bald_is_submodular():
    context = pool(F=6, N=40)
    bald = np.asarray(queries.bald(context.log_probs))
    got = pick("batch_bald", context, 7)
    gains = np.diff(got.scores, prepend=0)
    assert got.scores[0] == pytest.approx(bald[~context.labelled].max(), abs=1e-12)
    assert (gains > 0).all() and (np.diff(gains) <= 1e-12).all()
    assert (got.scores <= np.cumsum(bald[got.indices]) + 1e-12).all()
    assert got.scores[-1] <= np.log(6) + 1e-12
    alone = pick("bald", context, 7)
    joint = joint_information(context.log_probs, alone.indices)
    assert got.scores[-1] > joint


def test_a_copy_adds_less_than_another_item():
    """BALD takes both copies of the best item, BatchBALD only one."""
    context = pool(F=6, labelled=0)
    best = int(np.argmax(queries.bald(context.log_probs)))
    context.log_probs[:, (best + 1) % 23] = context.log_probs[:, best]
    copies = {best, (best + 1) % 23}
    assert set(pick("bald", context, 2).indices.tolist()) == copies
    for seed in range(6):
        assert set(pick("batch_bald", context, 2, seed).indices.tolist()) != copies


def test_equal_gains_are_broken_by_the_key():
    log_probs = np.repeat(random_log_probs(0, 3, 1, 3), 12, 1)
    context = Context(unlabelled(12), log_probs)
    got = [pick("batch_bald", context, 1, s) for s in range(60)]
    assert {g.n_tied_at_cut for g in got} == {12}
    assert len({int(g.indices[0]) for g in got}) > 8


def test_sampled_batch_bald_nears_the_exact():
    """Exact up to the fourth pick; 80 sampled configurations for the last two."""
    context = pool(F=6, N=30, labelled=0)
    exact = queries.batch_bald(context, 6, key(0), configurations=3**6)
    finals = []
    for seed in range(10):
        got = queries.batch_bald(context, 6, key(seed), configurations=240)
        again = queries.batch_bald(context, 6, key(seed), configurations=240)
        np.testing.assert_array_equal(got.scores, again.scores)
        np.testing.assert_array_equal(got.indices[:4], exact.indices[:4])
        np.testing.assert_allclose(got.scores[:4], exact.scores[:4], atol=1e-12)
        assert (np.diff(got.scores) > 0).all()
        finals.append(joint_information(context.log_probs, got.indices))
        assert got.scores[-1] == pytest.approx(finals[-1], abs=0.02)
    assert len(set(finals)) > 1 or got.scores[-1] != exact.scores[-1]
    assert np.mean(finals) > exact.scores[-1] - 0.01


def test_sampled_configurations_are_unbiased():
    """The mean table over many draws is the exact one, folded by posterior."""
    rng = np.random.default_rng(0)
    probs = np.exp(random_log_probs(1, 4, 5, 3)).transpose(1, 0, 2)
    exact = np.full((1, 4), 1 / 4)
    for p in probs[:3]:
        exact = batch._extended(exact, p, 3**6, rng)
    assert exact.shape == (27, 4)
    rest = probs[3:]
    want = batch._gains(rest, batch._h(rest).sum(-1), exact)
    got = []
    for _ in range(300):
        table = np.full((1, 4), 1 / 4)
        for p in probs[:3]:
            table = batch._extended(table, p, 24, rng)
        assert table.shape == (8, 4)
        assert table.sum() == pytest.approx(1, abs=1e-12)
        got.append(batch._gains(rest, batch._h(rest).sum(-1), table))
    error = np.std(got, 0) / np.sqrt(300)
    assert (np.abs(np.mean(got, 0) - want) < 4 * error).all()
    assert (error < 0.01 * want).all()


@pytest.mark.parametrize("configurations", [60, 10_000])
def test_chunks_of_batch_bald_agree(monkeypatch, configurations):
    context = pool(F=5, N=33)
    want = queries.batch_bald(context, 5, key(1), configurations=configurations)
    monkeypatch.setattr(batch, "_CHUNK", 1)
    got = queries.batch_bald(context, 5, key(1), configurations=configurations)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-13)


def test_memory_of_batch_bald_is_bounded(monkeypatch):
    """Whole, the table of all items would take 2000 x 10,000 x 8 bytes = 160 MB."""
    monkeypatch.setattr(batch, "_CHUNK", 2**17)
    context = pool(F=4, N=2000, C=10, labelled=0)
    peak = peak_bytes(lambda: pick("batch_bald", context, 4))
    assert peak < 12e6


def test_too_few_configurations():
    with pytest.raises(ValueError, match="at least the 3 classes, got 2"):
        queries.batch_bald(pool(), 2, key(0), configurations=2)


def peak_bytes(call):
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Geometry


def distances(left, right):
    return np.linalg.norm(left[:, None] - right[None], axis=-1)


@pytest.mark.parametrize("seed", range(4))
def test_k_center_is_furthest_first(seed):
    context = pool(seed)
    got = pick("k_center", context, 8)
    centres = np.flatnonzero(context.labelled).tolist()
    for index, score in zip(got.indices, got.scores, strict=True):
        nearest = distances(context.features, context.features[centres]).min(1)
        assert index == nearest.argmax()
        assert score == pytest.approx(nearest.max(), abs=1e-12)
        centres.append(index)
    assert (np.diff(got.scores) <= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_k_center_covers_within_twice_the_best(seed):
    points = np.random.default_rng(seed).normal(size=(10, 2))
    between = distances(points, points)

    def radius(centres):
        return between[:, list(centres)].min(1).max()

    got = pick("k_center", Context(np.arange(10) == 3, features=points), 2).indices
    rest = [i for i in range(10) if i != 3]
    best = min(radius([3, *pair]) for pair in itertools.combinations(rest, 2))
    assert best <= radius([3, *got]) <= 2 * best


def test_k_center_without_labels_starts_in_the_middle():
    context = pool(labelled=0)
    middle = context.features.mean(0)
    got = pick("k_center", context, 3)
    away = np.linalg.norm(context.features - middle, axis=-1)
    assert got.indices[0] == away.argmin()
    assert got.scores[0] == pytest.approx(away.min())
    started = context._replace(labelled=np.arange(23) == away.argmin())
    then = pick("k_center", started, 2)
    np.testing.assert_array_equal(got.indices[1:], then.indices)
    np.testing.assert_allclose(got.scores[1:], then.scores)


@both
def test_k_center_takes_copies_of_labelled_texts_last(dtype):
    rng = np.random.default_rng(0)
    points = (100 + rng.normal(size=(10, 3))).astype(dtype)
    points[5:8] = points[0]
    got = pick("k_center", Context(np.arange(10) == 0, features=points), 9)
    assert got.indices[-3:].tolist() == [5, 6, 7]
    assert (got.scores[-3:] == 0).all() and (got.scores[:-3] > 0).all()


def test_k_center_breaks_ties_by_index_and_counts_them():
    square = np.array([[0.0, 0], [1, 1], [-1, 1], [1, -1], [-1, -1]])
    context = Context(np.arange(5) == 0, features=square)
    got = [pick("k_center", context, n) for n in (1, 2, 4)]
    assert [g.indices.tolist() for g in got] == [[1], [1, 2], [1, 2, 3, 4]]
    assert [g.n_tied_at_cut for g in got] == [4, 3, 0]


def test_chunks_of_k_center_agree(monkeypatch):
    context = pool(N=40, labelled=13)
    want = pick("k_center", context, 6)
    monkeypatch.setattr(geometry, "_CHUNK", 1)
    got = pick("k_center", context, 6)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.scores, want.scores)


def gradients(context):
    """`[N, C * H]`, of the mean prediction: what badge never makes."""
    probs = np.exp(context.log_probs).mean(0)
    probs[np.arange(len(probs)), probs.argmax(-1)] -= 1
    return (probs[:, :, None] * context.features[:, None]).reshape(len(probs), -1)


@pytest.mark.parametrize("seed", range(4))
def test_badge_against_explicit_gradients(seed):
    context = pool(seed)
    g = gradients(context)
    got = pick("badge", context, 8, seed)
    norms = np.linalg.norm(g, axis=-1) * ~context.labelled
    assert got.indices[0] == norms.argmax()
    assert got.scores[0] == pytest.approx(norms.max() ** 2, abs=1e-12)
    for i in range(1, 8):
        nearest = distances(g[got.indices[i : i + 1]], g[got.indices[:i]]).min()
        assert got.scores[i] == pytest.approx(nearest**2, abs=1e-12)


def test_badge_is_the_gradient_of_the_loss():
    context = pool(F=1, N=4, labelled=0)
    weights = np.zeros((3, 5))

    def loss(weights, h, bias, y):
        return -jax.nn.log_softmax(weights @ h + bias)[y]

    log_probs = context.log_probs[0]
    explicit = jax.vmap(jax.grad(loss), (None, 0, 0, 0))(
        weights, context.features, log_probs, log_probs.argmax(-1)
    )
    explicit = np.asarray(explicit).reshape(4, -1)
    np.testing.assert_allclose(explicit, gradients(context), atol=1e-14)
    got = pick("badge", context, 2)
    assert got.scores[0] == pytest.approx((explicit**2).sum(-1).max(), abs=1e-12)
    apart = explicit[got.indices[0]] - explicit[got.indices[1]]
    assert got.scores[1] == pytest.approx((apart**2).sum(), abs=1e-12)


def test_badge_draws_by_squared_distance():
    context = pool(1, F=1, N=6, labelled=1)
    context.features[:] *= np.array([[1], [2], [1], [3], [5], [4]])
    g = gradients(context)
    picks = [pick("badge", context, 3, s).indices.tolist() for s in range(800)]
    first = picks[0][0]
    assert {p[0] for p in picks} == {first}
    weight = (distances(g, g[[first]])[:, 0] ** 2) * ~context.labelled
    share = np.bincount([p[1] for p in picks], minlength=6) / 800
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.06)
    assert np.abs(share - weight**0.5 / (weight**0.5).sum()).max() > 0.06
    second = Counter(p[1] for p in picks).most_common(1)[0][0]
    weight = (distances(g, g[[first, second]]).min(1) ** 2) * ~context.labelled
    thirds = [p[2] for p in picks if p[1] == second]
    share = np.bincount(thirds, minlength=6) / len(thirds)
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.08)


def test_badge_never_makes_the_gradients():
    """They would take 1000 x 50 x 64 x 8 bytes = 26 MB."""
    context = pool(F=2, N=1000, C=50, H=64)
    assert peak_bytes(lambda: pick("badge", context, 5)) < 5e6
