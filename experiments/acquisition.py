"""What active learning is done with: the settings, the corpus, and the network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import lax

from distill_jax import active, data, evaluate, queries
from distill_jax.active import annotation
from distill_jax.models import MODELS
from distill_jax.task import Task, check_model, in_chunks, parse_settings, prepare
from distill_jax.types import Params
from experiments.baselines import validation_chunks
from experiments.config import setting
from experiments.recipe import BEST_SETTINGS

SELECT = ("accuracy", "loss")
ORACLES = ("simulated", "human")


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
    model: str = setting("bag", "The network.", choices=tuple(sorted(MODELS)))
    model_settings: tuple[str, ...] = setting(
        (), "A setting of the network, NAME=JSON_VALUE; dropout is 0.2 unless given."
    )
    query: str = setting(
        "random,bald", "What to ask: " + ", ".join(queries.QUERIES) + "; with commas."
    )
    start: str = setting(
        "random", "The start set: random, balanced, or a file of ids, one a line."
    )
    start_size: str = setting("1%", "Its items, as 20 or 1%; of a file: all.")
    query_size: str = setting("1%", "Items asked in a round, as 85 or 1%.")
    rounds: int = setting(10, "Rounds of queries; 0: as the budget allows.")
    budget: int = setting(0, "Labels in all, with the start set; 0: no limit.")
    passes: int = setting(10, "Sampled networks that score the pool, F; 1: no dropout.")
    warm_start: str = setting(
        "none",
        "Where the network of a round starts.",
        choices=tuple(active.WARM_STARTS),
    )
    epochs: int = setting(30, "Epochs of a round, at most: the best is kept.")
    min_steps: int = setting(
        300, "Steps of a round, at least: an epoch of few items is several passes."
    )
    batch_size: int = setting(32, "Examples in a minibatch, at most.")
    lr: float = setting(3e-3, "Adam's step size.")
    select: str = setting("accuracy", "What the best epoch is best in.", choices=SELECT)
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    oracle: str = setting("simulated", "Who gives the labels.", choices=ORACLES)
    oracle_noise: float = setting(0.0, "Share of labels that are wrong.")
    pool: str | None = setting(
        None, "With --oracle=human: a file of unlabelled text, in the place of train."
    )
    num_inits: int = setting(3, "Networks measured in a round; the first one asks.")
    full: bool = setting(True, "Train on all labels too.")
    seeds: int = setting(3, "Repeats, each with its own start set.")
    seed: int = setting(0, "Of the first repeat; the next has one more.")

    def __post_init__(self):
        for name in (
            "length passes epochs batch_size validation_examples num_inits seeds"
        ).split():
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in "rounds budget min_steps seed".split():
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name} must not be negative, got {getattr(self, name)}"
                )
        if not self.lr > 0:
            raise ValueError(f"--lr must be above 0, got {self.lr}")
        if not 0 <= self.oracle_noise <= 1:
            raise ValueError(
                f"--oracle_noise must be in [0, 1], got {self.oracle_noise}"
            )
        check_model(self.model, self.network)
        for name in self.names:
            active.check_passes(queries.get(name), self.passes, name)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"--query names one twice: {self.query}")
        if self.oracle == "human":
            if len(self.names) > 1 or self.seeds > 1:
                raise ValueError("--oracle=human needs one --query, and --seeds=1")
            if self.start == "balanced" or self.oracle_noise:
                raise ValueError(
                    "--oracle=human knows no label beforehand: use --start=random, or "
                    "a file of ids, and no --oracle_noise"
                )
        elif self.pool:
            raise ValueError("--pool has no labels: it needs --oracle=human")

    @property
    def names(self) -> list[str]:
        """The queries."""
        return [name.strip() for name in self.query.split(",")]

    @property
    def network(self) -> dict[str, Any]:
        """Settings of the network: those given, and the best for the rest."""
        ours = BEST_SETTINGS.get(self.model, {}) | {"dropout": 0.2}
        return ours | parse_settings(self.model_settings)


PRESETS: dict[str, dict[str, Any]] = {
    # Jacobs et al. 2021, from the authors' code, with text_cnn in the place of BERT
    # (and a step size for it). Made for SST-5: add --dataset.
    "jacobs2021": {
        "model": "text_cnn",
        "model_settings": ("dropout=0.2",),
        "length": 50,
        "query": "random,variation_ratio,predictive_entropy,bald",
        "start_size": "593",
        "query_size": "85",
        "rounds": 0,
        "passes": 10,
        "epochs": 15,
        "min_steps": 0,
        "batch_size": 128,
        "lr": 1e-3,
        "select": "loss",
        "num_inits": 1,
        "seeds": 3,
    },
}
NOTES = {
    "jacobs2021": (
        "As Jacobs et al. (2021), with these faults of its code mended: the three "
        "repeats differ, in their start set too; random asks for other sentences in "
        "each; the epoch restored is the one that was best, not the one before it; "
        "accuracy counts every test sentence alike; ties are broken at random."
    )
}


def load(config: Config, say: Callable[[str], None] = print) -> Task:
    """The corpus and the network; the texts of --pool, if any, are its train split."""
    dataset = data.load(
        config.dataset,
        text_column=config.text_column,
        label_column=config.label_column,
        data_dir=config.data_dir,
        download=config.download,
    )
    for note in dataset.notes:
        say(f"  {note}")
    if config.pool:
        texts = annotation.read_texts(config.pool, config.text_column or "text")
        held_out = (*dataset.validation.texts, *dataset.test.texts)
        seen = {text.lower() for text in held_out}
        kept = tuple(text for text in texts if text.lower() not in seen)
        if not kept:
            raise ValueError(f"every text of {config.pool} is in validation or test")
        say(f"  {config.pool}: {len(texts) - len(kept)} texts of validation or test")
        unknown = data.Split(kept, np.zeros(len(kept), np.int32))
        dataset = dataclasses.replace(dataset, train=unknown)
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
    return task


class Learner:
    """What trains, scores and measures networks, each compiled once for a whole run.

    Attributes:
        task: the corpus and the network.
        sizes: items asked for in each round.
        start: ids of the start set, if they come from a file.
        num_start: items of the start set.
    """

    def __init__(self, config: Config, task: Task):
        self.config, self.task = config, task
        total = len(task.train.y)
        self.start = _start_file(config, total)
        self.num_start = (
            active.num_items(config.start_size, total, "--start_size")
            if self.start is None
            else len(self.start)
        )
        self.sizes = active.query_sizes(
            total,
            self.num_start,
            active.num_items(config.query_size, total, "--query_size"),
            rounds=config.rounds,
            budget=config.budget,
        )
        if config.passes > 1 and any(queries.get(q).passes for q in config.names):
            if not active.has_dropout(task.model, task.train):
                raise ValueError(
                    f"--passes={config.passes} needs a network with dropout, and these "
                    f"passes of {config.model} are all equal: give it dropout, as "
                    "--model_settings=dropout=0.2, or use --passes=1 and a query that "
                    "needs no disagreement"
                )
        # Each size: where min_steps rounds up, fewer items may take more steps.
        sizes = np.cumsum([self.num_start, *self.sizes]).tolist()
        sizes += [total] if self.trains_full else []
        self.max_steps = max(self.steps(n) for n in set(sizes))
        self.chunks = in_chunks(task, task.train)
        self._compile()

    @property
    def trains_full(self) -> bool:
        """Whether a network is trained on all labels; of a human's there are none."""
        return self.config.full and self.config.oracle == "simulated"

    def steps(self, num_items: int) -> int:
        """Minibatches of an epoch over so many items."""
        return active.steps_of_epoch(
            num_items,
            batch_size=self.config.batch_size,
            num_epochs=self.config.epochs,
            min_steps=self.config.min_steps,
        )

    def _compile(self) -> None:
        config, task = self.config, self.task
        validation = validation_chunks(
            task,
            task.validation,
            seed=config.seed,
            num_examples=config.validation_examples,
        )
        test = in_chunks(task, task.test)

        def judge(theta):
            if config.select == "loss":
                return -evaluate.mean_loss(task.loss_fn, theta, validation)
            return evaluate.accuracy(task.model, theta, validation)

        train = active.fit(task.loss_fn, judge, optax.adam(config.lr))

        def fit(theta_0, train_set, labels, rows, num_steps, keys):
            def one(now):
                theta, rows, key = now
                return train(theta, train_set, labels, rows, num_steps, key)

            return lax.map(one, (theta_0, rows, keys))

        self.init = jax.jit(jax.vmap(task.model.init))
        self.fit = jax.jit(fit)
        self.test = jax.jit(
            lambda thetas: lax.map(
                lambda theta: evaluate.accuracy(task.model, theta, test), thetas
            )
        )
        self.scorers = active.Scorers(*map(jax.jit, active.scorers(task.model)))

    def train(self, pool: active.Pool, key: jax.Array, before: Any) -> Params:
        """Trains R networks on what is labelled.

        Args:
            pool: who has which label.
            key: of theta_0, the order and the dropout.
            before: what this gave in the round before, or None.

        Returns:
            Their weights, with a leading axis `[R]`.

        Raises:
            ArithmeticError: if the loss of every epoch was not a number.
        """
        items = np.flatnonzero(pool.labelled)
        init_keys, order_keys, dropout_keys = jax.random.split(
            key, (3, self.config.num_inits)
        )
        theta_0 = self.init(init_keys)
        if before is not None:
            start = active.WARM_STARTS[self.config.warm_start]
            theta_0 = start(theta_0, before)
        orders = [
            active.shuffled(
                items,
                order_key,
                batch_size=self.config.batch_size,
                num_epochs=self.config.epochs,
                max_steps=self.max_steps,
                min_steps=self.config.min_steps,
            )
            for order_key in order_keys
        ]
        fitted = self.fit(
            theta_0,
            self.task.train,
            np.asarray(pool.labels),
            np.stack([order.rows for order in orders]),
            orders[0].num_steps,
            dropout_keys,
        )
        if not np.isfinite(fitted.score).all():
            raise ArithmeticError(
                f"training on {len(items)} items gave no finite loss in "
                f"{self.config.epochs} epochs: lower --lr={self.config.lr}"
            )
        return fitted.theta

    def score_with(self, query: queries.Query) -> active.Score:
        """Scores the pool with the first of the networks, as the query needs."""
        score = active.score_with(
            self.scorers,
            query,
            self.chunks,
            len(self.task.train.y),
            self.config.passes,
        )

        def first(thetas: Params, key: jax.Array) -> active.Scored:
            return score(jax.tree.map(lambda a: a[0], thetas), key)

        return first


def _start_file(config: Config, total: int) -> np.ndarray | None:
    """The ids in the file that --start names."""
    if config.start in ("random", "balanced"):
        return None
    path = Path(config.start)
    if not path.exists():
        raise ValueError(
            f"--start must be random, balanced, or a file of ids; {path} is not there"
        )
    lines = path.read_text(encoding="utf-8").split()
    wrong = [line for line in lines if not line.isdecimal() or int(line) >= total]
    if wrong or not lines:
        raise ValueError(
            f"{path} must hold numbers of training sentences, from 0 to {total - 1}, "
            f"one a line; got {wrong[0] if wrong else 'nothing'!r}"
        )
    ids = np.array([int(line) for line in lines])
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{path} has an id twice")
    return ids
