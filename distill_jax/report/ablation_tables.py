"""The table of ablations: all levers on, and each one off alone."""

from collections.abc import Sequence

from distill_jax.report import markdown
from distill_jax.results import Row

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
    on = {_cell(row): row for row in rows if row["config"]["variant"] == ALL_ON}
    newest: dict[tuple, dict[str, Row]] = {cell: {} for cell in on}
    for row in rows:
        base = on.get(_cell(row))
        if base and row["config"]["all_on"] == base["config"]["all_on"]:
            newest[_cell(row)][row["config"]["variant"]] = row
    if not newest:
        return markdown.no_rows("ablation")
    lines = [
        [
            f"{dataset}, {model}",
            f"{examples:,}",
            variant.replace("theta_0", "θ0"),
            markdown.percent(row["config"]["validation_accuracy"]),
            markdown.accuracy(row),
            "-" if variant == ALL_ON else _points(row, variants[ALL_ON]),
        ]
        for (dataset, model, examples), variants in newest.items()
        for variant, row in variants.items()
    ]
    shown = [row for variants in newest.values() for row in variants.values()]
    return markdown.table(HEAD, lines) + (
        f"Accuracy in %, on test mean ± sd over {_span(shown, 'num_inits')} random θ0 "
        f"and {_span(shown, 'num_seeds')} distillation(s); the change is in points.\n\n"
    )


def _cell(row: Row) -> tuple[str, str, int]:
    return row["dataset"], row["model"], row["examples"]


def _points(row: Row, on: Row) -> str:
    return f"{100 * (row['accuracy_mean'] - on['accuracy_mean']):+.1f}"


def _span(rows: Sequence[Row], name: str) -> str:
    values = sorted({row[name] for row in rows})
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"
