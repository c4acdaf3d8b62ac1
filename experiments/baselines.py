"""What a distilled set is set beside, tuned on validation only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from distill_jax import evaluate, losses
from distill_jax.task import Task, in_chunks, take
from distill_jax.types import Batch

Scorer = Callable[[jax.Array, Batch], jax.Array]  # (keys [N], chunks) -> accuracies [N]


def validation_chunks(
    task: Task, batch: Batch, *, seed: int, num_examples: int
) -> Batch:
    """A random part of a split, cut into chunks to score on.

    Args:
        task: whose network it is for.
        batch: the split, `[N, ...]`.
        seed: of the choice.
        num_examples: how many, at most N.

    Returns:
        A batch `[K, size, ...]`, see `in_chunks`, in the order of the split.
    """
    rng = np.random.default_rng(seed)
    n = min(num_examples, len(batch.y))
    rows = np.sort(rng.choice(len(batch.y), n, replace=False))
    return in_chunks(task, take(batch, rows))


def tuned_full(
    task: Task, validation: Batch, *, seed: int, max_epochs: int
) -> tuple[Scorer, dict[str, Any]]:
    """Adam on all of train: step size and number of epochs best on validation.

    Args:
        task: the corpus and the network.
        validation: from `validation_chunks`.
        seed: of the theta_0 it is tuned with.
        max_epochs: epochs tried.

    Returns:
        What trains and scores fresh networks, compiled; and the recipe.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), 3)
    best, best_accuracy = (0.0, 0), -1.0
    for lr in (1e-3, 3e-3):
        curve = jax.jit(
            partial(
                evaluate.learning_curves,
                task.model,
                task.model.init,
                task.loss_fn,
                task.train,
                optax.adam(lr),
                num_epochs=max_epochs,
                batch_size=64,
            )
        )(keys, validation)
        means = np.asarray(curve.mean(0))
        if means.max() > best_accuracy:
            best, best_accuracy = (lr, int(means.argmax()) + 1), float(means.max())
    lr, epochs = best
    train = evaluate.standard(
        task.loss_fn, task.train, optax.adam(lr), num_epochs=epochs, batch_size=64
    )
    full = jax.jit(partial(evaluate.accuracies, task.model, task.model.init, train))
    return full, {"optimizer": "adam", "lr": lr, "num_epochs": epochs, "batch": 64}


def teacher_labels(task: Task, recipe: dict[str, Any], key: jax.Array) -> np.ndarray:
    """Class probabilities of all of train, by one network trained on all of it.

    Args:
        task: the corpus and the network.
        recipe: from `tuned_full`.
        key: of the network.

    Returns:
        `[N, C]`, float32.
    """
    train = evaluate.standard(
        task.loss_fn,
        task.train,
        optax.adam(recipe["lr"]),
        num_epochs=recipe["num_epochs"],
        batch_size=recipe["batch"],
    )
    logits = losses.logits_fn(task.model)

    @jax.jit
    def probabilities(chunks):
        init_key, train_key = jax.random.split(key)
        theta = train(task.model.init(init_key), train_key)
        return jax.lax.map(lambda c: jax.nn.softmax(logits(theta, c)), chunks)

    probs = probabilities(in_chunks(task, task.train))
    return np.asarray(probs, np.float32).reshape(-1, task.num_classes)[
        : len(task.train.y)
    ]
