"""Learns sentences for a task: where they start, the meta-step, and the run.

`distill(task, recipe("bag"), 10)` is all of it. `core.py` has the maths, `loop.py` the
host's side of a run.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import (
    checkpoints,
    core,
    loop,
    parallel,
)
from distill_jax.learning import (
    INNER_TX,
    at_most,
    inner_tx_of,
    meta_tx,
    objective_of,
    start_of,
)
from distill_jax.names import described, digest
from distill_jax.recipe import Recipe, best_recipe
from distill_jax.task import Task
from distill_jax.train import Native, native_scorer, part_of
from distill_jax.types import Batch, Distilled, InitFn, MetaState

FROZEN_BYTES = 2**31  # else each meta-step reads its own real batch
# What a traced meta-step reads from its state, so that its program serves any.
_IN_STATE: dict[str, Any] = {
    "inner__lr": 1.0,
    "start__kind": "real",
    "start__label_logit": 1.0,
    "meta__lr": 1.0,
    "meta__lr_labels": 1.0,
    "meta__lr_steps": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What `distill` gives.

    Attributes:
        task, recipe, seed: what it was learned from, and how.
        best: the distilled data with the best accuracy on validation.
        accuracy: that accuracy, in [0, 1].
        best_step: meta-steps that made it.
        history: one row for each validation; see `loop.DistillResult`.
        seconds: that all of its meta-steps take.
    """

    task: Task
    recipe: Recipe
    seed: int
    best: Distilled
    accuracy: float
    best_step: int
    history: list[dict[str, Any]]
    seconds: float

    @property
    def native(self) -> Native:
        """The set in its own order and step sizes, for `train` and `evaluate`."""
        return Native(self.best, inner_tx_of(self.recipe))


def distill(
    task: Task,
    recipe: Recipe | None = None,
    examples_per_class: float = 10,
    *,
    examples: int = 0,
    seed: int = 0,
    folder: str | Path | None = None,
    devices: parallel.Devices = None,
    how: str | None = None,
    report: Callable[[loop.Progress], None] = lambda progress: None,
    progress: bool = True,
    setup: "Setup | None" = None,
) -> Distillation:
    """Learns a set of sentences, and goes on with what is in `folder`.

    Args:
        task: from `make_task`.
        recipe: the best known for the network of the task unless given.
        examples_per_class: sentences of each class.
        examples: sentences in all, instead.
        seed: of everything random.
        folder: of the checkpoints; nothing is saved where it is None.
        devices: that share the theta_0 of a meta-step; see `parallel.listed`.
        how: `jit`, `pmap` or `shard_map`; as fits the devices unless given.
        report: told of the progress.
        progress: show it as a bar on stderr too.
        setup: from `build`, if it is there already; it is used up.

    Returns:
        The best distilled data, by validation.

    Raises:
        ValueError: for a recipe that does not fit the task, or a folder with a run of
            other settings or another corpus.
        loop.NonFiniteMetaGradient, loop.Interrupted, checkpoints.CheckpointNotSaved:
            as `loop.distill`.
    """
    recipe = recipe or best_recipe(task.model_name)
    n = examples or task.num_examples(examples_per_class)
    setup = setup or build(
        task, recipe, start_of(task, recipe, n, seed), seed, devices=devices, how=how
    )
    began, state = time.perf_counter(), setup.state
    resumes = folder is not None and checkpoints.latest_step(folder) is not None
    if recipe.start.warm_steps and not resumes:
        bar = _warm_bar if progress else iter
        state = setup.begin(warmed(task, recipe, setup.start, seed, bar))
    steps = recipe.meta.steps
    with Reporter(steps, recipe.meta.inits, report, shown=progress) as told:
        result = loop.distill(
            setup.steps,
            state,
            setup.next_rows,
            setup.train,
            setup.validate,
            loop.Schedule(
                steps,
                recipe.meta.validate_every,
                recipe.meta.checkpoint_every,
                # Lengths are learned in the first half.
                select_from=steps // 2 if recipe.start.words_kept < 1 else 0,
            ),
            key=jax.random.key(seed),
            num_inits=recipe.meta.inits,
            checkpoints=folder,
            resume=folder is not None,
            fingerprint=fingerprint(task, recipe, n, seed),
            report=told,
        )
    seconds = time.perf_counter() - began
    taken = steps - (result.resumed_from or 0)
    if result.resumed_from and taken:  # reckoned from those it took here
        seconds *= steps / taken
    return Distillation(
        task,
        recipe,
        seed,
        jax.tree.map(jnp.asarray, result.best),
        result.best_accuracy,
        result.best_step,
        result.history,
        seconds,
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What learns from a task, compiled at its first use.

    Attributes:
        steps: many meta-steps in a dispatch.
        start: the distilled data before the first meta-step.
        state: the state then.
        begin: the same from other distilled data.
        train: the real examples, on the devices.
        next_rows: those of the real batch of a meta-step, by its number.
        validate: `(distilled, key) -> accuracy`, where the best step is chosen.
    """

    steps: parallel.MetaSteps
    start: Distilled
    state: MetaState
    begin: Callable[[Distilled], MetaState]
    train: Batch
    next_rows: Callable[[int], np.ndarray]
    validate: Callable[[Distilled, jax.Array], float]


def build(
    task: Task,
    recipe: Recipe,
    start: Distilled,
    seed: int,
    *,
    traced: bool = False,
    devices: parallel.Devices = None,
    how: str | None = None,
) -> Setup:
    """Puts together what learns from a task.

    Args:
        task: the corpus and the network.
        recipe: the settings.
        start: from `start_of`.
        seed: of the real batches.
        traced: of `meta_tx`; checkpoints are of one or the other.
        devices, how: as for `distill`.

    Raises:
        ValueError: if a real batch is larger than the training split.
    """
    meta, N = recipe.meta, len(task.dataset.train)
    recipe = at_most(recipe, start.y_logits.shape[0] * start.y_logits.shape[1])
    if meta.real_batch > N:
        raise ValueError(
            f"real_batch={meta.real_batch} is more than the {N} training examples: ask "
            "for fewer"
        )
    inner_tx, init_fn = inner_tx_of(recipe), task.model.init
    if meta.theta_0 == "fixed":
        init_fn = partial(_fixed, task.model.init, seed)
    tx = meta_tx(recipe, traced=traced)
    # Seeds of a recipe, and trials of a tuner, share what is compiled.
    program = recipe
    if traced:  # these are in the state
        clip = float(meta.clip_norm > 0)
        program = recipe.replace(**_IN_STATE, meta__clip_norm=clip)
    same = [program.described, start.raw_lr.shape, start.ragged, traced, how]
    same += [None if meta.theta_0 == "random" else seed, str(devices)]
    steps = task.once(
        ("meta-steps", digest(described(same))),
        lambda: parallel.meta_steps(
            objective_of(task, recipe, start, inner_tx),
            init_fn,
            tx,
            devices=devices,
            how=how,
            sequential=jax.default_backend() == "cpu",
        ),
    )
    train = task.once(
        ("real", how, str(devices)), lambda: steps.place(_frozen_train(task))
    )

    def next_rows(step: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step])
        return rng.choice(N, meta.real_batch, replace=False)

    native = task.once(
        ("validate", digest(described([recipe.inner.optimizer, *same[-2:]]))),
        lambda: native_scorer(task, inner_tx, init_fn=init_fn, devices=devices),
    )
    chosen_on = task.test if meta.select_on == "test" else task.validation
    chunks = part_of(task, chosen_on, seed=seed, num_examples=meta.validation_examples)

    def validate(distilled: Distilled, key: jax.Array) -> float:
        keys = jax.random.split(key, meta.validation_inits)
        d = jax.tree.map(jnp.asarray, distilled)
        return float(native(keys, d.batches, d.lr, chunks).mean())

    def begin(distilled: Distilled) -> MetaState:
        return core.meta_init(tx, distilled)

    return Setup(steps, start, begin(start), begin, train, next_rows, validate)


def _fixed(init_fn: InitFn, seed: int, key: jax.Array) -> Any:
    del key
    return init_fn(jax.random.key(seed))


def _frozen_train(task: Task) -> Batch:
    """All of train with the frozen part of the network done, where memory allows."""
    read = partial(core.frozen_once, task.loss_fn)
    size = jax.eval_shape(read, task.train).x
    if size.size * size.dtype.itemsize > FROZEN_BYTES:
        return task.train
    return jax.jit(read)(task.train)


def warmed(
    task: Task,
    recipe: Recipe,
    start: Distilled,
    seed: int,
    shown: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Distilled:
    """The distilled data after the warm-up that the recipe asks for.

    Each step is one of feature regression at a fresh theta_0, on the label logits
    unless the labels are hard. It gives the step sizes no gradient.

    Args:
        task, recipe, start, seed: as for `build`; without `warm_steps` the start is
            given back.
        shown: wraps the steps, such as `tqdm`.
    """
    given = recipe.start
    if not given.warm_steps:
        return start
    targets = "labels" if given.labels == "hard" else "logits"
    quick = recipe.replace(
        inner__windows="none",
        start__warm_steps=0,
        meta__objective="feature_regression",
        meta__objective_settings={"ridge": given.warm_ridge, "targets": targets},
        meta__inits=1,
        meta__steps=given.warm_steps,
        meta__lr=given.warm_lr,
        meta__lr_labels=given.warm_lr,
    )
    setup = build(task, quick, start, seed)
    state = jax.tree.map(jnp.array, setup.state)  # the step donates it, not the start
    key = jax.random.fold_in(jax.random.key(seed), 4)
    for k in shown(range(given.warm_steps)):
        rows = setup.next_rows(k)[None]
        state, _ = setup.steps.run(state, key, rows, 1, setup.train, 1)
    return state.distilled


def fingerprint(task: Task, recipe: Recipe, n: int, seed: int) -> dict[str, Any]:
    """What a checkpoint must agree on to be gone on with: content, not names."""
    told = {"data": task.sha256, "network": task.described, "examples": n, "seed": seed}
    for part, settings in recipe.described.items():
        told |= {f"{part}.{name}": value for name, value in settings.items()}
    return told


def check_same_run(
    folder: str | Path, setup: Setup, settings: dict[str, Any], num_inits: int
) -> None:
    """Refuses a checkpoint of another run, before anything is compiled.

    Args:
        folder: of the checkpoints.
        setup: from `build`.
        settings: from `fingerprint`.
        num_inits: theta_0 in a meta-step.

    Raises:
        ValueError: naming the setting that differs; as `checkpoints.restore`.
    """
    if checkpoints.latest_step(folder) is not None:
        key = jax.random.key_data(jax.random.key(settings["seed"])).tolist()
        like = {"state": setup.state, "best": setup.state.distilled}
        facts = {"num_inits": num_inits, "key": key}
        checkpoints.restore(folder, like, settings | facts)


def timed(task: Task, recipe: Recipe, setup: Setup) -> tuple[float, float]:
    """Compiles the meta-step and the validation, and times both.

    Returns:
        Seconds of the whole run without compiling, and of one meta-step.
    """
    meta = recipe.meta
    key = jax.random.key(0)
    rows = np.stack([setup.next_rows(0)] * loop.REPORT_EVERY)  # as the run compiles it

    def one() -> float:
        copy = jax.tree.map(jnp.array, setup.state)
        began = time.perf_counter()
        run = setup.steps.run(copy, key, rows, 1, setup.train, meta.inits)
        jax.block_until_ready(run)
        return time.perf_counter() - began

    one()
    step = min(one(), one())
    setup.validate(setup.state.distilled, jax.random.key(0))
    began = time.perf_counter()
    setup.validate(setup.state.distilled, jax.random.key(0))
    validation = time.perf_counter() - began
    count = 1 + meta.steps // meta.validate_every
    return step * meta.steps + count * validation, step


def _warm_bar(steps: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(steps, desc="warm-up", unit="step", mininterval=1.0)


class Reporter:
    """Passes progress on, and shows it as a bar on stderr.

    Args:
        steps, inits: of the run.
        report: where it goes.
        shown: whether there is a bar.
    """

    def __init__(self, steps: int, inits: int, report: Callable, *, shown: bool):
        self.steps, self.inits, self.report, self.shown = steps, inits, report, shown

    def __enter__(self) -> Callable[[loop.Progress], None]:
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.steps, unit="step", mininterval=1.0, disable=not self.shown
        )
        self.accuracy, self.first, self.began = None, None, time.perf_counter()
        return self._told

    def _told(self, progress: loop.Progress) -> None:
        self.report(progress)
        if self.shown:
            self._show(progress)

    def _show(self, progress: loop.Progress) -> None:
        if self.first is None:  # a resumed run begins where it was left
            self.first = self.bar.n = progress.step
        rate = (progress.step - self.first) * self.inits
        shown = {"theta_0/s": f"{rate / (time.perf_counter() - self.began):.1f}"}
        if progress.meta_loss is not None:
            shown["loss"] = f"{progress.meta_loss:.4f}"
        if progress.row is not None:
            self.accuracy = progress.row["accuracy"]
        if self.accuracy is not None:
            shown["validation"] = f"{self.accuracy:.1%}"
        if progress.best_accuracy >= 0:
            shown["best"] = f"{progress.best_accuracy:.1%}"
        if progress.skipped_in_a_row:
            shown["skipped"] = str(progress.skipped_in_a_row)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(progress.step - self.bar.n)

    def __exit__(self, *error):
        self.bar.close()


__all__ = [
    "INNER_TX",
    "Distillation",
    "Setup",
    "at_most",
    "check_same_run",
    "build",
    "distill",
    "fingerprint",
    "inner_tx_of",
    "meta_tx",
    "start_of",
    "timed",
    "warmed",
]
