"""All tables by name, and the pages that hold them.

A table NAME stands in a page between the lines `<!-- table:NAME -->` and
`<!-- /table -->`. Of rows that measure the same thing, the newest counts, and of
distilled sets by several recipes those that are best on validation. Means and standard
deviations are in %.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from distill_jax import results as rows_lib
from distill_jax.report import (
    ablation_tables,
    active_tables,
    claims,
    compact_tables,
    comparison_tables,
    speed_tables,
    suite_tables,
    verdict,
)
from distill_jax.results import Row

_MARKED = re.compile(
    r"(?P<start><!-- table:(?P<name>[\w-]+) -->\n)(?P<body>.*?)"
    r"(?P<end><!-- /table -->)",
    re.DOTALL,
)


TABLES: dict[str, Callable[[dict[str, list[Row]]], str]] = {
    "summary": comparison_tables.summary,
    "headline": comparison_tables.headline,
    "first_rows": comparison_tables.first_rows,
    "speed": speed_tables.speed,
    "compare": comparison_tables.compare,
    "anonymous2022": comparison_tables.anonymous2022,
    "active": active_tables.active,
    "acquisition": speed_tables.acquisition,
    "claims": claims.claims,
    "accelerator": speed_tables.accelerator,
    "compact": compact_tables.compact,
    "ablation": ablation_tables.ablation,
    "suite": suite_tables.suite,
    "label_robust": suite_tables.label_robust,
}
FILES = (
    "distill",
    "meta_step",
    "compare",
    "active_learning",
    "acquisition",
    "accelerator",
    "compact",
    "ablation",
)


def load(folder: str | Path) -> dict[str, list[Row]]:
    """The rows of each file the tables read; distilled ones of the best recipe."""
    rows: dict[str, list[Row]] = {
        name: [*rows_lib.read(Path(folder) / f"{name}.jsonl")] for name in FILES
    }
    return rows | {"compare": verdict.of_best_recipe(rows["compare"])}


def render(page: str, results: dict[str, list[Row]]) -> str:
    """The text of a page with every marked table generated anew.

    Raises:
        ValueError: for a table that does not exist, or a marker without its end.
    """
    marks = len(_MARKED.findall(page))
    if {page.count("<!-- table:"), page.count("<!-- /table -->")} != {marks}:
        raise ValueError(
            "each `<!-- table:NAME -->` needs a line of its own and a `<!-- /table -->`"
        )

    def generated(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        return match["start"] + TABLES[name](results) + match["end"]

    return _MARKED.sub(generated, page)


def outdated(page: str, results: dict[str, list[Row]]) -> list[str]:
    """Names of the tables of a page that are not what the rows give."""
    return [
        old["name"]
        for old, new in zip(
            _MARKED.finditer(page),
            _MARKED.finditer(render(page, results)),
            strict=True,
        )
        if old["body"] != new["body"]
    ]


def write(
    pages: Sequence[str | Path], folder: str | Path, *, check: bool = False
) -> dict[str, list[str]]:
    """Rewrites the tables of some pages, or with `check` only compares.

    Args:
        pages: files with marked tables.
        folder: of the rows.
        check: change nothing.

    Returns:
        For each page that differed, its tables that did.

    Raises:
        FileNotFoundError: for a page that is not there.
        ValueError: naming the page, as `render`, or the row that is not readable.
    """
    rows, changed = load(folder), {}
    for path in map(Path, pages):
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; name the pages with --pages")
        text = path.read_text(encoding="utf-8")
        try:
            names = outdated(text, rows)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if names:
            changed[f"{path}"] = names
            if not check:
                path.write_text(render(text, rows), encoding="utf-8")
    return changed
