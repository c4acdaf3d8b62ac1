"""What the groups of a comparison will take, from a few networks and meta-steps timed.

Compiling, warm-ups, TF-IDF, and what selections and methods of your own compute, are
not counted.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.compare import Group, inits_of
from distill_jax.distill import build, start_of, timed
from distill_jax.names import digest
from distill_jax.progress import duration
from distill_jax.recipe import best_recipe
from distill_jax.sources import FromRecipe, Method, Queried
from distill_jax.task import Task, take
from distill_jax.train import (
    FULL_BATCH,
    FULL_STEP_SIZES,
    NUM_STEPS,
    STEP_SIZES,
    Judge,
)

_PROBE = 20  # steps that are timed


def seconds(
    judge: Judge, groups: Sequence[Group], methods: Mapping[str, Method]
) -> dict[str, float]:
    """Seconds that each group will take on the devices of the judge, by its text.

    Networks and meta-steps are timed at the largest budget and taken in proportion to
    the minibatch. Sets that are on disk cost nothing. Test is not read.

    Args:
        judge: of the comparison.
        groups: those left to do, of `compare.plan`.
        methods: by the name of their groups.
    """
    if not groups:
        return {}
    task, p, C = judge.task, judge.protocol, judge.task.num_classes
    N, R = len(task.labels), p.test_inits
    largest = max(group.examples_per_class for group in groups)
    largest = min(N, round(largest * C) or p.batch)
    batch = min(largest, p.batch)
    step, validation = _networks(judge, largest)
    per_item = validation / min(p.validation_examples, len(task.validation.y))
    test = per_item * len(task.test.y)
    on_all = N // FULL_BATCH * step * FULL_BATCH / batch  # an epoch
    learning = _learning(task, groups, methods)

    def one(group: Group) -> float:
        if group.name == "full":
            tried = 3 * len(FULL_STEP_SIZES) * p.full_epochs
            return (tried + R * p.full_epochs) * on_all + tried * validation + R * test
        if not group.examples_per_class:
            return 0.0
        n, method = round(group.examples_per_class * C), methods[group.name]
        fit = max(NUM_STEPS) * step * min(n, p.batch) / batch
        tuning = len(STEP_SIZES) * p.tuning_inits * (fit + 2 * validation)
        ways = getattr(method, "ways", ("",) * (1 + getattr(method, "taught", False)))
        tests = sum(map(len, inits_of(p, group.num_seeds)))
        total = len(ways) * tests * (fit + test)
        total += tuning * sum(way != "native" for way in ways)
        if isinstance(method, Queried):
            scoring = method.passes * min(method.pool or N, N) * per_item
            total += group.num_seeds * method.rounds * (fit + scoring)
        if isinstance(method, FromRecipe):
            seeds = range(p.seed, p.seed + group.num_seeds)
            size = group.examples_per_class
            left = sum(not method.is_done(task, size, seed) for seed in seeds)
            largest_n, steps, validations = learning[digest(method.settings)]
            total += left * (steps * n / largest_n + validations)
        return total

    return {str(group): one(group) for group in groups}


def _networks(judge: Judge, n: int) -> tuple[float, float]:
    """Seconds of a step, and of scoring on validation, for one network."""
    trainer = judge.trainer
    jobs = judge.jobs(take(judge.task.train, np.arange(n)), judge.tuning_keys, 0, [0])
    jobs = [job._replace(lr=1e-3) for job in jobs]
    jobs *= trainer.width * len(trainer.devices)

    def trained(steps: int) -> float:
        trainer.accuracies(jobs, (steps, steps), judge.validation)  # compiles
        began = time.perf_counter()
        trainer.accuracies(jobs, (steps, steps), judge.validation)
        return (time.perf_counter() - began) / len(jobs)

    validation = trained(0)
    return max(trained(_PROBE) - validation, 0.0) / _PROBE, validation


def _learning(
    task: Task, groups: Sequence[Group], methods: Mapping[str, Method]
) -> dict[str, tuple[int, float, float]]:
    """Of each recipe: the size timed, and seconds of its meta-steps and validations."""
    largest: dict[str, tuple[int, FromRecipe]] = {}
    for group in groups:
        method = methods.get(group.name)
        if isinstance(method, FromRecipe):
            n = task.num_examples(group.examples_per_class)
            key = digest(method.settings)
            largest[key] = max(largest.get(key, (0, method)), (n, method), key=_size)
    found = {}
    for key, (n, method) in largest.items():
        recipe = method.recipe or best_recipe(task.model_name)
        start = start_of(task, recipe, n, 0)
        facts = {"devices": method.devices, "how": method.how}
        whole, step = timed(task, recipe, build(task, recipe, start, 0, **facts))
        steps = step * recipe.meta.steps
        found[key] = n, steps, whole - steps
    return found


def _size(one: tuple[int, FromRecipe]) -> int:
    return one[0]


def told(judge: Judge, groups: Sequence[Group], methods: Mapping[str, Method]) -> str:
    """The sum of `seconds`, in words."""
    total = sum(seconds(judge, groups, methods).values())
    return f"Estimate: {duration(total)}, and the time to compile."


__all__ = ["seconds", "told"]
