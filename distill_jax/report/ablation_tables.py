"""The table of ablations: all levers on, and each one off alone."""

from distill_jax.report import markdown
from distill_jax.results import Row, newest

ALL_ON = "all on"
HEAD = (
    "corpus, network",
    "examples",
    "variant",
    "validation",
    "test",
    "change to all on",
)


def ablation(results: dict[str, list[Row]]) -> str:
    """What each variant loses to all levers on, by corpus, network and examples.

    Of rows of the same variant the newest counts. Only those with the settings of the
    newest row with all on are shown, as others have nothing to be compared with.

    Args:
        results: rows by file; `ablation` is read.
    """
    rows = results["ablation"]
    on = {
        _cell(row): row
        for row in newest([r for r in rows if _variant(r) == ALL_ON], _cell)
    }
    shown = newest(
        [
            row
            for row in rows
            if _cell(row) in on
            and row["config"]["all_on"] == on[_cell(row)]["config"]["all_on"]
        ],
        _cell,
        _variant,
    )
    if not shown:
        return markdown.no_rows("ablation")
    lines = [
        [
            f"{row['dataset']}, {row['model']}",
            f"{row['examples']:,}",
            _variant(row).replace("theta_0", "θ0"),
            markdown.percent(row["config"]["validation_accuracy"]),
            markdown.accuracy(row),
            "-" if _variant(row) == ALL_ON else _points(row, on[_cell(row)]),
        ]
        for cell in on
        for row in shown
        if _cell(row) == cell
    ]
    inits, seeds = (markdown.span(shown, name) for name in ("num_inits", "num_seeds"))
    return markdown.table(HEAD, lines) + (
        f"Accuracy in %, on test mean ± sd over {inits} random θ0 and {seeds} "
        "distillation(s); the change is in points.\n\n"
    )


def _cell(row: Row) -> tuple[str, str, int]:
    return row["dataset"], row["model"], row["examples"]


def _variant(row: Row) -> str:
    return row["config"]["variant"]


def _points(row: Row, on: Row) -> str:
    return f"{100 * (row['accuracy_mean'] - on['accuracy_mean']):+.1f}"
