"""Where training sets come from: chosen, asked for, distilled, or read from disk.

A method is `(task, examples per class, seed) -> TrainingSet`, or several of them: one
for each way it is to be trained on. `selected`, `queried`, `distilled` and `saved` make
ours; a function of the user's goes wherever they go. One that has `settings` (JSON) is
told by them, `seeds` says how many sets it gives, `selected_on` where it was chosen.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import active, parallel, queries
from distill_jax.distill import distill, fingerprint, inner_tx_of
from distill_jax.names import described, digest, resolve
from distill_jax.recipe import Recipe, best_recipe
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, in_chunks, take, with_model
from distill_jax.train import (
    Judge,
    Native,
    Protocol,
    TrainingSet,
    Tuned,
    as_set,
    examples,
    fit,
    purpose_keys,
)
from distill_jax.types import Distilled

Method = Callable[[Task, float, int], TrainingSet | Sequence[TrainingSet]]
LABEL_FREE = ("random", "kmeans_medoids_global")  # read the labels of their picks only


@dataclasses.dataclass(frozen=True)
class Selected:
    """Real sentences that a selection picks; see `selected`."""

    select: Any
    taught: bool = False
    seeds: int | None = None
    folder: Path | None = dataclasses.field(default=None, compare=False)
    protocol: Protocol = Protocol()

    def __call__(self, task: Task, examples_per_class: float, seed: int):
        n = task.num_examples(examples_per_class)
        select = resolve(self.select, SELECTIONS, "selection")
        key = jax.random.fold_in(purpose_keys(0).select, seed)
        rows = np.asarray(select(task.features, task.labels, n, key))
        N = len(task.labels)
        read = n if self.select in LABEL_FREE else N
        chosen = real(task, rows, labels_read=read)
        if not self.taught:
            return chosen
        soft = jnp.asarray(_teacher(task, self.protocol, self.folder)[rows])
        batch = chosen.batch.replace(y=soft)
        return [chosen, chosen._replace(batch=batch, labels_read=N)]

    @property
    def settings(self) -> dict[str, Any]:
        """What its sets depend on."""
        told = {"selection": described(self.select)}
        return told | ({"taught": True} if self.taught else {})


def selected(
    select: Any,
    *,
    taught: bool = False,
    seeds: int | None = None,
    folder: str | Path | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
) -> Selected:
    """Real sentences picked by a rule that may read all labels of train.

    Args:
        select: a name of `SELECTIONS`, or `(features, labels, n, key) -> rows [n]`.
        taught: also with the soft labels of a network trained on all of train.
        seeds: draws of it; as the protocol says unless given.
        folder: where the teacher's labels are kept.
        protocol: of the teacher.
    """
    resolve(select, SELECTIONS, "selection")
    kept = None if folder is None else Path(folder)
    return Selected(select, taught, seeds, kept, protocol)


@dataclasses.dataclass(frozen=True)
class Queried:
    """Real sentences that a query asks for in rounds; see `queried`."""

    query: Any
    rounds: int = 4
    passes: int = 10
    dropout: float = 0.2
    pool: int = 5000
    protocol: Protocol = Protocol()
    seeds: int | None = None

    def __call__(self, task: Task, examples_per_class: float, seed: int) -> TrainingSet:
        """From a start of n / 5 random ones; each round's network is trained anew."""
        query = resolve(self.query, queries.QUERIES, "query")
        n, N = task.num_examples(examples_per_class), len(task.labels)
        recipe = _random_recipe(task, examples_per_class, self.protocol)
        rng = np.random.default_rng([0, 2, seed])
        rows = np.sort(rng.permutation(N)[: self.pool or N])
        pool = take(task.train, rows)
        noisy = with_dropout(task, self.dropout)
        chunks = task.once(("pool", seed, self.pool), lambda: in_chunks(task, pool))
        oracle = active.simulated(task.labels[rows], task.num_classes)
        start = max(1, n // 5)
        sizes = [len(part) for part in np.array_split(range(n - start), self.rounds)]
        first = rng.permutation(len(rows))[:start]
        train = noisy.once("noisy fit", lambda: _noisy_fit(noisy))
        judge = Judge(task, self.protocol)

        def fitted(pool_now, key, before):
            del before
            ids = np.flatnonzero(pool_now.labelled)
            known = jax.nn.one_hot(pool_now.labels[ids], task.num_classes)
            asked = take(pool, ids).replace(y=known)  # as the oracle said
            data = examples(task, asked, room=n)
            order_rng = np.random.default_rng([0, 3, seed, pool_now.round])
            order = jnp.asarray(judge.order(n, order_rng, among=len(ids)))
            return train(data, order, key, recipe.lr, jnp.asarray([recipe.num_steps]))

        scorers = noisy.once(
            "scorers",
            lambda: active.Scorers(*map(jax.jit, active.scorers(noisy.model))),
        )
        done = active.acquire(
            query,
            active.Pool.unlabelled(len(rows)).ask(first),
            oracle,
            [size for size in sizes if size],
            fitted,
            active.score_with(scorers, query, chunks, len(rows), self.passes),
            jax.random.fold_in(purpose_keys(0).query, seed),
        )
        return real(task, rows[np.flatnonzero(done.labelled)], labels_read=n)

    @property
    def settings(self) -> dict[str, Any]:
        """What its sets depend on."""
        names = ("query", "rounds", "passes", "dropout", "pool")
        return {name: described(getattr(self, name)) for name in names}


def queried(
    query: Any,
    rounds: int = 4,
    *,
    passes: int = 10,
    dropout: float = 0.2,
    pool: int = 5000,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    seeds: int | None = None,
) -> Queried:
    """Real sentences that a query asks for, which reads the labels of these alone.

    Args:
        query: a name of `QUERIES`, or a `queries.Query`.
        rounds: of queries after the random start of a fifth.
        passes: sampled networks that score the pool, F.
        dropout: rate of these networks.
        pool: random part of train that is seen; 0: all.
        protocol: by which its networks are trained, as tuned on random sentences.
        seeds: repeats; as the protocol says unless given.

    Raises:
        ValueError: for an unknown query, or too few passes for it.
    """
    active.check_passes(resolve(query, queries.QUERIES, "query"), passes, str(query))
    if not 0 < dropout < 1:
        raise ValueError(
            f"dropout must be between 0 and 1, got {dropout}: queries need networks "
            "that differ"
        )
    return Queried(query, rounds, passes, dropout, pool, protocol, seeds)


@dataclasses.dataclass(frozen=True)
class FromRecipe:
    """Sentences distilled by a recipe; see `distilled`."""

    recipe: Recipe | None = None
    folder: Path | None = None
    ways: tuple[str, ...] = ("soft", "hard", "native")
    seeds: int | None = None
    devices: Any = dataclasses.field(default=None, compare=False)
    how: str | None = dataclasses.field(default=None, compare=False)

    def __call__(self, task: Task, examples_per_class: float, seed: int):
        recipe = self.recipe or best_recipe(task.model_name)
        best, seconds = self.learned(task, recipe, examples_per_class, seed)
        native = Native(best, inner_tx_of(recipe))
        sets = distilled_sets(native, self.ways, labels_read=len(task.labels))
        return [one._replace(seconds=seconds) for one in sets]

    def learned(
        self, task: Task, recipe: Recipe, examples_per_class: float, seed: int
    ) -> tuple[Distilled, float | None]:
        """The set; from disk if it is there, with the seconds that it took."""
        from distill_jax import artifact
        from distill_jax.stored import save

        n = task.num_examples(examples_per_class)
        folder, checkpoints = None, None
        if self.folder is not None:
            folder = self.folder / self.name(task, examples_per_class, seed)
            if (folder / "artifact" / artifact.CARD).exists():
                found = artifact.load(folder / "artifact")
                return artifact.to_distilled(found), found.card["results"]["seconds"]
            checkpoints = folder / "checkpoints"
        found = distill(
            task,
            recipe,
            examples=n,
            seed=seed,
            folder=checkpoints,
            devices=self.devices,
            how=self.how,
        )
        if folder is not None:
            facts = {"validation": found.accuracy, "seconds": found.seconds}
            save(found, folder / "artifact", results=facts)
        return found.best, None

    def name(self, task: Task, examples_per_class: float, seed: int) -> str:
        """Of the folder: what told it apart is in the digest."""
        recipe = self.recipe or best_recipe(task.model_name)
        n = task.num_examples(examples_per_class)
        told = digest(fingerprint(task, recipe, n, seed), 8)
        return f"{examples_per_class:g}pc-seed{seed}-{told}"

    @property
    def selected_on(self) -> str:
        """Where its best step was chosen."""
        return self.recipe.meta.select_on if self.recipe else "validation"

    @property
    def settings(self) -> dict[str, Any]:
        """What its sets depend on, but the network's own recipe."""
        told: dict[str, Any] = {"ways": list(self.ways)}
        return told | ({"recipe": self.recipe.described} if self.recipe else {})


def distilled(
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    ways: Sequence[str] = ("soft", "hard", "native"),
    seeds: int | None = None,
    devices: parallel.Devices = None,
    how: str | None = None,
) -> FromRecipe:
    """Sentences learned anew at each budget.

    Args:
        recipe: the best known for the network unless given.
        folder: where sets, and checkpoints on the way, are kept.
        ways: trained on with their soft labels, with hard ones, and in their own order
            and step sizes (`native`).
        seeds: distillations at a budget; as the protocol says unless given.
        devices, how: as for `distill`.
    """
    kept = None if folder is None else Path(folder)
    return FromRecipe(recipe, kept, tuple(ways), seeds, devices, how)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Sets that were made before; see `saved`."""

    artifacts: tuple[Any, ...]
    ways: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """One for each set."""
        return len(self.artifacts)

    @property
    def selected_on(self) -> str:
        """Where its best step was chosen."""
        made = self.artifacts[0].card.get("config", {})
        recipe = made.get("recipe", {}).get("meta", {})
        return recipe.get("select_on", made.get("select_on", "validation"))

    def __call__(self, task: Task, examples_per_class: float, seed: int):
        from distill_jax import artifact
        from distill_jax.stored import inner_tx_of as direction_of

        one = self.artifacts[seed % len(self.artifacts)]
        d = artifact.to_distilled(one)
        n, wanted = d.x.shape[0] * d.x.shape[1], task.num_examples(examples_per_class)
        if n != wanted:
            raise ValueError(
                f"the saved set has {n} sentences, the budget is {wanted}: compare it "
                f"at {n / task.num_classes:g} a class"
            )
        width = task.vectors.table.shape[1]
        if d.x.shape[-1] != width:
            raise ValueError(
                f"distilled words of {d.x.shape[-1]} numbers do not fit the network's "
                f"{width}"
            )
        native = Native(d, direction_of(one.card))
        sets = distilled_sets(native, self.ways, labels_read=len(task.labels))
        return [s._replace(seconds=one.card["results"].get("seconds")) for s in sets]

    @property
    def settings(self) -> dict[str, Any]:
        """What its sets depend on: their content, and what made them."""
        first = self.artifacts[0].card
        return {
            "ways": list(self.ways),
            "source": {
                "model": first["model"]["name"],
                "network": first["model"]["settings"],
                "sha256": [one.card["tensors"]["sha256"] for one in self.artifacts],
            },
        }


def saved(*artifacts: Any, ways: Sequence[str] = ("soft", "hard", "native")) -> Stored:
    """Distilled sets from disk, such as another network has learned.

    Args:
        artifacts: folders, or `artifact.Artifact`s: one for each seed, of one size.
        ways: as for `distilled`; without `native` for another network than theirs.
    """
    from distill_jax import artifact
    from distill_jax.stored import inner_tx_of as direction_of

    loaded = [artifact.load(a) if isinstance(a, str | Path) else a for a in artifacts]
    if not loaded:
        raise ValueError("saved() needs the folder of an artefact, got none")
    for one in loaded:
        direction_of(one.card)  # raises for an inner optimizer that is not known
    return Stored(tuple(loaded), tuple(ways))


def distilled_sets(
    native: Native, ways: Sequence[str], *, labels_read: int
) -> list[TrainingSet]:
    """A distilled set in each way it can be trained on, with the bytes that each needs.

    Args:
        native: the set in its order.
        ways: of `soft`, `hard`, `native`.
        labels_read: by those who made it.
    """
    d = native.distilled
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), d.batches)
    hard = flat.replace(y=jax.nn.one_hot(flat.y.argmax(-1), flat.y.shape[-1]))
    leaves = [d.x, *d.more.values()]
    whole = sum(a.nbytes for a in leaves)  # order and step sizes are not used
    sets = {
        "soft": TrainingSet(flat, None, labels_read, whole + d.y_logits.nbytes),
        # An integer each.
        "hard": TrainingSet(hard, None, labels_read, whole + 4 * len(flat.y)),
        "native": TrainingSet(
            flat, native, labels_read, whole + d.y_logits.nbytes + d.raw_lr.nbytes
        ),
    }
    unknown = sorted(set(ways) - set(sets))
    if unknown:
        raise ValueError(f"unknown way {unknown[0]!r}; known: {', '.join(sets)}")
    return [sets[way] for way in ways]


def real(task: Task, rows: np.ndarray, *, labels_read: int | None) -> TrainingSet:
    """Sentences of train as a set."""
    texts = tuple(task.dataset.train.texts[i] for i in rows)
    size = sum(len(text.encode()) for text in texts)
    return TrainingSet(take(task.train, rows), None, labels_read, size, texts)


def with_dropout(task: Task, rate: float) -> Task:
    """The same network with dropout, for queries; itself where it takes none."""
    settings = dict(task.model_settings) | {"dropout": rate}
    return task.once(
        ("dropout", rate),
        lambda: with_model(task, task.make_model, **settings),
    )


def _noisy_fit(task: Task):
    @jax.jit
    def train(data, order, key, lr, stops):
        import optax

        init_key, dropout_key = jax.random.split(key)
        theta_0, tx = task.model.init(init_key), optax.adam(lr)
        noise = lambda t: jax.random.fold_in(dropout_key, t)  # noqa: E731
        _, thetas = fit(task.loss_fn, data, order, theta_0, tx, stops, step_key=noise)
        return jax.tree.map(lambda a: a[0], thetas)

    return train


def _random_recipe(task: Task, examples_per_class: float, protocol: Protocol) -> Tuned:
    """What is best for random examples; networks of a query are trained by it."""

    def make():
        select = Selected("random")
        seeds = range(protocol.tuning_inits)
        sets = [as_set(task, select(task, examples_per_class, s)) for s in seeds]
        return Judge(task, protocol).tuned([one.batch for one in sets])

    return task.once(("random recipe", examples_per_class, protocol), make)


def _teacher(task: Task, protocol: Protocol, folder: Path | None) -> np.ndarray:
    """Soft labels of train, kept on disk by what they depend on."""

    def make():
        path = None
        if folder is not None:
            told = [task.sha256, task.described, described(protocol)]
            path = folder / f"teacher-{digest(told, 8)}.npy"
            if path.exists():
                return np.load(path, allow_pickle=False)
        probs = Judge(task, protocol).teacher_labels()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}.npy")
            np.save(new, probs, allow_pickle=False)
            os.replace(new, path)
        return probs

    return task.once(("teacher", protocol), make)
