"""The claims of the comparison paper (Anonymous 2022), each tested from rows.

Generality: distilled sentences beat real ones on every corpus. Stability: their
accuracy varies less than that of random sentences. Transfer: they also teach another
network than the one they were distilled with. For each the answer is yes, no or not
told apart, by the 95 % interval of the mean over corpora: Student's t over the means
of the corpora, as what holds for a few corpora is to hold for others.

The first two need rows of experiments.compare alone, the third those of networks that
were trained on the sets of another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_jax import statistics
from distill_jax.report import markdown, verdict
from distill_jax.results import Row, find, newest

TRANSFER = "transfer"  # the preset of rows that only the third claim reads
SHARED_SETTINGS = (
    "network train grid seed length vectors test_inits tuning_inits "
    "validation_examples fit_batch"
).split()
GENERALITY = "generality: distilled beats the best real method"
STABILITY = "stability: sd of distilled / sd of random is below 1"
VS_RANDOM = "transfer: distilled with {} beats random"
VS_BEST = "transfer: distilled with {} beats the best real method"
ANSWERS = ("yes", "not told apart", "no")
_NOTE = (
    "Differences are in points of test accuracy. The fourth column counts pairs of a "
    "corpus and a budget, each by its own test. The mean over corpora has Student's "
    "95 % interval over their means, which gives the answer; lines of one budget are "
    "not corrected for their number. A single corpus tells nothing about others."
)


class Pair(NamedTuple):
    """One corpus and budget.

    Attributes:
        dataset, examples_per_class: which.
        value: a difference of accuracies, or a ratio of standard deviations.
        low, high: its 95 % interval.
        answer: of `ANSWERS`, for this pair alone.
        said: value, interval and answer in words.
    """

    dataset: str
    examples_per_class: float
    value: float
    low: float
    high: float
    answer: str
    said: str


class Claim(NamedTuple):
    """A claim, and what the rows say to it.

    Attributes:
        question: what is claimed.
        network: that is trained.
        pairs: the evidence, at least one.
        value: mean over corpora, each the mean of its pairs; of ratios, geometric.
        low, high: its 95 % interval; NaN for a single corpus.
        answer: of `ANSWERS`; never yes or no from a single corpus.
    """

    question: str
    network: str
    pairs: list[Pair]
    value: float
    low: float
    high: float
    answer: str

    @property
    def is_ratio(self) -> bool:
        """Whether the values are ratios, of which the less is claimed."""
        return self.question == STABILITY

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora."""
        return list(dict.fromkeys(pair.dataset for pair in self.pairs))


def generality(rows: Sequence[Row]) -> list[Claim]:
    """Distilled against the best real method, for each network: all budgets, and each.

    Args:
        rows: of experiments.compare; those without a preset count.
    """
    by_network: dict[str, list[Pair]] = {}
    for (dataset, model), group in _groups(rows).items():
        pairs = [_pair(dataset, v) for v in verdict.verdicts(group)]
        by_network.setdefault(model, []).extend(pairs)
    found = []
    for model, pairs in by_network.items():
        if not pairs:
            continue
        found.append(_claim(GENERALITY, model, pairs))
        for budget in sorted({pair.examples_per_class for pair in pairs}):
            here = [pair for pair in pairs if pair.examples_per_class == budget]
            found.append(_claim(f"{GENERALITY}, {budget:g} a class", model, here))
    return found


def stability(rows: Sequence[Row]) -> list[Claim]:
    """How much distilled sets vary beside random ones, for each network.

    The standard deviation is that of one network trained on one set: over the seeds of
    the sets and theta_0 together. Budgets with a single distillation tell nothing.

    Args:
        rows: of experiments.compare; those without a preset count.
    """
    by_network: dict[str, list[Pair]] = {}
    for (dataset, model), group in _groups(rows).items():
        for budget in verdict.budgets(group):
            here = [
                row
                for row in group
                if row["examples_per_class"] == budget and row["num_seeds"] > 1
            ]
            ours = [row for row in here if row["method"] == "distilled"]
            random = find(here, method="random", labels="hard")
            if ours and random:
                chosen = max(ours, key=lambda row: row["config"]["validation_accuracy"])
                ratio = sd_ratio(chosen["accuracies"], random["accuracies"])
                answer = _answer(ratio[1], ratio[2], less_than=1.0)
                said = "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)
                pair = Pair(dataset, budget, *ratio, answer, f"{answer}: {said}")
                by_network.setdefault(model, []).append(pair)
    return [_claim(STABILITY, model, pairs) for model, pairs in by_network.items()]


def transfer(rows: Sequence[Row]) -> list[Claim]:
    """Distilled with one network, trained on another, against real sentences there.

    Args:
        rows: of experiments.compare and experiments.transfer.
    """

    def source_of(row: Row) -> str:
        return row["config"]["settings"]["source"]["model"]

    ours_of: dict[tuple[str, str, str], list[Row]] = {}
    moved = [r for r in rows if (r["preset"], r["method"]) == (TRANSFER, "distilled")]
    for row in newest(moved, source_of, *verdict.CELL):
        key = (row["dataset"], source_of(row), row["model"])
        ours_of.setdefault(key, []).append(row)
    evidence: dict[tuple[str, str], list[Pair]] = {}
    for (dataset, source, model), ours in ours_of.items():
        real = [
            row
            for row in rows
            if (row["dataset"], row["model"]) == (dataset, model)
            and row["method"] not in ("distilled", *verdict.NOT_CHOSEN)
            and same_protocol(row, ours[0])
        ]
        real = newest(real, "method", "labels", "examples_per_class")
        random = [row for row in real if row["method"] == "random"]
        for question, rivals in ((VS_RANDOM, random), (VS_BEST, real)):
            pairs = [_pair(dataset, v) for v in verdict.verdicts([*ours, *rivals])]
            evidence.setdefault((question.format(source), model), []).extend(pairs)
    return [
        _claim(question, model, pairs)
        for (question, model), pairs in evidence.items()
        if pairs
    ]


def same_protocol(a: Row, b: Row) -> bool:
    """Whether two rows trained the same network in the same way."""
    one, other = a["config"]["settings"], b["config"]["settings"]
    return all(one.get(name) == other.get(name) for name in SHARED_SETTINGS)


def sd_ratio(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    num_draws: int = 20_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Ratio of two standard deviations over seeds and theta_0, with its interval.

    The variance of one accuracy is B + (1 - 1/R) W: B of the means of the seeds, W
    within a seed. The interval is the generalised one (Weerahandi 1993): B and W are
    drawn as their sums of squares over chi-squares of S - 1 and S (R - 1) degrees of
    freedom. For three seeds it covers 93 to 95 % where a bootstrap covers as little as
    65 %, and is accordingly wide.

    Args:
        a, b: accuracies `[seeds, inits]` of at least two seeds and two inits each.
        confidence: coverage of the interval, in (0, 1).
        num_draws: of the variances.
        seed: of the draws.

    Returns:
        The ratio, and the low and high end of its interval.

    Raises:
        ValueError: for too few seeds or inits, or if b does not vary.
    """
    rng = np.random.default_rng(seed)
    points, draws = [], []
    for name, values in (("a", a), ("b", b)):
        table = np.asarray(values, float)
        if table.ndim != 2 or min(table.shape) < 2:
            raise ValueError(
                f"{name} must be [seeds, inits] with two of each at least, got "
                f"{list(table.shape)}"
            )
        S, R = table.shape
        between = table.mean(1).var(ddof=1)
        within = table.var(1, ddof=1).mean() * (1 - 1 / R)
        points.append(between + within)
        drawn = between * (S - 1) / rng.chisquare(S - 1, num_draws)
        drawn += within * S * (R - 1) / rng.chisquare(S * (R - 1), num_draws)
        draws.append(drawn)
    if points[1] <= 1e-16:
        raise ValueError("b does not vary: there is no ratio to it")
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.sqrt(draws[0] / draws[1]), [tail, 1 - tail])
    return float(np.sqrt(points[0] / points[1])), float(low), float(high)


def answers(rows: Sequence[Row]) -> list[Claim]:
    """All claims that the rows can tell something about."""
    return [*generality(rows), *stability(rows), *transfer(rows)]


def claims(results: dict[str, list[Row]]) -> str:
    """A table of the claims and their answers.

    Args:
        results: the rows of each file of `results/`; `compare` is read.
    """
    found = answers(results["compare"])
    if not found:
        return markdown.no_rows("compare")
    head = (
        "claim | network | corpora | yes / not told apart / no | mean over corpora "
        "| answer"
    )
    lines = [
        [
            claim.question,
            claim.network,
            f"{len(claim.corpora)}",
            _counts(claim),
            _mean(claim),
            f"**{claim.answer}**",
        ]
        for claim in found
    ]
    return markdown.table(head, lines) + f"{_NOTE}\n\n"


def report(found: Sequence[Claim]) -> str:
    """The answers and, below each that is not of one budget only, its evidence."""
    lines = []
    for claim in found:
        lines.append(
            f"{claim.question} ({claim.network})? {claim.answer}: {_mean(claim)} over "
            f"{', '.join(claim.corpora)}; {_counts(claim)} yes / not told apart / no"
        )
        if " a class" not in claim.question:
            lines += [
                f"    {pair.dataset:16} {pair.examples_per_class:>4g} a class  "
                f"{pair.said}"
                for pair in claim.pairs
            ]
    return "\n".join(lines)


def _groups(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """The newest row of each cell without a preset, by corpus and network."""
    return verdict.groups([row for row in rows if row["preset"] is None])


def _pair(dataset: str, v: verdict.Verdict) -> Pair:
    d = v.found
    sides = [
        f"{verdict.name_of(row)} {100 * row['accuracy_mean']:.1f}"
        for row in (v.distilled, v.real)
    ]
    said = f"{v}; {sides[0]} against {sides[1]}"
    return Pair(
        dataset, v.examples_per_class, d.difference, d.low, d.high, v.answer, said
    )


def _claim(question: str, network: str, pairs: list[Pair]) -> Claim:
    ratio = question == STABILITY
    by_corpus: dict[str, list[float]] = {}
    for pair in pairs:
        value = float(np.log(pair.value)) if ratio else pair.value
        by_corpus.setdefault(pair.dataset, []).append(value)
    means = np.array([np.mean(values) for values in by_corpus.values()])
    value, low, high = float(means.mean()), float("nan"), float("nan")
    if len(means) > 1:
        found = statistics.paired_summary(means, np.zeros(len(means)))
        low, high = found.low, found.high
    # Of the logarithms of ratios, below 0 is claimed.
    answer = _answer(low, high, less_than=0.0 if ratio else None)
    if ratio:
        value, low, high = (float(np.exp(x)) for x in (value, low, high))
    return Claim(question, network, pairs, value, low, high, answer)


def _answer(low: float, high: float, less_than: float | None = None) -> str:
    """Yes or no where the interval is on one side of 0, or of `less_than`."""
    if less_than is not None:
        low, high = less_than - high, less_than - low
    return "yes" if low > 0 else "no" if high < 0 else "not told apart"


def _counts(claim: Claim) -> str:
    given = [pair.answer for pair in claim.pairs]
    return " / ".join(f"{given.count(answer)}" for answer in ANSWERS)


def _mean(claim: Claim) -> str:
    scale, form = (1, "{:.2f}") if claim.is_ratio else (100, "{:+.1f}")
    value, low, high = (
        form.format(scale * x) for x in (claim.value, claim.low, claim.high)
    )
    return value + ("" if np.isnan(claim.low) else f" [{low}, {high}]")
