"""The page of active learning: learning curves, and what was asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_jax.report import plots
from distill_jax.report.page.blocks import (
    Block,
    Cell,
    Figure,
    Folded,
    Page,
    Section,
    Table,
    interval,
    percent,
)
from distill_jax.report.page.common import (
    BOOTSTRAP,
    PERCENT,
    RESAMPLES,
    SHARED,
    faint_of,
    levels_of,
    listed,
    need,
    point_at,
    settings_section,
)
from distill_jax.report.page.errata import errata_section
from distill_jax.results import Row, grouped, newest
from distill_jax.statistics import aulc, deficiency, summary

_ACTIVE = SHARED + "round seed num_labelled n_tied_at_cut accuracies".split()
_MOST_QUERIED = 500


@dataclass(frozen=True)
class Queried:
    """A sentence that a query strategy asked a label for."""

    method: str
    seed: int
    round: int
    id: int | str
    text: str
    label: str | None = None
    score: float | None = None


def page_of_active(rows: Sequence[Row], queried: Sequence[Queried] = ()) -> Page:
    """The page of active learning: one row for each strategy, seed and round.

    Args:
        rows: with the fields of `results/active_learning.jsonl`.
        queried: the sentences asked for, in the order they were.

    Returns:
        A `Page`.

    Raises:
        ValueError: for no rows, rows that lack a field, or seeds of one strategy with
            other numbers of labels or theta_0.
    """
    need(rows, _ACTIVE)
    rows = newest(rows, "dataset", "model", "method", "seed", "round")
    sections, facts = [], []
    for (dataset, model), group in grouped(rows, "dataset", "model").items():
        section, areas = _rounds(f"{dataset}, {model}", group)
        sections.append(section)
        facts += [
            (f"{100 * area:.1f}{PERCENT}", f"{dataset}, {model}: area under {name}")
            for name, area in areas
        ]
    if queried:
        sections.append(_queried(queried))
    sections += [errata_section(), settings_section(rows)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    seeds = len({row["seed"] for row in rows})
    said = (
        f"Test accuracy as labels are asked for, by {listed(methods)}, with {seeds} "
        f"seed{'s' * (seeds > 1)}. The area under a learning curve is its mean "
        "accuracy from the first to the last number of labels."
    )
    return Page("Active learning", said, facts, sections)


def _rounds(title: str, rows: list[Row]) -> tuple[Section, list[tuple[str, float]]]:
    full, majority = levels_of(rows)
    curves, means, ties = {}, {}, []
    for (method,), group in grouped(rows, "method").items():
        curves[method], by_seed = [], {}
        for (labels,), cells in sorted(grouped(group, "num_labelled").items()):
            scores = [row["accuracies"] for row in cells]
            if len({len(row) for row in scores}) > 1:
                raise ValueError(
                    f"{method} at {labels} labels: its seeds have other numbers of θ0"
                )
            curves[method].append(point_at(labels, scores))
            for row in cells:
                by_seed.setdefault(row["seed"], []).append(
                    (labels, float(np.mean(row["accuracies"])))
                )
            tied = [r["n_tied_at_cut"] for r in cells if r["n_tied_at_cut"] is not None]
            ties.append(float(np.mean(tied)) if tied else None)
        places = {tuple(x for x, _ in points) for points in by_seed.values()}
        if len(places) > 1:
            raise ValueError(
                f"the seeds of {method} were scored at other numbers of labels: "
                f"{sorted(places)}"
            )
        means[method] = by_seed
    faint = faint_of(curves)
    budgets = [point[0] for curve in curves.values() for point in curve]
    drawn = plots.draw_curves(
        curves,
        xlabel="labels",
        full=full,
        majority=majority,
        log=max(budgets) > 10 * min(budgets),
        faint=faint,
    )
    grey = f" In grey: {listed(faint)}." if faint else ""
    figure = Figure(
        plots.svg(drawn),
        f"Test accuracy against labels, {title}: {listed(list(curves))}.",
        f"Test accuracy against labels. {BOOTSTRAP}.{grey}",
    )
    lines, areas = [], []
    reference = _mean_curve(means.get("random", {}))
    for method, by_seed in means.items():
        each = [
            aulc(*zip(*points, strict=True))
            for points in by_seed.values()
            if len(points) > 1
        ]
        ours = _mean_curve(by_seed)
        area = float(np.mean(each)) if each else None
        if area is not None:
            areas.append((method, area))
        spread = summary(each, num_resamples=RESAMPLES) if len(each) > 1 else None
        lines.append(
            (
                method,
                len(by_seed),
                percent(area),
                interval(spread.low, spread.high) if spread else None,
                _deficiency(ours, reference) if method != "random" else None,
                percent(curves[method][-1][1]),
            )
        )
    table = Table(
        "Area under the learning curve. Deficiency below 1: better than random",
        ["strategy", "seeds", "area %", "95 % interval", "deficiency", "last %"],
        lines,
    )
    points = [(m, *p) for m, curve in curves.items() for p in curve]
    rounds = Table(
        "Every round. Tied: items that scored as the last one asked for, and were not",
        ["strategy", "labels", "accuracy %", "95 % interval", "tied, mean"],
        [
            (method, int(labels), percent(mean), interval(low, high), tied)
            for (method, labels, mean, low, high), tied in zip(
                points, ties, strict=True
            )
        ],
    )
    return Section(title, [figure, table, Folded("Every round", [rounds])]), areas


def _deficiency(ours: dict, reference: dict) -> Cell | None:
    """Against random at the same numbers of labels, where it is defined."""
    if len(ours) < 2 or ours.keys() != reference.keys():
        return None
    values = np.array(list(reference.values()))
    if np.isclose(values.max(), values).all():
        return None
    value = deficiency(list(ours.values()), values)
    return Cell(f"{value:z.2f}", value)


def _mean_curve(by_seed: dict) -> dict[float, float]:
    points = {}
    for curve in by_seed.values():
        for labels, accuracy in curve:
            points.setdefault(labels, []).append(accuracy)
    return {labels: float(np.mean(a)) for labels, a in sorted(points.items())}


def _queried(queried: Sequence[Queried]) -> Section:
    groups: dict[tuple[str, int], list[Queried]] = {}
    for item in queried:
        groups.setdefault((item.method, item.seed), []).append(item)
    blocks: list[Block] = []
    for (method, seed), items in groups.items():
        caption = f"Asked for by {method}, seed {seed}, in this order"
        if len(items) > _MOST_QUERIED:
            caption += f"; the first {_MOST_QUERIED} of {len(items):,}"
        rows = [
            (i, item.round, item.text, item.label, item.score, str(item.id))
            for i, item in enumerate(items[:_MOST_QUERIED], 1)
        ]
        columns = ["no.", "round", "sentence", "label", "score", "id"]
        blocks.append(
            Folded(
                f"{method}, seed {seed}: {len(items):,} sentences",
                [Table(caption, columns, rows)],
            )
        )
    return Section("Queried sentences", blocks)
