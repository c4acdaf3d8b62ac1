"""Experts of a task: networks trained on all its real data, for trajectory matching."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from distill_jax import evaluate
from distill_jax.objectives import experts
from distill_jax.task import Task
from distill_jax.types import Params
from experiments.baselines import validation_chunks


def of_task(
    task: Task,
    folder: str | Path,
    *,
    settings: dict[str, Any],
    num: int = 20,
    num_epochs: int = 10,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Params:
    """Trains what the folder does not hold yet, by plain SGD, and reads all.

    Args:
        task: the corpus and the network.
        folder: where they are kept; of one task.
        settings: the network's name and settings, to tell other experts by.
        num: experts.
        num_epochs: epochs of each, M.
        lr: step size.
        batch_size: examples in a minibatch.
        seed: of theta_0 and the order of the examples.
        say: where progress goes.

    Returns:
        Their weights after each epoch, leaves `[num, M + 1, ...]`.

    Raises:
        ValueError: on a number out of its range, or a folder of other experts.
    """
    if not lr > 0:
        raise ValueError(f"lr must be over 0, got {lr}")
    if num_epochs < 1 or batch_size < 1:
        raise ValueError(
            f"num_epochs and batch_size must be at least 1, got {num_epochs} and "
            f"{batch_size}"
        )
    train = evaluate.standard(
        task.loss_fn, task.train, optax.sgd(lr), num_epochs=1, batch_size=batch_size
    )

    @jax.jit
    def one(key: jax.Array) -> Params:
        init_key, train_key = jax.random.split(key)
        theta_0 = task.model.init(init_key)
        return experts.trajectory(train, theta_0, train_key, num_epochs)

    made_with = {
        "corpus": dict(task.dataset.sha256),
        "vectors": task.vectors.provenance,
        "scale": task.scale,
        "length": task.length,
        "network": settings,
        "lr": lr,
        "batch_size": batch_size,
        "num_epochs": num_epochs,
    }

    def report(done: int) -> None:
        if done == num or done % max(1, num // 4) == 0:
            say(f"Experts: {done} of {num}.")

    key = jax.random.fold_in(jax.random.key(seed), 4)
    return experts.record(folder, one, key, num, made_with, report=report)


def curve(task: Task, trajectories: Params, *, seed: int = 0) -> np.ndarray:
    """Mean validation accuracy of the experts after each epoch, `[M + 1]`."""
    chunks = validation_chunks(task, task.validation, seed=seed, num_examples=1000)
    score = partial(evaluate.accuracy, task.model)
    one = lambda thetas: jax.lax.map(lambda t: score(t, chunks), thetas)  # noqa: E731
    return np.asarray(jax.jit(partial(jax.lax.map, one))(trajectories).mean(0))
