"""An artefact of a run, and the corpus, word vectors and network that fit to it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from distill_jax import artifact, data, parallel
from distill_jax.distill import INNER_TX, Distillation
from distill_jax.names import described, name_of
from distill_jax.results import portable
from distill_jax.task import Task, make_task, model_maker, with_model
from distill_jax.train import Native, TrainingSet, train
from distill_jax.types import Batch, Params


def save(
    found: Distillation,
    folder: str | Path,
    *,
    results: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what was learned, with a card that says how to use it.

    Args:
        found: from `distill`.
        folder: of the artefact.
        results: mean test accuracy of each method, say.
        source: where corpus and vectors came from: arguments of `task_of`.

    Returns:
        The folder.

    Raises:
        OSError: as `artifact.save`.
    """
    task, recipe = found.task, found.recipe
    told = {"seed": found.seed, "recipe": recipe.described, **dict(source or {})}
    card = {
        "corpus": {
            "name": task.dataset.name,
            "sha256": dict(task.dataset.sha256),
            "data": task.sha256,
        },
        "label_names": list(task.dataset.label_names),
        "vocabulary": {
            "sha256": task.vectors.vocabulary.sha256,
            "size": len(task.vectors.vocabulary),
            "vectors": task.vectors.provenance,
            "vectors_sha256": dict(task.vectors.sha256),
            "scale": task.scale,
        },
        "model": {
            "name": task.model_name,
            "settings": described(dict(task.model_settings)),
        },
        "inner_optimizer": name_of(recipe.inner.optimizer),
        "preprocessing": {
            "tokeniser": "distill_jax.data.tokenize",
            "length": task.length,
        },
        "results": dict(results or {"validation": found.accuracy}),
        "config": portable(told),
    }
    return artifact.save(folder, artifact.from_distilled(found.best), card)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A distilled set from disk; see `load`.

    Attributes:
        artifact: its tensors and card.
        inner_tx: the direction of an inner step.
        task: what it is trained and judged on; None until it is asked for.
    """

    artifact: artifact.Artifact
    inner_tx: optax.GradientTransformation
    task: Task

    @property
    def native(self) -> Native:
        """The set in its own order and step sizes."""
        return Native(artifact.to_distilled(self.artifact), self.inner_tx)

    def batch(self) -> Batch:
        """All of its sentences, `[n, L, D]`, with their labels."""
        batches = self.native.distilled.batches
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batches)

    def train(
        self,
        keys: jax.Array,
        *,
        way: str = "native",
        devices: parallel.Devices = None,
    ) -> Params:
        """Fresh networks trained on the set, leaves `[R, ...]`; see `train.train`."""
        native = self.native if way == "native" else None
        one = TrainingSet(self.batch(), native)
        return train(self.task, one, keys=keys, devices=devices)


def load(folder: str | Path, task: Task | None = None, **where: Any) -> Saved:
    """A distilled set from its folder, ready to train on.

    Args:
        folder: of the artefact.
        task: what it is trained on; read as its card says unless given.
        where: as for `task_of`.

    Raises:
        FileNotFoundError, ValueError: as `artifact.load` and `task_of`.
    """
    found = artifact.load(folder)
    tx = inner_tx_of(found.card)
    return Saved(found, tx, task or task_of(found, **where))


def inner_tx_of(card: dict[str, Any]) -> optax.GradientTransformation:
    """The direction of an inner step that the artefact was learned with.

    Raises:
        ValueError: for a name that is not in `INNER_TX`.
    """
    name = card.get("inner_optimizer")
    if name not in INNER_TX:
        raise ValueError(
            f"the artefact's inner_optimizer is {name!r}; known: {', '.join(INNER_TX)}"
        )
    return INNER_TX[name]


def task_of(
    saved: artifact.Artifact,
    *,
    dataset: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    vectors: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Task:
    """The corpus, word vectors and network of an artefact, checked against its card.

    Args:
        saved: the artefact.
        dataset, vectors: where they are now; what the card says unless given.
        text_column, label_column, data_dir, download: as for `data.load`.
        say: where a warning goes, if the corpus is another one.

    Raises:
        ValueError: if the labels, the word vectors or the network are not those of
            the artefact, or the card names a path that does not exist here.
    """
    card, made = saved.card, saved.card.get("config", {})
    name, settings = card["model"]["name"], card["model"]["settings"]
    model_maker(name, settings)
    corpus = data.load(
        dataset
        or _found(
            "dataset",
            made.get("dataset"),
            lambda name: name in data.DATASETS or name.startswith("tfds:"),
        ),
        text_column=text_column or made.get("text_column"),
        label_column=label_column or made.get("label_column"),
        data_dir=data_dir,
        download=download,
    )
    names, learned = list(corpus.label_names), list(card["label_names"])
    if names != learned:
        raise ValueError(
            f"{corpus.name} has the labels {', '.join(names)}; the artefact was "
            f"learned for {', '.join(learned)}, in this order: use a corpus with these"
        )
    if dict(corpus.sha256) != card["corpus"]["sha256"]:
        say(
            f"Warning: {corpus.name} is not the corpus that this was learned from, "
            f"{card['corpus']['name']}: their sha256 differ."
        )
    task = make_task(
        corpus,
        name,
        embedder=vectors
        or _found(
            "vectors", made.get("vectors"), lambda name: name in ("glove", "random")
        ),
        length=card["preprocessing"]["length"],
        seed=made.get("seed", 0),
        **settings,
    )
    _check_vectors(task, saved)
    # Its sentences live where its words did, also if this corpus has others.
    task = dataclasses.replace(task, scale=card["vocabulary"].get("scale", task.scale))
    return with_model(task, name, **settings)


def _found(flag: str, name: str | None, is_name: Callable[[str], bool]) -> str:
    """What the card says, if it is a name or a path that exists here."""
    if name and (is_name(name) or Path(name).exists()):
        return name
    what = f"{name!r}, which is not in this folder" if name else "nothing"
    raise ValueError(
        f"the artefact's card gives as --{flag} {what}: say where it is with --{flag}"
    )


def _check_vectors(task: Task, saved: artifact.Artifact) -> None:
    """Refuses an embedding space that is not the one of the artefact."""
    known, width = saved.card["vocabulary"], saved.arrays["x"].shape[-1]
    vectors = task.vectors
    if vectors.provenance != known["vectors"]:
        raise ValueError(
            f"the artefact was learned with the word vectors {known['vectors']!r}, "
            f"got {vectors.provenance!r}: give those with --vectors"
        )
    if vectors.table.shape[1] != width:
        raise ValueError(
            f"the artefact's word vectors have {width} numbers, "
            f"{vectors.provenance} has {vectors.table.shape[1]}: give those with "
            "--vectors"
        )
    same_words = vectors.vocabulary.sha256 == known["sha256"]
    if vectors.provenance.startswith("random") and not same_words:
        raise ValueError(
            "the artefact was learned with random word vectors, which another "
            "vocabulary does not have: use the corpus it was learned from"
        )
    scale = known.get("scale", task.scale)
    if same_words and not math.isclose(task.scale, scale, rel_tol=1e-3):
        raise ValueError(
            f"{vectors.provenance} does not hold the artefact's word vectors: they "
            f"were scaled by {scale:.4g}, these need {task.scale:.4g}"
        )
    files = known.get("vectors_sha256")  # not in the first artefacts
    if files is not None and files != vectors.sha256:
        names = sorted({**files, **vectors.sha256})
        wrong = next(n for n in names if files.get(n) != vectors.sha256.get(n))
        raise ValueError(
            f"{vectors.provenance} does not hold the artefact's word vectors: the "
            f"sha256 of {wrong} is not that of the card; give those with --vectors"
        )
