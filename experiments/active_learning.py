"""Asks for the labels of a few sentences at a time, and draws the learning curves.

    python -m experiments.active_learning --dataset=rotten_tomatoes --query=random,bald

In each round a network is trained on all labels so far, its best epoch chosen on the
validation split; it scores the pool, and the query picks what is labelled next. The
test split measures each round and chooses nothing.

With --oracle=human the sentences are written to a file for somebody to label, and the
run goes on with --resume.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from distill_jax import active, queries, statistics
from distill_jax import checkpoints as ckpt
from distill_jax import results as result_rows
from distill_jax.active import annotation
from distill_jax.report import curves, page, plots
from distill_jax.task import labels_of
from experiments import config as flagged
from experiments import pages
from experiments.acquisition import NOTES, PRESETS, Config, Learner, load
from experiments.rounds import Run, append_once, fingerprint, rows_of
from experiments.running import duration, told_in_a_line

_FULL = 2**31 + 1  # no round has this number


def run(
    config: Config,
    *,
    preset: str | None = None,
    out: str | Path,
    results: str | Path,
    resume: bool = False,
    dry_run: bool = False,
    show: bool = False,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Runs each query with each seed, and writes down every round.

    Args:
        config: the settings.
        preset: the name of the paper whose settings they are.
        out: folder of the run: a checkpoint of every round, what was asked, a figure
            and the page.
        results: the `.jsonl` file that rows are appended to.
        resume: go on with the run in `out`.
        dry_run: stop after the plan and the estimate.
        show: open the page in a browser.
        say: where text goes.

    Returns:
        The rows of this run, those appended before a resume too. None while a human
        has to label.

    Raises:
        ValueError: for a run in `out` without `resume`; and as all that is called does.
        pages.NotDrawn: if the figure or the page cannot be written; the rows are.
    """
    out = Path(out)
    if not (resume or dry_run):
        _refuse_other_runs(out)
    task = load(config, say)
    learner = Learner(config, task)
    if preset in NOTES:
        say(NOTES[preset])
    say(_plan(config, learner))
    say(_estimate(config, learner))
    if dry_run:
        return []
    full = _full(config, learner, out, say)
    rows = []
    for seed in range(config.seed, config.seed + config.seeds):
        for name in config.names:
            one = Run(config, learner, name, seed, out / f"{name}-{seed}", resume)
            try:
                one.go(say)
            except annotation.AwaitingLabels as waiting:
                say(f"\n{waiting}")
                return []
            fresh = rows_of(config, learner, one, full, preset)
            append_once(results, fresh)
            rows += fresh
    say("\n" + _table(rows))
    with pages.after_rows(results, "the same command with --resume"):
        figure, path = _drawn(rows, out)
    say(
        f"\nRows: {results}\nFigure: {figure}\nPage: {path}\n"
        f"What was asked: {out}/*/asked.csv"
    )
    if show:
        pages.open_in_browser(path, say)
    return rows


def _refuse_other_runs(out: Path) -> None:
    for folder in sorted(out.glob("*/checkpoints")):
        if ckpt.latest_step(folder) is not None:
            raise ValueError(
                f"{out} already has a run: --resume it, --overwrite it, or use another "
                "--out"
            )


def _plan(config: Config, learner: Learner) -> str:
    total, n, sizes = len(learner.task.train.y), learner.num_start, learner.sizes
    last = n + sum(sizes)
    kind = config.start if learner.start is None else "given"
    asked = f"{len(sizes)} rounds of {sizes[0]}" if sizes else "no round"
    return (
        f"Will start from {n} {kind} sentences and ask for more in {asked}, to "
        f"{last:,} labels ({last / total:.1%} of {total:,}). "
        f"{', '.join(config.names)}; {config.seeds} seeds, {config.num_inits} networks "
        f"a round of {config.model}, "
        f"at most {config.epochs} epochs and the one best by {config.select} on "
        f"validation kept; {config.passes} passes score the pool."
    )


def _estimate(config: Config, learner: Learner) -> str:
    """Compiles what a round needs, takes the time of it, and adds up the rounds."""
    key = jax.random.key(0)
    pool = active.Pool.unlabelled(len(learner.task.train.y)).ask(np.arange(1))
    pool = pool.answer(np.arange(1), np.zeros(1, int))
    theta_0 = learner.train(pool, key, None)

    def timed(fn) -> float:
        jax.block_until_ready(fn())
        began = time.perf_counter()
        jax.block_until_ready(fn())
        return time.perf_counter() - began

    keys = jax.random.split(key, config.num_inits)
    rows = np.zeros(
        (config.num_inits, config.epochs, learner.max_steps, config.batch_size),
        np.int32,
    )
    few, many = 1, min(learner.max_steps, 9)

    def fit(num_steps):
        return lambda: learner.fit(
            theta_0, learner.task.train, np.asarray(pool.labels), rows, num_steps, keys
        )

    base = timed(fit(few))
    step = max(timed(fit(many)) - base, 0.0) / max(many - few, 1)
    grown = np.cumsum([learner.num_start, *learner.sizes])
    fits = sum(base + step * learner.steps(int(n)) for n in grown)
    test = timed(lambda: learner.test(theta_0)) * len(grown)
    total = 0.0
    for name in config.names:
        score = learner.score_with(queries.get(name))
        seconds = timed(lambda score=score: score(theta_0, key))
        total += fits + test + seconds * len(learner.sizes)
    total *= config.seeds
    if learner.trains_full:
        total += base + step * learner.steps(len(learner.task.train.y))
    return f"Estimate: {duration(total)}, without what the queries themselves compute."


def _full(config: Config, learner: Learner, out: Path, say) -> float | None:
    """Accuracy with all labels, by the same training; kept in `out`."""
    if not learner.trains_full:
        return None
    folder = out / "full"
    like = {"accuracies": np.zeros(config.num_inits)}
    about = fingerprint(config, learner.task)
    if ckpt.latest_step(folder) is None:
        everything = np.arange(len(learner.task.train.y))
        pool = active.Pool.unlabelled(len(everything)).ask(everything)
        pool = pool.answer(everything, labels_of(learner.task.train))
        key = jax.random.fold_in(jax.random.key(config.seed), _FULL)
        thetas = learner.train(pool, key, None)
        found = {"accuracies": np.asarray(learner.test(thetas), float)}
        ckpt.save(folder, 0, found, {}, about)
    full = float(ckpt.restore(folder, like, about)[0]["accuracies"].mean())
    say(f"All {len(learner.task.train.y):,} labels: {full:.1%} on test.")
    return full


def _table(rows: list[result_rows.Row]) -> str:
    """Accuracy at the end and area under the curve, with intervals of 95%."""
    found = curves.curves(rows)
    areas = {name: curves.areas(points) for name, points in found.items()}
    random = areas.get("random")
    lines = [
        f"{'':20} {'labels':>7} {'accuracy':>22} {'area under curve':>22} "
        f"{'minus random':>24}"
    ]
    for name, points in found.items():
        last = list(points)[-1]
        line = f"{name:20} {last:>7,} {_interval(points[last]):>22}"
        area = areas[name]
        if area is not None:
            line += f" {_interval(area):>22}"
            if random is not None and name != "random" and len(area) > 1:
                pair = statistics.paired_summary(area, random)
                line += (
                    f" {100 * pair.difference:+8.1f} "
                    f"[{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"
                )
        lines.append(line)
    return "\n".join(lines)


def _interval(values: np.ndarray) -> str:
    found = statistics.summary(values)
    return f"{found.mean:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _drawn(rows: list[result_rows.Row], out: Path) -> tuple[Path, Path]:
    """The figure and the page; as Figure 4 of the comparison paper (Anonymous 2022)."""
    lines = {
        name: [_point(labels, values) for labels, values in points.items()]
        for name, points in curves.curves(rows).items()
    }
    figure = plots.plot_curves(
        out / "curves.png",
        lines,
        xlabel="labels",
        full=rows[0]["full_accuracy_mean"],
        majority=rows[0]["majority_accuracy"],
    )
    return figure, page.write(out / pages.NAME, pages.of_active(rows, out))


def _point(labels: int, values: np.ndarray) -> tuple[float, float, float, float]:
    """With its interval, a bootstrap over seeds and networks."""
    found = statistics.summary(values)
    return labels, found.mean, found.low, found.high


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    preset = flagged.chosen_preset(PRESETS)
    with told_in_a_line(
        argv,
        "experiments.active_learning",
        stopped="add --resume to go on from the last round",
    ):
        cfg = flagged.from_flags(Config, PRESETS)
        corpus = Path(cfg.dataset).name.replace(":", "-")
        parts = ["active", corpus, cfg.model] + ([preset] if preset else [])
        out = Path(f.out or Path("runs") / "-".join(parts))
        if f.overwrite:
            for folder in [*out.glob("*/checkpoints"), *out.glob("full")]:
                shutil.rmtree(folder)
            for questions in out.glob("*/queried-*.csv"):
                questions.unlink()
        run(
            cfg,
            preset=preset,
            out=out,
            results=f.results,
            resume=f.resume,
            dry_run=f.dry_run,
            show=f.open,
        )


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, PRESETS)
    flags.DEFINE_string("out", None, "Folder of the run; runs/NAME unless given.")
    flags.DEFINE_string(
        "results", "results/active_learning.jsonl", "Where rows are appended."
    )
    flags.DEFINE_bool("resume", False, "Go on with the run in --out.")
    flags.DEFINE_bool("overwrite", False, "Begin anew where --out has a run.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
    pages.define_open()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
