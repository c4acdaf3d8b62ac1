"""Figures and the numbers they are drawn from: Figures 3 and 4 of the comparison paper
(Anonymous 2022), and forms that a set is stored in.

A point is `(x, mean, low, high)`, accuracies in [0, 1]; a figure has points by curve.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import statistics
from distill_jax.fit import accuracy, fit, minibatch_order
from distill_jax.forms import Form, form_of
from distill_jax.measured import Measured
from distill_jax.report import compact_tables, curves, plots
from distill_jax.report.claims import same_protocol
from distill_jax.results import Row, find
from distill_jax.sources import selected
from distill_jax.train import FULL_BATCH, Judge, Native, TrainingSet
from distill_jax.types import Batch

Points = list[tuple[float, float, float, float]]
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def over_labels(asked: Sequence[Row], compared: Sequence[Row]) -> dict[str, Points]:
    """Figure 4: accuracy against labels for each query, and where distilled sets stand.

    Args:
        asked: rows of experiments.active_learning, of one corpus, network and setting.
        compared: rows of experiments.compare of that corpus and network; of these the
            distilled sets, in native training, that store as many sentences as the
            curves have labels or fewer.

    Returns:
        Points over labels. Distilled sets have two curves: at the sentences they store,
        and at the labels they read, where only the largest is.

    Raises:
        ValueError: for no rows of active learning.
    """
    if not asked:
        raise ValueError("no rows of active learning: run experiments.active_learning")
    found = {
        name: [_point(x, values) for x, values in points.items()]
        for name, points in curves.curves(asked).items()
    }
    last = max(x for points in found.values() for x, *_ in points)
    by_size = {
        row["examples"]: row
        for row in compared
        if row["method"] == "distilled"
        and row["training"] == "native"
        and row["preset"] is None
        and row["examples"] <= last
    }
    for name, field in (("stored", "examples"), ("labels read", "labels_read")):
        points = [
            (row[field], row["accuracy_mean"], *row["interval"])
            for _, row in sorted(by_size.items())
        ]
        if field == "labels_read":
            points = points[-1:]  # all stand at one place: that of most sentences
        if points:
            found[f"distilled, {name}"] = points
    return found


def of_training(
    judge: Judge, one: Measured, known: Sequence[Row], num_inits: int
) -> dict[str, Points]:
    """Figure 3: test accuracy over steps, for distilled, real and all sentences.

    Args:
        judge: of the network that has distilled, by the protocol of the rows.
        one: its sets at a budget.
        known: rows of the comparison.
        num_inits: theta_0 that each set is trained from, the first of the test's.

    Raises:
        ValueError: if the recipe of one is not among the rows.
    """
    task, p, row = judge.task, judge.protocol, one.row
    budget, found = row["examples_per_class"], {}

    def add(name: str, sets: list, like: Row) -> None:
        tuned = like["config"]["tuned"]
        found[name] = over_steps(judge, sets, tuned, num_inits)

    distilled = one.method("soft", "native")
    pairs = [distilled(task, budget, number) for number in range(len(one.sets))]
    add("distilled, standard", [soft for soft, _ in pairs], row)
    for name in ("random", "kmeans_medoids", "full"):
        other = beside(row, known, name)
        seeds = range(p.seed, p.seed + other["num_seeds"])
        sets = [task.train]
        if name != "full":
            sets = [selected(name)(task, budget, seed) for seed in seeds]
        add(name, sets, other)
    natives = [native.native for _, native in pairs if native.native]
    found["distilled, native"] = over_native_steps(judge, natives, num_inits)
    return found


def beside(row: Row, known: Sequence[Row], method: str) -> Row:
    """The newest row of real sentences, or of all data, beside a distilled one.

    Args:
        row: of the distilled set.
        known: rows of the comparison.
        method: which, with hard labels.

    Raises:
        ValueError: if there is none.
    """
    fields = ["dataset", "model", "training"]
    if method != "full":
        fields.append("examples_per_class")
    wanted = {name: row[name] for name in fields}
    alike = [other for other in known if same_protocol(other, row)]
    found = find(alike, method=method, labels="hard", **wanted)
    if found is None:
        raise ValueError(
            f"no row of {method} beside {row['examples_per_class']:g} per class on "
            f"{row['dataset']} with {row['model']}, which would say how it trains "
            "best: run experiments.compare first"
        )
    return found


def over_steps(
    judge: Judge, sets: Sequence[TrainingSet | Batch], tuned: Mapping, num_inits: int
) -> Points:
    """Test accuracy over the steps of standard training.

    Args:
        judge: of the task, by the protocol of the rows.
        sets: one for each seed; token ids of all data, as they are.
        tuned: what a row says was chosen on validation: `lr`, and `num_steps` or, for
            all data, `num_epochs`.
        num_inits: theta_0 that each set is trained from, the first of the test's.
    """
    task, seed = judge.task, judge.protocol.seed
    keys, n = judge.test_keys[:num_inits], len(task.train.y)
    size = min(FULL_BATCH, n)
    total = tuned.get("num_steps") or tuned["num_epochs"] * (n // size)
    stops = stops_to(total)

    def train(data, key, order, lr, test):
        theta_0 = task.model.init(jax.random.split(key)[0])
        score = lambda seen, theta: (seen, accuracy(task.model, theta, test))  # noqa: E731
        tx, ends = optax.adam(lr), jnp.asarray(stops)
        return fit(task.loss_fn, data, order, theta_0, tx, ends, visit=score)[1]

    trained = task.once(("over steps", total), lambda: jax.jit(train))
    values = []
    for one in sets:
        if isinstance(one, TrainingSet):
            jobs = judge.jobs(one.batch, keys, 1, range(num_inits))
            runs = [(job.data, job.key, job.order) for job in jobs]
        else:
            rngs = [np.random.default_rng([seed, 1, r]) for r in range(num_inits)]
            orders = [minibatch_order(n, size, total, rng) for rng in rngs]
            runs = [(one, *pair) for pair in zip(keys, orders, strict=True)]
        values.append(
            [
                trained(data, key, jnp.asarray(order), tuned["lr"], judge.test)
                for data, key, order in runs
            ]
        )
    table = np.array(values)
    return [_point(s, table[..., k]) for k, s in enumerate(stops)]


def over_native_steps(judge: Judge, sets: Sequence[Native], num_inits: int) -> Points:
    """The same in the sets' own order: later steps have the step size 0."""
    total = sets[0].distilled.lr.size
    points = []
    for stop in stops_to(total):
        values = []
        for d, tx in sets:
            taken = jnp.arange(total).reshape(d.lr.shape) < stop
            lr = jnp.where(taken, d.lr, 0)
            keys = judge.test_keys[:num_inits]
            values.append(judge.native(tx)(keys, d.batches, lr, judge.test))
        points.append(_point(stop, np.stack(values)))
    return points


def stops_to(total: int) -> list[int]:
    """Those of STEPS below a number of steps, and it."""
    return [*(s for s in STEPS if s < total), total]


def over_bytes(rows: Sequence[Row]) -> dict[str, Points]:
    """Accuracy of a set over the bytes of its forms, a curve for each way to store it.

    Args:
        rows: of experiments.compact, one for each form, of one set.

    Returns:
        Points over bytes, from a standard deviation below the mean to one above.
    """
    groups: dict[tuple[str, str], list[tuple[Form, Row]]] = {}
    for row in rows:
        form = form_of(row["config"]["form"])
        way = (form.factors, form.kind if form.factors else "")
        groups.setdefault(way, []).append((form, row))
    found = {}
    for (factors, kind), members in groups.items():
        members.sort(key=lambda member: member[0].size)
        name = "whole: " + ", ".join(form.kind for form, _ in members)
        if factors:
            name = f"{factors.replace('_', ' ')}, {kind}: "
            name += ", ".join(f"{form.size}" for form, _ in members)
        found[name] = []
        for _, row in members:
            mean, sd = row["accuracy_mean"], row["accuracy_sd"] or 0.0
            low, high = max(mean - sd, 0.0), min(mean + sd, 1.0)
            found[name].append((row["bytes"], mean, low, high))
    return found


def plot_forms(path: Path, rows: Sequence[Row], of: Row) -> Path:
    """The forms of the set of a row, also those of earlier runs on the same theta_0."""
    same = [row for row in rows if compact_tables.comparable(row, of)]
    return plots.plot_curves(
        path,
        over_bytes(compact_tables.newest(same)),
        xlabel="bytes",
        ylabel="test accuracy, %, mean ± sd",
        full=of["full_accuracy_mean"],
        majority=of["majority_accuracy"],
        log=True,
    )


def draw(path: Path, points: Mapping[str, Points], xlabel: str, **how: Any) -> Path:
    """Draws curves over a logarithmic axis, and writes their numbers beside them.

    Args:
        path: of an SVG.
        points: by curve.
        xlabel: of the axis; its last word is the name of the column.
        how: as for `plots.draw_curves`.
    """
    shown = plots.draw_curves(points, xlabel=xlabel, log=True, **how)
    head = ["curve", xlabel.split()[-1], "accuracy", "low", "high"]
    lines = [(curve, *point) for curve, some in points.items() for point in some]
    return write(path, shown, head, lines)


def draw_step_sizes(path: Path, lr: np.ndarray) -> Path:
    """Draws learned step sizes `[E, S]`, and writes them beside the figure."""
    lines = [(number, float(size)) for number, size in enumerate(lr.ravel())]
    return write(path, plots.draw_step_sizes(lr), ["inner step", "step size"], lines)


def write(path: Path, figure, head: Sequence[str], lines: Sequence[Sequence]) -> Path:
    """A figure as SVG, and its numbers beside it as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plots.svg(figure), encoding="utf-8")
    with open(path.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *lines])
    return path


def _point(x: float, values) -> tuple[float, float, float, float]:
    found = statistics.summary(np.asarray(values, float))
    # The bootstrap's ends and the mean are rounded differently.
    low, high = min(found.low, found.mean), max(found.high, found.mean)
    return float(x), found.mean, low, high
