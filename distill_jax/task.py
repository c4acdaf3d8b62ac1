"""A corpus, how its text becomes what a network reads, and the network."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import data, losses
from distill_jax.models import MODELS
from distill_jax.names import described, name_of, resolve
from distill_jax.types import Batch, LossFn, Model

# Examples and tokens scored at once: on CPU the layers of many long texts leave the
# cache.
CHUNK, CPU_TOKENS = 200, 8000

# Where a network's own defaults are a paper's: without the second linear layer of
# Li & Li.
BEST_SETTINGS: dict[str, dict[str, Any]] = {"text_cnn": {"hidden": None}}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is to be learnt, and how it is judged.

    Attributes:
        dataset: the corpus as text.
        vectors: its vocabulary and the word vectors.
        scale: what the vectors were multiplied with.
        model: the network.
        model_name, model_settings: what it is called, and its keyword arguments.
        make_model: `(vectors [V, D], C, **settings) -> Model`.
        make_loss: `(Model) -> LossFn`.
        loss_fn: its loss, the cross-entropy unless told otherwise.
        train, validation, test: token ids as `Batch`es `[N, ...]`.
        length: tokens of a sentence, L.
        theta_0: `random`, or `fixed` where all networks start from one; see `fixed`.
        source: where corpus and vectors came from: arguments of `stored.task_of`.
        memo: what `once` made.
    """

    dataset: data.Dataset
    vectors: data.Vectors
    scale: float
    model: Model
    model_name: str
    model_settings: Mapping[str, Any]
    make_model: Callable[..., Model]
    make_loss: Callable[[Model], LossFn]
    loss_fn: LossFn
    train: Batch
    validation: Batch
    test: Batch
    length: int
    theta_0: str = "random"
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.dataset.num_classes

    @cached_property
    def labels(self) -> np.ndarray:
        """Classes of the training sentences, `[N]`."""
        return labels_of(self.train)

    @cached_property
    def features(self) -> np.ndarray:
        """Mean word vector of each training sentence, `[N, D]`: what selections see."""
        return mean_vectors(self, self.train)

    @cached_property
    def sha256(self) -> str:
        """Of texts, labels, label order and splits as used, and of the vectors.

        What two tasks have in common if they have this: the same file under another
        name has it, and a corrected label changes it.
        """
        h = hashlib.sha256()
        for name, split in self.dataset.splits.items():
            for part in (name, *split.texts):
                h.update(len(part.encode()).to_bytes(8, "little") + part.encode())
            h.update(np.ascontiguousarray(split.labels, "<i4").tobytes())
        h.update(json.dumps(list(self.dataset.label_names)).encode())
        h.update(self.vectors.vocabulary.sha256.encode())
        h.update(np.ascontiguousarray(self.vectors.table, "<f4").tobytes())
        h.update(repr(float(self.scale)).encode())
        return h.hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """What tells the network and its reading from others, as JSON."""
        told: dict[str, Any] = {"model": self.model_name, "length": self.length}
        if self.model_settings:
            told["model_settings"] = described(dict(self.model_settings))
        if MODELS.get(self.model_name) is not self.make_model:
            told["model_code"] = described(self.make_model)
        if self.make_loss is not losses.cross_entropy:
            told["loss"] = described(self.make_loss)
        if self.theta_0 != "random":
            told["theta_0"] = self.theta_0
        return json.loads(json.dumps(told))

    def num_examples(self, examples_per_class: float) -> int:
        """Of all classes together.

        Raises:
            ValueError: if that is no whole number from 1.
        """
        n = examples_per_class * self.num_classes
        if n < 1 or abs(n - round(n)) > 1e-6:
            raise ValueError(
                f"a budget must come to a whole number of examples, at least 1: "
                f"{examples_per_class:g} of each of {self.num_classes} classes is {n:g}"
            )
        return round(n)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()`, and the same again for the same hashable key: what is compiled."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def make_task(
    dataset: Any,
    model: Any = "bag",
    *,
    embedder: Any = "glove",
    length: int = 40,
    loss: Callable[[Model], LossFn] = losses.cross_entropy,
    seed: int = 0,
    **settings: Any,
) -> Task:
    """Reads a corpus, looks its words up, and makes a network for it.

    The word vectors are frozen, so every word of the corpus that has one is kept,
    whatever split it is from: it is what a look-up in the whole table would find.
    They are scaled to a standard deviation of 1.

    Args:
        dataset: a name or path for `data.load`, a `data.Dataset`, or lists
            `(texts, labels)`, of which validation and test are carved.
        model: a name of `models.MODELS`, or your own
            `(vectors [V, D], C, **settings) -> Model`.
        embedder: `glove`, `random` (with `seed`), a path for `data.from_file`, a
            `data.Vectors`, or your own `(Vocabulary) -> Vectors`.
        length: L; longer sentences are cut off.
        loss: `(Model) -> LossFn`.
        seed: of random vectors.
        settings: keyword arguments of the model; those of `BEST_SETTINGS` unless given.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: for a model or setting that
            is not known, and as `data.load` and the embedder do.
    """
    make, name, settings = model_maker(model, settings)
    if isinstance(dataset, str | Path):
        dataset = data.load(str(dataset))
    elif not isinstance(dataset, data.Dataset):
        texts, labels = dataset
        dataset = data.from_lists(texts, labels)
    words = data.Vocabulary.build(
        text for split in dataset.splits.values() for text in split.texts
    )
    table = _vectors(embedder, words, seed)
    scale = float(1 / table.table[2:].std())
    network = make(jnp.asarray(table.table * scale), dataset.num_classes, **settings)
    batches: Any = {
        split: one_hot_batch(tokens, labels, dataset.num_classes)
        for split, (tokens, labels) in data.encode(
            dataset, table.vocabulary, length
        ).items()
    }
    return Task(
        dataset=dataset,
        vectors=table,
        scale=scale,
        model=network,
        model_name=name,
        model_settings=settings,
        make_model=make,
        make_loss=loss,
        loss_fn=loss(network),
        length=length,
        **batches,
    )


def _vectors(embedder: Any, words: data.Vocabulary, seed: int) -> data.Vectors:
    if isinstance(embedder, data.Vectors):
        return embedder
    if not isinstance(embedder, str | Path):
        return embedder(words)
    if embedder == "glove":
        return data.glove(words)
    if embedder == "random":
        return data.random_vectors(words, 50, seed=seed)
    return data.from_file(embedder, words)


def model_maker(
    model: Any, settings: Mapping[str, Any]
) -> tuple[Callable[..., Model], str, dict[str, Any]]:
    """What makes a network, its name, and all its settings.

    Raises:
        ValueError: for a name or setting that is not known.
    """
    make, name = resolve(model, MODELS, "model"), name_of(model)
    if MODELS.get(name) is make:
        settings = BEST_SETTINGS.get(name, {}) | dict(settings)
    parameters = inspect.signature(make).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    unknown = sorted(set(settings) - known)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"model {name} has no setting {unknown[0]!r}; known: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return make, name, dict(settings)


def with_model(task: Task, model: Any, **settings: Any) -> Task:
    """The same corpus and vectors for another network; see `make_task`."""
    make, name, settings = model_maker(model, settings)
    network = make(
        jnp.asarray(task.vectors.table * task.scale), task.num_classes, **settings
    )
    return dataclasses.replace(
        task,
        model=network,
        model_name=name,
        model_settings=settings,
        make_model=make,
        loss_fn=task.make_loss(network),
        memo={},
    )


def fixed(task: Task, seed: int) -> Task:
    """The task with one theta_0 for all networks, that of `seed` (Wang et al. 2018)."""
    init = task.model.init

    def same(key: jax.Array):
        del key
        return init(jax.random.key(seed))

    model = task.model._replace(init=same)
    return dataclasses.replace(task, model=model, theta_0="fixed", memo={})


def told(task: Task) -> list[str]:
    """What was read, in lines for a person."""
    sizes = ", ".join(f"{len(s):,} {name}" for name, s in task.dataset.splits.items())
    shares = data.unknown_shares(task.dataset, task.vectors.vocabulary)
    unknown = ", ".join(f"{s['tokens']:.1%} of {n}" for n, s in shares.items())
    return [
        f"{task.dataset.name}: {sizes}; {task.num_classes} classes.",
        *(f"  {note}" for note in task.dataset.notes),
        f"{task.vectors.provenance}: unknown tokens {unknown}.",
    ]


def one_hot_batch(tokens: np.ndarray, labels: np.ndarray, num_classes: int) -> Batch:
    """Real text as a `Batch`: `tokens` `[N, L]` (0 is padding), `labels` `[N]`."""
    x = jnp.asarray(tokens)
    y = jax.nn.one_hot(jnp.asarray(labels), num_classes)
    return Batch(x, (x != 0).astype(y.dtype), y)


def minibatches(batch: Batch, num: int) -> Batch:
    """Cuts `[N, ...]` into `[num, N / num, ...]`, in order.

    Raises:
        ValueError: if `num` does not divide N.
    """
    n = batch.y.shape[0]
    if n % num:
        raise ValueError(f"{num} minibatches do not divide {n} examples")
    return jax.tree.map(lambda a: a.reshape(num, n // num, *a.shape[1:]), batch)


def padded(batch: Batch, size: int) -> Batch:
    """Adds rows that count for nothing, to a multiple of `size`, and cuts into chunks.

    Returns:
        A batch `[ceil(N / size), size, ...]`.
    """
    extra = -batch.y.shape[0] % size
    return minibatches(
        jax.tree.map(
            lambda a: jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1)), batch
        ),
        (batch.y.shape[0] + extra) // size,
    )


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
    return dataclasses.replace(batch, x=task.model.embed(None, batch.x))


def in_chunks(task: Task, batch: Batch) -> Batch:
    """The batch padded and cut into chunks `[K, size, ...]` to be scored one by one.

    What of the network is frozen is done.
    """
    size = CHUNK
    if jax.default_backend() == "cpu":
        size = min(size, max(1, CPU_TOKENS // batch.x.shape[1]))
    return jax.jit(partial(losses.frozen_part, task.model))(padded(batch, size))


def take(batch: Batch, rows: np.ndarray) -> Batch:
    """Some rows of a batch."""
    return jax.tree.map(lambda a: a[rows], batch)
