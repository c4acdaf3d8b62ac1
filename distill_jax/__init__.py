"""Given n training examples for a text classifier: synthesise them, or choose them?

Dataset distillation and active learning on text as pure functions in JAX. What is
named here is public.
"""

from distill_jax import data, gradients, losses, models, objectives, queries, selection
from distill_jax.compare import compare, distilled, queried, saved, selected
from distill_jax.core import (
    SGD,
    inner_step,
    meta_grad,
    meta_init,
    meta_step,
    unroll,
    unrolled,
)
from distill_jax.distill import Distillation, distill
from distill_jax.names import named
from distill_jax.recipe import RECIPES, Inner, Meta, Recipe, Start, recipe
from distill_jax.results import Result
from distill_jax.stored import load
from distill_jax.task import Task, make_task
from distill_jax.train import Protocol, TrainingSet, evaluate, train
from distill_jax.types import Batch, Distilled, MetaInfo, MetaState, Model

__all__ = [
    "RECIPES",
    "SGD",
    "Batch",
    "Distillation",
    "Distilled",
    "Inner",
    "Meta",
    "MetaInfo",
    "MetaState",
    "Model",
    "Protocol",
    "Recipe",
    "Result",
    "Start",
    "Task",
    "TrainingSet",
    "compare",
    "data",
    "distill",
    "distilled",
    "evaluate",
    "gradients",
    "inner_step",
    "load",
    "losses",
    "make_task",
    "meta_grad",
    "meta_init",
    "meta_step",
    "models",
    "named",
    "objectives",
    "queried",
    "queries",
    "recipe",
    "saved",
    "selected",
    "selection",
    "train",
    "unroll",
    "unrolled",
]
