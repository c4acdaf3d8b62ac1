"""A corpus, word vectors and a network, ready to train: what experiments share."""

import dataclasses
import inspect
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import data, evaluate, losses
from distill_jax.models import MODELS
from distill_jax.types import Batch, LossFn, Model

# Examples and tokens scored at once: on CPU the layers of many long texts leave the
# cache.
CHUNK, CPU_TOKENS = 200, 8000


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learnt, and how it is judged.

    Attributes:
        dataset: the corpus as text.
        vectors: its vocabulary and the word vectors.
        scale: what the vectors were multiplied with.
        model: the network.
        loss_fn: its cross-entropy.
        train, validation, test: token ids as `Batch`es `[N, ...]`.
        length: tokens of a sentence, L.
    """

    dataset: data.Dataset
    vectors: data.Vectors
    scale: float
    model: Model
    loss_fn: LossFn
    train: Batch
    validation: Batch
    test: Batch
    length: int

    @property
    def num_classes(self) -> int:
        """C."""
        return self.dataset.num_classes


def prepare(
    dataset: data.Dataset,
    *,
    model: str,
    model_settings: dict[str, Any],
    vectors: str = "glove",
    length: int,
    seed: int = 0,
) -> Task:
    """Looks words up, encodes the splits and makes the network.

    The word vectors are frozen, so every word of the corpus that has one is kept,
    whatever split it is from: it is what a look-up in the whole table would find.
    They are scaled to a standard deviation of 1.

    Args:
        dataset: from `data.load`.
        model: a name of `MODELS`.
        model_settings: keyword arguments of the model.
        vectors: `glove`, `random`, or a path for `data.from_file`.
        length: L; longer sentences are cut off.
        seed: of random vectors.
    """
    make = check_model(model, model_settings)
    words = data.Vocabulary.build(
        text for split in dataset.splits.values() for text in split.texts
    )
    if vectors == "glove":
        table = data.glove(words)
    elif vectors == "random":
        table = data.random_vectors(words, 50, seed=seed)
    else:
        table = data.from_file(vectors, words)
    scale = float(1 / table.table[2:].std())
    network = make(
        jnp.asarray(table.table * scale), dataset.num_classes, **model_settings
    )
    encoded = data.encode(dataset, table.vocabulary, length)
    batches = {
        name: evaluate.one_hot_batch(tokens, labels, dataset.num_classes)
        for name, (tokens, labels) in encoded.items()
    }
    return Task(
        dataset=dataset,
        vectors=table,
        scale=scale,
        model=network,
        loss_fn=losses.cross_entropy(network),
        length=length,
        **batches,
    )


def check_model(name: str, settings: dict[str, Any]):
    """The maker of that model; ValueError for a name or setting it does not know."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    known = {
        p.name
        for p in inspect.signature(MODELS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"model {name} has no setting {unknown[0]!r}; known: "
            f"{', '.join(sorted(known))}"
        )
    return MODELS[name]


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """`["filters=64", "widths=[2, 3]"]` as a dictionary; values are JSON.

    Raises:
        ValueError: for an item without `=`, or a value that is not JSON.
    """
    settings = {}
    for item in items:
        name, equals, value = item.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            equals = ""
        if not equals:
            raise ValueError(
                f"a model setting is NAME=VALUE with a JSON value, got {item!r}"
            )
    return settings


def labels_of(batch: Batch) -> np.ndarray:
    """Class indices `[N]` of one-hot rows."""
    return np.asarray(batch.y.argmax(-1))


def mean_vectors(task: Task, batch: Batch) -> np.ndarray:
    """Mean word vector of each sentence `[N, D]`, the features selections see."""
    x = jax.jit(lambda tokens: _mean_embedding(task, tokens))
    parts = [np.asarray(x(batch.x[i : i + 2000])) for i in range(0, len(batch.y), 2000)]
    return np.concatenate(parts)


def _mean_embedding(task: Task, tokens: jax.Array) -> jax.Array:
    x = task.model.embed(None, tokens)
    mask = (tokens != 0).astype(x.dtype)[..., None]
    return (x * mask).sum(1) / jnp.maximum(mask.sum(1), 1)


def embedded(task: Task, batch: Batch) -> Batch:
    """The batch with its tokens looked up: `x` becomes `[N, L, D]`."""
    return Batch(task.model.embed(None, batch.x), batch.mask, batch.y)


def in_chunks(task: Task, batch: Batch) -> Batch:
    """The batch padded and cut into chunks `[K, size, ...]` to be scored one by one.

    What of the network is frozen is done.
    """
    size = CHUNK
    if jax.default_backend() == "cpu":
        size = min(size, max(1, CPU_TOKENS // batch.x.shape[1]))
    return jax.jit(partial(losses.frozen_part, task.model))(
        evaluate.padded(batch, size)
    )


def take(batch: Batch, rows: np.ndarray) -> Batch:
    """Some rows of a batch."""
    return jax.tree.map(lambda a: a[rows], batch)
