"""Distils a corpus into a few sentences, and sets real ones beside them.

    python -m experiments.distill --dataset=rotten_tomatoes

The best meta-step is chosen on validation; then fresh networks are trained on the
distilled set (in its own order and step sizes, and by ordinary training) and on as many
real sentences, and the test split is read, once.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

import distill_jax as dj
from distill_jax import artifact, checkpoints, parallel, stored
from distill_jax.compare import compare, duration, saved, selected
from distill_jax.distill import (
    build,
    check_same_run,
    distill,
    fingerprint,
    start_of,
    timed,
)
from distill_jax.recipe import setting
from distill_jax.report import page, plots
from distill_jax.task import fixed

from . import cli, pages, presets  # pages: moves to report

# Beside every distillation; `experiments.compare` has the other selections.
RIVALS = ("random_balanced", "kmeans_medoids")
WAYS = ("native", "soft")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How many sentences, and what stands beside them."""

    examples_per_class: int = setting(10, "Distilled sentences of each class.")
    examples: int = setting(0, "Distilled sentences in all; 0: examples_per_class.")
    baselines: bool = setting(True, "Full data and real examples beside it.")
    tensorboard: bool = setting(False, "Write scalars for TensorBoard.")

    def __post_init__(self):
        for name, least in (("examples_per_class", 1), ("examples", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )


def run(values: dict, *, out: Path, rows: Path, flags, say=print) -> list[dj.Result]:
    """What the flags say: `values` by flag, `flags` of the run."""
    corpus, wanted = cli.settings(cli.Corpus, values), cli.settings(Settings, values)
    protocol = cli.settings(dj.Protocol, values)
    recipe = cli.recipe_of(values, corpus.model)
    devices, how = cli.join()
    task = corpus.task(say)
    if recipe.meta.theta_0 == "fixed":
        task = fixed(task, corpus.seed)
    n = wanted.examples or wanted.examples_per_class * task.num_classes
    start = start_of(task, recipe, n, corpus.seed)
    setup = build(task, recipe, start, corpus.seed, devices=devices, how=how)
    folder = out / "checkpoints"
    _check_folder(folder, flags, task, recipe, n, corpus.seed, setup)
    S, E = start.raw_lr.shape[::-1]
    say(
        f"Will learn {n} sentences of {start.x.shape[-2]} x {start.x.shape[-1]} "
        f"numbers in {recipe.meta.steps:,} meta-steps, from {recipe.meta.theta_0} "
        f"theta_0; {S} minibatches x {E} passes = {S * E} inner steps."
    )
    whole, step = timed(task, recipe, setup)
    say(
        f"Estimate: {duration(whole)} ({step:.3g} s a meta-step), then the baselines; "
        f"memory so far {cli.memory()}."
    )
    if flags.dry_run:
        return []
    if flags.overwrite:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with cli.tensorboard(out if wanted.tensorboard else None) as report:
        found = distill(
            task,
            recipe,
            examples=n,
            seed=corpus.seed,
            folder=folder,
            devices=devices,
            how=how,
            report=report,
            setup=setup,
        )
    say(
        f"Best on {recipe.meta.select_on} {found.accuracy:.1%} at meta-step "
        f"{found.best_step:,}; {found.seconds:.0f} s."
    )
    facts = {"validation": found.accuracy, "seconds": found.seconds}
    where = stored.save(found, out / "artifact", results=facts, source=corpus.source)
    methods = {"distilled": saved(artifact.load(where), ways=WAYS)}
    lines = ("majority",)
    if wanted.baselines:
        lines = ("full", "majority", "tfidf")
        seeds = protocol.selection_seeds
        methods |= {name: selected(name, seeds=seeds) for name in ("random", *RIVALS)}
    found_rows = compare(
        task,
        methods,
        [n / task.num_classes],
        protocol=protocol,
        lines=lines,
        rows=rows if parallel.is_first_process() else None,
        experiment="distill",
        preset=cli.preset(),
        devices=devices,
        say=say,
    )
    say("\n" + cli.table(found_rows))
    drawn = ""
    try:
        with pages.after_rows(rows, "the same command with --resume"):
            figure, path = _drawn(out, found, found_rows)
            drawn = f"\nFigure: {figure}\nPage: {path}"
    finally:
        say(
            f"\nRows: {rows}\nThe distilled set: {where}{drawn}"
            f"\nNext: python -m experiments.evaluate --artifact={where}"
        )
    if flags.open:
        pages.open_in_browser(path, say)
    return found_rows


def _drawn(out: Path, found: dj.Distillation, rows) -> tuple[Path, Path]:
    """The figure and the page."""
    lines = {row["method"]: row["accuracy_mean"] for row in rows}
    history = found.history
    figure = plots.plot_run(
        out / "run.png",
        [row["step"] for row in history],
        [row["accuracy"] for row in history],
        np.asarray(found.best.lr),
        full=lines.get("full"),
        majority=lines["majority"],
    )
    made = pages.of_run(found.task, found.best, history, rows)
    return figure, page.write(out / pages.NAME, made)


def _check_folder(folder: Path, flags, task, recipe, n, seed, setup) -> None:
    """Refuses a folder with a run that is not to be gone on with, before any work."""
    if flags.overwrite and flags.resume:
        raise ValueError("--resume goes on with what --overwrite deletes: give one")
    last = checkpoints.latest_step(folder)
    if last is None or flags.overwrite:
        return
    if not flags.resume:
        raise ValueError(
            f"{folder} already has a run, at step {last}: resume it with --resume, "
            "begin anew with --overwrite, or use another --out"
        )
    same = fingerprint(task, recipe, n, seed)
    check_same_run(folder, setup, same, recipe.meta.inits)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    rows = cli.rows_path("distill")
    with cli.told_in_a_line(
        argv,
        "experiments.distill",
        again=["--resume"],
        not_again=["overwrite"],
        stopped=f"what is done is in {rows}",
    ):
        values = cli.given(presets.DISTILL)
        name = Path(f.dataset).name.replace(":", "-")
        size = f.examples or f"{values.get('examples_per_class', 10)}pc"
        parts = [name, values.get("model", "bag"), size, cli.preset()]
        out = Path(f.out or Path("runs") / "-".join(str(p) for p in parts if p))
        run(values, out=out, rows=rows, flags=f)


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(cli.Corpus, Settings, *cli.RECIPE, dj.Protocol, presets=presets.DISTILL)
    cli.define_run("distill", resumes=True, page=True)
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
