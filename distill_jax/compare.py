"""Distilled sets beside chosen ones, at equal budgets and by one protocol.

    compare(task, {"ours": distilled(), "k-means": selected("kmeans_medoids")}, [1])

A method is `(task, examples per class, seed) -> TrainingSet`, or several of them: one
for each way it is to be trained on. Each becomes a `Result`, written when it is done,
so that the same call goes on after any stop. Queries see no label that they did not ask
for. Test is read once for each row.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax import parallel, results, statistics
from distill_jax.names import described, digest
from distill_jax.progress import Bars
from distill_jax.results import Result
from distill_jax.sources import (
    Method,
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

LINES = ("full", "majority", "tfidf")


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
        folder: where rows are kept, and found again: `folder/rows.jsonl`.
        rows: that file, if it is another.
        experiment, preset: what rows say.
        share: other processes work on the same rows; each takes what nobody has.
        devices: that share the networks; see `parallel.listed`.
        say: told of each row; what takes long shows a bar on stderr.

    Returns:
        A `Result` for each row, old and new, in the order of the plan.

    Raises:
        ValueError: before any work, if a class has too few examples for a budget.
    """
    check_budgets(task, budgets)
    judge = Judge(task, protocol, devices=devices, report=Bars())
    path = (
        Path(rows) if rows else None if folder is None else Path(folder) / "rows.jsonl"
    )
    groups = plan(
        task,
        methods,
        budgets,
        protocol=protocol,
        lines=lines,
        many_at=many_at,
    )
    facts = {"experiment": experiment, "preset": preset, "model": task.model_name}
    found: dict[int, list[Result]] = {}

    def known() -> None:
        if path is not None:
            there = results.read(path)
            for i, group in enumerate(groups):
                if i not in found and (old := rows_of(there, task, group, facts)):
                    found[i] = old

    known()
    total = len(groups) - len(found)
    made = 0
    while len(found) < len(groups):
        waits = True
        for i, group in enumerate(groups):
            if i in found:
                continue
            with (
                _claimed(path, task, group, facts)
                if share
                else nullcontext(True) as mine
            ):
                if not mine:
                    continue
                if share:
                    known()
                    if i in found:
                        continue
                full = _full_accuracy(judge, groups, found, task, facts)
                new = made_rows(judge, methods, group, full, facts)
                if path is not None:
                    results.append(path, new)
                found[i] = [Result(row) for row in new]
            waits, made = False, made + 1
            for row in found[i]:
                say(f"[{made}/{total}] {group}, {line(row)}")
        if waits:
            time.sleep(2.0)
            known()
    return [row for i in range(len(groups)) for row in found[i]]


def check_budgets(task: Task, budgets: Sequence[float]) -> None:
    """Refuses budgets that a class has too few examples for."""
    counts = np.bincount(task.dataset.train.labels, minlength=task.num_classes)
    for budget in budgets:
        task.num_examples(budget)
    if budgets and max(budgets) > counts.min():
        raise ValueError(
            f"a budget of {max(budgets):g} a class: class "
            f"{task.dataset.label_names[counts.argmin()]!r} has only {counts.min()} "
            "training examples"
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
        several = isinstance(sets, list | tuple) and not isinstance(sets, TrainingSet)
        of_seeds.append(list(sets) if several else [as_set(task, sets)])
    compute = (time.perf_counter() - began) / group.num_seeds
    before = [sets[0].seconds for sets in of_seeds if sets[0].seconds is not None]
    compute += float(np.sum(before)) / group.num_seeds
    rows = []
    for ways in zip(*of_seeds, strict=True):
        began = time.perf_counter()
        sets = list(ways) if len(ways) < 2 or not _all_same(ways) else [ways[0]]
        inits = _inits(p, len(sets))
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


def _inits(protocol: Protocol, num_sets: int) -> list[list[int]]:
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

        found = tfidf(task.dataset)
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


def _full_accuracy(judge, groups, found, task, facts) -> float | None:
    """That of all data, if its row is there: others are told relative to it."""
    for i, group in enumerate(groups):
        if group.name == "full" and i in found:
            return found[i][0]["accuracy_mean"]
    return None


def _claimed(path: Path | None, task: Task, group: Group, facts: dict[str, Any]):
    """Whether this process has the group now; nobody else has, while it does.

    A file that its process holds locked; the system frees it when the process ends,
    however it ends, so a lock cannot go stale.
    """
    from contextlib import contextmanager

    from filelock import FileLock, Timeout

    if path is None:
        raise ValueError("share needs a folder or a file of rows that all know")
    key = digest(
        [task.sha256, facts, group.name, group.examples_per_class, group.settings]
    )

    @contextmanager
    def claimed():
        folder = path.parent / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{path.stem}-{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    return claimed()


def line(row: Mapping[str, Any]) -> str:
    """A row in a few words."""
    low, high = row["interval"]
    text = f"{row['accuracy_mean']:.1%} [{low:.1%}, {high:.1%}]"
    if row["relative_accuracy"] is not None:
        text += f", {row['relative_accuracy']:.0%} of all data"
    kind = ", ".join(
        filter(None, (row["labels"] and f"{row['labels']} labels", row["training"]))
    )
    return f"{kind}: {text}; {duration(row['seconds'])}" if kind else text


def duration(seconds: float) -> str:
    """Such as `90 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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
