"""A leaf of the user's own, a weight for each word, learned beside the sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import artifact, compact, gradients, stored
from distill_jax.task import take

WORDS = ["good fine great", "bad poor awful", "film plot actor scene"]


def weighted(model):  # all that a user writes: where the leaf is read ...
    plain = dj.losses.cross_entropy(model)

    def loss(theta, batch, route=None, *, key=None):
        weight = batch.more.get("word_weight", jnp.ones_like(batch.mask))
        x = dj.losses.embedded(model, theta, batch) * weight[..., None]
        return plain(theta, batch.replace(x=x), key=key)

    return loss


def ones(x):  # ... and how it starts, [S, B, L]
    return jnp.ones(x.shape[:3])


@pytest.fixture(scope="module")
def task():
    r = np.random.default_rng(0)
    labels = np.arange(120) % 2
    texts = [" ".join(r.choice(f"{WORDS[c]} {WORDS[2]}".split(), 4)) for c in labels]
    options = {"embedder": "random", "length": 4, "hidden": 4, "loss": weighted}
    return dj.make_task((texts, labels), "bag", **options)


RECIPE = dj.recipe(
    "bag",
    inner__passes=3,
    inner__minibatches=2,
    inner__grad="mixed",
    start__more={"word_weight": ones},
    meta__steps=6,
    meta__real_batch=16,
    meta__real_chunk=16,
    meta__validate_every=2,
    meta__checkpoint_every=2,
)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_is_differentiated(task):
    r = np.random.default_rng(1)
    d = dj.Distilled(
        jnp.asarray(r.normal(size=(2, 3, 4, 50))),
        jnp.asarray(r.normal(size=(2, 3, 2))),
        jnp.asarray(r.normal(size=(3, 2))),
        more={"word_weight": jnp.asarray(r.uniform(size=(2, 3, 4)))},
    )
    theta, real = task.model.init(jax.random.key(0)), take(task.train, np.arange(8))
    mixed, plain = (
        jax.jit(jax.grad(dj.unrolled(task.loss_fn, inner_grad=how)))(d, theta, real)
        for how in (gradients.mixed_mode, jax.value_and_grad)
    )
    for a, b in zip(jax.tree.leaves(mixed), jax.tree.leaves(plain), strict=True):
        assert abs(b).max() > 1e-4 and abs(a - b).max() <= 1e-12 * abs(b).max()


def test_it_is_learned_resumed_saved_and_loaded(task, tmp_path):
    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.step >= 4:
            raise Stopped

    def run(folder, **options):
        options = {"folder": tmp_path / folder, "progress": False, **options}
        return dj.distill(task, RECIPE, 2, **options)

    whole = run("whole")
    with pytest.raises(Stopped):
        run("stopped", report=stop)
    resumed = run("stopped")
    equal(resumed.best, whole.best)
    assert resumed.history == whole.history
    weight = whole.best.more["word_weight"]
    assert weight.shape == (2, 2, 4) and abs(weight - 1).max() > 1e-3

    saved = artifact.load(stored.save(whole, tmp_path / "artefact"))
    equal(artifact.to_distilled(saved), whole.best)
    equal(stored.load(tmp_path / "artefact", task).native.distilled, whole.best)
    small = compact.restore(compact.quantise(whole.best, "float16"))
    assert abs(small.more["word_weight"] - weight).max() < 1e-3

    def loss(leaf):  # the network that is trained on it reads it
        batch = jax.tree.map(lambda a: a[0], whole.best.replace(more=leaf).batches)
        return task.loss_fn(task.model.init(jax.random.key(0)), batch)

    assert abs(loss(whole.best.more) - loss({})) > 1e-6
