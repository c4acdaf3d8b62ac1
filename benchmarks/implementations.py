"""What `benchmarks.meta_step` sets side by side: ways to one meta-gradient.

Every implementation gets the same model shapes, starts, sentences and tokens, embeds
the real tokens chunk by chunk through the same frozen table, and averages over the
theta_0 one after the other (on an accelerator, ours all at once).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import SCALE, VOCABULARY, WIDTH
from benchmarks.flops import Flops, count_jaxpr
from distill_jax import core, gradients, losses
from distill_jax.models import MODELS
from distill_jax.types import Batch, Distilled, Model

CHUNK = 64  # real examples in one forward and backward pass
STEP_SIZE = 0.02


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of one measurement.

    Attributes:
        model: name in `MODELS`.
        T: inner steps, each on a minibatch of its own.
        minibatch: sentences in it.
        tokens: in a sentence, distilled or real; all of them count.
        real_batch: real sentences in a meta-step.
        num_theta_0: starts that are averaged.
        classes: C.
        settings: of the model.
    """

    model: str
    T: int
    minibatch: int
    tokens: int
    real_batch: int
    num_theta_0: int = 1
    classes: int = 5
    settings: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """One draw for a configuration.

    Attributes:
        vectors: frozen word vectors `[V, D]`.
        theta_0s: parameters with a leading axis `[N]`.
    """

    config: Config
    vectors: np.ndarray
    theta_0s: Any
    distilled: Distilled
    batch: Batch


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A meta-gradient that is ready to be timed.

    Attributes:
        run: `() -> (loss, {"x", "y_logits", "raw_lr"})` in numpy, float32.
        flops: of one call, None where they are not counted.
        temp_bytes: memory beside arguments and results, likewise.
        compile_seconds: likewise.
    """

    run: Callable[[], tuple[float, dict[str, np.ndarray]]]
    flops: Flops | None = None
    temp_bytes: int | None = None
    compile_seconds: float | None = None


def draw(config: Config, seed: int = 0) -> Problem:
    """Random word vectors, starts, sentences and labels, in float32."""
    c, r = config, np.random.default_rng(seed)

    def normal(scale, *shape) -> Any:
        return r.normal(scale=scale, size=shape).astype(np.float32)

    vectors = normal(SCALE, VOCABULARY, WIDTH)
    keys = jax.random.split(jax.random.key(seed), c.num_theta_0)
    theta_0s = jax.jit(jax.vmap(_model(c, vectors).init))(keys)
    distilled = Distilled(
        x=normal(SCALE, c.T, c.minibatch, c.tokens, WIDTH),
        y_logits=normal(1.0, c.T, c.minibatch, c.classes),
        raw_lr=jax.numpy.full((1, c.T), np.log(np.expm1(STEP_SIZE)), np.float32),
    )
    shape = (c.real_batch, c.tokens)
    batch = Batch(
        x=jax.numpy.asarray(r.integers(1, VOCABULARY, shape, np.int32)),
        mask=jax.numpy.ones(shape, np.float32),
        y=jax.nn.one_hot(r.integers(c.classes, size=shape[0]), c.classes),
    )
    return Problem(c, vectors, theta_0s, *jax.device_put((distilled, batch)))


def _model(config: Config, vectors: np.ndarray, **settings: Any) -> Model:
    settings = dict(config.settings) | settings
    return MODELS[config.model](jnp.asarray(vectors), config.classes, **settings)


def _jax(problem: Problem, **settings: Any) -> Compiled:
    c = problem.config
    loss_fn = losses.cross_entropy(
        _model(c, problem.vectors, **settings.pop("model", {}))
    )
    objective = core.unrolled(
        loss_fn,
        real_loss_fn=gradients.chunked(loss_fn, min(CHUNK, c.real_batch)),
        **{"inner_grad": gradients.mixed_mode, **settings},
    )

    @jax.jit
    def meta_grad(theta_0s, distilled, batch):
        # The starts are given, as they are to PyTorch; drawing them is not timed.
        return core.meta_grad(
            objective,
            lambda i: jax.tree.map(lambda a: a[i], theta_0s),
            distilled,
            jnp.arange(c.num_theta_0),
            batch,
            sequential=jax.default_backend() == "cpu",
        )

    args = (problem.theta_0s, problem.distilled, problem.batch)
    traced = meta_grad.trace(*args)
    lowered = traced.lower()
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()

    def run():
        loss, grad = jax.block_until_ready(compiled(*args))
        grads = {"x": grad.x, "y_logits": grad.y_logits, "raw_lr": grad.raw_lr}
        return float(loss), {name: np.asarray(g) for name, g in grads.items()}

    return Compiled(
        run,
        count_jaxpr(traced.jaxpr.jaxpr),
        memory.temp_size_in_bytes,
        compile_seconds,
    )


def distill_jax(problem: Problem) -> Compiled:
    """The mixed-mode inner gradient: one forward-over-reverse product a step."""
    return _jax(problem)


def distill_jax_plain(problem: Problem) -> Compiled:
    """Reverse over reverse, as `jax.grad` gives it."""
    return _jax(problem, inner_grad=jax.value_and_grad)


def distill_jax_nested(problem: Problem) -> Compiled:
    """Mixed mode, and the steps recomputed in segments of sqrt(T)."""
    return _jax(problem, scan=gradients.checkpointed_scan())


def distill_jax_dense(problem: Problem) -> Compiled:
    """Mixed mode with every window differentiated, not the winners alone.

    Raises:
        ValueError: for a model that has no max over time.
    """
    if problem.config.model not in ("text_cnn", "kim_cnn"):
        raise ValueError(
            f"distill_jax_dense is for text_cnn and kim_cnn, not {problem.config.model}"
        )
    return _jax(problem, model={"pooling": "dense"})


def torch_reference(problem: Problem) -> Compiled:
    """PyTorch double backward; its flops, memory and set-up are not measured.

    Raises:
        ModuleNotFoundError: where PyTorch is not installed.
    """
    import torch

    from benchmarks import torch_reference as reference

    c, as_torch = problem.config, reference.as_torch
    table, tokens = as_torch(problem.vectors), as_torch(problem.batch.x).long()

    class Embedded:
        def __getitem__(self, rows):
            return torch.nn.functional.embedding(tokens[rows], table)

    theta_0s = [
        as_torch(jax.tree.map(lambda a, i=i: a[i], problem.theta_0s))
        for i in range(c.num_theta_0)
    ]
    d, real = problem.distilled, problem.batch
    x, y_logits, raw_lr, mask, y = map(
        as_torch, (d.x, d.y_logits, d.raw_lr, real.mask, real.y)
    )
    real_x: Any = Embedded()

    def run():
        total, mean = 0.0, None
        for theta_0 in theta_0s:
            loss, grad = reference.meta_gradient(
                c.model, theta_0, x, y_logits, raw_lr, real_x, mask, y, chunk=CHUNK
            )
            total += float(loss) / len(theta_0s)
            grad = {name: g / len(theta_0s) for name, g in grad.items()}
            mean = grad if mean is None else {k: mean[k] + g for k, g in grad.items()}
        return total, {name: g.numpy() for name, g in (mean or {}).items()}

    return Compiled(run)


IMPLEMENTATIONS: dict[str, Callable[[Problem], Compiled]] = {
    "distill_jax": distill_jax,
    "distill_jax_plain": distill_jax_plain,
    "distill_jax_nested": distill_jax_nested,
    "distill_jax_dense": distill_jax_dense,
    "torch_reference": torch_reference,
}
