"""The page of an experiment from what it leaves: one HTML file that needs nothing else.

Of rows that measure the same thing, the newest counts.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_jax import results as result_rows
from distill_jax.decode import nearest_words
from distill_jax.report import curves, page, verdict
from distill_jax.results import Row

if TYPE_CHECKING:
    from distill_jax.task import Task
    from distill_jax.types import Distilled

NAME = "report.html"
_NEAREST = 5  # words shown for each row of a sentence
_LONGEST = 400  # characters of a sentence on the page; asked.csv has them all
_MOST_ASKED = 5_000  # sentences; if there are more, those of each query's first seed
_ASKED = ("round", "id", "score", "label", "text")


class NotDrawn(OSError):
    """A page or a figure is missing; the rows of the run are not."""


@contextmanager
def after_rows(results: str | Path, again: str) -> Iterator[None]:
    """Around what is drawn when the rows of a run are in their file.

    Args:
        results: that file.
        again: how to draw once more.

    Raises:
        NotDrawn: for a full disk, among others; it says where the rows are.
    """
    try:
        yield
    except (ArithmeticError, ImportError, OSError, ValueError) as error:
        raise NotDrawn(
            f"the rows are in {results}, but not all was drawn: {error}. To draw it "
            f"again: {again}"
        ) from error


def of_run(
    task: "Task",
    distilled: "Distilled",
    history: Sequence[dict[str, Any]],
    rows: Sequence[Row],
) -> page.Page:
    """The page of a distillation.

    Args:
        task: what it learned from.
        distilled: what it learned.
        history: of its validations, with `step` and `accuracy`.
        rows: its results, and of the real examples beside it.
    """
    table, x = task.vectors.table, np.asarray(distilled.x)
    # Sentences are as large as the scaled vectors; their cosine is the same to both.
    known = int(np.any(table, axis=1).sum())
    words = task.vectors.vocabulary.words
    return page.page_of_run(
        [result_rows.portable(row) for row in rows],
        steps=[found["step"] for found in history],
        accuracies=[found["accuracy"] for found in history],
        lr=np.asarray(distilled.lr),
        y=np.asarray(distilled.y),
        label_names=task.dataset.label_names,
        nearest=nearest_words(x, table, words, min(_NEAREST, known)),
    )


def of_comparison(rows: Sequence[Row]) -> page.Page:
    """The page of a comparison, with who wins at each budget.

    Args:
        rows: of `experiments.compare`, of any corpora and networks, and one preset.

    Raises:
        ValueError: for rows of another kind.
    """
    for number, row in enumerate(rows, 1):
        if not {"inits", "validation_accuracy"} <= row["config"].keys():
            raise ValueError(
                f"row {number} is of experiments.{row['experiment']}, not of "
                "experiments.compare: its config lacks inits or validation_accuracy"
            )
    groups = verdict.groups([result_rows.portable(row) for row in rows])
    answers = [
        page.Verdict(
            dataset=dataset,
            model=model,
            examples_per_class=found.examples_per_class,
            distilled=verdict.name_of(found.distilled),
            rival=verdict.name_of(found.real),
            difference=found.found.difference,
            low=found.found.low,
            high=found.found.high,
            p_value=found.p_value,
            answer=found.answer,
            question=title,
        )
        for question, title in verdict.TITLES.items()
        for (dataset, model), group in groups.items()
        for found in verdict.verdicts(group, question)
    ]
    shown = [row for group in groups.values() for row in group]
    return page.page_of_comparison(shown, answers)


def of_active(rows: Sequence[Row], out: str | Path | None = None) -> page.Page:
    """The page of active learning.

    Args:
        rows: of `experiments.active_learning`, of one preset.
        out: the folder of the run, for the sentences that were asked.

    Raises:
        ValueError, FileNotFoundError: as `queried`.
    """
    asked = queried(rows, out) if out else []
    if len(asked) > _MOST_ASKED:
        first = {item.method: item.seed for item in reversed(asked)}
        asked = [item for item in asked if item.seed == first[item.method]]
    return page.page_of_active([result_rows.portable(row) for row in rows], asked)


def queried(rows: Sequence[Row], out: str | Path) -> list[page.Queried]:
    """What was asked in a run, in that order, by each query and seed of its rows.

    Args:
        rows: of the run.
        out: its folder, with the `asked.csv` of each.

    Raises:
        FileNotFoundError: if one of these is not there.
        ValueError: for one that is not as the run wrote it.
    """
    found = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        path = Path(out) / f"{method}-{seed}" / "asked.csv"
        for line, item in _read_asked(path):
            try:
                score = float(item["score"]) if item["score"] else None
                number, identity = int(item["round"]), int(item["id"])
            except ValueError:
                raise ValueError(
                    f"{path}, line {line}: round, id and score must be numbers"
                ) from None
            text = item["text"]
            text = text[:_LONGEST] + " …" * (len(text) > _LONGEST)
            label = item["label"] or None
            found.append(
                page.Queried(method, seed, number, identity, text, label, score)
            )
    return found


def _read_asked(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of an `asked.csv`, with their numbers; missing cells are empty."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give the --out of the run that has it")
    limit = csv.field_size_limit(2**31 - 1)  # a text may be a book
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, restval="")
            if tuple(table.fieldnames or ()) != _ASKED:
                raise ValueError(f"{path} must have the columns {', '.join(_ASKED)}")
            return [(table.line_num, item) for item in table]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    finally:
        csv.field_size_limit(limit)


def of_results(
    rows: Sequence[Row],
    *,
    dataset: str | None = None,
    model: str | None = None,
    preset: str | None = None,
    run: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> page.Page:
    """The page of a file of rows.

    Args:
        rows: of a comparison, or of active learning.
        dataset, model: of which ones; all, unless given.
        preset: of which one; of none, unless given.
        run: for active learning, the folder of the run with the sentences asked.
        say: where it is told what was left out.

    Raises:
        ValueError: if there are no such rows, or of two kinds.
    """
    makers = {"compare": of_comparison, "active_learning": of_active}
    kinds = list(dict.fromkeys(row.get("experiment", "a timing") for row in rows))
    if len(kinds) != 1 or kinds[0] not in makers:
        raise ValueError(
            "a page is made from rows of experiments.compare or of experiments."
            f"active_learning; these are of: {', '.join(kinds) or 'nothing'}"
        )
    if kinds[0] != "active_learning" and run:
        raise ValueError("--run is for active learning: others ask no one")
    for field, wanted in (("preset", preset), ("dataset", dataset), ("model", model)):
        if wanted is not None or field == "preset":
            kept = [row for row in rows if row[field] == wanted]
            if not kept:
                known = dict.fromkeys(row[field] or "(none)" for row in rows)
                raise ValueError(
                    f"no row is of the {field} {wanted or '(none)'}; set --{field}; "
                    f"there are: {', '.join(known)}"
                )
            rows = kept
    if kinds[0] == "compare":
        return of_comparison(rows)
    newest = curves.newest_run(rows)
    several = {(row["dataset"], row["model"]) for row in newest}
    if run and len(several) > 1:
        raise ValueError(
            f"--run={run} is of one corpus and network, and the rows are of "
            f"{len(several)}: give --dataset and --model"
        )
    if len(newest) < len(rows):
        say(f"{len(rows) - len(newest)} rows are of older runs with other settings.")
    return of_active(newest, run)


def open_in_browser(path: Path, say: Callable[[str], None] = print) -> None:
    """Shows a page, or says that nothing here can."""
    if not page.show(path):
        say(f"There is no browser here: open {path} in one.")
