"""Learns a few synthetic sentences from a corpus, and sets them beside real ones.

    python -m experiments.distill --dataset=rotten_tomatoes

Everything is chosen on the validation split; the test split is read once, at the end.
"""

import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import artifact, core, data, evaluate, gradients, parallel
from distill_jax.distill import Interrupted, Progress, Schedule, distill
from distill_jax.models import MODELS
from distill_jax.selection import SELECTIONS
from distill_jax.types import Batch, Distilled
from experiments import config as flagged
from experiments import rows as result_rows
from experiments.baselines import tuned_full, validation_chunks
from experiments.config import setting
from experiments.task import (
    VALIDATION_CHUNK,
    Task,
    check_model,
    embedded,
    labels_of,
    mean_vectors,
    parse_settings,
    prepare,
    take,
)

HARD = 1e4  # a logit this far below the others has probability zero, exactly
LABELS = ("soft", "frozen", "hard")
STARTS = ("real", "noise")
THETA_0 = ("random", "fixed")
INNER_TX = {
    "sgd": core.SGD,
    "momentum": optax.trace(0.9),
    # With eps_root = 0 the derivative at an exactly zero gradient is infinite.
    "adam": optax.scale_by_adam(eps_root=1e-8),
}
INNER_GRAD = {"mixed": gradients.mixed_mode, "plain": jax.value_and_grad}
SCANS = {"none": jax.lax.scan, "nested": gradients.checkpointed_scan()}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; every one is a flag."""

    dataset: str = setting(
        "rotten_tomatoes",
        "rotten_tomatoes, imdb, bbc_news, tfds:NAME, or the path of a folder or file.",
    )
    text_column: str | None = setting(None, "Column of the texts in your file.")
    label_column: str | None = setting(None, "Column of the labels in your file.")
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.")
    download: bool = setting(False, "Let TFDS download what is not on disk.")
    vectors: str = setting("glove", "glove, random, or a file of word vectors.")
    length: int = setting(40, "Tokens of a sentence, L.")
    model: str = setting("text_cnn", "The network.", choices=tuple(sorted(MODELS)))
    model_settings: tuple[str, ...] = setting(
        (), "A setting of the network, NAME=JSON_VALUE; repeat for more."
    )
    examples_per_class: int = setting(10, "Distilled sentences of each class.")
    examples: int = setting(0, "Distilled sentences in all; 0: examples_per_class.")
    num_minibatches: int = setting(1, "Minibatches they are cut into, S.")
    num_passes: int = setting(20, "Passes over the minibatches, E.")
    start: str = setting("real", "What the sentences start from.", choices=STARTS)
    labels: str = setting(
        "soft", "Learned soft, frozen soft, or hard labels.", choices=LABELS
    )
    label_logit: float = setting(2.0, "Logit of the true class at the start.")
    inner_optimizer: str = setting(
        "adam", "Direction of an inner step.", choices=tuple(INNER_TX)
    )
    inner_lr: float = setting(0.02, "Inner step size at the start.")
    learn_lr: bool = setting(True, "Learn a step size for each inner step.")
    theta_0: str = setting("random", "Fresh theta_0, or one fixed.", choices=THETA_0)
    num_inits: int = setting(1, "Random theta_0 in a meta-step, N.")
    num_meta_steps: int = setting(1000, "Updates of the distilled data.")
    meta_lr: float = setting(0.05, "Outer Adam's step size for the sentences.")
    meta_lr_labels: float = setting(0.05, "The same for the label logits.")
    meta_lr_steps: float = setting(0.02, "The same for the raw inner step sizes.")
    meta_decay: str = setting(
        "cosine", "How these three fall.", choices=("cosine", "none")
    )
    meta_b1: float = setting(0.9, "Outer Adam's decay of the first moment.")
    clip_norm: float = setting(0.5, "Largest norm of the meta-gradient; 0: any.")
    clip_relative: float = setting(
        0.0, "Largest norm over its running mean; 0: any. At least above 1."
    )
    real_batch: int = setting(256, "Real examples in a meta-step.")
    real_chunk: int = setting(64, "Of these, at once in memory.")
    inner_grad: str = setting(
        "mixed", "How the meta-gradient flows.", choices=tuple(INNER_GRAD)
    )
    recompute: str = setting("none", "Trade time for memory.", choices=tuple(SCANS))
    parallel: str = setting(
        "jit", "Across devices.", choices=tuple(sorted(parallel.PARALLEL))
    )
    seed: int = setting(0, "Of everything random.")
    select_on: str = setting(
        "validation", "Where the best step is chosen.", choices=("validation", "test")
    )
    validate_every: int = setting(50, "Meta-steps between validations.")
    checkpoint_every: int = setting(100, "Meta-steps between checkpoints.")
    validation_inits: int = setting(8, "Random theta_0 at a validation.")
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    test_inits: int = setting(20, "Fresh random theta_0 for each number reported.")
    selection_seeds: int = setting(5, "Draws of each choice of real examples.")
    baselines: bool = setting(True, "Full data and real examples beside it.")
    full_epochs: int = setting(8, "Epochs tried for full data, at most.")

    def __post_init__(self):
        for name in (
            "length num_minibatches num_passes num_inits real_batch real_chunk "
            "validate_every checkpoint_every validation_inits validation_examples "
            "test_inits selection_seeds full_epochs"
        ).split():
            _at_least(name, getattr(self, name), 1)
        for name in "examples num_meta_steps clip_norm clip_relative".split():
            _at_least(name, getattr(self, name), 0)
        if not self.inner_lr > 0:
            raise ValueError(f"--inner_lr must be above 0, got {self.inner_lr}")
        if self.examples == 0:
            _at_least("examples_per_class", self.examples_per_class, 1)
        if self.real_batch % self.real_chunk:
            raise ValueError(
                f"--real_chunk={self.real_chunk} must divide "
                f"--real_batch={self.real_batch}"
            )
        check_model(self.model, self.network)

    @property
    def network(self) -> dict[str, Any]:
        """Settings of the network: those given, and the best for the rest."""
        return BEST_SETTINGS.get(self.model, {}) | parse_settings(self.model_settings)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"--{name} must be at least {least}, got {value}")


# What works best for a network, where its own defaults are a paper's: the second
# linear layer of Li & Li makes the unroll unstable and gains nothing.
BEST_SETTINGS: dict[str, dict[str, Any]] = {"text_cnn": {"hidden": None}}

# Departures of a paper's setting from the defaults above, its flaws included.
PRESETS: dict[str, dict[str, Any]] = {
    # Li & Li 2021 (arXiv:2104.08448), from the authors' code: 27 x 4 examples, 162
    # steps of fixed size from one fixed start, and the best epoch picked on test.
    "li2021": {
        "length": 80,
        "model_settings": ("filters=128", "widths=[2, 3]", "hidden=256"),
        "examples_per_class": 27,
        "num_minibatches": 27,
        "num_passes": 6,
        "start": "noise",
        "labels": "hard",
        "inner_optimizer": "sgd",
        "inner_lr": 0.01,
        "learn_lr": False,
        "theta_0": "fixed",
        "meta_lr": 0.01,
        "meta_decay": "none",
        "clip_norm": 0.0,
        "real_batch": 256,
        "select_on": "test",
    },
    # Sucholutsky & Schonlau 2019 (arXiv:1910.02551), text tasks, from the authors'
    # settings: learned labels and step sizes, meta-batches of 1,024, Adam with
    # b1 = 0.5. Add --dataset, --examples, --num_passes and --length of the task.
    "sucholutsky2019": {
        "model": "kim_cnn",
        "model_settings": (),
        "length": 400,
        "examples_per_class": 10,
        "num_minibatches": 1,
        "num_passes": 5,
        "start": "noise",
        "labels": "soft",
        "inner_optimizer": "sgd",
        "inner_lr": 0.01,
        "theta_0": "random",
        "meta_lr": 0.01,
        "meta_lr_labels": 0.01,
        "meta_lr_steps": 0.01,
        "meta_b1": 0.5,
        "clip_norm": 0.0,
        "real_batch": 1024,
        "select_on": "test",
    },
}


def run(
    config: Config,
    *,
    preset: str | None = None,
    out: str | Path,
    results: str | Path,
    resume: bool = False,
    dry_run: bool = False,
    tensorboard: bool = False,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Distils, scores everything on test, and writes it all down.

    Args:
        config: the settings.
        preset: the name of the paper whose settings they are.
        out: folder of the run: checkpoints, artefact, figures, event files.
        results: the `.jsonl` file that rows are appended to.
        resume: go on with the run in `out`.
        dry_run: stop after the plan and the estimate.
        tensorboard: write scalars for TensorBoard.
        say: where text goes.

    Returns:
        The rows appended.
    """
    out = Path(out)
    task = _load(config, say)
    start = _start(config, task)  # raises where the examples asked for are not there
    S, B = start.y_logits.shape[:2]
    setup = _setup(config, task, start)
    say(
        f"Will learn {S * B} sentences of {config.length} x {start.x.shape[-1]} "
        f"numbers in {config.num_meta_steps:,} meta-steps, from {config.theta_0} "
        f"theta_0; {S} minibatches x {config.num_passes} passes = "
        f"{S * config.num_passes} inner steps."
    )
    state = core.meta_init(setup.meta_tx, start)
    say(_estimate(config, setup, state))
    if dry_run:
        return []
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with _Reporter(config, out, tensorboard) as report:
        result = distill(
            setup.step,
            state,
            setup.next_batch,
            setup.validate,
            Schedule(
                config.num_meta_steps, config.validate_every, config.checkpoint_every
            ),
            key=jax.random.key(config.seed),
            num_inits=config.num_inits,
            checkpoints=out / "checkpoints",
            resume=resume,
            fingerprint=_fingerprint(config, task),
            report=report,
        )
    seconds = time.perf_counter() - began
    say(
        f"Best on {config.select_on} {result.best_accuracy:.1%} at meta-step "
        f"{result.best_step:,}; {seconds:.0f} s."
    )
    best = jax.tree.map(jnp.asarray, result.best)
    rows = _scored(config, task, setup, best, preset, seconds, say)
    folder = _save_artifact(config, task, best, rows, out)
    result_rows.append(results, rows)
    figures = _figures(config, task, result, rows, results, out)
    say("\n" + _table(rows))
    say(
        f"\nRows: {results}\nThe distilled set: {folder}\nFigures: "
        + ", ".join(map(str, figures))
        + f"\nNext: python -m experiments.evaluate --artifact={folder}"
    )
    return rows


def _load(config: Config, say) -> Task:
    dataset = data.load(
        config.dataset,
        text_column=config.text_column,
        label_column=config.label_column,
        data_dir=config.data_dir,
        download=config.download,
    )
    task = prepare(
        dataset,
        model=config.model,
        model_settings=config.network,
        vectors=config.vectors,
        length=config.length,
        seed=config.seed,
    )
    sizes = ", ".join(f"{len(s):,} {name}" for name, s in dataset.splits.items())
    say(f"{dataset.name}: {sizes}; {task.num_classes} classes.")
    for note in dataset.notes:
        say(f"  {note}")
    shares = data.unknown_shares(dataset, task.vectors.vocabulary)
    unknown = ", ".join(f"{s['tokens']:.1%} of {n}" for n, s in shares.items())
    say(f"{task.vectors.provenance}: unknown tokens {unknown}.")
    return task


def _num_examples(config: Config, task: Task) -> int:
    return config.examples or config.examples_per_class * task.num_classes


def _start(config: Config, task: Task) -> Distilled:
    """Distilled data before the first meta-step."""
    n, S = _num_examples(config, task), config.num_minibatches
    if n % S:
        raise ValueError(f"--num_minibatches={S} must divide the {n} examples")
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    labels = labels_of(task.train)
    rows = SELECTIONS["random_balanced"](np.zeros((len(labels), 1)), labels, n, key)
    real = embedded(task, take(task.train, rows))
    x = real.x
    if config.start == "noise":
        x = jax.random.normal(key, x.shape, x.dtype)
    y_logits = (HARD if config.labels == "hard" else config.label_logit) * (real.y - 1)
    raw_lr = jnp.full((config.num_passes, S), config.inner_lr, x.dtype)
    return Distilled(
        x.reshape(S, n // S, *x.shape[1:]),
        y_logits.reshape(S, n // S, -1),
        jnp.log(jnp.expm1(raw_lr)),
    )


@dataclasses.dataclass(frozen=True)
class _Setup:
    step: parallel.StepFn
    meta_tx: optax.GradientTransformation
    init_fn: Callable
    inner_tx: optax.GradientTransformation
    next_batch: Callable[[int], Batch]
    validate: Callable
    native: Callable  # (batches, lr, keys, chunks) -> accuracies [N], compiled


def _setup(config: Config, task: Task, start: Distilled) -> _Setup:
    inner_tx = INNER_TX[config.inner_optimizer]
    fixed = jax.random.key(config.seed)
    init_fn = task.model.init
    if config.theta_0 == "fixed":
        init_fn = lambda key: task.model.init(fixed)  # noqa: E731
    objective = core.unrolled(
        task.loss_fn,
        real_loss_fn=gradients.chunked(task.loss_fn, config.real_chunk),
        inner_tx=inner_tx,
        inner_grad=INNER_GRAD[config.inner_grad],
        scan=SCANS[config.recompute],
    )
    meta_tx = _meta_tx(config)
    step = parallel.PARALLEL[config.parallel](
        objective,
        init_fn,
        meta_tx,
        sequential=jax.default_backend() == "cpu",
    )
    if config.real_batch > len(task.dataset.train):
        raise ValueError(
            f"--real_batch={config.real_batch} is more than the "
            f"{len(task.dataset.train)} training examples: ask for fewer"
        )
    train = jax.tree.map(np.asarray, task.train)

    def next_batch(step_number: int) -> Batch:
        rng = np.random.default_rng([config.seed, step_number])
        rows = rng.choice(len(train.y), config.real_batch, replace=False)
        return take(train, rows)

    @jax.jit
    def native(batches, lr, keys, chunks):
        trained = evaluate.native(task.loss_fn, batches, lr, inner_tx=inner_tx)
        return evaluate.accuracies(task.model, init_fn, trained, keys, chunks)

    chosen_on = task.test if config.select_on == "test" else task.validation
    chunks = validation_chunks(
        chosen_on, seed=config.seed, num_examples=config.validation_examples
    )

    def validate(distilled: Distilled, key: jax.Array) -> float:
        keys = jax.random.split(key, config.validation_inits)
        distilled = jax.tree.map(jnp.asarray, distilled)
        return float(native(distilled.batches, distilled.lr, keys, chunks).mean())

    return _Setup(step, meta_tx, init_fn, inner_tx, next_batch, validate, native)


def _meta_tx(config: Config) -> optax.GradientTransformation:
    def adam(size: float) -> optax.GradientTransformation:
        decays = config.meta_decay == "cosine" and config.num_meta_steps > 0
        schedule = (
            optax.cosine_decay_schedule(size, config.num_meta_steps) if decays else size
        )
        return optax.adam(schedule, b1=config.meta_b1)

    frozen = optax.set_to_zero()
    leaves: dict[Any, optax.GradientTransformation] = {
        "x": adam(config.meta_lr),
        "y_logits": adam(config.meta_lr_labels) if config.labels == "soft" else frozen,
        "raw_lr": adam(config.meta_lr_steps) if config.learn_lr else frozen,
    }
    names: Any = Distilled("x", "y_logits", "raw_lr")  # type: ignore[arg-type]
    stages: list[optax.GradientTransformation] = [optax.multi_transform(leaves, names)]
    if config.clip_norm:
        stages.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.clip_relative:
        stages.insert(0, gradients.clip_by_running_mean(config.clip_relative))
    return optax.chain(*stages)


def _estimate(config: Config, setup: _Setup, state) -> str:
    """Compiles the meta-step, takes one on a copy, and tells time and memory."""
    keys = jax.random.split(jax.random.key(0), config.num_inits)
    batch = setup.next_batch(0)

    def one() -> float:
        copy = jax.tree.map(jnp.array, state)
        began = time.perf_counter()
        jax.block_until_ready(setup.step(copy, keys, batch))
        return time.perf_counter() - began

    compile_seconds = one()
    step_seconds = min(one(), one())
    began = time.perf_counter()
    setup.validate(state.distilled, jax.random.key(0))
    setup.validate(state.distilled, jax.random.key(0))
    validations = 1 + config.num_meta_steps // config.validate_every
    total = step_seconds * config.num_meta_steps
    total += validations * (time.perf_counter() - began) / 2
    return (
        f"Estimate: {_duration(total)} ({step_seconds:.3g} s a meta-step, compiled in "
        f"{compile_seconds:.0f} s), then the baselines; memory so far {_memory()}."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _memory() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GB at its peak"


def _fingerprint(config: Config, task: Task) -> dict[str, Any]:
    """What a checkpoint must agree on to be gone on with."""
    free = {
        "baselines",
        "test_inits",
        "selection_seeds",
        "full_epochs",
        "parallel",
        "data_dir",
        "download",
        "dataset",
    }
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    settings["corpus"] = task.dataset.name
    settings["vocabulary"] = task.vectors.vocabulary.sha256
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


class _Reporter:
    """The progress bar, and scalars for TensorBoard."""

    def __init__(self, config: Config, out: Path, tensorboard: bool):
        self.config, self.out, self.tensorboard = config, out, tensorboard

    def __enter__(self):
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.config.num_meta_steps, unit="step", mininterval=1.0, initial=0
        )
        self.accuracy, self.done, self.began = None, None, time.perf_counter()
        self.writer = None
        if self.tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(self.out / "tensorboard"))
        return self

    def __call__(self, progress: Progress) -> None:
        if self.done is None:  # a resumed run begins where it was left
            self.done = self.bar.n = progress.step
            self.first = progress.step
        self.bar.update(progress.step - self.bar.n)
        rate = (progress.step - self.first) * self.config.num_inits
        shown = {"theta_0/s": f"{rate / (time.perf_counter() - self.began):.1f}"}
        if progress.meta_loss is not None:
            shown["loss"] = f"{progress.meta_loss:.4f}"
        if progress.row is not None:
            self.accuracy = progress.row["accuracy"]
        if self.accuracy is not None:
            shown["validation"] = f"{self.accuracy:.1%}"
        shown["best"] = f"{progress.best_accuracy:.1%}"
        if progress.skipped_in_a_row:
            shown["skipped"] = str(progress.skipped_in_a_row)
        self.bar.set_postfix(shown)
        if self.writer is not None and progress.row is not None:
            for name, value in progress.row.items():
                if name != "step" and value is not None:
                    self.writer.add_scalar(name, value, progress.step)

    def __exit__(self, *error):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def _scored(
    config: Config,
    task: Task,
    setup: _Setup,
    best: Distilled,
    preset: str | None,
    distill_seconds: float,
    say,
) -> list[result_rows.Row]:
    """Tunes the baselines on validation, then reads the test split, once."""
    S, B = best.y_logits.shape[:2]
    validation = validation_chunks(
        task.validation, seed=config.seed, num_examples=config.validation_examples
    )
    test = evaluate.padded(task.test, VALIDATION_CHUNK)
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
        for name, select in SELECTIONS.items():
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
            "bytes": sum(a.nbytes for a in (best.x, best.y_logits, best.raw_lr)),
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


def _save_artifact(config, task, best, rows, out) -> Path:
    card = {
        "corpus": {"name": task.dataset.name, "sha256": dict(task.dataset.sha256)},
        "label_names": list(task.dataset.label_names),
        "vocabulary": {
            "sha256": task.vectors.vocabulary.sha256,
            "size": len(task.vectors.vocabulary),
            "vectors": task.vectors.provenance,
            "scale": task.scale,
        },
        "model": {
            "name": config.model,
            "settings": config.network,
        },
        "inner_optimizer": config.inner_optimizer,
        "preprocessing": {
            "tokeniser": "distill_jax.data.tokenize",
            "length": config.length,
        },
        "results": {row["method"]: row["accuracy_mean"] for row in rows},
        "config": result_rows.portable(dataclasses.asdict(config)),
    }
    return artifact.save(out / "artifact", artifact.from_distilled(best), card)


def _figures(config, task, result, rows, results, out) -> list[Path]:
    from distill_jax import report

    by_method = {row["method"]: row for row in rows}
    full = by_method["distilled"]["full_accuracy_mean"]
    majority = by_method["majority"]["accuracy_mean"]
    first = report.plot_run(
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
    second = report.plot_budget(out / "budget.png", points, full, majority)
    return [first, second]


def main(argv: list[str]) -> None:
    from absl import app, flags, logging

    if argv[1:]:
        raise app.UsageError(f"no arguments but flags, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    f = flags.FLAGS
    preset = flagged.chosen_preset(PRESETS)
    try:
        cfg = flagged.from_flags(Config, PRESETS)
        corpus = Path(cfg.dataset).name.replace(":", "-")
        size = cfg.examples or f"{cfg.examples_per_class}pc"
        parts = [corpus, cfg.model, str(size)] + ([preset] if preset else [])
        out = Path(f.out or Path("runs") / "-".join(parts))
        if f.overwrite and (out / "checkpoints").exists():
            shutil.rmtree(out / "checkpoints")
        run(
            cfg,
            preset=preset,
            out=out,
            results=f.results,
            resume=f.resume,
            dry_run=f.dry_run,
            tensorboard=f.tensorboard,
        )
    except Interrupted as stop:
        again = ["python", "-m", "experiments.distill", *sys.argv[1:], "--resume"]
        print(f"\n{stop}\nTo go on: {shlex.join(again)}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        if os.environ.get("DISTILL_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


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


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
