"""Asks for the labels of a few sentences at a time, and draws the learning curves.

    python -m experiments.active_learning --dataset=rotten_tomatoes --query=random,bald

In each round a network is trained on all labels so far, its best epoch chosen on the
validation split; it scores the pool, and the query picks what is labelled next. The
test split measures each round and chooses nothing.

With --oracle=human the sentences are written to a file for somebody to label, and the
run goes on with --resume.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from distill_jax import active, checkpoints, data, queries
from distill_jax.active import Rounds, Training, annotation
from distill_jax.progress import Bars, duration
from distill_jax.recipe import setting
from distill_jax.report import curves, page, pages
from distill_jax.results import Result
from distill_jax.task import Task

from . import cli, presets

NOTES = {
    "jacobs2021": (
        "As Jacobs et al. (2021), with these faults of its code mended: the three "
        "repeats differ, in their start set too; random asks for other sentences in "
        "each; the epoch restored is the one that was best, not the one before it; "
        "accuracy counts every test sentence alike; ties are broken at random."
    )
}


@dataclasses.dataclass(frozen=True)
class Asking:
    """Who asks, and who answers."""

    query: str = setting(
        "random,bald", "What to ask: " + ", ".join(queries.QUERIES) + "; with commas."
    )
    oracle: str = setting(
        "simulated", "Who gives the labels.", choices=("simulated", "human")
    )
    oracle_noise: float = setting(0.0, "Share of labels that are wrong.")
    pool: str | None = setting(
        None, "With --oracle=human: a file of unlabelled text, in the place of train."
    )
    full: bool = setting(True, "Train on all labels too.")
    seeds: int = setting(3, "Repeats, each with its own start set.")

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if not 0 <= self.oracle_noise <= 1:
            raise ValueError(f"oracle_noise must be in [0, 1], got {self.oracle_noise}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"--query names one twice: {self.query}")
        if self.oracle == "human" and (len(self.names) > 1 or self.seeds > 1):
            raise ValueError("--oracle=human needs one --query, and --seeds=1")
        if self.oracle != "human" and self.pool:
            raise ValueError("--pool has no labels: it needs --oracle=human")

    @property
    def names(self) -> list[str]:
        """The queries."""
        return [name.strip() for name in self.query.split(",")]


GROUPS = (cli.Corpus, Asking, Rounds, Training)


def settings(values: Mapping[str, Any]) -> tuple[cli.Corpus, Asking, Rounds, Training]:
    """What flags ask for; networks have dropout unless told otherwise.

    Raises:
        ValueError: for what makes no sense, before anything is read.
    """
    corpus, asking, rounds, training = (cli.settings(g, values) for g in GROUPS)
    network = {"dropout": 0.2} | dict(corpus.model_settings)
    corpus = dataclasses.replace(corpus, model_settings=network)
    if corpus.seed < 0:
        raise ValueError(f"--seed must not be negative, got {corpus.seed}")
    for name in asking.names:
        active.check_passes(queries.get(name), rounds.passes, name)
    if asking.oracle == "human" and (rounds.start == "balanced" or asking.oracle_noise):
        raise ValueError(
            "--oracle=human knows no label beforehand: use --start=random, or "
            "a file of ids, and no --oracle_noise"
        )
    training = dataclasses.replace(training, validation_seed=corpus.seed)
    return corpus, asking, rounds, training


def run(
    values: Mapping[str, Any],
    *,
    out: Path,
    rows: Path,
    preset: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    show: bool = False,
    say: Callable[[str], None] = cli.say,
) -> list[Result]:
    """Runs each query with each seed, and writes down every round.

    Args:
        values: settings by flag.
        out: folder of the run: a checkpoint of every round, what was asked, a figure
            and the page.
        rows: the `.jsonl` file that rows are appended to.
        preset, resume, overwrite, dry_run, show: as the flags.
        say: where text goes.

    Returns:
        The rows of this run, those appended before a resume too; none while a human
        has to label.

    Raises:
        ValueError: for a run in `out` without `resume`; and as all that is called does.
        pages.NotDrawn: if the figure or the page cannot be written; the rows are.
    """
    corpus, asking, rounds, training = settings(values)
    if not (resume or overwrite or dry_run):
        _refuse_other_runs(out)
    task = corpus.task(say, prepare=lambda found: _pooled(found, corpus, asking, say))
    shared = {"rounds": rounds, "training": training, "report": Bars()}
    shared |= {"full": asking.full and asking.oracle == "simulated"}
    plan = active.plan(task, rounds, asking.names)
    if preset in NOTES:
        say(NOTES[preset])
    say(_planned(task, plan, asking, rounds, training))
    seconds = active.estimate(task, asking.names, seeds=asking.seeds, **shared)
    told = "without what the queries themselves compute"
    say(f"Estimate: {duration(seconds)}, {told}.")
    if dry_run:
        return []
    if overwrite:
        _remove(out)
    try:
        found = active.learning_curves(
            task,
            {name: name for name in asking.names},
            range(corpus.seed, corpus.seed + asking.seeds),
            partial(_oracle, asking, task, out),
            folder=out,
            rows=rows,
            config=dataclasses.asdict(corpus) | dataclasses.asdict(asking),
            preset=preset,
            say=say,
            **shared,
        )
    except annotation.AwaitingLabels as waiting:
        say(f"\n{waiting}")
        return []
    say("\n" + curves.table(found))
    with pages.after_rows(rows, "the same command with --resume"):
        figure = curves.draw(out / "curves.png", found)
        path = page.write(out / pages.NAME, pages.of_active(found, out))
    say(
        f"\nRows: {rows}\nFigure: {figure}\nPage: {path}\n"
        f"What was asked: {out}/*/asked.csv"
    )
    if show:
        pages.open_in_browser(path, say)
    return found


def _oracle(asking: Asking, task: Task, out: Path, seed: int) -> active.Oracle:
    if asking.oracle == "human":
        folder, dataset = out / f"{asking.names[0]}-{seed}", task.dataset
        return annotation.by_hand(folder, dataset.train.texts, dataset.label_names)
    noise = asking.oracle_noise
    return active.simulated(task.labels, task.num_classes, noise=noise, seed=seed)


def _refuse_other_runs(out: Path) -> None:
    for folder in sorted(out.glob("*/checkpoints")):
        if checkpoints.latest_step(folder) is not None:
            raise ValueError(
                f"{out} already has a run: --resume it, --overwrite it, or use another "
                "--out"
            )


def _remove(out: Path) -> None:
    for folder in [*out.glob("*/checkpoints"), *out.glob("full")]:
        shutil.rmtree(folder)
    for questions in out.glob("*/queried-*.csv"):
        questions.unlink()


def _pooled(
    dataset: data.Dataset, corpus: cli.Corpus, asking: Asking, say: Callable
) -> data.Dataset:
    """The corpus; the texts of --pool, if any, are its train split."""
    if not asking.pool:
        return dataset
    texts = annotation.read_texts(asking.pool, corpus.text_column or "text")
    pooled = annotation.with_pool(dataset, texts)
    left_out = len(texts) - len(pooled.train)
    say(f"  {asking.pool}: {left_out} texts of validation or test")
    return pooled


def _planned(task: Task, plan: active.Plan, asking, rounds, training) -> str:
    sizes, last, total = plan.sizes, plan.num_labels[-1], len(task.labels)
    kind = rounds.start if plan.start is None else "given"
    asked = f"{len(sizes)} rounds of {sizes[0]}" if sizes else "no round"
    return (
        f"Will start from {plan.num_start} {kind} sentences and ask for more in "
        f"{asked}, to {last:,} labels ({last / total:.1%} of {total:,}). "
        f"{', '.join(asking.names)}; {asking.seeds} seeds, {training.num_inits} "
        f"networks a round of {task.model_name}, at most {training.epochs} epochs and "
        f"the one best by {training.select} on validation kept; {rounds.passes} passes "
        "score the pool."
    )


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with cli.told_in_a_line(
        argv,
        "active_learning",
        stopped="add --resume to go on from the last round",
    ):
        values, corpus = (
            cli.given(presets.ACTIVE),
            Path(f.dataset).name.replace(":", "-"),
        )
        parts = ["active", corpus, values.get("model", "bag"), cli.preset()]
        run(
            values,
            out=Path(f.out or Path("runs") / "-".join(p for p in parts if p)),
            rows=cli.rows_path("active_learning"),
            preset=cli.preset(),
            resume=f.resume,
            overwrite=f.overwrite,
            dry_run=f.dry_run,
            show=f.open,
        )


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(*GROUPS, presets=presets.ACTIVE)
    cli.define_run("active_learning", resumes=True, page=True)


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
