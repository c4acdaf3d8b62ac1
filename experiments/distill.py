"""Learns a few synthetic sentences from a corpus, and sets them beside real ones.

    python -m experiments.distill --dataset=rotten_tomatoes

Everything is chosen on the validation split; the test split is read once, at the end.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import checkpoints as ckpt
from distill_jax import compact, evaluate
from distill_jax import results as result_rows
from distill_jax.report import page
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, embedded, in_chunks, labels_of, mean_vectors, take
from distill_jax.types import Batch, Distilled, MetaState
from experiments import config as flagged
from experiments import pages, saved
from experiments.baselines import tuned_full, validation_chunks
from experiments.recipe import (
    BEST_RECIPES,
    PRESETS,
    Config,
    Setup,
    build,
    fingerprint,
    load,
    start_of,
)
from experiments.running import estimate, learned, told_in_a_line

# Beside every distillation; `experiments.compare` has the other selections.
RIVALS = ("random", "random_balanced", "kmeans_medoids")


def run(
    config: Config,
    *,
    preset: str | None = None,
    out: str | Path,
    results: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    tensorboard: bool = False,
    show: bool = False,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Distils, scores everything on test, and writes it all down.

    Args:
        config: the settings.
        preset: the name of the paper whose settings they are.
        out: folder of the run: checkpoints, artefact, page, figures, event files.
        results: the `.jsonl` file that rows are appended to.
        resume: go on with the run in `out`.
        overwrite: begin anew where `out` has a run.
        dry_run: stop after the plan and the estimate.
        tensorboard: write scalars for TensorBoard.
        show: open the page in a browser.
        say: where text goes.

    Returns:
        The rows appended.

    Raises:
        ValueError: for a run in `out` without `resume` or `overwrite`, or of other
            settings, before anything is compiled; and as all that is called does.
        pages.NotDrawn: if a figure or the page cannot be written; the rows are.
    """
    out = Path(out)
    folder = out / "checkpoints"
    if not overwrite:
        _refuse_unless_resumed(folder, resume)
    elif resume:
        raise ValueError("--resume goes on with what --overwrite deletes: give one")
    task = load(config, say)
    start = start_of(config, task)  # raises where the examples asked for are not there
    S, B = start.y_logits.shape[:2]
    setup = build(config, task, start)
    key, settings = jax.random.key(config.seed), fingerprint(config, task)
    if resume:
        _refuse_other_run(folder, setup.state, key, config.num_inits, settings)
    say(
        f"Will learn {S * B} sentences of {start.x.shape[-2]} x {start.x.shape[-1]} "
        f"numbers in {config.num_meta_steps:,} meta-steps, from {config.theta_0} "
        f"theta_0; {S} minibatches x {config.num_passes} passes = "
        f"{S * config.num_passes} inner steps."
    )
    say(estimate(config, setup))
    if dry_run:
        return []
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)
    events = out / "tensorboard" if tensorboard else None
    result, seconds = learned(
        config, task, start, setup, folder, resume=resume, tensorboard=events
    )
    say(
        f"Best on {config.select_on} {result.best_accuracy:.1%} at meta-step "
        f"{result.best_step:,}; {seconds:.0f} s."
    )
    best = jax.tree.map(jnp.asarray, result.best)
    rows = _scored(config, task, setup, best, preset, seconds, say)
    results_of = {row["method"]: row["accuracy_mean"] for row in rows}
    artefact = saved.save(out / "artifact", config, task, best, results_of)
    result_rows.append(results, rows)
    drawn = ""
    try:
        with pages.after_rows(results, "the same command with --resume"):
            figures = _figures(config, task, result, rows, results, out)
            made = pages.of_run(task, best, result.history, rows)
            path = page.write(out / pages.NAME, made)
        drawn = f"\nFigures: {', '.join(map(str, figures))}\nPage: {path}"
    finally:
        say("\n" + _table(rows))
        say(
            f"\nRows: {results}\nThe distilled set: {artefact}{drawn}"
            f"\nNext: python -m experiments.evaluate --artifact={artefact}"
        )
    if show:
        pages.open_in_browser(path, say)
    return rows


def _refuse_unless_resumed(folder: Path, resume: bool) -> None:
    last = ckpt.latest_step(folder)
    if last is not None and not resume:
        raise ValueError(
            f"{folder} already has a run, at step {last}: resume it with --resume, "
            "begin anew with --overwrite, or use another --out"
        )


def _refuse_other_run(
    folder: Path, state: MetaState, key: jax.Array, num_inits: int, settings: dict
) -> None:
    """Reads the checkpoint as `distill` will, which comes after the compiling."""
    if ckpt.latest_step(folder) is not None:
        like = {"state": state, "best": state.distilled}
        seed = {"num_inits": num_inits, "key": jax.random.key_data(key).tolist()}
        ckpt.restore(folder, like, settings | seed)


def _scored(
    config: Config,
    task: Task,
    setup: Setup,
    best: Distilled,
    preset: str | None,
    distill_seconds: float,
    say,
) -> list[result_rows.Row]:
    """Tunes the baselines on validation, then reads the test split, once."""
    S, B = best.y_logits.shape[:2]
    validation = validation_chunks(
        task, task.validation, seed=config.seed, num_examples=config.validation_examples
    )
    test = in_chunks(task, task.test)
    tuning_key, test_key = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), 2)
    )
    tuning_keys = jax.random.split(tuning_key, 5)
    test_keys = jax.random.split(test_key, config.test_inits)
    trained: list[tuple[str, Callable[[], np.ndarray], dict[str, Any]]] = []

    def scorer(batches: Batch, lr: jax.Array):
        return lambda: np.asarray(setup.native(batches, lr, test_keys, test))

    distilled_scorer = scorer(best.batches, best.lr)
    if config.baselines:
        began = time.perf_counter()
        full, recipe = tuned_full(
            task, validation, seed=config.seed, max_epochs=config.full_epochs
        )
        say(f"Full data: {recipe}.")
        trained.append(
            (
                "full",
                lambda: np.asarray(full(test_keys, test)),
                {"tuned": recipe, "tuning_seconds": time.perf_counter() - began},
            )
        )
        features, labels = mean_vectors(task, task.train), labels_of(task.train)
        for name in RIVALS:
            select = SELECTIONS[name]
            began = time.perf_counter()
            sets = []
            for seed in range(config.selection_seeds):
                key = jax.random.fold_in(jax.random.key(config.seed), 100 + seed)
                rows = select(features, labels, S * B, key)
                chosen = embedded(task, take(task.train, rows))
                sets.append(evaluate.minibatches(chosen, S))
            lr = _tuned_lr(config, setup, sets, tuning_keys, validation, S)
            say(f"{name}: step size {lr[0, 0]:g}, {lr.shape[0]} passes.")
            scorers = [scorer(batches, lr) for batches in sets]
            trained.append(
                (
                    name,
                    lambda scorers=scorers: np.stack([score() for score in scorers]),
                    {
                        "tuned": {
                            "lr": float(lr[0, 0]),
                            "num_passes": int(lr.shape[0]),
                        },
                        "tuning_seconds": time.perf_counter() - began,
                    },
                )
            )
    say("Reading the test split.")
    scores = []
    for name, score, facts in trained:
        began = time.perf_counter()
        accuracies = np.atleast_2d(score())
        seconds = facts.pop("tuning_seconds") + time.perf_counter() - began
        scores.append((name, accuracies, seconds, facts))
    began = time.perf_counter()
    accuracies = np.atleast_2d(distilled_scorer())
    seconds = distill_seconds + time.perf_counter() - began
    scores.insert(0, ("distilled", accuracies, seconds, {}))
    return _rows(config, task, best, preset, scores)


def _tuned_lr(config, setup, sets, keys, validation, S) -> jax.Array:
    """The constant step size, and number of passes, best on validation.

    Eight step sizes around the one that distillation starts from, with as many passes
    as it makes and with five times as many.
    """
    sizes = [config.inner_lr * 10 ** (k / 2) for k in range(-3, 5)]
    best, best_accuracy = None, -1.0
    for passes in (config.num_passes, 5 * config.num_passes):
        for size in sizes:
            lr = jnp.full((passes, S), size, sets[0].x.dtype)
            accuracies = [setup.native(b, lr, keys, validation) for b in sets[:2]]
            accuracy = float(jnp.stack(accuracies).mean())
            if accuracy > best_accuracy:
                best, best_accuracy = lr, accuracy
    assert best is not None
    return best


def _rows(config, task, best, preset, scores) -> list[result_rows.Row]:
    C, N = task.num_classes, len(task.dataset.train)
    majority = evaluate.majority_accuracy(
        task.dataset.test.labels, task.dataset.validation.labels, C
    )
    by_name = {name: accuracies for name, accuracies, *_ in scores}
    full = float(by_name["full"].mean()) if "full" in by_name else None
    n = best.y_logits.shape[0] * best.y_logits.shape[1]
    facts_of = {
        "full": {"examples": N, "theta_0": "random", "training": "standard"},
        "majority": {"examples": 0, "theta_0": None, "training": None, "labels": None},
        "distilled": {
            "bytes": compact.num_bytes(compact.quantise(best, "float32")),
            "labels": "hard" if config.labels == "hard" else "soft",
            "selected_on": config.select_on,
        },
    }
    scores = [*scores, ("majority", np.array([[majority]]), 0.0, {})]
    rows = []
    for name, accuracies, seconds, tuned in scores:
        row = {
            "experiment": "distill",
            "preset": preset,
            "dataset": task.dataset.name,
            "model": config.model,
            "method": name,
            "examples": n,
            "bytes": None,
            "labels": "hard",
            "theta_0": config.theta_0,
            "training": "native",
            "selected_on": "validation",
            "split": "test",
            "accuracy_mean": float(accuracies.mean()),
            "accuracy_sd": float(accuracies.std(ddof=1))
            if accuracies.size > 1
            else None,
            "num_inits": accuracies.shape[1],
            "num_seeds": accuracies.shape[0],
            "full_accuracy_mean": full,
            "relative_accuracy": float(accuracies.mean()) / full if full else None,
            "majority_accuracy": majority,
            "seconds": seconds,
            "device": result_rows.device(),
            "commit": result_rows.commit(),
            "command": result_rows.command(),
            "config": dataclasses.asdict(config) | tuned,
        } | facts_of.get(name, {})
        row["examples_per_class"] = row["examples"] / C
        row["fraction_of_train"] = row["examples"] / N
        rows.append(row)
    return rows


def _table(rows: list[result_rows.Row]) -> str:
    lines = [
        f"{'':16} {'examples':>9} {'of train':>9} {'accuracy':>15} {'relative':>9}"
    ]
    for row in rows:
        sd, share = row["accuracy_sd"], row["relative_accuracy"]
        accuracy = f"{row['accuracy_mean']:.1%}"
        accuracy += "" if sd is None else f" ± {sd:.1%}"
        relative = "" if share is None else f"{share:.1%}"
        size = "" if row["bytes"] is None else f"   {row['bytes']:,} bytes"
        lines.append(
            f"{row['method']:16} {row['examples']:>9,} "
            f"{row['fraction_of_train']:>9.2%} {accuracy:>15} {relative:>9}{size}"
        )
    return "\n".join(lines)


def _figures(config, task, result, rows, results, out) -> list[Path]:
    from distill_jax.report import plots

    by_method = {row["method"]: row for row in rows}
    full = by_method["distilled"]["full_accuracy_mean"]
    majority = by_method["majority"]["accuracy_mean"]
    first = plots.plot_run(
        out / "run.png",
        [row["step"] for row in result.history],
        [row["accuracy"] for row in result.history],
        np.asarray(result.best.lr),
        full=full,
        majority=majority,
    )
    methods: dict[str, dict[float, tuple[float, float, float]]] = {}
    for row in result_rows.read(results):
        same = all(
            row[k] == by_method["distilled"][k]
            for k in ("dataset", "model", "theta_0", "preset")
        )
        if same and row["training"] == "native":
            point = (
                row["examples_per_class"],
                row["accuracy_mean"],
                row["accuracy_sd"] or 0.0,  # none where there is one theta_0
            )
            methods.setdefault(row["method"], {})[point[0]] = point
    points = {m: sorted(p.values()) for m, p in methods.items()}
    second = plots.plot_budget(out / "budget.png", points, full, majority)
    return [first, second]


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.distill",
        again=["--resume"],
        not_again=["overwrite"],
        stopped=f"rows are added to {f.results} last, all at once",
    ):
        preset = flagged.chosen_preset(PRESETS)
        config = flagged.from_flags(Config, PRESETS, BEST_RECIPES)
        corpus = Path(config.dataset).name.replace(":", "-")
        size = config.examples or f"{config.examples_per_class}pc"
        parts = [corpus, config.model, str(size)] + ([preset] if preset else [])
        run(
            config,
            preset=preset,
            out=f.out or Path("runs") / "-".join(parts),
            results=f.results,
            resume=f.resume,
            overwrite=f.overwrite,
            dry_run=f.dry_run,
            tensorboard=f.tensorboard,
            show=f.open,
        )


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, PRESETS)
    flags.DEFINE_string("out", None, "Folder of the run; runs/NAME unless given.")
    flags.DEFINE_string("results", "results/distill.jsonl", "Where rows are appended.")
    flags.DEFINE_bool("resume", False, "Go on with the run in --out.")
    flags.DEFINE_bool("overwrite", False, "Begin anew where --out has a run.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
    flags.DEFINE_bool("tensorboard", False, "Write scalars for TensorBoard.")
    pages.define_open()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
