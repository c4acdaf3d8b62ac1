"""Active learning as a library: scoring a pool, training, and the loop."""

import dataclasses
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import distill_jax as dj
from distill_jax import active, losses, results
from distill_jax.models import MODELS
from distill_jax.queries import QUERIES, Query
from distill_jax.task import one_hot_batch, padded
from distill_jax.train import accuracy, mean_loss
from distill_jax.types import Batch, Model

N, L, V, C = 70, 5, 30, 3
SETTINGS = {
    "bag": {"hidden": 16},
    "bilstm": {"hidden": 4},
    "kim_cnn": {"filters": 6, "widths": (2,)},
    "fourier_bag": {"features": 8, "hidden": 6, "out_scale": 1.0},
    "mean_cnn": {"filters": 6, "out_scale": 1.0},
    "text_cnn": {"filters": 6, "hidden": 5},
    "transformer": {"width": 8, "heads": 2, "layers": 1, "mlp": 8},
}


def make(name: str, dropout: float = 0.5) -> Model:
    vectors = np.random.default_rng(0).normal(size=(V, 4)).astype(np.float32)
    return MODELS[name](jnp.asarray(vectors), C, dropout=dropout, **SETTINGS[name])


@cache
def corpus() -> tuple[Batch, np.ndarray]:
    """Sentences whose class is the word they hold most."""
    r = np.random.default_rng(1)
    labels = r.integers(C, size=N)
    tokens = np.where(
        r.random((N, L)) < 0.7, 1 + labels[:, None], r.integers(1, V, (N, L))
    )
    tokens[::5, 3:] = 0
    batch = one_hot_batch(tokens, labels, C)
    return batch, labels


@cache
def trained(name: str):
    return make(name).init(jax.random.key(3))


# Scoring


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_chunks_change_no_bit(name):
    score = jax.jit(active.mc_log_probs(make(name)))
    keys = jax.random.split(jax.random.key(0), 3)
    found = [
        np.asarray(score(trained(name), padded(corpus()[0], size), keys))
        for size in (7, 64, N)
    ]
    assert found[0].shape == (3, N, C) and found[1].shape == (3, 2 * 64, C)
    for other in found[1:]:
        assert other[:, :N].tobytes() == found[0].tobytes()
    assert (found[0][0] != found[0][1]).any()


@pytest.mark.parametrize("name", ["bag", "text_cnn"])
def test_a_pass_is_one_network_for_the_whole_pool(name):
    """Each item has what the model gives for it alone under the key of the pass."""
    model, batch = make(name), corpus()[0]
    keys = jax.random.split(jax.random.key(4), 2)
    found = active.mc_log_probs(model, block=8)(trained(name), padded(batch, 10), keys)
    for f, key in enumerate(keys):
        for i in (0, 9, N - 1):
            x = model.embed(trained(name), batch.x[i : i + 1])
            logits = model.apply(trained(name), x, batch.mask[i : i + 1], key=key)
            expected = jax.nn.log_softmax(logits)[0]
            np.testing.assert_allclose(found[f, i], expected, atol=1e-5)


def test_equal_sentences_have_equal_scores_in_each_pass():
    one = jax.tree.map(lambda a: jnp.repeat(a[:1], N, 0), corpus()[0])
    keys = jax.random.split(jax.random.key(4), 3)
    score = active.mc_log_probs(make("bag"))
    found = np.asarray(score(trained("bag"), padded(one, 10), keys))
    assert (found == found[:, :1]).all()
    assert (found[0] != found[1]).any()


def test_what_comes_before_dropout_is_computed_once():
    width = 256

    def apply(params, x, mask, *, key=None):
        h = jnp.tanh(x.mean(1) @ params["in"]) @ params["square"]
        keep = jax.random.bernoulli(key, 0.5, h.shape)
        return (h * keep)[:, :C]

    model = Model(
        lambda key: {"in": jnp.ones((4, width)), "square": jnp.ones((width, width))},
        lambda params, tokens: jax.nn.one_hot(tokens, 4),
        apply,
    )
    chunks = padded(corpus()[0], 10)

    def flops(passes):
        keys = jax.random.split(jax.random.key(0), passes)
        lowered = jax.jit(active.mc_log_probs(model)).lower(
            model.init(keys[0]), chunks, keys
        )
        cost = lowered.compile().cost_analysis()
        assert isinstance(cost, dict)
        return cost["flops"]

    assert flops(10) < 1.5 * flops(1)  # 10 times the square product would be 10


@pytest.mark.parametrize("name", sorted(MODELS))
def test_plain_scores_and_features_are_those_of_the_network(name):
    model, batch = make(name), corpus()[0]
    theta, chunks = trained(name), padded(batch, 10)
    expected = losses.logits_fn(model)(theta, batch)
    plain = active.plain_log_probs(model, block=16)(theta, chunks)
    assert plain.shape == (1, N, C)
    np.testing.assert_allclose(plain[0], jax.nn.log_softmax(expected), atol=1e-5)
    h = active.pool_features(model, block=16)(theta, chunks)
    out = theta["out"]
    np.testing.assert_allclose(
        h @ out["kernel"] + out["bias"][None], expected, atol=1e-5
    )


def test_half_precision_logits_are_scored_in_single():
    def apply(params, x, mask, *, key=None):
        return jnp.full((len(x), C), 0.1, jnp.bfloat16)

    model = Model(lambda key: {}, lambda p, t: jax.nn.one_hot(t, 4), apply)
    found = active.plain_log_probs(model)({}, padded(corpus()[0], 10))
    assert found.dtype == jnp.float32


def test_a_model_without_features_says_so():
    with pytest.raises(ValueError, match="features of the network, and the model has"):
        active.pool_features(make("bag")._replace(features=None))


def test_dropout_is_found_where_it_is():
    batch = corpus()[0]
    for name in ("bag", "text_cnn"):
        assert active.has_dropout(make(name), batch)
        assert not active.has_dropout(make(name, 0.0), batch)


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_each_query_gets_what_it_reads(name):
    query = QUERIES[name]
    batch = corpus()[0]
    score = active.score_with(
        active.scorers(make("bag")), query, padded(batch, 16), N, passes=3
    )
    scored = score(trained("bag"), jax.random.key(0))
    assert (scored.log_probs is None) == (query.passes == 0)
    assert (scored.features is None) == (not query.features)
    if scored.log_probs is not None:
        assert scored.log_probs.shape == (3, N, C)
    if scored.features is not None:
        assert scored.features.shape == (N, 16)


@pytest.mark.parametrize("name", ["bald", "variation_ratio", "batch_bald", "power"])
def test_disagreement_of_one_network_is_refused(name):
    scorers = active.scorers(make("bag"))
    chunks = padded(corpus()[0], 16)
    with pytest.raises(ValueError, match="passes must be at least 2, got 1"):
        active.score_with(scorers, QUERIES[name], chunks, N, passes=1)


# Dropout in training


def test_the_loss_has_dropout_only_with_a_key():
    model, batch = make("bag"), corpus()[0]
    loss = losses.cross_entropy(model)
    plain = loss(trained("bag"), batch)
    dropped = [loss(trained("bag"), batch, key=jax.random.key(i)) for i in (1, 1, 2)]
    assert dropped[0] == dropped[1] != dropped[2]
    assert plain not in dropped
    without = losses.cross_entropy(make("bag", 0.0))
    assert without(trained("bag"), batch, key=jax.random.key(1)) == plain


def test_the_mean_loss_over_chunks_is_that_of_the_whole():
    loss = losses.cross_entropy(make("bag"))
    expected = loss(trained("bag"), corpus()[0])
    for size in (16, N):
        chunks = padded(corpus()[0], size)
        found = mean_loss(loss, trained("bag"), chunks)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


# The pool and its oracle


def test_a_pool_is_never_changed_in_place():
    pool = active.Pool.unlabelled(6)
    asked = pool.ask(np.array([4, 1]))
    answered = asked.answer(np.array([1, 4]), np.array([0, 2]))
    assert (pool.round, asked.round, answered.round) == (-1, 0, 0)
    assert pool.acquired_round.tolist() == [-1] * 6
    assert asked.unanswered.tolist() == [1, 4] and not asked.labelled.any()
    assert answered.labels.tolist() == [-1, 0, -1, -1, 2, -1]
    assert answered.labelled.tolist() == [False, True, False, False, True, False]
    assert not answered.unanswered.size
    assert answered.ask(np.array([0])).acquired_round.tolist() == [1, 0, -1, -1, 0, -1]
    mine = np.zeros(6, bool)
    active.Pool(mine, pool.acquired_round, pool.labels)
    mine[0] = True  # still ours to write
    with pytest.raises(ValueError, match="read-only"):
        pool.labels[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.labels = pool.labels  # type: ignore[misc]


@pytest.mark.parametrize(
    "ids, message",
    [
        ([1, 9], "item 9 does not exist: the pool has 6 items"),
        ([-1], "item -1 does not exist"),
        ([2, 3, 2], "item 2 comes twice"),
        ([1.5], "ids must be integers"),
        ([[1]], "ids must be integers"),
        ([5], "item 5 was asked for before"),
    ],
)
def test_what_cannot_be_asked(ids, message):
    pool = active.Pool.unlabelled(6).ask(np.array([5]))
    with pytest.raises(ValueError, match=message):
        pool.ask(np.array(ids))


@pytest.mark.parametrize(
    "ids, labels, message",
    [
        ([3], [0], "not asked for"),
        ([5], [-1], "item 5 has the label -1"),
        ([5], [0.0], "must give 1 integer labels"),
        ([5], [0, 1], "must give 1 integer labels"),
    ],
)
def test_answers_that_are_refused(ids, labels, message):
    pool = active.Pool.unlabelled(6).ask(np.array([5]))
    with pytest.raises(ValueError, match=message):
        pool.answer(np.array(ids), np.array(labels))


def test_arrays_of_a_pool_have_one_length():
    with pytest.raises(ValueError, match="must all be"):
        active.Pool(np.zeros(2, bool), np.zeros(3), np.zeros(3))


def test_the_simulated_oracle_errs_as_often_as_told():
    labels = np.random.default_rng(0).integers(C, size=4000)
    ids = np.arange(4000)
    assert (active.simulated(labels, C)(ids) == labels).all()
    noisy = active.simulated(labels, C, noise=0.2, seed=1)
    wrong = noisy(ids) != labels
    assert 0.17 < wrong.mean() < 0.23
    assert set(noisy(ids).tolist()) == set(range(C))
    assert (noisy(ids[::-1]) == noisy(ids)[::-1]).all()  # by the item, not the call
    other = active.simulated(labels, C, noise=0.2, seed=2)
    assert (other(ids) != noisy(ids)).any()
    assert (active.simulated(labels, C, noise=1.0)(ids) != labels).all()
    with pytest.raises(ValueError, match="noise must be in"):
        active.simulated(labels, C, noise=1.5)


def test_sizes_in_items_and_percent():
    assert active.num_items("85", 8544) == active.num_items("1%", 8544) == 85
    assert active.num_items(3, 10) == 3
    assert active.num_items("100%", 10) == 10


@pytest.mark.parametrize(
    "size", ["0", "-3", "0%", "0.001%", "101%", "11", "ten", "1.5", "", "nan%", "inf%"]
)
def test_sizes_that_make_no_sense(size):
    with pytest.raises(ValueError, match="query size"):
        active.num_items(size, 10)


def test_rounds_stop_by_rounds_by_budget_or_with_the_pool():
    assert active.query_sizes(100, 10, 20, rounds=3) == [20, 20, 20]
    assert active.query_sizes(100, 10, 20, budget=55) == [20, 20, 5]
    assert active.query_sizes(100, 10, 20, rounds=2, budget=55) == [20, 20]
    assert active.query_sizes(100, 10, 40) == [40, 40, 10]
    assert active.query_sizes(100, 100, 40) == []
    assert len(active.query_sizes(8544, 593, 85)) == 94  # Jacobs et al. 2021


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"budget": 101}, "a budget of 101 labels is larger than the pool of 100"),
        ({"start": 101}, "a start of 101 labels is larger than the pool"),
        ({"rounds": 10}, "10 rounds of 20 are more than the pool"),
        ({"budget": 5}, "a budget of 5 labels is below the start set of 10"),
        ({"size": 0}, "query size must be at least 1, got 0"),
        ({"start": 0}, "start must be at least 1, got 0"),
        ({"rounds": -1}, "must not be negative"),
    ],
)
def test_plans_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        active.query_sizes(**{"total": 100, "start": 10, "size": 20} | arguments)


# Training


def order(items, *, seed=0, most=6, **changes):
    training = active.Training(
        **{"batch_size": 4, "epochs": 3, "min_steps": 0} | changes
    )
    return active.shuffled(np.asarray(items), jax.random.key(seed), training, most)


def test_every_pass_takes_every_item_once():
    items = np.arange(10, 20)
    rows, num_steps = order(items)
    assert rows.shape == (3 * 6, 4) and num_steps == 3
    epochs = rows[:9].reshape(3, 3, 4)
    for epoch in epochs:
        assert sorted(epoch.ravel()) == [-1, -1, *items]
    assert (rows[9:] == -1).all()
    assert (epochs[0] != epochs[1]).any()
    assert (order(items).rows == rows).all()
    assert (order(items, seed=1).rows != rows).any()
    more = order(items, most=9).rows  # room changes nothing else
    assert (more[:18] == rows).all() and (more[18:] == -1).all()


def test_few_items_are_passed_over_until_there_are_enough_steps():
    rows, num_steps = order(np.arange(5), min_steps=10)
    assert num_steps == 4  # two passes of two minibatches, in each of three epochs
    for one_pass in rows[:12].reshape(6, 2, 4):
        assert sorted(one_pass.ravel()) == [-1, -1, -1, 0, 1, 2, 3, 4]
    training = active.Training(batch_size=4, epochs=3, min_steps=10)
    assert training.steps(5) == num_steps
    with pytest.raises(ValueError, match="7 minibatches an epoch, but room for 6"):
        order(np.arange(28))


def test_there_is_room_for_every_smaller_set():
    """Where `min_steps` rounds up, fewer items may take more steps."""
    training = active.Training(batch_size=4, epochs=3, min_steps=20)
    steps = [training.steps(n) for n in range(1, 30)]
    assert steps[12] < max(steps[:12])
    for n in range(1, 30):
        assert training.most_steps(n) == max(steps[:n])


def test_training_is_the_plain_loop_and_keeps_the_best_epoch():
    model, (data, labels) = make("bag", 0.0), corpus()
    loss_fn, tx = losses.cross_entropy(model), optax.adam(0.05)
    held_out = jax.tree.map(lambda a: a[40:], data)
    items = np.arange(10)
    rows, num_steps = order(items)
    said = labels.copy()
    said[3] = (said[3] + 1) % C  # what the oracle says, not what the data hold

    def judge(theta):
        return -loss_fn(theta, held_out)

    grad_fn = jax.jit(jax.grad(loss_fn))
    theta_0 = model.init(jax.random.key(0))
    theta, opt_state, epochs = theta_0, tx.init(theta_0), []
    for epoch in rows[: 3 * num_steps].reshape(3, num_steps, -1):
        for minibatch in epoch:
            real = minibatch[minibatch >= 0]
            y = jax.nn.one_hot(said[real], C)
            batch = Batch(data.x[real], data.mask[real], y)
            grad = grad_fn(theta, batch)
            updates, opt_state = tx.update(grad, opt_state, theta)
            theta = optax.apply_updates(theta, updates)
        epochs.append((float(judge(theta)), theta))
    for sign in (1, -1):  # the last epoch is best, then the first
        fitted = active.best_epoch(loss_fn, lambda t, s=sign: s * judge(t), tx, 3)(
            theta_0, data, said, rows, num_steps, jax.random.key(1)
        )
        best = max(range(3), key=lambda i, s=sign: s * epochs[i][0])
        assert int(fitted.epoch) == best + 1
        assert float(fitted.score) == pytest.approx(sign * epochs[best][0], rel=1e-4)
        for ours, expected in zip(
            jax.tree.leaves(fitted.theta), jax.tree.leaves(epochs[best][1]), strict=True
        ):
            np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_training_that_diverges_is_told():
    model, (data, labels) = make("bag"), corpus()
    rows, num_steps = order(np.arange(10))
    fitted = active.best_epoch(
        losses.cross_entropy(model),
        lambda theta: jnp.float32(jnp.nan),
        optax.sgd(1.0),
        3,
    )(trained("bag"), data, labels, rows, num_steps, jax.random.key(0))
    assert fitted.score == -jnp.inf and fitted.epoch == 0


def test_where_a_round_starts_from():
    fresh, before = {"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}
    assert active.WARM_STARTS["none"](fresh, before) is fresh
    assert active.WARM_STARTS["weights"](fresh, before) is before
    mixed = active.WARM_STARTS["shrink_perturb"](fresh, before)
    assert float(mixed["w"][0]) == pytest.approx(0.5 * 4 + 0.1 * 1)


# The loop


class Loop:
    """A run of four rounds with `bag`, and everything that happens in it."""

    SIZES = (6, 5, 4)

    def __init__(self, name="bald", model=None, **changes):
        self.model, self.query = model or make("bag"), QUERIES[name]
        self.data, self.labels = corpus()
        self.trained, self.saved, self.rounds, self.asked = [], [], [], []
        self.fit = jax.jit(
            active.best_epoch(
                losses.cross_entropy(self.model),
                lambda theta: accuracy(self.model, theta, padded(self.data, 35)),
                optax.adam(0.03),
                3,
            )
        )
        scorers = active.Scorers(*map(jax.jit, active.scorers(self.model)))
        self.score = active.score_with(
            scorers, self.query, padded(self.data, 16), N, passes=4
        )

    def train(self, pool, key, before):
        self.trained.append((int(pool.labelled.sum()), before is not None))
        init_key, order_key, dropout_key = jax.random.split(key, 3)
        theta_0 = self.model.init(init_key)
        if before is not None:
            theta_0 = active.WARM_STARTS["shrink_perturb"](theta_0, before)
        rows, num_steps = order(
            np.flatnonzero(pool.labelled),
            seed=int(jax.random.bits(order_key) % 1000),
            most=8,
        )
        return self.fit(
            theta_0, self.data, pool.labels, rows, num_steps, dropout_key
        ).theta

    def oracle(self, ids):
        self.asked.append(sorted(ids.tolist()))
        return self.labels[ids]

    def go(self, pool=None, before=None, **changes):
        if pool is None:
            pool = active.Pool.unlabelled(N).ask(np.arange(0, 60, 10))
        hooks = {
            "report": self.rounds.append,
            "save": lambda pool, network: self.saved.append((pool, network)),
        } | changes
        oracle = hooks.pop("oracle", self.oracle)
        return active.ask_in_rounds(
            self.query,
            pool,
            oracle,
            self.SIZES,
            self.train,
            self.score,
            jax.random.key(7),
            before=before,
            **hooks,
        )


def same(a: active.Pool, b: active.Pool) -> bool:
    names = [f.name for f in dataclasses.fields(a)]
    return all(getattr(a, n).tobytes() == getattr(b, n).tobytes() for n in names)


@pytest.fixture(scope="module")
def loop():
    run = Loop()
    run.pool = run.go()
    return run


def test_every_round_labels_what_it_asks_and_the_last_labels_are_trained_on(loop):
    counts = np.bincount(loop.pool.acquired_round + 1)
    assert counts.tolist() == [N - 21, 6, 6, 5, 4]
    assert (loop.pool.labelled == (loop.pool.acquired_round >= 0)).all()
    labelled = loop.pool.labelled
    assert (loop.pool.labels[labelled] == loop.labels[labelled]).all()
    assert (loop.pool.labels[~labelled] == -1).all()
    assert [n for n, _ in loop.trained] == [6, 12, 17, 21]
    assert [r.number for r in loop.rounds] == [0, 1, 2, 3]
    assert [int(r.pool.labelled.sum()) for r in loop.rounds] == [6, 12, 17, 21]
    assert [len(r.picked.indices) for r in loop.rounds[:-1]] == [6, 5, 4]
    assert loop.rounds[-1].picked is None
    picks = [sorted(r.picked.indices.tolist()) for r in loop.rounds[:-1]]
    assert loop.asked == [list(range(0, 60, 10)), *picks]


def test_what_is_saved_goes_on_as_if_it_had_never_stopped(loop):
    """With a warm start, from each round: same picks and same last network."""
    assert [pool.round for pool, _ in loop.saved] == [1, 2, 3]
    for i, (pool, network) in enumerate(loop.saved):
        assert pool.unanswered.size == Loop.SIZES[i]
        again = Loop()
        again.fit = loop.fit
        assert same(again.go(pool, network), loop.pool)
        assert [r.number for r in again.rounds] == list(range(i + 1, 4))
        for ours, expected in zip(
            jax.tree.leaves(again.rounds[-1].network),
            jax.tree.leaves(loop.rounds[-1].network),
            strict=True,
        ):
            assert np.asarray(ours).tobytes() == np.asarray(expected).tobytes()


def test_an_oracle_may_end_the_loop_and_answer_later(loop):
    class Later(Exception):
        pass

    def nobody(ids):
        raise Later

    run = Loop()
    run.fit = loop.fit
    with pytest.raises(Later):
        run.go(oracle=nobody)
    assert not run.trained  # not before the start set has labels
    with pytest.raises(Later):
        run.go(oracle=lambda ids: nobody(ids) if run.trained else loop.labels[ids])
    assert len(run.saved) == 1
    assert same(run.saved[0][0], loop.saved[0][0])


def test_a_network_that_nobody_reads_is_not_trained():
    run = Loop("random")
    pool = run.go(report=None)
    assert not run.trained and pool.labelled.sum() == 21
    run = Loop("bald")
    run.go(report=None)
    assert [n for n, _ in run.trained] == [6, 12, 17]


def test_the_trainer_and_the_scorer_are_compiled_once():
    traces = {"train": 0, "score": 0}
    plain = make("bag")

    def apply(params, x, mask, *, key=None):
        if key is not None:
            # Only training sees a batch; scoring sees one item.
            traces["score" if len(x) == 1 else "train"] += 1
        return plain.apply(params, x, mask, key=key)

    run = Loop(model=plain._replace(apply=apply))
    run.go()
    assert len(run.rounds) == 4
    assert traces == {"train": 1, "score": 1}


@pytest.mark.parametrize("asked", [0, 5])
def test_a_pool_in_no_round_of_this_loop_is_refused(asked):
    pool = active.Pool.unlabelled(N)
    for i in range(asked):
        pool = pool.ask(np.array([i]))
    with pytest.raises(ValueError, match=f"the pool is in round {asked - 1}"):
        Loop().go(pool)


def test_your_own_query_works_too():
    def lowest(context, n, key):
        from distill_jax.queries import Picked

        free = np.flatnonzero(~context.labelled)[:n]
        return Picked(free, np.zeros(n), 0)

    run = Loop()
    run.query = Query(lowest, passes=0, features=False)
    pool = run.go(report=None)
    assert np.flatnonzero(pool.acquired_round == 1).tolist() == [1, 2, 3, 4, 5, 6]


# A task


ROUNDS = active.Rounds(start_size=6, query_size="5%", rounds=2, passes=3)
TRAINING = active.Training(epochs=3, min_steps=30, num_inits=2)


def sentences(wrong: int = 0) -> tuple[list[str], list[str]]:
    """Made-up news, told apart by their words; the first have another's label."""
    r = np.random.default_rng(2)
    words = {
        "sport": "team game goal won".split(),
        "money": "bank share cost tax".split(),
    }
    common = [f"w{i}" for i in range(40)]
    labels = [("sport", "money")[i % 2] for i in range(150)]
    texts = [" ".join([*r.choice(words[y], 2), *r.choice(common, 4)]) for y in labels]
    return texts, [
        {"sport": "money"}.get(y, y) if i < wrong else y for i, y in enumerate(labels)
    ]


@cache
def task(wrong: int = 0) -> dj.Task:
    settings = {"length": 8, "hidden": 8, "dropout": 0.3}
    return dj.make_task(sentences(wrong), "bag", embedder="random", **settings)


def arrays_of(found: active.Acquired) -> bytes:
    pool = b"".join(
        getattr(found, f.name).tobytes() for f in dataclasses.fields(active.Pool)
    )
    rounds = [{k: v for k, v in h.items() if k != "seconds"} for h in found.history]
    return pool + repr((rounds, found.asked)).encode()


def test_a_task_is_labelled_in_rounds():
    told, N = [], len(task().train.y)
    found = dj.acquire(
        task(), "bald", rounds=ROUNDS, training=TRAINING, on_round=told.append
    )
    size = round(0.05 * N)
    numbers = [6, 6 + size, 6 + 2 * size]
    assert [one["num_labelled"] for one in found.history] == numbers
    assert [one["round"] for one in found.history] == [0, 1, 2]
    assert found.history == told
    assert found.labelled.sum() == numbers[-1] == len(found.asked)
    ids = [item["id"] for item in found.asked]
    assert sorted(ids) == np.flatnonzero(found.labelled).tolist()
    assert (found.labels[ids] == task().labels[ids]).all()
    for one in found.history:
        assert len(one["accuracies"]) == 2 and all(
            0 <= a <= 1 for a in one["accuracies"]
        )
    texts = [task().dataset.train.texts[i] for i in ids]
    assert found.history[-1]["bytes"] == sum(map(len, texts))
    other = dj.acquire(task(), "random", rounds=ROUNDS, training=TRAINING)
    assert other.history[0]["accuracies"] == found.history[0]["accuracies"]
    assert [a["id"] for a in other.asked[:6]] == ids[:6]


def test_your_own_query_network_and_oracle():
    def first(context, n, key):
        from distill_jax.queries import Picked

        assert context.features is not None and context.features.shape[1] == 4
        return Picked(np.flatnonzero(~context.labelled)[:n], np.zeros(n), 0)

    def my_net(vectors, num_classes, *, scale=1.0):
        def read(params, x, mask):
            return jnp.tanh(scale * x.sum(1) @ params["in"])

        def apply(params, x, mask, *, key=None):
            return read(params, x, mask) @ params["out"]

        def init(key):
            shapes = {"in": (vectors.shape[1], 4), "out": (4, num_classes)}
            return {
                k: jax.random.normal(key, s, vectors.dtype) for k, s in shapes.items()
            }

        return Model(init, lambda p, tokens: vectors[tokens], apply, features=read)

    asked = []

    def everything_is_money(ids):
        asked.append(ids.tolist())
        return np.zeros(len(ids), int)

    mine = dj.make_task(sentences(), my_net, embedder="random", length=8, scale=0.1)
    found = dj.acquire(
        mine,
        dj.named("first", Query(first, passes=0, features=True)),
        everything_is_money,
        rounds=dataclasses.replace(ROUNDS, start=[9, 7]),
        training=TRAINING,
    )
    size = (len(mine.train.y) + 10) // 20
    assert asked[0] == [7, 9] and asked[1][:3] == [0, 1, 2] and len(asked) == 3
    assert found.labels[found.labelled].tolist() == [0] * (2 + 2 * size)
    assert [len(one["accuracies"]) for one in found.history] == [2, 2, 2]


@pytest.mark.parametrize("warm_start", ["none", "weights"])
def test_a_run_in_a_folder_goes_on_and_is_told_by_its_content(tmp_path, warm_start):
    settings = {"rounds": ROUNDS, "seed": 4}
    settings["training"] = dataclasses.replace(TRAINING, warm_start=warm_start)
    unbroken = dj.acquire(task(), "margin", **settings)
    calls = []

    def tired(ids):
        calls.append(len(ids))
        if len(calls) in (1, 3):
            raise TimeoutError("no answer")
        return task().labels[ids]

    for count in (1, 3):
        with pytest.raises(TimeoutError):
            dj.acquire(task(), "margin", tired, folder=tmp_path, **settings)
        assert len(calls) == count
    found = dj.acquire(task(), "margin", tired, folder=tmp_path, **settings)
    assert len(calls) == 5 and arrays_of(found) == arrays_of(unbroken)
    again = dj.acquire(task(), "margin", tired, folder=tmp_path, **settings)
    assert len(calls) == 5 and arrays_of(again) == arrays_of(unbroken)
    assert (tmp_path / "asked.csv").read_text().count("\n") == len(found.asked) + 1
    with pytest.raises(ValueError, match="another run: data was"):
        dj.acquire(task(3), "margin", tired, folder=tmp_path, **settings)
    with pytest.raises(ValueError, match="another run: query was 'margin', now 'bald'"):
        dj.acquire(task(), "bald", tired, folder=tmp_path, **settings)
    with pytest.raises(ValueError, match="another run: oracle was 'tired', now {'ans"):
        dj.acquire(task(), "margin", folder=tmp_path, **settings)
    with pytest.raises(ValueError, match="another run: lr was absent, now 0.1"):
        settings["training"] = dataclasses.replace(settings["training"], lr=0.1)
        dj.acquire(task(), "margin", tired, folder=tmp_path, **settings)


def test_curves_are_rows_and_are_written_once(tmp_path):
    queries, said = {"chance": "random", "mine": dj.named("m", QUERIES["bald"])}, []
    places = {"folder": tmp_path, "rows": tmp_path / "rows.jsonl"}
    settings = {"rounds": ROUNDS, "training": TRAINING, "config": {"why": "test"}}
    rows = active.learning_curves(
        task(), queries, [0, 5], **settings, **places, say=said.append
    )
    cells = [(row.method, row.seed, row["round"]) for row in rows]
    order = [(n, s, r) for s in (0, 5) for n in queries for r in range(3)]
    assert cells == order and results.read(places["rows"]) == rows
    everything = active.all_labels(task(), training=TRAINING)
    for row in rows:
        assert row["data"] == task().sha256 and row["config"]["why"] == "test"
        assert row["config"]["query_size"] == "5%" and row["config"]["epochs"] == 3
        assert row["full_accuracy_mean"] == everything.mean()
    assert "All " in said[0] and "chance, seed 0, round 0: 6 labels" in said[1]
    # Also by one that was killed before it could note that it was done.
    content = places["rows"].read_bytes()
    for folder in tmp_path.glob("mine-5/checkpoints/step_3"):
        shutil.rmtree(folder)
    again = active.learning_curves(task(), queries, [0, 5], **settings, **places)
    assert [row["accuracies"] for row in again] == [row["accuracies"] for row in rows]
    assert places["rows"].read_bytes() == content


def test_training_that_diverges_says_what_to_do():
    training = dataclasses.replace(TRAINING, lr=1e30, select="loss")
    with pytest.raises(ArithmeticError, match="no finite loss in 3 epochs: lower lr"):
        dj.acquire(task(), "random", rounds=ROUNDS, training=training)


def test_progress_is_told():
    told = []
    active.all_labels(task(), training=TRAINING, report=lambda *now: told.append(now))
    assert told == [("all labels", done, 2) for done in range(3)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"min_steps": -1}, "min_steps must not be negative, got -1"),
        ({"select": "luck"}, "select must be accuracy or loss, got 'luck'"),
        ({"warm_start": "hot"}, "unknown warm_start 'hot'; known: none"),
    ],
)
def test_training_that_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        active.Training(**changes)
