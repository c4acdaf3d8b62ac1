"""Distils a corpus into a few sentences, and sets real ones beside them.

    python -m experiments.distill --dataset=rotten_tomatoes

The best meta-step is chosen on validation; then fresh networks are trained on the
distilled set (in its own order and step sizes, and by ordinary training) and on as many
real sentences, and the test split is read, once.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from distill_jax.report import page, pages, plots
from distill_jax.task import fixed

from . import cli, presets

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
    devices: Any = None,
    how: str | None = None,
    say: Callable[[str], None] = print,
) -> list[dj.Result]:
    """Distils, scores everything on test, and writes it all down.

    Args:
        values: settings by flag.
        out: folder of the run: checkpoints, artefact, page, figure, event files.
        rows: the file that each row is appended to as it is done.
        preset: the name of the paper whose settings they are.
        resume, overwrite, dry_run, show: the flags of these names (show: open).
        devices, how: as for `distill`.
        say: where text goes.

    Raises:
        ValueError: for a run in `out` without `resume` or `overwrite`, or of other
            settings, before anything is compiled; and as all that is called does.
        pages.NotDrawn: if the figure or the page cannot be written; the rows are.
    """
    corpus, wanted = cli.settings(cli.Corpus, values), cli.settings(Settings, values)
    protocol = cli.settings(dj.Protocol, values)
    recipe = cli.recipe_of(values, corpus.model)
    task = corpus.task(say)
    if recipe.meta.theta_0 == "fixed":
        task = fixed(task, corpus.seed)
    n = wanted.examples or wanted.examples_per_class * task.num_classes
    start = start_of(task, recipe, n, corpus.seed)
    setup = build(task, recipe, start, corpus.seed, devices=devices, how=how)
    folder = out / "checkpoints"
    same = fingerprint(task, recipe, n, corpus.seed)
    _check_folder(folder, setup, same, recipe.meta.inits, resume, overwrite)
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
    if dry_run:
        return []
    if overwrite:
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
        preset=preset,
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
            f"\nNext: {cli.RUN}evaluate --artifact={where}"
        )
    if show:
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


def _check_folder(folder, setup, same, num_inits, resume, overwrite) -> None:
    """Refuses a folder with a run that is not to be gone on with, before any work."""
    if overwrite and resume:
        raise ValueError("--resume goes on with what --overwrite deletes: give one")
    last = checkpoints.latest_step(folder)
    if last is None or overwrite:
        return
    if not resume:
        raise ValueError(
            f"{folder} already has a run, at step {last}: resume it with --resume, "
            "begin anew with --overwrite, or use another --out"
        )
    check_same_run(folder, setup, same, num_inits)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    rows = cli.rows_path("distill")
    with cli.told_in_a_line(
        argv,
        "distill",
        again=["--resume"],
        not_again=["overwrite"],
        stopped=f"what is done is in {rows}",
    ):
        values = cli.given(presets.DISTILL)
        name = Path(f.dataset).name.replace(":", "-")
        size = f.examples or f"{values.get('examples_per_class', 10)}pc"
        parts = [name, values.get("model", "bag"), size, cli.preset()]
        out = Path(f.out or Path("runs") / "-".join(str(p) for p in parts if p))
        devices, how = cli.join()
        run(
            values,
            out=out,
            rows=rows,
            preset=cli.preset(),
            resume=f.resume,
            overwrite=f.overwrite,
            dry_run=f.dry_run,
            show=f.open,
            devices=devices,
            how=how,
        )


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(cli.Corpus, Settings, *cli.RECIPE, dj.Protocol, presets=presets.DISTILL)
    cli.define_run("distill", resumes=True, page=True)
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
