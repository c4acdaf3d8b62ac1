"""What a recipe makes of a task: where sentences start, and by what they are learned.

The start, the objective and the outer optimizer; `core.py` has the maths, `distill.py`
the run.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import (
    compact,
    core,
    gradients,
    objectives,
    starts,
)
from distill_jax.names import resolve
from distill_jax.recipe import Recipe
from distill_jax.task import Task, embedded, take
from distill_jax.types import Distilled, Objective
from distill_jax.windows import WINDOWS, num_starts

HARD = 1e4  # a logit this far below the others has probability zero, exactly


INNER_TX = {
    "sgd": core.SGD,
    "momentum": optax.trace(0.9),
    # With eps_root = 0 the derivative at an exactly zero gradient is infinite.
    "adam": optax.scale_by_adam(eps_root=1e-8),
}


INNER_GRAD = {"mixed": gradients.mixed_mode, "plain": jax.value_and_grad}


SCANS = {"none": jax.lax.scan, "nested": gradients.checkpointed_scan()}


def inner_tx_of(recipe: Recipe) -> optax.GradientTransformation:
    """The direction of an inner step."""
    return resolve(recipe.inner.optimizer, INNER_TX, "inner optimizer")


def at_most(recipe: Recipe, n: int) -> Recipe:
    """The recipe with `inner.most` turned into minibatches and passes for n examples.

    As many inner steps, in the fewest minibatches that divide n.
    """
    most = recipe.inner.most
    if not 0 < most < n:
        return recipe
    S = next(S for S in range(-(-n // most), n + 1) if n % S == 0)
    passes = max(1, round(recipe.inner.passes / S))
    return recipe.replace(inner__minibatches=S, inner__passes=passes)


def start_of(task: Task, recipe: Recipe, n: int, seed: int) -> Distilled:
    """The distilled data before the first meta-step.

    Args:
        task: the corpus and the network.
        recipe: the settings.
        n: sentences in all.
        seed: of what is random.

    Returns:
        S minibatches of sentences, with their labels and step sizes.

    Raises:
        ValueError: if S does not divide the examples, or a class has too few.
    """
    recipe = at_most(recipe, n)
    S, given = recipe.inner.minibatches, recipe.start
    if n % S:
        raise ValueError(f"num_minibatches={S} must divide the {n} examples")
    corpus = starts.Corpus(
        task.features,
        task.labels,
        lambda rows: embedded(task, take(task.train, rows)),
        np.asarray(task.train.x),
        np.asarray(task.vectors.table * task.scale),
    )
    key = jax.random.fold_in(jax.random.key(seed), 1)
    start = starts.get(given.kind)
    x, labels = (jnp.asarray(a) for a in start(corpus, n, key))
    ragged = given.words_kept < 1
    if given.length or ragged:  # if ragged, padding is words to begin with
        x = jnp.asarray(starts.with_length(np.asarray(x), given.length or x.shape[1]))
    y = jax.nn.one_hot(labels, task.num_classes, dtype=x.dtype)
    y_logits = (HARD if given.labels == "hard" else given.label_logit) * (y - 1)
    raw_lr = jnp.full((recipe.inner.passes, S), recipe.inner.lr, x.dtype)
    x = x.reshape(S, n // S, *x.shape[1:])
    more = {}
    for name, leaf in given.more.items():
        more[name] = jnp.asarray(leaf(x) if callable(leaf) else leaf, x.dtype)
        if more[name].shape[:2] != x.shape[:2]:
            raise ValueError(
                f"start.more[{name!r}] must be [S, B, ...] = {list(x.shape[:2])} and "
                f"more, got {list(more[name].shape)}"
            )
    return Distilled(
        x,
        y_logits.reshape(S, n // S, -1),
        jnp.log(jnp.expm1(raw_lr)),
        more=more,
        ragged=ragged,
    )


def meta_tx(recipe: Recipe, *, traced: bool = False) -> optax.GradientTransformation:
    """The outer optimizer: Adam for each learned leaf, after clipping.

    Args:
        recipe: the settings.
        traced: keep its numbers in its state, so that one program serves any.
    """
    meta, start = recipe.meta, recipe.start

    def make(lr, lr_labels, lr_steps, clip_norm):
        def adam(size) -> optax.GradientTransformation:
            if meta.decay == "cosine" and meta.steps > 0:
                size = optax.cosine_decay_schedule(size, meta.steps)
            return optax.adam(size, b1=meta.b1)

        frozen = optax.set_to_zero()
        x = adam(lr)
        if start.words_kept < 1:
            half = max(1, meta.steps // 2)
            x = optax.chain(x, compact.drop_words(start.words_kept, half))
        leaves: dict[Any, optax.GradientTransformation] = {
            "x": x,
            "y_logits": adam(lr_labels) if start.labels == "soft" else frozen,
            "raw_lr": adam(lr_steps) if recipe.inner.learn_lr else frozen,
        } | {name: adam(meta.lr_more.get(name, lr)) for name in start.more}

        def names(distilled: Any) -> Any:
            more: Any = {name: name for name in distilled.more}
            return distilled.replace(
                x="x", y_logits="y_logits", raw_lr="raw_lr", more=more
            )

        learned = optax.multi_transform(leaves, names)
        if not meta.clip_norm:
            return optax.chain(learned)
        return optax.chain(optax.clip_by_global_norm(clip_norm), learned)

    made: Callable[..., Any] = optax.inject_hyperparams(make) if traced else make
    return made(
        lr=float(meta.lr),
        lr_labels=float(meta.lr_labels),
        lr_steps=float(meta.lr_steps),
        clip_norm=float(meta.clip_norm),
    )


def objective_of(task: Task, recipe: Recipe, start: Distilled, inner_tx) -> Objective:
    inner, meta = recipe.inner, recipe.meta
    settings: dict[str, Any] = {
        "real_loss_fn": gradients.chunked(task.loss_fn, meta.real_chunk),
        "inner_tx": inner_tx,
        "inner_grad": INNER_GRAD[inner.grad],
        "scan": SCANS[inner.recompute],
    }
    if inner.windows != "none":
        num_starts(start.raw_lr.size, inner.window, inner.window_earliest)
        make = resolve(inner.windows, WINDOWS, "windows")
        settings |= {"window": inner.window, "earliest": inner.window_earliest}
        return make(task.loss_fn, **settings)
    name, given = meta.objective, dict(meta.objective_settings)
    make = resolve(name, objectives.OBJECTIVES, "objective")
    if isinstance(make, objectives.Kind):
        given |= _taken(make.make, settings)
        return objectives.make(make, task.model, loss_fn=task.loss_fn, **given)
    return make(task.loss_fn, **given | _taken(make, settings))


def _taken(make: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a maker of objectives takes."""
    parameters = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return settings
    return {name: value for name, value in settings.items() if name in parameters}
