"""Dataset distillation and active learning on text, as pure functions in JAX."""

from distill_jax import data, evaluate, gradients, losses, models, selection
from distill_jax.core import (
    SGD,
    inner_step,
    meta_grad,
    meta_init,
    meta_step,
    unroll,
    unrolled,
)
from distill_jax.types import Batch, Distilled, MetaInfo, MetaState, Model

__all__ = [
    "SGD",
    "Batch",
    "Distilled",
    "MetaInfo",
    "MetaState",
    "Model",
    "data",
    "evaluate",
    "gradients",
    "inner_step",
    "losses",
    "meta_grad",
    "meta_init",
    "meta_step",
    "models",
    "selection",
    "unroll",
    "unrolled",
]
