"""Which is better at each budget, distilled or real? Told from rows alone.

The best method of either side is the one with the best accuracy on validation. They
share their theta_0, so the test pairs these (sign flips), with Holm's correction over
the budgets; the interval redraws the sets of both sides and the theta_0.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from distill_jax import statistics
from distill_jax.results import Row, grouped, newest

ALPHA = 0.05
NOT_CHOSEN = ("full", "majority")
# The labels that distilled and real may have, in each question.
QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "own": (("hard", "soft"), ("hard",)),  # each as its method gives it
    "soft": (("soft",), ("soft",)),  # real ones with those of a teacher
    "hard": (("hard",), ("hard",)),
}
TITLES = {
    "own": "distilled beats the best real method",
    "soft": "the same, with soft labels on both sides",
    "hard": "the same, with hard labels on both sides",
}

# One cell of a comparison: rows that agree in these measure the same thing.
CELL = "dataset model method labels training examples_per_class".split()


class Verdict(NamedTuple):
    """One budget's answer.

    Attributes:
        examples_per_class: the budget.
        question: of `QUESTIONS`.
        distilled, real: the rows compared.
        found: the difference of their accuracies.
        p_value: after Holm's correction over the budgets.
    """

    examples_per_class: float
    question: str
    distilled: Row
    real: Row
    found: statistics.Difference
    p_value: float

    @property
    def answer(self) -> str:
        """Whether distilled beats real: yes, no, or not told apart.

        Both must tell: the test, which knows these sets only, and the interval.
        """
        if self.p_value > ALPHA or self.found.low <= 0 <= self.found.high:
            return "not told apart"
        return "yes" if self.found.difference > 0 else "no"

    def __str__(self) -> str:
        d = self.found
        return (
            f"{self.answer}: {100 * d.difference:+.1f} points "
            f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}], {_p(self.p_value)}"
        )


def verdicts(rows: Sequence[Row], question: str = "own") -> list[Verdict]:
    """Distilled against the best real examples, for each budget that has both.

    Args:
        rows: of one corpus and network, one for each cell.
        question: of `QUESTIONS`.

    Returns:
        In the order of the budgets.
    """
    of_ours, of_real = QUESTIONS[question]
    pairs = []
    for budget in budgets(rows):
        here = [
            row
            for row in rows
            if row["examples_per_class"] == budget and row["method"] not in NOT_CHOSEN
        ]
        ours, real = [], []
        for row in here:
            if row["method"] == "distilled" and row["labels"] in of_ours:
                ours.append(row)
            elif row["method"] != "distilled" and row["labels"] in of_real:
                real.append(row)
        if ours and real:
            pairs.append((budget, max(ours, key=_chosen), max(real, key=_chosen)))
    found = [difference(ours, real) for _, ours, real in pairs]
    adjusted = statistics.holm([d.p_value for d in found])
    return [
        Verdict(budget, question, ours, real, d, float(p))
        for (budget, ours, real), d, p in zip(pairs, found, adjusted, strict=True)
    ]


def difference(a: Row, b: Row) -> statistics.Difference:
    """Accuracy of one row less that of another, see `statistics.difference`."""
    return _difference(
        *(_frozen(r["accuracies"]) for r in (a, b)), *map(_inits, (a, b))
    )


@lru_cache(maxsize=1024)  # several tables ask the same, and each takes 10,000 draws
def _difference(a: tuple, b: tuple, inits_a: tuple, inits_b: tuple):
    return statistics.difference(a, b, inits_a=inits_a, inits_b=inits_b)


def _inits(row: Row) -> tuple:
    return _frozen(row["config"]["inits"])


def _frozen(table: Sequence[Sequence]) -> tuple:
    return tuple(map(tuple, table))


def of_best_recipe(rows: Sequence[Row]) -> list[Row]:
    """The rows without distilled ones whose recipe another beats on validation.

    A budget may have been distilled by several recipes, whose rows all stay in the
    file. That of the row with the best validation accuracy counts, the newest of
    equals, with all its rows; real examples have one recipe.

    Args:
        rows: of experiments.compare, oldest first.
    """

    def cell(row: Row) -> tuple:
        names = ("preset", "dataset", "model", "examples_per_class")
        return tuple(row[name] for name in names)

    def recipe(row: Row) -> str:
        settings = row["config"].get("settings", {}).get("distilled")
        return json.dumps(settings, sort_keys=True)

    best: dict[tuple, Row] = {}
    for row in rows:
        if row["method"] == "distilled":
            leads = best.setdefault(cell(row), row)
            if _chosen(row) >= _chosen(leads):
                best[cell(row)] = row
    return [
        row
        for row in rows
        if row["method"] != "distilled" or recipe(row) == recipe(best[cell(row)])
    ]


def groups(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """The newest row of each cell, by corpus and network.

    Args:
        rows: of experiments.compare, of one preset or none.
    """
    return grouped(newest(rows, *CELL), "dataset", "model")


def budgets(rows: Sequence[Row]) -> list[float]:
    """Examples per class that the rows have, without those of all data."""
    return sorted(
        {row["examples_per_class"] for row in rows if row["method"] not in NOT_CHOSEN}
    )


def name_of(row: Row) -> str:
    """Method, labels and training in a few words."""
    words = [row["method"].removeprefix("query:")]
    if row["method"].startswith("query:"):
        words.append("(queried)")
    if row["method"] == "distilled":
        words.append(f"({row['labels']} labels, {row['training']})")
    elif row["labels"] == "soft":
        words.append("(a teacher's soft labels)")
    return " ".join(words)


def _chosen(row: Row) -> float:
    return row["config"]["validation_accuracy"]


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
