"""The meta-gradient of every model equals that of PyTorch double backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import core, gradients, losses
from distill_jax.models import MODELS
from distill_jax.types import Batch, Distilled

torch = pytest.importorskip("torch", reason="PyTorch is the extra torch")
reference = pytest.importorskip("benchmarks.torch_reference")

S, E, B, L, D, C, N = 2, 2, 3, 6, 5, 3, 6
SMALL = {
    "text_cnn": {"widths": (2, 3), "filters": 4, "hidden": 5},
    "kim_cnn": {"widths": (1, 2, 4), "filters": 3},
    "bag": {"hidden": 5},
    "mean_cnn": {"widths": (1, 3), "filters": 4, "references": 0, "out_scale": 1.0},
    "fourier_bag": {"features": 8, "hidden": 9, "references": 0, "out_scale": 1.0},
    "bilstm": {"hidden": 3, "layers": 2},
    "transformer": {"width": 8, "heads": 2, "layers": 2, "mlp": 6},
}
GRADIENTS = {"reverse": jax.value_and_grad, "mixed": gradients.mixed_mode}


@functools.cache
def problem(name):
    rng = np.random.default_rng(1)
    model = MODELS[name](rng.normal(size=(9, D)), C, **SMALL.get(name, {}))
    theta_0 = jax.jit(model.init)(jax.random.key(2))
    distilled = Distilled(
        x=jnp.asarray(rng.normal(size=(S, B, L, D))),
        y_logits=jnp.asarray(rng.normal(size=(S, B, C))),
        raw_lr=jnp.asarray(rng.normal(size=(E, S))),
    )
    # An empty sentence, a full one, and a row that counts for nothing.
    length = np.array([0, L, 1, 4, 3, 2])[:, None]
    mask = (np.arange(L)[None] < length).astype(float)
    tokens = rng.integers(1, 9, (N, L)) * mask.astype(int)
    y = rng.dirichlet(np.ones(C), N)
    y[4] = 0
    batch = Batch(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(y))
    return model, theta_0, distilled, batch


@functools.cache
def by_torch(name, momentum):
    model, theta_0, distilled, batch = problem(name)
    arrays = (
        distilled.x,
        distilled.y_logits,
        distilled.raw_lr,
        model.embed(theta_0, batch.x),
        batch.mask,
        batch.y,
    )
    return reference.meta_gradient(
        name,
        reference.as_torch(theta_0),
        *map(reference.as_torch, arrays),
        momentum=momentum,
        chunk=4,
    )


def close(ours, theirs):
    """Within 1e-10 of the largest entry."""
    theirs = np.asarray(theirs)
    assert abs(np.asarray(ours) - theirs).max() <= 1e-10 * abs(theirs).max()


@pytest.mark.parametrize("inner", sorted(GRADIENTS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_meta_gradient_equals_double_backward(name, inner):
    model, theta_0, distilled, batch = problem(name)
    objective = core.unrolled(losses.cross_entropy(model), inner_grad=GRADIENTS[inner])
    loss, grad = jax.jit(jax.value_and_grad(objective))(distilled, theta_0, batch)
    torch_loss, torch_grad = by_torch(name, 0.0)
    close(loss, torch_loss)
    for leaf in ("x", "y_logits", "raw_lr"):
        assert np.abs(torch_grad[leaf].numpy()).max() > 1e-4
        close(getattr(grad, leaf), torch_grad[leaf])


def test_momentum_equals_double_backward():
    model, theta_0, distilled, batch = problem("bag")
    objective = core.unrolled(
        losses.cross_entropy(model),
        inner_tx=optax.trace(0.9),
        inner_grad=gradients.mixed_mode,
    )
    loss, grad = jax.jit(jax.value_and_grad(objective))(distilled, theta_0, batch)
    torch_loss, torch_grad = by_torch("bag", 0.9)
    assert abs(torch_loss - by_torch("bag", 0.0)[0]) > 1e-3
    close(loss, torch_loss)
    for leaf in ("x", "y_logits", "raw_lr"):
        close(getattr(grad, leaf), torch_grad[leaf])


def test_the_fused_lstm_of_the_reference_equals_its_loop():
    model, theta_0, _, batch = problem("bilstm")
    params = reference.as_torch(theta_0)
    x = reference.as_torch(model.embed(theta_0, batch.x))
    for mask in (reference.as_torch(batch.mask), None):
        loop = reference.bilstm(params, x, mask)
        close(reference.bilstm_once(params, x, mask), loop)
    with pytest.raises(ValueError, match="padding at the end"):
        reference.bilstm_once(params, x, reference.as_torch(batch.mask).flip(1))


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="unknown model 'rnn', known: .*bilstm"):
        reference.meta_gradient("rnn", *[None] * 7)
