"""The page of a comparison or of active learning, made again from rows alone.

python -m experiments.pages --results=results/compare.jsonl --out=report.html
"""

from pathlib import Path

from absl import app, flags

from distill_jax.report import page, pages
from distill_jax.results import read

from . import cli


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    f = flags.FLAGS
    with cli.told_in_a_line(argv, "pages", stopped="no page was written"):
        if not Path(f.results).is_file():
            raise FileNotFoundError(f"no {f.results}; name a file with --results")
        made = pages.of_results(
            read(f.results),
            dataset=f.dataset,
            model=f.model,
            preset=f.preset,
            run=f.run,
        )
        path = page.write(f.out, made)
        print(f"Page: {path}")
        if f.open:
            pages.open_in_browser(path)


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("results", "results/compare.jsonl", "The file of the rows.")
    flags.DEFINE_string("dataset", None, "Of this corpus, as rows name it; or of all.")
    flags.DEFINE_string("model", None, "Of this network; or of all.")
    flags.DEFINE_string("preset", None, "Of this preset; or of rows without one.")
    flags.DEFINE_string("run", None, "Folder of active learning: what was asked.")
    flags.DEFINE_string("out", pages.NAME, "The page, a .html file.")
    flags.DEFINE_bool("open", False, "Show the page in a browser at the end.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
