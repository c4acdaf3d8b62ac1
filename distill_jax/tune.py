"""The best recipe of a task, or of training on real sentences, by validation.

    tune(task, recipe("bag"), trials=30, folder="runs/tune").recipe

A trial is a whole distillation with settings that Optuna proposes (by the
Tree-structured Parzen Estimator, Bergstra et al. 2011), the first one with the recipe
as it is. One whose validation accuracy falls below the median of the others at the same
meta-step is stopped. A trial is judged on validation by theta_0 that did not choose its
meta-step; all trials by the same. Test is never read.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import results, study
from distill_jax.distill import (
    at_most,
    build,
    distill,
    fingerprint,
    inner_tx_of,
    start_of,
)
from distill_jax.fit import native_scorer, part_of
from distill_jax.loop import NonFiniteMetaGradient, Progress
from distill_jax.names import described, digest, name_of, resolve
from distill_jax.progress import duration
from distill_jax.recipe import Recipe, best_recipe
from distill_jax.schema import check
from distill_jax.selection import SELECTIONS
from distill_jax.space import (
    BASELINE_SPACE,
    MORE,
    SPACE,
    Range,
    Space,
    as_it_is,
    flat,
    label,
    shown,
    space_of,
    suggested,
    with_params,
)
from distill_jax.task import Task, embedded, minibatches, take

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


class Tuning(NamedTuple):
    """What `tune` gives.

    Attributes:
        recipe: of the completed trial with the best accuracy.
        accuracy: that accuracy, on validation.
        rows: of all trials done, those of earlier calls too.
    """

    recipe: Recipe
    accuracy: float
    rows: list[results.Row]


class Plan(NamedTuple):
    """What is to be tried; see `plan`.

    Attributes:
        recipe: of the first trial.
        space: what the others change.
        examples: sentences that are trained on, n.
        trial: `(recipe, report) -> Outcome`, with `num_seeds`, sets in a trial.
        method: a name for rows.
        settings: what a study must agree on to be gone on with, as JSON.
    """

    recipe: Recipe
    space: dict[str, Space]
    examples: int
    trial: Any
    method: str
    settings: dict[str, Any]


def tune(
    task: Task,
    recipe: Recipe | None = None,
    space: Mapping[str, Space] | None = None,
    trials: int = 30,
    folder: str | Path | None = None,
    *,
    examples_per_class: float = 10,
    examples: int = 0,
    seed: int = 0,
    baseline: Any = None,
    draws: int = 5,
    prune: bool = True,
    startup_trials: int = 8,
    max_minutes: float = 0.0,
    rows: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Goes on with the study in `folder` until it has all its trials.

    Args:
        task: from `make_task`.
        recipe: of the first trial; the best known for the network unless given.
        space: what is searched, by the names of `Recipe.replace` (`meta__lr`): a
            `Range`, a tuple of choices, or a `Range` for each inner optimizer by its
            name. The recipe's own value is always within it. All of `SPACE` that has
            an effect unless given, or of `BASELINE_SPACE`.
        trials: in all, those done before included.
        folder: of the study, and of its rows; nothing is kept where it is None.
        examples_per_class: sentences of each class.
        examples: sentences in all, instead.
        seed: of everything random.
        baseline: a name of `SELECTIONS`, or a selection: tune training on the real
            sentences that it picks, in the order of distilled ones, instead.
        draws: of that selection, each trained on in a trial.
        prune: stop trials that are below the median.
        startup_trials: random ones before any is modelled, or stopped early.
        max_minutes: start no trial after so long; 0: any.
        rows: a file that a row is appended to after each trial; `rows.jsonl` in the
            folder unless given.
        say: told what is searched, and of each trial, with the time left.

    Returns:
        The best recipe and the rows.

    Raises:
        ModuleNotFoundError: if Optuna is not installed.
        ValueError: for settings that cannot be searched, before any trial; for a study
            of other settings or another corpus in `folder`; if no trial could be
            completed; and as `distill` does.
        OSError: for a file that is no study, or a full disk.
    """
    study.need_optuna()
    for name, value, least in (
        ("trials", trials, 1),
        ("startup_trials", startup_trials, 1),
        ("max_minutes", max_minutes, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    made = plan(
        task,
        recipe,
        space,
        examples_per_class=examples_per_class,
        examples=examples,
        seed=seed,
        baseline=baseline,
        draws=draws,
        say=say,
    )
    say(f"{trials} trials, the first with the settings as they are.")
    if rows is None and folder is not None:
        rows = Path(folder) / "rows.jsonl"
    settings = made.settings | {"startup_trials": startup_trials, "prune": prune}
    # The first fifth of a distillation says little about its end.
    warmup = made.recipe.meta.steps // 5 if baseline is None else 0
    with study.opened(
        folder,
        settings,
        warmup=warmup if prune else -1,
        startup_trials=startup_trials,
    ) as opened:
        done = study.rows_of(opened)
        if rows is not None:  # stopped between the end of a trial and its row
            known = [(r.get("study"), r.get("trial")) for r in results.read(rows)]
            late = [row for row in done if (row["study"], row["trial"]) not in known]
            results.append(rows, late)
        if done:
            say(f"{len(done)} of them were done before.")
        facts = _facts(task, made) | {"study": opened.user_attrs["id"]}
        facts |= {"config": settings}
        began, before = time.perf_counter(), len(done)
        while len(done) < trials:
            spent = time.perf_counter() - began
            if done and 0 < 60 * max_minutes <= spent:
                say(f"Stopped after {duration(spent)}; the same call goes on.")
                break
            asked = study.ask(
                opened,
                len(done),
                seed=seed,
                startup_trials=startup_trials,
                first=as_it_is(made.recipe, made.space),
            )
            row = _made(made, asked, facts | {"trial": len(done)}, prune)
            study.tell(opened, asked, row)
            if rows is not None:
                results.append(rows, [row])
            done.append(row)
            each = (time.perf_counter() - began) / (len(done) - before)
            say(_line(done, each * (trials - len(done))))
    best = _best(done)
    if best is None:
        raise ValueError(
            "no trial was completed: all met numbers that are not finite. Lower "
            "inner__lr or inner__passes in another folder, or ask for more trials"
        )
    say(
        f"\nBest of {len(done)} trials: trial {best['trial']}, "
        f"{best['accuracy_mean']:.1%} on validation ({done[0]['accuracy_mean']:.1%} "
        f"with the settings as they were).\n{_told(best['params'])}"
    )
    chosen = with_params(made.recipe, made.space, best["params"])
    return Tuning(chosen, best["accuracy_mean"], done)


def plan(
    task: Task,
    recipe: Recipe | None = None,
    space: Mapping[str, Space] | None = None,
    *,
    examples_per_class: float = 10,
    examples: int = 0,
    seed: int = 0,
    baseline: Any = None,
    draws: int = 5,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Checks that the trials can be made, and says what is searched; see `tune`."""
    recipe = recipe or best_recipe(task.model_name)
    n = examples or task.num_examples(examples_per_class)
    if recipe.meta.select_on != "validation":
        raise ValueError(
            f"meta__select_on={recipe.meta.select_on} is not for tuning, which never "
            "reads test: give validation"
        )
    if baseline is None and recipe.meta.steps < 1:
        raise ValueError("meta__steps must be at least 1 to be tuned, got 0")
    searched = space_of(recipe, space, real=baseline is not None)
    settings = fingerprint(task, recipe, n, seed)
    settings |= {f"space.{name}": described(one) for name, one in searched.items()}
    if baseline is None:
        trial: Any = Distilling(task, recipe, n, seed)
    else:
        trial = OnReal(task, recipe, n, seed, baseline, draws)
        settings |= {"baseline": described(baseline), "draws": draws}
    for name, value in flat(recipe, searched).items():
        say(f"  {name}: {shown(searched[name])}; first {label(value)}")
    method = "distilled" if baseline is None else name_of(baseline)
    return Plan(recipe, searched, n, trial, method, results.portable(settings))


class Distilling:
    """Distils with the recipe of each trial.

    Raises:
        ValueError: as `start_of` and `build` do, before any trial.
    """

    num_seeds = 1

    def __init__(self, task: Task, recipe: Recipe, n: int, seed: int):
        self.task, self.n, self.seed = task, n, seed
        self._setup(recipe)

    def _setup(self, recipe: Recipe):
        # Compiling takes longer than a short trial: trials share programs.
        start = start_of(self.task, recipe, self.n, self.seed)
        return build(self.task, recipe, start, self.seed, traced=True)

    def __call__(self, recipe: Recipe, report: Report) -> Outcome:
        def told(progress: Progress) -> None:
            if progress.row is not None:
                report(progress.row["step"], progress.row["accuracy"])

        setup = self._setup(recipe)
        found = distill(
            self.task,
            recipe,
            examples=self.n,
            seed=self.seed,
            setup=setup,
            report=told,
            progress=False,
        )
        return Outcome(setup.validate(found.best, judges(self.seed)), found.best_step)


class OnReal:
    """Trains on real sentences, in the order of distilled ones, by each trial's recipe.

    Args:
        task: the corpus and the network.
        recipe: of the first trial.
        n: sentences.
        seed: of everything random.
        select: a name of `SELECTIONS`, or a selection, drawn from `draws` times.

    Raises:
        ValueError: if S does not divide the examples, or there are too few.
    """

    def __init__(
        self, task: Task, recipe: Recipe, n: int, seed: int, select: Any, draws: int
    ):
        S = at_most(recipe, n).inner.minibatches
        if n % S:
            raise ValueError(f"num_minibatches={S} must divide the {n} examples")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        select, key = resolve(select, SELECTIONS, "selection"), jax.random.key(seed)
        chosen = [
            np.asarray(
                select(task.features, task.labels, n, jax.random.fold_in(key, 100 + i))
            )
            for i in range(draws)
        ]
        if all(set(rows) == set(chosen[0]) for rows in chosen):
            chosen = chosen[:1]  # it does not depend on chance
        self.task, self.n, self.seed = task, n, seed
        self.sets = [embedded(task, take(task.train, rows)) for rows in chosen]
        self.num_seeds = len(self.sets)
        self.validation = part_of(
            task,
            task.validation,
            seed=seed,
            num_examples=recipe.meta.validation_examples,
        )

    def __call__(self, recipe: Recipe, report: Report) -> Outcome:
        inner = at_most(recipe, self.n).inner
        score = self.task.once(
            ("on real", digest(described(inner.optimizer))),
            lambda: native_scorer(self.task, inner_tx_of(recipe)),
        )
        keys = jax.random.split(judges(self.seed), recipe.meta.validation_inits)
        shape = (inner.passes, inner.minibatches)
        lr = jnp.full(shape, inner.lr, self.sets[0].x.dtype)
        means: list[float] = []
        for number, one in enumerate(self.sets, start=1):
            batches = minibatches(one, inner.minibatches)
            means.append(float(score(keys, batches, lr, self.validation).mean()))
            report(number, float(np.mean(means)))
        return Outcome(float(np.mean(means)), None)


def judges(seed: int) -> jax.Array:
    """The key of the theta_0 that judge all trials, and no choice within one."""
    return jax.random.fold_in(jax.random.key(seed), 30)


def _made(made: Plan, asked: Any, facts: dict[str, Any], prune: bool) -> results.Row:
    """Makes a trial; its row."""
    params = suggested(asked, made.recipe, made.space, made.examples)
    reports: list[list[float]] = []

    def report(when: int, accuracy: float) -> None:
        reports.append([when, accuracy])
        asked.report(accuracy, when)
        if prune and asked.should_prune():
            raise Pruned

    began, state = time.perf_counter(), "complete"
    try:
        outcome = made.trial(with_params(made.recipe, made.space, params), report)
    except (Pruned, NonFiniteMetaGradient) as stop:
        state = "pruned" if isinstance(stop, Pruned) else "not_finite"
        when, accuracy = max(reports, key=lambda report: report[1])
        of_real = isinstance(made.trial, OnReal)
        outcome = Outcome(accuracy, None if of_real else int(when))
    row = facts | {
        "state": state,
        "params": params,
        "accuracy_mean": outcome.accuracy,
        "best_step": outcome.best_step,
        "reports": reports,
        "num_seeds": made.trial.num_seeds,
        "seconds": time.perf_counter() - began,
    }
    row = results.portable(row)
    check(row)
    return row


def _facts(task: Task, made: Plan) -> dict[str, Any]:
    """What the rows of a study have in common."""
    return {
        "experiment": "tune",
        "dataset": task.dataset.name,
        "model": task.model_name,
        "method": made.method,
        "examples": made.examples,
        "split": "validation",
        "num_inits": made.recipe.meta.validation_inits,
        "device": results.device(),
        "commit": results.commit(),
        "command": results.command(),
        "data": task.sha256,
    }


def _best(rows: list[results.Row]) -> results.Row | None:
    completed = [row for row in rows if row["state"] == "complete"]
    return max(completed, key=lambda row: row["accuracy_mean"], default=None)


def _line(rows: list[results.Row], seconds_left: float) -> str:
    row, best = rows[-1], _best(rows)
    facts = [f"trial {row['trial']}: {row['accuracy_mean']:.1%}"]
    facts[0] += "" if row["state"] == "complete" else f" ({row['state']})"
    if best is not None:
        facts.append(f"best {best['accuracy_mean']:.1%} (trial {best['trial']})")
    facts += [f"{row['seconds']:.0f} s", f"{duration(seconds_left)} left"]
    return f"{', '.join(facts)}: {_told(row['params'])}"


def _told(params: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())


__all__ = [
    "BASELINE_SPACE",
    "MORE",
    "SPACE",
    "Outcome",
    "Plan",
    "Range",
    "Tuning",
    "plan",
    "tune",
]
