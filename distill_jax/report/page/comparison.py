"""The page of a comparison of distilled with real examples at equal budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill_jax.report import plots
from distill_jax.report.page.blocks import (
    Cell,
    Figure,
    Figures,
    Page,
    Section,
    Table,
    Text,
    interval,
    percent,
)
from distill_jax.report.page.common import (
    SHARED,
    accuracy_of,
    chosen_of,
    faint_of,
    levels_of,
    listed,
    mean_of,
    need,
    numbers_of,
    settings_section,
)
from distill_jax.report.page.errata import errata_section
from distill_jax.results import Row, grouped, newest

_COMPARED = (
    SHARED
    + (
        "labels training examples_per_class accuracies interval chance_corrected "
        "labels_read bytes compute_seconds relative_accuracy"
    ).split()
)


@dataclass(frozen=True)
class Verdict:
    """Does the distilled set beat the best real one at a budget?

    Attributes:
        dataset, model, examples_per_class: the budget.
        distilled, rival: what is compared, each the best of its side on validation.
        difference: accuracy of distilled less that of the rival.
        low, high: its interval.
        p_value: of the paired test, after Holm's correction.
        answer: "yes", "no" or "not told apart".
        question: what is asked; the first one's answers make the summary.
    """

    dataset: str
    model: str
    examples_per_class: float
    distilled: str
    rival: str
    difference: float
    low: float
    high: float
    p_value: float
    answer: str
    question: str = "distilled beats the best real examples"


def page_of_comparison(rows: Sequence[Row], verdicts: Sequence[Verdict] = ()) -> Page:
    """The page of a comparison of distilled with real examples at equal budgets.

    Args:
        rows: with the fields of `results/compare.jsonl`, of any number of corpora.
        verdicts: results of the paired tests.

    Returns:
        A `Page`.

    Raises:
        ValueError: for no rows, or rows that lack a field.
    """
    need(rows, _COMPARED)
    key = "dataset model method labels training theta_0 preset split examples".split()
    rows = newest(rows, *key)
    groups = grouped(rows, "dataset", "model")
    facts, wins = [], []
    for (dataset, model), group in groups.items():
        met = _contests(group)
        wins += [mean_of(ours) > mean_of(real) for ours, real in met]
        for ours, real in met[:1]:
            facts.append(
                (
                    f"{accuracy_of(ours)} : {accuracy_of(real)}",
                    f"{dataset}, {model}, {ours['examples']:,} examples: distilled : "
                    f"{real['method']}",
                )
            )
    if verdicts:
        asked = [v for v in verdicts if v.question == verdicts[0].question]
        # What validation chose, and not the highest of the test accuracies.
        first = {(v.dataset, v.model): v for v in reversed(asked)}.values()
        facts = [
            (
                f"{100 * v.difference:+.1f} points",
                f"{v.dataset}, {v.model}, {v.examples_per_class:g} per class: "
                f"distilled less {v.rival}",
            )
            for v in reversed(first)
        ]
        said = (
            f"Distilled sentences beat the best real ones at "
            f"{sum(v.answer == 'yes' for v in asked)} of {len(asked)} budgets, by a "
            "paired test with Holm's correction."
        )
    else:
        said = (
            "Distilled sentences have a higher mean accuracy than the best real ones "
            f"at {sum(wins)} of {len(wins)} budgets; no test was made."
        )
    sections = [_verdicts(verdicts)] if verdicts else []
    sections += [
        _compared(f"{dataset}, {model}", group)
        for (dataset, model), group in groups.items()
    ]
    sections += [errata_section(), settings_section(rows)]
    return Page("Distilled or real examples?", said, facts, sections)


def _contests(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The best distilled and the best real row of each budget that has both."""
    pairs = []
    for _, cells in sorted(grouped(chosen_of(rows), "examples").items()):
        ours = [row for row in cells if row["method"] == "distilled"]
        real = [row for row in cells if row["method"] != "distilled"]
        if ours and real:
            pairs.append((max(ours, key=mean_of), max(real, key=mean_of)))
    return pairs


def _compared(title: str, rows: list[Row]) -> Section:
    full, majority = levels_of(rows)
    cells = chosen_of(rows)
    several = {}
    for row in cells:
        variant = (row["training"], row["labels"])
        several.setdefault(row["method"], set()).add(variant)

    def name(row: Row) -> str:
        if len(several[row["method"]]) == 1:
            return row["method"]
        return f"{row['method']} ({row['training']}, {row['labels']} labels)"

    cells = sorted(cells, key=lambda row: row["method"] != "distilled")
    figures = []
    for field, axis in (
        ("examples_per_class", "examples per class"),
        ("bytes", "bytes stored"),
        ("labels_read", "labels read"),
    ):
        curves = {}
        for row in cells:
            if row[field]:
                point = (row[field], row["accuracy_mean"], *row["interval"])
                curves.setdefault(name(row), []).append(point)
        if len(curves) < 2:
            continue
        faint = faint_of(curves)
        drawn = plots.draw_curves(
            curves, xlabel=axis, full=full, majority=majority, log=True, faint=faint
        )
        grey = f" In grey: {listed(faint)}." if faint else ""
        figures.append(
            Figure(
                plots.svg(drawn),
                f"Test accuracy against {axis}, {title}: {listed(list(curves))}.",
                f"Test accuracy against {axis}, with 95 % intervals.{grey}",
                numbers_of(axis, curves),
            )
        )
    columns = (
        "method, per class, accuracy %, 95 % interval, training, labels, examples, "
        "labels read, bytes, seconds, % of all data, chance-corrected %, seeds × θ0"
    )
    ordered = sorted(rows, key=lambda r: (r["examples"], -r["accuracy_mean"]))
    table = Table(
        f"Test accuracy on {title}",
        columns.split(", "),
        [
            (
                row["method"],
                row["examples_per_class"],
                percent(row["accuracy_mean"]),
                interval(*row["interval"]),
                row["training"],
                row["labels"],
                row["examples"],
                row["labels_read"],
                row["bytes"],
                row["compute_seconds"],
                percent(row["relative_accuracy"]),
                percent(row["chance_corrected"]),
                _seeds(row),
            )
            for row in ordered
        ],
        strong=[i for i, row in enumerate(ordered) if row["method"] == "distilled"],
    )
    return Section(title, [*([Figures(figures)] if figures else []), table])


def _verdicts(verdicts: Sequence[Verdict]) -> Section:
    columns = (
        "dataset, per class, answer, difference in points, 95 % interval, p, "
        "distilled, best real, model"
    )
    questions: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        questions.setdefault(verdict.question, []).append(verdict)
    tables = [
        Table(
            f"{question[:1].upper()}{question[1:]}?",
            columns.split(", "),
            [
                (
                    v.dataset,
                    v.examples_per_class,
                    v.answer,
                    Cell(f"{100 * v.difference:+.1f}", v.difference),
                    Cell(f"{100 * v.low:+.1f} to {100 * v.high:+.1f}", v.low),
                    Cell(f"{v.p_value:.2g}", v.p_value),
                    v.distilled,
                    v.rival,
                    v.model,
                )
                for v in asked
            ],
        )
        for question, asked in questions.items()
    ]
    note = Text(
        "Either side is its best method on validation. p is of a paired sign-flip test "
        "with Holm's correction over the budgets."
    )
    return Section("Does distillation win?", [note, *tables])


def _seeds(row: Row) -> str:
    return f"{len(row['accuracies'])} × {len(row['accuracies'][0])}"
