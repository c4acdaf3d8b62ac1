"""Trains fresh networks on a saved distilled set, and scores them on test.

    python -m experiments.evaluate --artifact=runs/NAME/artifact

In its own order and step sizes (native), and by ordinary training on shuffled
minibatches (standard), whose optimizer, step size and epochs are chosen on validation.
With --model also on another network. The test split is read once, at the end.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from distill_jax import artifact, compact, evaluate
from distill_jax import results as result_rows
from distill_jax.models import MODELS
from distill_jax.task import Task, check_model, in_chunks, parse_settings
from distill_jax.types import Batch, Distilled
from experiments import config as flagged
from experiments.baselines import tuned_full, validation_chunks
from experiments.config import setting
from experiments.recipe import native_scorer
from experiments.running import told_in_a_line
from experiments.saved import inner_tx_of, task_of, with_network

# Step sizes tried by ordinary training.
GRID = {
    "adam": (optax.adam, [1e-3, 3e-3, 1e-2, 3e-2]),
    "sgd": (optax.sgd, [1e-2, 3e-2, 1e-1, 3e-1, 1.0]),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an evaluation; every one is a flag."""

    artifact: str | None = setting(None, "Folder of the artefact.")
    dataset: str | None = setting(None, "The corpus, if not the artefact's own.")
    text_column: str | None = setting(None, "Column of the texts in your file.")
    label_column: str | None = setting(None, "Column of the labels in your file.")
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.")
    download: bool = setting(False, "Let TFDS download what is not on disk.")
    vectors: str | None = setting(None, "Where the artefact's word vectors are now.")
    model: str | None = setting(
        None, "Another network to train too.", choices=tuple(sorted(MODELS))
    )
    model_settings: tuple[str, ...] = setting(
        (), "A setting of that network, NAME=JSON_VALUE; repeat for more."
    )
    batch_size: int = setting(32, "Examples in a minibatch of ordinary training.")
    max_epochs: int = setting(
        250, "Most epochs of ordinary training; a 5th and a 25th of it are tried too."
    )
    full: bool = setting(False, "Train on all training data too.")
    full_epochs: int = setting(8, "Epochs tried for full data, at most.")
    validation_inits: int = setting(5, "Random theta_0 for each recipe tried.")
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    test_inits: int = setting(20, "Fresh random theta_0 for each number reported.")
    seed: int = setting(0, "Of theta_0; that of the run repeats its own test.")

    def __post_init__(self):
        for name in (
            "batch_size max_epochs full_epochs validation_inits validation_examples "
            "test_inits"
        ).split():
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.artifact:
            raise ValueError("--artifact must name the folder of an artefact")
        if self.model is not None:
            check_model(self.model, parse_settings(self.model_settings))
        elif self.model_settings:
            raise ValueError("--model_settings needs --model")


def run(
    config: Config,
    *,
    results: str | Path,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Trains on the artefact in each way, scores on test, and appends the rows.

    Args:
        config: the settings.
        results: the `.jsonl` file that rows are appended to.
        say: where text goes.

    Returns:
        The rows appended.
    """
    assert config.artifact is not None  # Config has seen to it
    saved = artifact.load(config.artifact)
    tx = inner_tx_of(saved.card)
    own = task_of(
        saved,
        dataset=config.dataset,
        text_column=config.text_column,
        label_column=config.label_column,
        data_dir=config.data_dir,
        download=config.download,
        vectors=config.vectors,
        say=say,
    )
    distilled = artifact.to_distilled(saved)
    S, B, L, D = distilled.x.shape
    say(
        f"{S * B} sentences of {L} x {D} numbers, learned from "
        f"{saved.card['corpus']['name']} with {saved.card['model']['name']}; "
        f"{S} minibatches x {distilled.raw_lr.shape[0]} passes."
    )
    networks = [(saved.card["model"]["name"], own)]
    if config.model is not None:
        settings = parse_settings(config.model_settings)
        networks.append((config.model, with_network(own, config.model, settings)))
    ways = [
        (number, way)
        for number, (name, task) in enumerate(networks)
        for way in _ways(config, name, task, distilled, tx, say)
    ]
    # As in experiments.distill: with the seed of the run, the same theta_0.
    keys = jax.random.split(_keys(config)[1], config.test_inits)
    say("Reading the test split.")
    tests = [in_chunks(task, own.test) for _, task in networks]
    scored = []
    for number, way in ways:
        began = time.perf_counter()
        assert way.score is not None  # only the majority line has none
        accuracies = np.asarray(way.score(keys, tests[number]))
        scored.append((way, accuracies, way.seconds + time.perf_counter() - began))
    rows = _rows(config, saved, own, distilled, scored)
    result_rows.append(results, rows)
    say("\n" + _table(rows) + f"\n\nRows: {results}")
    return rows


@dataclasses.dataclass(frozen=True)
class _Way:
    """One way to train one network.

    Attributes:
        model: its name.
        method, training: as in the rows.
        score: `(keys [N], chunks) -> accuracies [N]`.
        recipe: what was chosen on validation.
        seconds: that this took.
    """

    model: str
    method: str
    training: str
    score: Callable[[jax.Array, Batch], jax.Array] | None
    recipe: dict[str, Any]
    seconds: float


def _ways(config, name, task, distilled: Distilled, tx, say):
    """Native, standard and, if asked for, full data, tuned on validation."""
    validation = validation_chunks(
        task, task.validation, seed=config.seed, num_examples=config.validation_examples
    )
    native = native_scorer(task, task.model.init, tx)
    own_order = partial(native, distilled.batches, distilled.lr)
    yield _Way(name, "distilled", "native", own_order, {}, 0.0)

    began = time.perf_counter()
    sentences = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), distilled.batches)
    score, recipe = _tuned_standard(config, task, sentences, validation)
    say(f"{name}, ordinary training: {recipe}.")
    seconds = time.perf_counter() - began
    yield _Way(name, "distilled", "standard", score, recipe, seconds)

    if config.full:
        began = time.perf_counter()
        score, recipe = tuned_full(
            task, validation, seed=config.seed, max_epochs=config.full_epochs
        )
        say(f"{name}, full data: {recipe}.")
        seconds = time.perf_counter() - began
        yield _Way(name, "full", "standard", score, recipe, seconds)


def _tuned_standard(config: Config, task: Task, sentences: Batch, validation: Batch):
    """The optimizer, step size and epochs with the best mean accuracy."""
    keys = jax.random.split(_keys(config)[0], config.validation_inits)
    most = config.max_epochs
    best: tuple[Any, dict[str, Any]] | None = None
    best_accuracy = -1.0
    for name, (make, sizes) in GRID.items():
        for epochs in sorted({max(1, most // 25), max(1, most // 5), most}):
            score = _standard(task, make, epochs, config.batch_size)
            lr, accuracy = evaluate.tune_lr(
                lambda lr, score=score: score(sentences, lr, keys, validation), sizes
            )
            if accuracy > best_accuracy:
                recipe = {"optimizer": name, "lr": lr, "num_epochs": epochs}
                recipe["batch"] = min(config.batch_size, len(sentences.y))
                best, best_accuracy = (partial(score, sentences, lr), recipe), accuracy
    assert best is not None
    return best


def _standard(task: Task, make: Callable, epochs: int, batch_size: int):
    @jax.jit
    def score(sentences, lr, keys, chunks):
        train = evaluate.standard(
            task.loss_fn,
            sentences,
            make(lr),
            num_epochs=epochs,
            batch_size=batch_size,
        )
        return evaluate.accuracies(task.model, task.model.init, train, keys, chunks)

    return score


def _keys(config: Config) -> jax.Array:
    """The keys of tuning and of the test."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))


def _rows(config, saved, task, distilled, scored) -> list[result_rows.Row]:
    C, N = task.num_classes, len(task.dataset.train)
    n = distilled.y_logits.shape[0] * distilled.y_logits.shape[1]
    majority = evaluate.majority_accuracy(
        task.dataset.test.labels, task.dataset.validation.labels, C
    )
    full = {
        way.model: float(accuracies.mean())
        for way, accuracies, _ in scored
        if way.method == "full"
    }
    hard = saved.arrays["y"].max(-1).min() > 1 - 1e-6
    selected_on = saved.card.get("config", {}).get("select_on", "validation")
    facts = dataclasses.asdict(config) | {
        "artifact_sha256": saved.card["tensors"]["sha256"],
        "artifact_model": saved.card["model"],
    }
    majority_way = _Way(scored[0][0].model, "majority", "", None, {}, 0.0)
    rows = []
    for way, accuracies, seconds in [
        *scored,
        (majority_way, np.array([majority]), 0.0),
    ]:
        mean = float(accuracies.mean())
        ours, trained = way.method == "distilled", way.method != "majority"
        examples = {"distilled": n, "full": N, "majority": 0}[way.method]
        whole = full.get(way.model)
        rows.append(
            {
                "experiment": "evaluate",
                "preset": None,
                "dataset": task.dataset.name,
                "model": way.model,
                "method": way.method,
                "examples": examples,
                "examples_per_class": examples / C,
                "fraction_of_train": examples / N,
                "bytes": (
                    compact.num_bytes(compact.quantise(distilled, "float32"))
                    if ours
                    else None
                ),
                "labels": (
                    ("hard" if hard or not ours else "soft") if trained else None
                ),
                "theta_0": "random" if trained else None,
                "training": way.training or None,
                "selected_on": selected_on if ours else "validation",
                "split": "test",
                "accuracy_mean": mean,
                "accuracy_sd": (
                    float(accuracies.std(ddof=1)) if accuracies.size > 1 else None
                ),
                "num_inits": accuracies.size,
                "num_seeds": 1,
                "full_accuracy_mean": whole,
                "relative_accuracy": mean / whole if whole else None,
                "majority_accuracy": majority,
                "seconds": seconds,
                "device": result_rows.device(),
                "commit": result_rows.commit(),
                "command": result_rows.command(),
                "config": facts | ({"tuned": way.recipe} if way.recipe else {}),
            }
        )
    return rows


def _table(rows: list[result_rows.Row]) -> str:
    lines = [f"{'':10} {'model':12} {'training':9} {'accuracy':>15} {'relative':>9}"]
    for row in rows:
        sd, relative = row["accuracy_sd"], row["relative_accuracy"]
        accuracy = f"{row['accuracy_mean']:.1%}" + (
            "" if sd is None else f" ± {sd:.1%}"
        )
        model = row["model"] if row["training"] else ""
        lines.append(
            f"{row['method']:10} {model:12} {row['training'] or '':9} {accuracy:>15} "
            + ("" if relative is None else f"{relative:>9.1%}")
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    with told_in_a_line(argv, "experiments.evaluate"):
        run(flagged.from_flags(Config, {}), results=flags.FLAGS.results)


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, {})
    flags.DEFINE_string("results", "results/evaluate.jsonl", "Where rows are appended.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
