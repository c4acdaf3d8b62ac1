"""Writes the tables of README.md and docs/ from the rows in `results/`.

python -m experiments.tables            # rewrite what is between the markers
python -m experiments.tables --check    # change nothing; exit 1 if they differ
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from distill_jax.report import tables

_PAGES = flags.DEFINE_list("pages", [], "Files with tables; README.md and docs/*.md.")
_RESULTS = flags.DEFINE_string("results", "results", "The folder of the rows.")
_CHECK = flags.DEFINE_bool("check", False, "Exit 1 if a table is out of date.")


def main(_: Sequence[str]) -> None:
    """Runs what the flags say."""
    pages = _PAGES.value or [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    try:
        changed = tables.write(pages, _RESULTS.value, check=_CHECK.value)
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
    told = "; ".join(f"{page}: {', '.join(names)}" for page, names in changed.items())
    if changed and _CHECK.value:
        sys.exit(f"out of date in {told}; run python -m experiments.tables")
    print(f"rewrote {told}" if changed else "all tables are current")


if __name__ == "__main__":
    app.run(main)
