"""The table of compact forms: what accuracy of a distilled set is left per byte."""

from collections.abc import Sequence

from distill_jax import results as rows_lib
from distill_jax.report import markdown
from distill_jax.results import Row

REFERENCE = "float32"  # the set as it is
_SET = ("dataset", "model", "examples")
_SAME_THETA_0 = ("artifact_sha256", "seed", "test_inits")


def comparable(row: Row, other: Row) -> bool:
    """Whether two rows are of one distilled set, on one corpus and the same theta_0."""
    return all(row[name] == other[name] for name in _SET) and all(
        row["config"].get(name) == other["config"].get(name) for name in _SAME_THETA_0
    )


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each corpus, network, number of examples and form."""
    return rows_lib.newest(rows, *_SET, _form)


def compact(results: dict[str, list[Row]]) -> str:
    """Bytes and test accuracy of each form of each distilled set, largest first.

    A share of float32's accuracy is told where that is of the same set and theta_0.

    Args:
        results: rows by file; `compact` is read.
    """
    rows = newest(results["compact"])
    if not rows:
        return markdown.no_rows("compact")
    whole = [r for r in results["compact"] if r["config"]["form"] == REFERENCE]
    order = list(dict.fromkeys((r["dataset"], r["model"]) for r in rows))
    rows = sorted(
        rows,
        key=lambda r: (
            order.index((r["dataset"], r["model"])),
            r["examples"],
            -r["bytes"],
        ),
    )
    lines = [
        [
            f"{row['dataset']}, {row['model']}",
            f"{row['examples']:,}",
            _form(row),
            f"{row['bytes']:,}",
            markdown.accuracy(row),
            _share(row, [r for r in whole if comparable(r, row)]),
        ]
        for row in rows
    ]
    head = (
        "corpus, network | examples | form | bytes | accuracy | % of float32's accuracy"
    )
    inits = markdown.span(rows, "num_inits")
    return markdown.table(head, lines) + (
        f"Test accuracy in %, mean ± sd over {inits} random θ0, the same for each form "
        "of a set, in the set's own order and step sizes. Bytes are those of all "
        "arrays, labels and step sizes too. Forms are of the finished set: nothing was "
        "learned again.\n\n"
    )


def _form(row: Row) -> str:
    """With the words of all sentences, where they have learned their lengths."""
    words = row["config"].get("words")
    form = row["config"]["form"]
    return form if words is None else f"{form}, learned lengths: {words:,} words"


def _share(row: Row, whole: Sequence[Row]) -> str:
    if not whole or not whole[-1]["accuracy_mean"]:
        return "-"
    return f"{100 * row['accuracy_mean'] / whole[-1]['accuracy_mean']:.1f}"
