"""How sentences are learned: the settings, where they start, and the meta-step."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import (
    compact,
    core,
    data,
    evaluate,
    gradients,
    losses,
    objectives,
    parallel,
)
from distill_jax.models import MODELS
from distill_jax.starts import STARTS, Corpus, with_length
from distill_jax.task import (
    Task,
    check_model,
    embedded,
    labels_of,
    mean_vectors,
    parse_settings,
    prepare,
    take,
)
from distill_jax.types import Batch, Distilled, InitFn, MetaState, Objective
from distill_jax.windows import WINDOWS, num_starts, watched, watching
from experiments import experts
from experiments.baselines import validation_chunks
from experiments.config import setting

FROZEN_BYTES = 2**31  # else each meta-step reads its own real batch
HARD = 1e4  # a logit this far below the others has probability zero, exactly
EXPERT_SPAN = 2  # epochs of an expert that the distilled data is to match
LABELS = ("soft", "frozen", "hard")
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
    """Settings of a run; every one is a flag.

    The defaults are those of `text_cnn`; BEST_RECIPES has those of other networks.
    """

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
    distilled_length: int = setting(
        0, "Words of a distilled sentence; 0: as many as tokens of a real one."
    )
    words_kept: float = setting(
        1.0,
        "Share of their words that distilled sentences keep, the longest of all, so "
        "that each learns its length; the others go in the first half of the run.",
    )
    model: str = setting("text_cnn", "The network.", choices=tuple(sorted(MODELS)))
    model_settings: tuple[str, ...] = setting(
        (), "A setting of the network, NAME=JSON_VALUE; repeat for more."
    )
    examples_per_class: int = setting(10, "Distilled sentences of each class.")
    examples: int = setting(0, "Distilled sentences in all; 0: examples_per_class.")
    num_minibatches: int = setting(1, "Minibatches they are cut into, S.")
    num_passes: int = setting(20, "Passes over the minibatches, E.")
    start: str = setting(
        "real", "What the sentences start from.", choices=tuple(STARTS)
    )
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
    objective: str = setting(
        "unrolled",
        "What the distilled data minimises.",
        choices=tuple(sorted(objectives.OBJECTIVES)),
    )
    objective_settings: tuple[str, ...] = setting(
        (), "A setting of the objective, NAME=JSON_VALUE; repeat for more."
    )
    experts: str = setting(
        "runs/experts", "Folder of the experts, for trajectory_matching."
    )
    windows: str = setting(
        "none",
        "Which inner steps are differentiated: all, the last, or a window placed at "
        "random or where gradients are large.",
        choices=("none", *sorted(WINDOWS)),
    )
    warm_steps: int = setting(
        0,
        "Meta-steps of feature regression before the others: quick ones, to a start "
        "that trains the last layer well.",
    )
    warm_lr: float = setting(0.05, "Outer Adam's step size in these.")
    warm_ridge: float = setting(
        0.01, "Their ridge: the more, the fewer inner steps come to the same."
    )
    window: int = setting(20, "Inner steps of a window.")
    window_earliest: int = setting(0, "Inner steps before a window, at least.")
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
            "test_inits selection_seeds full_epochs window"
        ).split():
            _at_least(name, getattr(self, name), 1)
        for name in (
            "examples num_meta_steps clip_norm clip_relative window_earliest "
            "distilled_length warm_steps"
        ).split():
            _at_least(name, getattr(self, name), 0)
        if self.objective != "unrolled" and self.windows != "none":
            raise ValueError(
                f"--windows={self.windows} is for --objective=unrolled, got "
                f"{self.objective}"
            )
        if objectives.get(self.objective).segments and self.theta_0 != "random":
            raise ValueError(f"--objective={self.objective} needs --theta_0=random")
        for name in ("warm_lr", "warm_ridge", "inner_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.words_kept <= 1:
            raise ValueError(f"--words_kept must be in (0, 1], got {self.words_kept}")
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


# Where a network's own defaults are a paper's: without the second linear layer of
# Li & Li.
BEST_SETTINGS: dict[str, dict[str, Any]] = {"text_cnn": {"hidden": None}}

# How a network is distilled best, where that is not by the defaults above. Flags win.
BEST_RECIPES: dict[str, dict[str, Any]] = {
    "bag": {
        "inner_optimizer": "sgd",
        "inner_lr": 0.1,
        "inner_grad": "plain",
        "meta_lr": 0.02,
        "meta_lr_labels": 0.02,
        "meta_lr_steps": 0.005,
        "num_meta_steps": 1500,
    },
    "fourier_bag": {
        "inner_optimizer": "momentum",
        "inner_lr": 0.1,
        "num_passes": 30,
        "meta_lr": 0.02,
        "meta_lr_labels": 0.02,
        "num_meta_steps": 500,
        "real_batch": 512,
        "real_chunk": 512,
    },
    "mean_cnn": {
        "inner_optimizer": "momentum",
        "inner_lr": 0.3,
        "num_passes": 60,
        "warm_steps": 800,
        "meta_lr": 0.03,
        "meta_lr_labels": 0.03,
        "num_meta_steps": 600,
    },
}

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


def load(config: Config, say: Callable[[str], None] = print) -> Task:
    """The corpus, word vectors and network of a run; says what was read.

    Args:
        config: the settings.
        say: where text goes.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: as `data.load` and
            `prepare` do.
    """
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


def start_of(config: Config, task: Task) -> Distilled:
    """The distilled data before the first meta-step.

    Args:
        config: the settings.
        task: from `load`.

    Returns:
        S minibatches of sentences, with their labels and step sizes.

    Raises:
        ValueError: if S does not divide the examples, or a class has too few.
    """
    n = config.examples or config.examples_per_class * task.num_classes
    S = config.num_minibatches
    if n % S:
        raise ValueError(f"--num_minibatches={S} must divide the {n} examples")
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    corpus = Corpus(
        mean_vectors(task, task.train),
        labels_of(task.train),
        lambda rows: embedded(task, take(task.train, rows)),
        np.asarray(task.train.x),
        np.asarray(task.vectors.table * task.scale),
    )
    x, labels = (jnp.asarray(a) for a in STARTS[config.start](corpus, n, key))
    ragged = config.words_kept < 1
    if config.distilled_length or ragged:  # if ragged, padding is words to begin with
        length = config.distilled_length or x.shape[1]
        x = jnp.asarray(with_length(np.asarray(x), length))
    y = jax.nn.one_hot(labels, task.num_classes, dtype=x.dtype)
    y_logits = (HARD if config.labels == "hard" else config.label_logit) * (y - 1)
    raw_lr = jnp.full((config.num_passes, S), config.inner_lr, x.dtype)
    return Distilled(
        x.reshape(S, n // S, *x.shape[1:]),
        y_logits.reshape(S, n // S, -1),
        jnp.log(jnp.expm1(raw_lr)),
        ragged=ragged,
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What learns from a task, compiled at its first use.

    Attributes:
        step: `(state, keys [N], batch) -> (state, info)`; donates the state.
        state: the one before the first meta-step.
        begin: the same from other distilled data.
        meta_tx: the outer optimizer.
        init_fn: `(key) -> theta_0`.
        inner_tx: the direction of an inner step.
        next_batch: the real batch of a meta-step, by its number.
        validate: `(distilled, key) -> accuracy`, where the best step is chosen.
        native: `(batches, lr [E, S], keys [N], chunks) -> accuracies [N]`.
    """

    step: parallel.StepFn
    state: MetaState
    begin: Callable[[Distilled], MetaState]
    meta_tx: optax.GradientTransformation
    init_fn: InitFn
    inner_tx: optax.GradientTransformation
    next_batch: Callable[[int], Batch]
    validate: Callable[[Distilled, jax.Array], float]
    native: Callable[[Batch, jax.Array, jax.Array, Batch], jax.Array]


def build(
    config: Config, task: Task, start: Distilled, *, traced: bool = False
) -> Setup:
    """Puts together what learns from a task.

    Args:
        config: the settings.
        task: from `load`.
        start: from `start_of`.
        traced: of `meta_tx`; checkpoints are of one or the other.

    Raises:
        ValueError: if a real batch is larger than the training split.
    """
    if config.real_batch > len(task.dataset.train):
        raise ValueError(
            f"--real_batch={config.real_batch} is more than the "
            f"{len(task.dataset.train)} training examples: ask for fewer"
        )
    inner_tx = INNER_TX[config.inner_optimizer]
    init_fn = task.model.init
    if config.theta_0 == "fixed":
        fixed = jax.random.key(config.seed)
        init_fn = lambda key: task.model.init(fixed)  # noqa: E731
    objective = _objective(config, task, start, inner_tx)
    tx = meta_tx(config, traced=traced)
    adaptive = config.windows == "adaptive"  # it learns where to place its windows
    if adaptive:
        tx = watching(tx)
    step = parallel.PARALLEL[config.parallel](
        objective,
        _meta_init_fn(config, task, init_fn),
        tx,
        sequential=jax.default_backend() == "cpu",
    )
    train = jax.tree.map(np.asarray, _frozen_train(task))

    def next_batch(step_number: int) -> Batch:
        rng = np.random.default_rng([config.seed, step_number])
        rows = rng.choice(len(train.y), config.real_batch, replace=False)
        return take(train, rows)

    native = native_scorer(task, init_fn, inner_tx)
    chosen_on = task.test if config.select_on == "test" else task.validation
    chunks = validation_chunks(
        task, chosen_on, seed=config.seed, num_examples=config.validation_examples
    )

    def validate(distilled: Distilled, key: jax.Array) -> float:
        keys = jax.random.split(key, config.validation_inits)
        distilled = jax.tree.map(jnp.asarray, distilled)
        return float(native(distilled.batches, distilled.lr, keys, chunks).mean())

    def begin(distilled: Distilled) -> MetaState:
        return core.meta_init(tx, watched(distilled) if adaptive else distilled)

    return Setup(
        step, begin(start), begin, tx, init_fn, inner_tx, next_batch, validate, native
    )


def _frozen_train(task: Task) -> Batch:
    """All of train with the frozen part of the network done, where memory allows."""
    read = partial(losses.frozen_part, task.model)
    size = jax.eval_shape(read, task.train).x
    if size.size * size.dtype.itemsize > FROZEN_BYTES:
        return task.train
    return jax.jit(read)(task.train)


def warmed(
    config: Config, task: Task, start: Distilled, shown: Callable = iter
) -> Distilled:
    """The distilled data after the warm-up that the settings ask for.

    Each step is one of feature regression at a fresh theta_0, on the label logits
    unless the labels are hard. It gives the step sizes no gradient.

    Args:
        config: the settings; without `warm_steps` the start is given back.
        task: from `load`.
        start: from `start_of`.
        shown: wraps the steps, such as `tqdm`.
    """
    if not config.warm_steps:
        return start
    targets = "labels" if config.labels == "hard" else "logits"
    quick = dataclasses.replace(
        config,
        objective="feature_regression",
        objective_settings=(f"ridge={config.warm_ridge}", f'targets="{targets}"'),
        windows="none",
        warm_steps=0,
        num_inits=1,
        num_meta_steps=config.warm_steps,
        meta_lr=config.warm_lr,
        meta_lr_labels=config.warm_lr,
    )
    setup = build(quick, task, start)
    state = jax.tree.map(jnp.array, setup.state)  # the step donates it, not the start
    key = jax.random.fold_in(jax.random.key(config.seed), 4)
    for k in shown(range(config.warm_steps)):
        keys = jax.random.split(jax.random.fold_in(key, k), 1)
        state, _ = setup.step(state, keys, setup.next_batch(k))
    return state.distilled


def native_scorer(
    task: Task, init_fn: InitFn, inner_tx: optax.GradientTransformation
) -> Callable[[Batch, jax.Array, jax.Array, Batch], jax.Array]:
    """Trains fresh networks through minibatches in their order, and scores them.

    Args:
        task: the network and its loss.
        init_fn: `(key) -> theta_0`.
        inner_tx: the direction of an inner step.

    Returns:
        `(batches, lr [E, S], keys [N], chunks) -> accuracies [N]`, compiled.
    """

    @jax.jit
    def native(batches, lr, keys, chunks):
        train = evaluate.native(task.loss_fn, batches, lr, inner_tx=inner_tx)
        return evaluate.accuracies(task.model, init_fn, train, keys, chunks)

    return native


def meta_tx(config: Config, *, traced: bool = False) -> optax.GradientTransformation:
    """The outer optimizer: Adam for each learned leaf, after clipping.

    Args:
        config: the settings.
        traced: keep its numbers in its state, so that one program serves any.
    """

    def make(meta_lr, meta_lr_labels, meta_lr_steps, clip_norm):
        def falling(size):
            decays = config.meta_decay == "cosine" and config.num_meta_steps > 0
            steps = config.num_meta_steps
            return optax.cosine_decay_schedule(size, steps) if decays else size

        def adam(size) -> optax.GradientTransformation:
            return optax.adam(falling(size), b1=config.meta_b1)

        frozen, soft = optax.set_to_zero(), config.labels == "soft"
        ragged = config.words_kept < 1
        half = max(1, config.num_meta_steps // 2)
        leaves: dict[Any, optax.GradientTransformation] = {
            "x": optax.chain(
                adam(meta_lr),
                compact.drop_words(config.words_kept, half),
            )
            if ragged
            else adam(meta_lr),
            "y_logits": adam(meta_lr_labels) if soft else frozen,
            "raw_lr": adam(meta_lr_steps) if config.learn_lr else frozen,
        }
        names: Any = Distilled("x", "y_logits", "raw_lr", ragged=ragged)  # type: ignore
        stages: list[optax.GradientTransformation] = [
            optax.multi_transform(leaves, names)
        ]
        if config.clip_norm:
            stages.insert(0, optax.clip_by_global_norm(clip_norm))
        if config.clip_relative:
            stages.insert(0, gradients.clip_by_running_mean(config.clip_relative))
        return optax.chain(*stages)

    made: Callable[..., Any] = optax.inject_hyperparams(make) if traced else make
    return made(
        meta_lr=float(config.meta_lr),
        meta_lr_labels=float(config.meta_lr_labels),
        meta_lr_steps=float(config.meta_lr_steps),
        clip_norm=float(config.clip_norm),
    )


def _objective(config: Config, task: Task, start: Distilled, inner_tx) -> Objective:
    settings: dict[str, Any] = {
        "real_loss_fn": gradients.chunked(task.loss_fn, config.real_chunk),
        "inner_tx": inner_tx,
        "inner_grad": INNER_GRAD[config.inner_grad],
        "scan": SCANS[config.recompute],
    }
    if config.windows == "none":
        kind = objectives.get(config.objective)
        takes = inspect.signature(kind.make).parameters
        settings = {name: value for name, value in settings.items() if name in takes}
        settings |= parse_settings(config.objective_settings)
        return objectives.make(
            config.objective, task.model, loss_fn=task.loss_fn, **settings
        )
    num_starts(start.raw_lr.size, config.window, config.window_earliest)
    if config.windows != "last":
        settings["earliest"] = config.window_earliest
    return WINDOWS[config.windows](task.loss_fn, window=config.window, **settings)


def _meta_init_fn(config: Config, task: Task, init_fn: InitFn) -> InitFn:
    """Where a meta-step starts: fresh networks, or pieces of experts' training."""
    if not objectives.get(config.objective).segments:
        return init_fn
    trained = experts.of_task(
        task,
        config.experts,
        settings={"name": config.model, **config.network},
        seed=config.seed,
    )
    return objectives.segments(trained, span=EXPERT_SPAN)


def fingerprint(config: Config, task: Task) -> dict[str, Any]:
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
    if config.objective == "unrolled":
        free |= {"objective", "objective_settings", "experts"}
    if not config.distilled_length:
        free |= {"distilled_length"}
    if config.words_kept == 1:
        free |= {"words_kept"}
    if not config.warm_steps:
        free |= {"warm_steps", "warm_lr", "warm_ridge"}
    if config.windows == "none":
        free |= {"windows", "window", "window_earliest"}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    settings["corpus"] = task.dataset.name
    settings["vocabulary"] = task.vectors.vocabulary.sha256
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
