"""Distilled sets beside chosen ones, at equal budgets and by one protocol.

    compare(task, {"ours": distilled(), "k-means": selected("kmeans_medoids")}, [1])

A method is `(task, examples per class, seed) -> TrainingSet`, or several of them: one
for each way it is to be trained on. Each becomes a `Result`, written when it is done,
so that the same call goes on after any stop. Queries see no label that they did not ask
for. Test is read once for each row.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax import parallel, results, statistics
from distill_jax.locks import Locks
from distill_jax.names import described, digest
from distill_jax.progress import Bars
from distill_jax.results import Result
from distill_jax.schema import LINES
from distill_jax.sources import (
    Method,
    Queried,
    Selected,
    distilled,
    queried,
    real,
    saved,
    selected,
)
from distill_jax.task import Task
from distill_jax.train import (
    NUM_STEPS,
    STEP_SIZES,
    Judge,
    Protocol,
    TrainingSet,
    as_set,
)


class Group(NamedTuple):
    """The rows of one method at one budget: they are made, and written, together.

    Attributes:
        name: of the method.
        examples_per_class: 0 for a line, that of all data say.
        settings: all that its numbers depend on but the data, as JSON.
        num_seeds: sets that it gives.
    """

    name: str
    examples_per_class: float
    settings: dict[str, Any]
    num_seeds: int

    def __str__(self) -> str:
        if not self.examples_per_class:
            return self.name
        return f"{self.name} at {self.examples_per_class:g} per class"


def plan(
    task: Task,
    methods: Mapping[str, Method],
    budgets: Sequence[float],
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    lines: Sequence[str] = LINES,
    many_at: Mapping[str, Sequence[float]] | None = None,
) -> list[Group]:
    """The groups of a comparison in the order they are made; see `compare`."""
    told = task.described
    facts = {"protocol": described(protocol), "network": told}
    groups = [Group(line, 0, facts | {"line": line}, 1) for line in lines]
    grid = {"grid": [list(STEP_SIZES), list(NUM_STEPS)]}
    for budget in budgets:
        for name, method in methods.items():
            count = getattr(method, "seeds", None)
            if count is None:
                count = protocol.selection_seeds
                if _is_random(method):
                    count = max(count, protocol.test_inits)
            once = (many_at or {}).get(name)
            if once is not None and budget not in once:
                count = 1
            how = getattr(method, "settings", None) or described(method)
            settings = facts | grid | {"method": how, "seeds": count}
            groups.append(Group(name, budget, settings, count))
    return groups


def _is_random(method: Method) -> bool:
    """Random sets differ most: there are as many as theta_0."""
    return isinstance(method, Selected) and method.select == "random"


def compare(
    task: Task,
    methods: Mapping[str, Method],
    budgets: Sequence[float],
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    lines: Sequence[str] = LINES,
    many_at: Mapping[str, Sequence[float]] | None = None,
    folder: str | Path | None = None,
    rows: str | Path | None = None,
    experiment: str = "compare",
    preset: str | None = None,
    share: bool = False,
    wait: bool = True,
    failed: Callable[[Group, Exception], None] | None = None,
    facts_of: Callable[[Group], dict[str, Any]] = lambda group: {},
    devices: parallel.Devices = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Trains on what each method gives at each budget, all by one protocol.

    Args:
        task: from `make_task`.
        methods: by the name that results have.
        budgets: examples of each class.
        protocol: how every set is tuned and tested.
        lines: of `full` (all of train), `majority` and `tfidf` (TF-IDF and logistic
            regression on all of train).
        many_at: for a method, the budgets at which it has several seeds.
        folder: where rows are kept, and found again, as `rows.jsonl`; and sets that
            take long to make.
        rows: that file, if it is another.
        experiment, preset: what rows say.
        share: other processes work on the same rows; each takes what nobody has, by
            locks in `folder`, or beside the rows.
        wait: for what others have; else their rows are absent.
        failed: told of a method that raised, whose rows are absent then; the first
            error ends it all unless given.
        facts_of: more for the `config` of a group's rows.
        devices: that share the networks; see `parallel.listed`.
        say: told of each row; what takes long shows a bar on stderr.

    Returns:
        A `Result` for each row, old and new, in the order of the plan.

    Raises:
        ValueError: before any work, if a class has too few examples for a budget.
    """
    given = {"protocol": protocol, "folder": folder, "devices": devices}
    methods = {name: _bound(method, given) for name, method in methods.items()}
    check_budgets(task, budgets, methods)
    judge = Judge(task, protocol, devices=devices, report=Bars())
    path = (
        Path(rows) if rows else None if folder is None else Path(folder) / "rows.jsonl"
    )
    groups = plan(
        task, methods, budgets, protocol=protocol, lines=lines, many_at=many_at
    )
    facts = {"experiment": experiment, "preset": preset, "model": task.model_name}
    found: dict[int, list[Result]] = {}
    locks = None
    if share:
        if path is None:
            raise ValueError("share needs a folder or a file of rows that all know")
        locks = Locks(Path(folder or path.parent) / "locks", path.stem)

    def known() -> None:
        if path is not None:
            with locks.file() if locks else nullcontext():
                there = results.read(path)
            for i, group in enumerate(groups):
                if i not in found and (old := rows_of(there, task, group, facts)):
                    found[i] = old

    known()
    total = len(groups) - len(found)
    made, told = 0, ""
    while len(found) < len(groups):
        begun = False
        for i, group in enumerate(groups):
            if i in found or _waits(groups, found, group):
                continue
            key = digest([task.sha256, facts, *group])
            with locks.of(key) if locks else nullcontext(True) as mine:
                if mine and locks:
                    known()  # another may just have ended it
                if not mine or i in found:
                    continue
                begun, made = True, made + 1
                full = _full_accuracy(groups, found)
                try:
                    new = made_rows(judge, methods, group, full, facts)
                except (ValueError, ArithmeticError) as error:
                    if failed is None:
                        raise
                    found[i] = []
                    say(f"[{made}/{total}] {group} failed: {error}")
                    failed(group, error)
                    continue
                for row in new:
                    row["config"] |= facts_of(group)
                if path is not None and parallel.is_first_process():
                    with locks.file() if locks else nullcontext():
                        results.append(path, new)
                found[i] = [Result(row) for row in new]
            for row in found[i]:
                say(f"[{made}/{total}] {group}, {results.line(row)}")
        if not begun and len(found) < len(groups):
            if not wait:
                break
            others = [str(g) for i, g in enumerate(groups) if i not in found]
            if told != (told := f"waiting for what others do: {', '.join(others)}"):
                say(told)
            time.sleep(2.0)
            known()
    return [row for i in sorted(found) for row in found[i]]


def _bound(method: Method, given: Mapping[str, Any]) -> Method:
    """A method of ours with what it was not given itself."""
    if not dataclasses.is_dataclass(method):
        return method
    ours: Any = method
    names = {field.name for field in dataclasses.fields(ours)}
    lacks = {k: v for k, v in given.items() if k in names and not getattr(ours, k)}
    return dataclasses.replace(ours, **lacks)


def check_budgets(
    task: Task, budgets: Sequence[float], methods: Mapping[str, Method] | None = None
) -> None:
    """Refuses budgets that a class, or the pool of a query, is too small for."""
    counts = np.bincount(task.dataset.train.labels, minlength=task.num_classes)
    largest = max((task.num_examples(budget) for budget in budgets), default=0)
    if budgets and max(budgets) > counts.min():
        raise ValueError(
            f"a budget of {max(budgets):g} a class: class "
            f"{task.dataset.label_names[counts.argmin()]!r} has only {counts.min()} "
            "training examples"
        )
    for method in (methods or {}).values():
        if isinstance(method, Queried) and 0 < method.pool < largest:
            raise ValueError(
                f"pool_size={method.pool} is less than the {largest} examples of the "
                "largest budget"
            )


def rows_of(
    rows: Sequence[results.Row], task: Task, group: Group, facts: dict[str, Any]
) -> list[Result]:
    """The newest rows of a group: of the same data and settings, whatever its name."""
    wanted = facts | {
        "method": group.name,
        "data": task.sha256,
        "config": {"settings": group.settings},
    }
    own = [
        row
        for row in rows
        if results.same(row, wanted) and _per_class(row) == group.examples_per_class
    ]
    return [Result(row) for row in results.newest(own, "labels", "training")]


def _per_class(row: Mapping[str, Any]) -> int:
    return 0 if row["method"] in LINES else row["examples_per_class"]


def made_rows(
    judge: Judge,
    methods: Mapping[str, Method],
    group: Group,
    full: float | None,
    facts: dict[str, Any],
) -> list[results.Row]:
    """Makes the sets of a group, tunes, reads test, and gives the rows."""
    task, p = judge.task, judge.protocol
    if not group.examples_per_class:
        return [_line_row(judge, group, full, facts)]
    began, method = time.perf_counter(), methods[group.name]
    of_seeds = []
    for seed in range(p.seed, p.seed + group.num_seeds):
        sets = method(task, group.examples_per_class, seed)
        several = isinstance(sets[0], TrainingSet)
        of_seeds.append(list(sets) if several else [as_set(task, sets)])
    compute = (time.perf_counter() - began) / group.num_seeds
    before = [sets[0].seconds for sets in of_seeds if sets[0].seconds is not None]
    compute += float(np.sum(before)) / group.num_seeds
    rows = []
    for ways in zip(*of_seeds, strict=True):
        began = time.perf_counter()
        sets = list(ways) if len(ways) < 2 or not _all_same(ways) else [ways[0]]
        inits = inits_of(p, len(sets))
        tuned = validation = None
        if sets[0].native is None:
            tuned = judge.tuned([one.batch for one in sets])
            validation = tuned.accuracy
        else:
            validation = float(
                np.mean([judge.native_validation(one.native) for one in sets])
            )
        accuracies = judge.test_accuracies(sets, tuned, inits)
        chosen = {} if tuned is None else {"lr": tuned.lr, "num_steps": tuned.num_steps}
        rows.append(
            _row(
                judge,
                group,
                facts,
                accuracies,
                full,
                {"tuned": chosen, "validation_accuracy": validation, "inits": inits},
                labels=sets[0].labels,
                training=sets[0].training,
                theta_0=task.theta_0,
                selected_on=getattr(method, "selected_on", "validation"),
                bytes=_mean([one.bytes for one in sets]),
                # What a method does not say was all there to be read.
                labels_read=_or_all(sets[0].labels_read, task),
                seconds=compute * group.num_seeds + time.perf_counter() - began,
                compute_seconds=compute,
            )
        )
    return rows


def inits_of(protocol: Protocol, num_sets: int) -> list[list[int]]:
    """The theta_0 of each set: all, or in turn a few where there are as many sets."""
    R = protocol.test_inits
    count = min(protocol.selection_seeds, R)
    if num_sets < R or num_sets <= protocol.selection_seeds:
        return [list(range(R))] * num_sets
    return [[(s * count + j) % R for j in range(count)] for s in range(num_sets)]


def _all_same(sets: Sequence[TrainingSet]) -> bool:
    """Whether a choice does not depend on chance: the same sentences for all seeds."""
    return all(one.texts and set(one.texts) == set(sets[0].texts or ()) for one in sets)


def _or_all(labels_read: int | None, task: Task) -> int:
    return len(task.labels) if labels_read is None else labels_read


def _mean(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return round(float(np.mean(known))) if known else None


def _line_row(
    judge: Judge, group: Group, full: float | None, facts: dict[str, Any]
) -> results.Row:
    task, began = judge.task, time.perf_counter()
    N = len(task.labels)
    size = sum(len(text.encode()) for text in task.dataset.train.texts)
    more: dict[str, Any] = {"labels": "hard", "training": "standard", "bytes": size}
    more["theta_0"] = task.theta_0
    config: dict[str, Any] = {"tuned": {}, "validation_accuracy": None, "inits": [[0]]}
    if group.name == "majority":
        accuracies = np.array([[judge.majority]])
        more = dict.fromkeys(("labels", "training", "bytes", "theta_0"))
    elif group.name == "tfidf":
        from distill_jax.baselines import tfidf

        found = tfidf(task.dataset, judge.report)
        accuracies = np.array([[found.accuracy]])
        config |= {"tuned": found.tuned, "validation_accuracy": found.validation}
        more["theta_0"] = None
    else:
        accuracies = judge.full_accuracies()
        config["tuned"] = judge.tuned_full()
        config["inits"] = [list(range(judge.protocol.test_inits))]
        full = float(accuracies.mean())
    return _row(
        judge,
        group,
        facts,
        accuracies,
        full,
        config,
        labels_read=0 if group.name == "majority" else N,
        seconds=time.perf_counter() - began,
        compute_seconds=0.0,
        **more,
    )


def _row(judge, group: Group, facts, accuracies, full, config, **more) -> results.Row:
    task = judge.task
    found = statistics.summary(accuracies)
    corrected = None
    if full is not None and full > judge.majority:
        mean = float(np.asarray(accuracies, float).mean())
        corrected = statistics.chance_corrected(mean, full, judge.majority)
    examples = round(group.examples_per_class * task.num_classes)
    if group.name in ("full", "tfidf"):
        examples = len(task.labels)
    return results.build(
        **facts,
        dataset=task.dataset.name,
        method=group.name,
        examples=examples,
        num_classes=task.num_classes,
        num_train=len(task.labels),
        accuracies=np.asarray(accuracies, float),
        full=full,
        majority=judge.majority,
        data=task.sha256,
        config={"settings": group.settings, **config},
        interval=[found.low, found.high],
        chance_corrected=corrected,
        **more,
    )


def _full_accuracy(groups, found) -> float | None:
    """That of all data, if its row is there: others are told relative to it."""
    for i, group in enumerate(groups):
        if group.name == "full" and found.get(i):
            return found[i][0]["accuracy_mean"]
    return None


def _waits(groups, found, group: Group) -> bool:
    """Whether others still work on what the row is told relative to."""
    of_all = [i for i, one in enumerate(groups) if one.name == "full"]
    return group.name != "full" and any(i not in found for i in of_all)


__all__ = [
    "LINES",
    "Group",
    "Method",
    "compare",
    "distilled",
    "plan",
    "queried",
    "real",
    "saved",
    "selected",
]
