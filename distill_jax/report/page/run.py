"""The page of one distillation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from distill_jax.decode import Nearest
from distill_jax.report import plots
from distill_jax.report.page.blocks import (
    Block,
    Figure,
    Figures,
    Page,
    Section,
    Sentence,
    Table,
    Text,
    percent,
)
from distill_jax.report.page.common import (
    BOOTSTRAP,
    PERCENT,
    SHARED,
    accuracy_of,
    levels_of,
    need,
    numbers_of,
    point_at,
    settings_section,
)
from distill_jax.results import Row, find, newest

_NOT_CHOSEN = ("distilled", "full", "majority")
_MOST_SENTENCES = 50  # of a kind on one page: a browser must scroll through it


def page_of_run(
    rows: Sequence[Row],
    *,
    steps: ArrayLike,
    accuracies: ArrayLike,
    lr: ArrayLike,
    y: ArrayLike,
    label_names: Sequence[str],
    nearest: Nearest | None = None,
) -> Page:
    """The page of one distillation.

    Args:
        rows: of the run: the method `distilled`, and what stands beside it.
        steps: `[K]` meta-steps at which it was validated.
        accuracies: `[K]` validation accuracies, or `[K, N]` of N random theta_0.
        lr: inner step sizes `[E, S]`, or their history `[K, E, S]`.
        y: label probabilities of the distilled sentences `[S, B, C]`.
        label_names: C names.
        nearest: words `[S, B, L, k]` of the sentences, from `decode.nearest_words`.

    Returns:
        A `Page`.

    Raises:
        ValueError: for rows that lack a field or a distilled one, or for shapes that
            do not fit.
    """
    need(rows, SHARED)
    rows = newest(rows, "method")
    names = [row["method"] for row in rows]
    best = find(rows, method="distilled")
    if best is None:
        raise ValueError(f"no row is of distilled sentences; there are {names}")
    real = [row for row in rows if row["method"] not in _NOT_CHOSEN]
    rival = max(real, key=lambda row: row["accuracy_mean"], default=None)
    full, majority = levels_of(rows)
    said = (
        f"{best['examples']:,} distilled sentences reach {accuracy_of(best)} accuracy "
        f"on the {best.get('split', 'test')} split of {best['dataset']} with the "
        f"network {best['model']}"
    )
    if full is not None:
        said += f"; all training data reach {100 * full:.1f}{PERCENT}"
    if rival:
        said += f"; the best {rival['examples']:,} real ones, {accuracy_of(rival)}"
    facts = [(accuracy_of(best), "accuracy of the distilled sentences")]
    if full:
        share = best["accuracy_mean"] / full
        facts.append((f"{100 * share:.1f}{PERCENT}", "of the accuracy with all data"))
    if rival:
        facts.append((accuracy_of(rival), f"best real sentences ({rival['method']})"))
    if best.get("bytes"):
        facts.append((f"{best['bytes'] / 1e3:,.0f} kB", "size of the distilled set"))
    columns = "method, examples, accuracy %, % of all data, labels, training, seeds, θ0"
    results = Table(
        "Accuracy, mean ± standard deviation over fresh random θ0",
        columns.split(", "),
        [
            (
                row["method"],
                row["examples"],
                percent(row["accuracy_mean"], row.get("accuracy_sd")),
                percent(row.get("relative_accuracy")),
                row.get("labels"),
                row.get("training"),
                row.get("num_seeds"),
                row.get("num_inits"),
            )
            for row in rows
        ],
        strong=[names.index("distilled")],
    )
    sections = [
        Section(
            "Results",
            [results, Text("Distillation reads the label of every training example.")],
        ),
        Section(
            "What was learned",
            [
                Figures(
                    [
                        _validation(
                            steps,
                            accuracies,
                            full,
                            majority,
                            best.get("selected_on", "validation"),
                        ),
                        _step_sizes(lr),
                    ]
                )
            ],
        ),
        Section("Distilled sentences", _sentences(y, label_names, nearest)),
        settings_section(rows),
    ]
    title = f"{best['dataset']}: {best['examples']:,} distilled sentences"
    return Page(title, said + ".", facts, sections)


def _validation(steps, accuracies, full, majority, on) -> Figure:
    steps, table = np.asarray(steps, float), np.asarray(accuracies, float)
    if steps.ndim != 1 or table.ndim not in (1, 2) or len(table) != len(steps):
        raise ValueError(
            "steps must be [K] and accuracies [K] or [K, N], got "
            f"{list(steps.shape)} and {list(table.shape)}"
        )
    points = [point_at(step, a) for step, a in zip(steps, table, strict=True)]
    drawn = plots.draw_curves(
        {"distilled": points},
        xlabel="meta-step",
        ylabel=f"{on} accuracy, %",
        full=full,
        majority=majority,
    )
    spread = f" {BOOTSTRAP}." if table.ndim == 2 else ""
    return Figure(
        plots.svg(drawn),
        f"Validation accuracy from {100 * points[0][1]:.1f} % at meta-step "
        f"{steps[0]:g} to {100 * points[-1][1]:.1f} % at {steps[-1]:g}.",
        f"Validation accuracy over meta-steps.{spread} The lines of full data and of "
        "the majority class are on the test split.",
        numbers_of("meta-step", {"distilled": points}),
    )


def _step_sizes(lr) -> Figure:
    drawn = plots.draw_step_sizes(lr)
    lr = np.asarray(lr, float)
    last = lr[-1] if lr.ndim == 3 else lr
    passes, minibatches = last.shape
    rows = [
        (e * minibatches + s, e, s, float(last[e, s]))
        for e in range(passes)
        for s in range(minibatches)
    ]
    return Figure(
        plots.svg(drawn),
        f"{last.size} learned step sizes from {last.min():.3g} to {last.max():.3g}.",
        f"Learned step size of each inner step: {passes} passes over {minibatches} "
        f"minibatch{'es' * (minibatches > 1)}.",
        Table(
            "Learned step sizes",
            ["inner step", "pass", "minibatch", "step size"],
            rows,
        ),
    )


def _sentences(y, label_names, nearest: Nearest | None) -> list[Block]:
    y = np.asarray(y, float)
    if y.ndim != 3 or y.shape[-1] != len(label_names):
        raise ValueError(
            f"y must be [S, B, {len(label_names)}], one for each label name, got "
            f"{list(y.shape)}"
        )
    if nearest is not None and nearest.words.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"the nearest words are of {list(nearest.words.shape[:2])} sentences, y of "
            f"{list(y.shape[:2])}"
        )
    places = list(np.ndindex(*y.shape[:2]))
    shown: list[Block] = []
    if nearest is not None:
        shown.append(
            Text(
                "Each sentence is a matrix. Below, the vocabulary's nearest word to "
                "each of its rows, darker where it is nearer; the mean cosine is "
                f"{nearest.cosines[..., 0].mean():.2f}. The words are an aid to the "
                "eye: networks train on the matrix, not on them."
            )
        )
    if len(places) > _MOST_SENTENCES:
        shown.append(
            Text(
                f"The first {_MOST_SENTENCES} of {len(places)}; the artefact of the "
                "run holds all."
            )
        )
    for number, place in enumerate(places[:_MOST_SENTENCES], 1):
        title = f"Sentence {number}"
        if y.shape[0] > 1:
            title += f", minibatch {place[0] + 1}"
        labels = [(n, float(p)) for n, p in zip(label_names, y[place], strict=True)]
        words = _words(nearest, place) if nearest is not None else []
        shown.append(Sentence(title, labels, words))
    return shown


def _words(nearest: Nearest, place) -> list[tuple[str, float, str]]:
    out = []
    pairs = zip(nearest.words[place], nearest.cosines[place], strict=True)
    for words, cosines in pairs:
        others = zip(words[1:], cosines[1:], strict=True)
        text = ", ".join(f"{word} {cosine:.2f}" for word, cosine in others)
        out.append((str(words[0]) or "∅", float(cosines[0]), text))
    return out
