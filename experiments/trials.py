"""What a tuner tries: the settings that it searches, and what a trial of them gives."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import evaluate
from distill_jax.loop import Progress, Schedule, distill
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, embedded, labels_of, mean_vectors, take
from experiments import recipe
from experiments.baselines import validation_chunks


class Range(NamedTuple):
    """Numbers between two, tried evenly on a logarithmic scale."""

    low: float
    high: float


# A range, choices, or a range for each inner optimizer.
Space = Range | tuple[Any, ...] | dict[str, Range]
_INNER_LR = {
    "sgd": Range(0.01, 3.0),
    "momentum": Range(0.002, 0.5),
    "adam": Range(0.001, 0.3),
}
# Searched for distilled sentences, of the settings of `recipe.Config`. The optimizer
# stands before its step size.
SPACE: dict[str, Space] = {
    "inner_optimizer": tuple(recipe.INNER_TX),
    "inner_lr": _INNER_LR,
    "num_passes": (10, 20, 40),
    "num_inits": (1, 2, 4),
    "meta_lr": Range(0.002, 0.3),
    "meta_lr_labels": Range(0.002, 0.3),
    "meta_lr_steps": Range(0.0005, 0.1),
    "clip_norm": (0.0, 0.1, 0.5, 2.0),
}
# The same, only where they are asked for.
MORE: dict[str, Space] = {
    "label_logit": Range(0.5, 8.0),
    "meta_b1": (0.0, 0.5, 0.9),
    "start": tuple(recipe.STARTS),
    "windows": ("none", "last", "random"),
}
# Searched for real sentences.
BASELINE_SPACE: dict[str, Space] = {
    "inner_optimizer": tuple(recipe.INNER_TX),
    "inner_lr": _INNER_LR,
    "num_passes": (5, 10, 20, 50, 100, 200, 500),
}

Report = Callable[[int, float], None]  # (when, accuracy); raises Pruned


class Pruned(Exception):
    """A trial is worse than the others were at that time."""


class Outcome(NamedTuple):
    """What a completed trial gave.

    Attributes:
        accuracy: on validation, mean over the theta_0 that judge all trials.
        best_step: meta-steps that made the distilled set; None for real sentences.
    """

    accuracy: float
    best_step: int | None


def space_of(config: recipe.Config, names: str, *, real: bool) -> dict[str, Space]:
    """What is searched, with the present settings within it.

    Args:
        config: the present settings.
        names: with commas; none for all of SPACE, or of BASELINE_SPACE, that matter.
        real: for real sentences.

    Raises:
        ValueError: for an unknown name, one that has no effect, or a setting of 0
            that cannot be searched.
    """
    usual = BASELINE_SPACE if real else SPACE
    known = usual if real else usual | MORE
    idle = {}
    if not real and not config.learn_lr:
        idle["meta_lr_steps"] = "--nolearn_lr"
    if not real and config.labels != "soft":
        idle["meta_lr_labels"] = f"--labels={config.labels}"
    if not real and config.labels == "hard":
        idle["label_logit"] = "--labels=hard"
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"--search does not know {name!r}; known: {', '.join(known)}"
            )
        if name in idle:
            raise ValueError(f"--search={name} has no effect with {idle[name]}")
    wanted = wanted or [name for name in usual if name not in idle]
    space = {}
    for name, whole in known.items():
        if name in wanted:
            value = getattr(config, name)
            if isinstance(whole, dict):
                own = config.inner_optimizer
                space[name] = whole | {own: _with(name, value, whole[own])}
                if "inner_optimizer" not in wanted:
                    space[name] = {own: space[name][own]}
            else:
                space[name] = _with(name, value, whole)
    return space


def _with(name: str, value: Any, space: Any) -> Any:
    if isinstance(space, Range):
        if not value > 0:
            raise ValueError(
                f"--{name}={value} cannot be searched on a logarithmic scale: begin "
                "above 0, or leave it out of --search"
            )
        return Range(min(space.low, value), max(space.high, value))
    if value in space:
        return space
    return tuple(sorted({*space, value}))


def as_it_is(config: recipe.Config, space: Mapping[str, Space]) -> dict[str, Any]:
    """The present settings, by the names that Optuna knows them by."""
    return {
        _known_as(name, whole, config.inner_optimizer): getattr(config, name)
        for name, whole in space.items()
    }


def _known_as(name: str, space: Space, optimizer: str) -> str:
    return f"{name}.{optimizer}" if isinstance(space, dict) else name


def suggested(
    trial: Any, config: recipe.Config, space: Mapping[str, Space]
) -> dict[str, Any]:
    """The settings of a trial; numbers have three digits, as they are written down.

    A window is cut to the inner steps there are.

    Args:
        trial: an `optuna.Trial`.
        config: the present settings; what is one of them stays as exact as it is.
        space: from `space_of`.
    """
    present, found = as_it_is(config, space), {}
    optimizer: Any = config.inner_optimizer
    for name, whole in space.items():
        known_as = _known_as(name, whole, optimizer)
        one = whole[optimizer] if isinstance(whole, dict) else whole
        if isinstance(one, Range):
            value = trial.suggest_float(known_as, one.low, one.high, log=True)
            if value != present.get(known_as):
                value = float(f"{value:.3g}")
        else:
            value = trial.suggest_categorical(known_as, one)
        found[name] = value
        if name == "inner_optimizer":
            optimizer = value
    if found.get("windows", "none") != "none":  # one that fits into the inner steps
        T = found.get("num_passes", config.num_passes) * config.num_minibatches
        found["window"] = min(config.window, T)
    return found


def described(space: Space) -> str:
    """Such as `0.01 to 3`, or `10, 20, 40`."""
    if isinstance(space, dict):
        return ", ".join(f"{name} {described(one)}" for name, one in space.items())
    if isinstance(space, Range):
        return f"{space.low:g} to {space.high:g}"
    return ", ".join(map(str, space))


class Distillation:
    """Distils with the settings of each trial.

    Raises:
        ValueError: as `recipe.start_of` and `recipe.build` do, before any trial.
    """

    num_seeds = 1

    def __init__(self, config: recipe.Config, task: Task):
        self.task = task
        recipe.build(config, task, recipe.start_of(config, task))

    def __call__(self, config: recipe.Config, report: Report) -> Outcome:
        start = recipe.start_of(config, self.task)
        # Compiling takes longer than a short trial: trials share programs.
        setup = recipe.build(config, self.task, start, traced=True)

        def told(progress: Progress) -> None:
            if progress.row is not None:
                report(progress.row["step"], progress.row["accuracy"])

        result = distill(
            setup.step,
            setup.begin(recipe.warmed(config, self.task, start)),
            setup.next_batch,
            setup.validate,
            Schedule(
                config.num_meta_steps, config.validate_every, config.checkpoint_every
            ),
            key=jax.random.key(config.seed),
            num_inits=config.num_inits,
            report=told,
        )
        return Outcome(setup.validate(result.best, judges(config)), result.best_step)


class Baseline:
    """Trains on real sentences, in the order of distilled ones, with those settings.

    Args:
        config: the settings that all trials share.
        task: from `recipe.load`.
        selection: a name of `SELECTIONS`, drawn from `selection_seeds` times.

    Raises:
        ValueError: if S does not divide the examples, or there are too few.
    """

    def __init__(self, config: recipe.Config, task: Task, selection: str):
        S = config.num_minibatches
        n = config.examples or config.examples_per_class * task.num_classes
        if n % S:
            raise ValueError(f"--num_minibatches={S} must divide the {n} examples")
        features, labels = mean_vectors(task, task.train), labels_of(task.train)
        keys = [
            jax.random.fold_in(jax.random.key(config.seed), 100 + seed)
            for seed in range(config.selection_seeds)
        ]
        chosen = [SELECTIONS[selection](features, labels, n, key) for key in keys]
        if all(set(rows) == set(chosen[0]) for rows in chosen):
            chosen = chosen[:1]  # it does not depend on chance
        real = [embedded(task, take(task.train, np.asarray(rows))) for rows in chosen]
        self.sets = [evaluate.minibatches(batch, S) for batch in real]
        self.num_seeds = len(self.sets)
        self.validation = validation_chunks(
            task,
            task.validation,
            seed=config.seed,
            num_examples=config.validation_examples,
        )

        @cache
        def scorer(optimizer: str):
            inner_tx = recipe.INNER_TX[optimizer]
            return recipe.native_scorer(task, task.model.init, inner_tx)

        self.scorer = scorer

    def __call__(self, config: recipe.Config, report: Report) -> Outcome:
        score = self.scorer(config.inner_optimizer)
        keys = jax.random.split(judges(config), config.validation_inits)
        shape = (config.num_passes, config.num_minibatches)
        lr = jnp.full(shape, config.inner_lr, self.sets[0].x.dtype)
        means: list[float] = []
        for number, batches in enumerate(self.sets, start=1):
            means.append(float(score(batches, lr, keys, self.validation).mean()))
            report(number, float(np.mean(means)))
        return Outcome(float(np.mean(means)), None)


def judges(config: recipe.Config) -> jax.Array:
    """The key of the theta_0 that judge all trials, and no choice within one."""
    return jax.random.fold_in(jax.random.key(config.seed), 30)
