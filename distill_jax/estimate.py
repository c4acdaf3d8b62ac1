"""How long a comparison will take, from a few networks and meta-steps timed here."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.compare import Group, duration
from distill_jax.distill import build, start_of, timed
from distill_jax.fit import Job
from distill_jax.recipe import best_recipe
from distill_jax.sources import FromRecipe, Method, Queried
from distill_jax.task import take
from distill_jax.train import NUM_STEPS, STEP_SIZES, Judge


def seconds(
    judge: Judge, groups: Sequence[Group], methods: Mapping[str, Method]
) -> dict[str, float]:
    """Seconds of each group, by its text.

    One network and one distillation at the largest budget are timed, and others taken
    in proportion to their minibatch. Compiling, lines, and what selections compute are
    not counted.

    Args:
        judge: of the task and the protocol.
        groups: of `compare.plan`.
        methods: by name.
    """
    task, p = judge.task, judge.protocol
    at_budgets = [group for group in groups if group.examples_per_class]
    found = {str(group): 0.0 for group in groups}
    if not at_budgets:
        return found
    largest = max(task.num_examples(g.examples_per_class) for g in at_budgets)
    jobs = _probes(judge, largest)

    def trained(num_steps: int, chunks: Any) -> float:
        stops = (num_steps, num_steps)
        return _timed(lambda: judge.trainer.accuracies(jobs, stops, chunks)) / len(jobs)

    on_test, on_validation = trained(0, judge.test), trained(0, judge.validation)
    fit = max(trained(20, judge.test) - on_test, 0.0) / 20 * max(NUM_STEPS)
    per_item = on_test / len(task.test.y)
    meta: dict[int, float] = {}
    for group in at_budgets:
        method, n = methods[group.name], task.num_examples(group.examples_per_class)
        share = min(n, p.batch) / min(largest, p.batch)
        sets, ways = group.num_seeds, 1
        tests = p.test_inits if sets < p.test_inits else p.selection_seeds
        total = len(STEP_SIZES) * p.tuning_inits * (share * fit + 2 * on_validation)
        total += sets * tests * (share * fit + on_test)
        if isinstance(method, FromRecipe):
            recipe = method.recipe or best_recipe(task.model_name)
            if id(recipe) not in meta:
                start = start_of(task, recipe, largest, p.seed)
                meta[id(recipe)] = timed(
                    task, recipe, build(task, recipe, start, p.seed)
                )[0]
            ways = len(method.ways)
            total = ways * total + sets * meta[id(recipe)] * n / largest
        elif isinstance(method, Queried):
            seen = min(method.pool or len(task.labels), len(task.labels))
            score = method.passes * seen * per_item
            total += sets * method.rounds * (share * fit + score)
        found[str(group)] = total
    return found


def told(judge: Judge, groups: Sequence[Group], methods: Mapping[str, Method]) -> str:
    """The sum of `seconds`, in words."""
    total = sum(seconds(judge, groups, methods).values())
    if not total:
        return "Estimate: some minutes, for all of the data."
    return f"Estimate: {duration(total)} and a few minutes to compile."


def _probes(judge: Judge, n: int) -> list[Job]:
    """As many networks as are trained at once, on the first n examples."""
    batch = take(judge.task.train, np.arange(n))
    jobs = judge.jobs(batch, judge.tuning_keys, 0, [0])
    return [job._replace(lr=1e-3) for job in jobs] * judge.trainer.width


def _timed(call: Callable[[], Any]) -> float:
    call()  # compiles
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
