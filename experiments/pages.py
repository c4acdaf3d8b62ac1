"""The page of a comparison or of active learning, made again from rows alone.

python -m experiments.pages --results=results/compare.jsonl --out=report.html
"""

import sys
from pathlib import Path

from absl import app, flags

from distill_jax import results as result_rows
from distill_jax.report import page
from distill_jax.report.pages import (  # noqa: F401
    NAME,
    NotDrawn,
    after_rows,
    of_active,
    of_comparison,
    of_results,
    of_run,
    open_in_browser,
)
from experiments.running import told_in_a_line


def define_open() -> None:
    """The flag that experiments with a page share."""
    flags.DEFINE_bool("open", False, "Show the page in a browser at the end.")
    # So that --help lists it.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["open"])


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    f = flags.FLAGS
    with told_in_a_line(argv, "experiments.pages", stopped="no page was written"):
        if not Path(f.results).is_file():
            raise FileNotFoundError(f"no {f.results}; name a file with --results")
        made = of_results(
            result_rows.read(f.results),
            dataset=f.dataset,
            model=f.model,
            preset=f.preset,
            run=f.run,
        )
        path = page.write(f.out, made)
        print(f"Page: {path}")
        if f.open:
            open_in_browser(path)


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("results", "results/compare.jsonl", "The file of the rows.")
    flags.DEFINE_string("dataset", None, "Of this corpus, as rows name it; or of all.")
    flags.DEFINE_string("model", None, "Of this network; or of all.")
    flags.DEFINE_string("preset", None, "Of this preset; or of rows without one.")
    flags.DEFINE_string("run", None, "Folder of active learning: what was asked.")
    flags.DEFINE_string("out", NAME, "The page, a .html file.")
    define_open()


if __name__ == "__main__":
    define_flags()
    app.run(main)
