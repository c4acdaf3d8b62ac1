"""The tables of distilled sets beside real ones: how accurate is either?"""

import math
from collections.abc import Sequence

from distill_jax.report import markdown, verdict
from distill_jax.results import Row, find, newest

Groups = list[tuple[tuple, list[Row]]]
HEADLINE_DATASET = "rotten_tomatoes"
HEADLINE_MODEL = "text_cnn"
HEADLINE_EXAMPLES = (2, 10, 20)
HEADLINE_META_STEPS = 1000  # of a whole run; a short trial does not replace one
METHODS = {
    "distilled": "**distilled**",
    "random": "random real",
    "random_balanced": "random real, balanced",
    "kmeans_medoids": "k-means medoids",
    "full": "all training data",
    "majority": "majority class",
}
NOT_CHOSEN = ("distilled", "full", "majority")


def summary(results: dict[str, list[Row]]) -> str:
    """Each corpus and network in a line, from the fewest sentences to the most.

    Args:
        results: rows by file; `compare` is read, of no preset.
    """
    asked = []
    for (dataset, model), rows in of_preset(results, None):
        answers = {q: verdict.verdicts(rows, q) for q in verdict.QUESTIONS}
        if answers["own"]:
            asked.append((dataset, model, answers))
    if not asked:
        return markdown.no_rows("compare")
    corpora = list(dict.fromkeys(dataset for dataset, *_ in asked))
    lines = []
    for dataset, model, answers in sorted(asked, key=lambda one: corpora.index(one[0])):
        found = answers["own"]
        ends = found if len(found) == 1 else [found[0], found[-1]]
        ours, real = [v.distilled for v in ends], [v.real for v in ends]
        lines.append(
            [
                f"{dataset}, {model}",
                " to ".join(f"{row['examples']:,}" for row in ours),
                f"**{_ends(ours)}**",
                _ends(real),
                markdown.percent(ours[-1]["full_accuracy_mean"]),
                markdown.percent(ours[-1]["majority_accuracy"]),
                _answered(found),
            ]
        )
    head = (
        "corpus, network | sentences | distilled | best real choice | all data | "
        "majority | distilled beats it: yes / not told apart / no"
    )
    totals = [
        f"{_answered([v for *_, found in asked for v in found[question]])} {title}"
        for question, title in (
            ("own", "with the labels that each method gives"),
            ("hard", "with hard labels on both sides"),
            ("soft", "with soft labels on both sides, for real sentences a teacher's"),
        )
    ]
    return markdown.table(head, lines) + (
        "Test accuracy in %, at the fewest and the most sentences measured; the last "
        "column counts the numbers of sentences. In all, yes / not told apart / no: "
        f"{'; '.join(totals)}.\n\n"
    )


def _ends(rows: Sequence[Row]) -> str:
    return " to ".join(markdown.percent(row["accuracy_mean"]) for row in rows)


def _answered(found: Sequence[verdict.Verdict]) -> str:
    given = [v.answer for v in found]
    return " / ".join(f"{given.count(a)}" for a in ("yes", "not told apart", "no"))


def headline(results: dict[str, list[Row]]) -> str:
    """Accuracy on rotten_tomatoes, by method and number of examples.

    Of `results/distill.jsonl`: no preset, random theta_0, the test split; the
    distilled rows are those with soft labels in their native training.
    """
    rows = [
        row
        for row in results["distill"]
        if row["dataset"] == HEADLINE_DATASET
        and row["model"] == HEADLINE_MODEL
        and row["preset"] is None
        and row["split"] == "test"
        and row["theta_0"] in ("random", None)
        and row["config"].get("num_meta_steps", math.inf) >= HEADLINE_META_STEPS
        and (
            row["method"] != "distilled"
            or (row["labels"], row["training"]) == ("soft", "native")
        )
    ]
    if not rows:
        return markdown.no_rows("distill")

    def cell(method: str, examples: int) -> Row | None:
        if method in verdict.NOT_CHOSEN:  # the same for any number of examples
            return find(rows, method=method)
        return find(rows, method=method, examples=examples)

    lines = [
        [name, *(markdown.accuracy(cell(method, n)) for n in HEADLINE_EXAMPLES)]
        for method, name in METHODS.items()
    ]
    relative = [cell("distilled", n) for n in HEADLINE_EXAMPLES]
    lines.append(
        [
            "distilled, % of all training data",
            *(
                markdown.percent(row["relative_accuracy"] if row else None)
                for row in relative
            ),
        ]
    )
    shown = [cell(method, n) for method in METHODS for n in HEADLINE_EXAMPLES]
    counted = [row for row in shown if row and row["method"] != "majority"]
    return markdown.table(
        [f"{HEADLINE_DATASET}, {HEADLINE_MODEL}"]
        + [f"{n} sentences" for n in HEADLINE_EXAMPLES],
        lines,
    ) + (
        "Test accuracy in %, mean ± sd over "
        f"{markdown.span(counted, 'num_inits')} random θ0 and "
        f"{markdown.span(counted, 'num_seeds')} seed(s).\n\n"
    )


def first_rows(results: dict[str, list[Row]]) -> str:
    """Each distilled row of the other corpora, beside the best real examples."""
    rows = [
        row
        for row in results["distill"]
        if row["dataset"] != HEADLINE_DATASET and row["split"] == "test"
    ]
    same_run = ("dataset", "model", "preset", "theta_0", "examples")
    distilled = newest(
        [row for row in rows if row["method"] == "distilled"],
        *same_run,
        "labels",
        "training",
        "selected_on",
    )
    if not distilled:
        return markdown.no_rows("distill")
    real = newest(
        [row for row in rows if row["method"] not in NOT_CHOSEN], *same_run, "method"
    )
    lines = []
    for row in sorted(
        distilled, key=lambda r: (r["dataset"], r["examples"], r["theta_0"] or "")
    ):
        rivals = [r for r in real if all(r[k] == row[k] for k in same_run)]
        best = max(rivals, key=lambda r: r["accuracy_mean"], default=None)
        lines.append(
            [
                row["dataset"] + (f" ({row['preset']})" if row["preset"] else ""),
                f"{row['examples']:,}",
                row["model"],
                row["theta_0"] or "-",
                row["labels"] or "-",
                f"**{markdown.accuracy(row)}**",
                markdown.accuracy(best) + (f" ({best['method']})" if best else ""),
                markdown.percent(row["full_accuracy_mean"]),
                markdown.percent(row["relative_accuracy"]),
                markdown.percent(row["majority_accuracy"]),
                row["selected_on"] or "-",
                f"{row['num_seeds']} × {row['num_inits']}",
            ]
        )
    head = (
        "dataset | examples | model | θ0 | labels | distilled | best real | all data "
        "| % of all data | majority | selected on | seeds × θ0"
    )
    return markdown.table(head.split(" | "), lines)


def compare(results: dict[str, list[Row]]) -> str:
    """Accuracy of each method at each budget, for each corpus and network."""
    groups = of_preset(results, None)
    if not groups:
        return markdown.no_rows("compare")
    parts = [_compared(dataset, model, here) for (dataset, model), here in groups]
    return "".join(parts) + (
        "Test accuracy in % with its 95 % bootstrap interval over sets and random θ0. "
        "The best of either side is chosen on validation; p-values are of sign flips "
        "over the θ0 that both share, after Holm's correction over the budgets. Yes "
        "and no need p ≤ 0.05 and an interval without 0.\n\n"
    )


def anonymous2022(results: dict[str, list[Row]]) -> str:
    """The table of the comparison paper: Original, Distilled and Random at 0.1 %."""
    groups = of_preset(results, "anonymous2022")
    if not groups:
        return markdown.no_rows("compare")
    lines = []
    for (dataset, model), here in groups:
        by_name = {verdict.name_of(row): row for row in here}
        native = by_name.get("distilled (soft labels, native)")
        if native is None:
            continue
        found = verdict.verdicts(here)
        lines.append(
            [
                f"{dataset}, {model}",
                f"{native['examples']} ({native['fraction_of_train']:.2%})",
                markdown.interval(by_name.get("full")),
                markdown.interval(native),
                markdown.interval(by_name.get("distilled (soft labels, standard)")),
                markdown.interval(by_name.get("random")),
                markdown.interval(by_name.get("random_balanced")),
                markdown.percent(native["relative_accuracy"]),
                markdown.percent(native["majority_accuracy"]),
                f"{found[0]}" if found else "-",
            ]
        )
    head = (
        "corpus, network | examples | original | distilled, native | distilled, "
        "standard | random | random, balanced | distilled, % of original | majority "
        "| distilled beats the best real method"
    )
    return markdown.table(head.split(" | "), lines)


def _compared(dataset: str, model: str, rows: list[Row]) -> str:
    budgets = verdict.budgets(rows)
    names = dict.fromkeys(
        verdict.name_of(row) for row in sorted(rows, key=_distilled_first)
    )
    cells = {(verdict.name_of(row), row["examples_per_class"]): row for row in rows}
    same = {name: find(rows, method=name) for name in verdict.NOT_CHOSEN}
    head = [f"{dataset}, {model}", *(f"{budget:g} a class" for budget in budgets)]
    lines = [
        [
            f"**{name}**" if name.startswith("distilled") else name,
            *(
                markdown.interval(same.get(name) or cells.get((name, b)))
                for b in budgets
            ),
        ]
        for name in names
    ]
    for question, title in verdict.TITLES.items():
        found = {v.examples_per_class: v for v in verdict.verdicts(rows, question)}
        if found:
            answers = [f"{found[b]}" if b in found else "-" for b in budgets]
            lines.append([title, *answers])
    return markdown.table(head, lines)


def _distilled_first(row: Row) -> tuple[bool, bool, bool]:
    """Distilled, selections, queries, and at last what no budget changes."""
    method = row["method"]
    return (
        method in verdict.NOT_CHOSEN,
        method.startswith("query:"),
        method != "distilled",
    )


def of_preset(results: dict[str, list[Row]], preset: str | None) -> Groups:
    """Corpus and network, and the newest row of each of their cells.

    Args:
        results: rows by file; `compare` is read.
        preset: of which one; None for rows without.
    """
    rows = [row for row in results["compare"] if row["preset"] == preset]
    return list(verdict.groups(rows).items())
