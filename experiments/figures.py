"""Draws Figures 3 and 4 of the comparison paper (Anonymous 2022) anew.

    python -m experiments.figures --dataset=sst2 --model=bag --budget=1

Figure 3 there is called a learning rate and speaks of accuracy, so it is two here: test
accuracy over the steps of training, and the learned step sizes. Its networks are
trained anew, by the recipes that rows of experiments.compare say were chosen on
validation, on the distilled sets of `--runs`; nothing is chosen by what is drawn.
Figure 4, accuracy against labels for each query, is made from rows alone, with
distilled sets at the sentences they store and again at the labels they read. Beside
each figure are its numbers, as CSV.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.measured import measured, task_of
from distill_jax.progress import Bars
from distill_jax.recipe import setting
from distill_jax.report import curves, figures
from distill_jax.results import read
from distill_jax.train import Judge

from . import cli

BRIGHT = ("random", "variation_ratio", "predictive_entropy", "bald", "margin")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drawn, and from what."""

    dataset: str | None = setting(None, "The corpus, as rows name it.")
    model: str = setting("bag", "The network that has distilled.")
    budget: int = setting(1, "Examples per class of Figure 3.")
    inits: int = setting(10, "Theta_0 of each set in Figure 3.")
    results: str = setting("results", "The folder of the rows.")
    runs: str = setting("runs", "Folder of the folders of experiments.compare.")
    out: str = setting("figures", "Where figures are written.")
    place: str | None = setting(None, "Where the corpus is now.")
    vectors: str | None = setting(None, "Where the word vectors are now.")

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("--dataset must name a corpus, as rows do")
        if self.inits < 2:
            raise ValueError(f"--inits must be at least 2, got {self.inits}")


def run(
    values: Mapping[str, Any], *, say: Callable[[str], None] = cli.say
) -> list[Path]:
    """Draws what the rows and runs allow.

    Args:
        values: settings by flag.
        say: where text goes.

    Returns:
        The figures; Figure 4 is not among them without rows of active learning.

    Raises:
        ValueError, FileNotFoundError: where a row or a set is not there.
    """
    c = cli.settings(Settings, values)
    of, out, name = (c.dataset, c.model), Path(c.out), f"{c.dataset}-{c.model}"
    known = read(Path(c.results) / "compare.jsonl")
    here = [r for r in known if (r["dataset"], r["model"]) == of]
    majority = here[-1]["majority_accuracy"] if here else None
    asked = [
        row
        for row in read(Path(c.results) / "active_learning.jsonl")
        if (row["dataset"], row["model"], row["preset"]) == (*of, None)
    ]
    drawn = []
    if asked:
        points = figures.over_labels(curves.newest_run(asked), here)
        full = {row["method"]: row["accuracy_mean"] for row in here}.get("full")
        # As in the paper's figure; the other queries are grey.
        faint = [x for x in points if x not in BRIGHT and "distilled" not in x]
        levels = {"full": full, "majority": majority, "faint": faint}
        drawn.append(
            figures.draw(out / f"figure4-{name}.svg", points, "labels", **levels)
        )
    else:
        say(f"No Figure 4: no rows of active learning on {c.dataset} with {c.model}.")
    which = {"corpora": [c.dataset], "models": [c.model], "budgets": [c.budget]}
    (*_, group) = measured(known, c.runs, **which, say=say)
    task = task_of(group, dataset=c.place, vectors=c.vectors, say=say)
    one = group[c.budget]
    judge = Judge(task, one.protocol, report=Bars())
    points = figures.of_training(judge, one, known, c.inits)
    path = out / f"figure3-{name}-{c.budget}.svg"
    drawn.append(figures.draw(path, points, "training step", majority=majority))
    path = out / f"figure3-{name}-{c.budget}-step-sizes.svg"
    drawn.append(figures.draw_step_sizes(path, one.sets[0].arrays["lr"]))
    for path in drawn:
        say(f"Figure: {path}")
    return drawn


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    with cli.told_in_a_line(argv, "figures", stopped="not all was drawn"):
        run(cli.given())


def define_flags() -> None:
    """The flags of this program."""
    cli.define(Settings)


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
