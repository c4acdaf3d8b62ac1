"""Distilled sets beside chosen ones, at equal budgets and by one protocol.

    compare(task, {"ours": distilled(), "k-means": selected("kmeans_medoids")}, [1])

A method is `(task, examples per class, seed) -> TrainingSet`, or several of them: one
for each way it is to be trained on. Each becomes a `Result`, written when it is done,
so that the same call goes on after any stop. Queries see no label that they did not ask
for. Test is read once for each row.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import active, parallel, queries, results, statistics
from distill_jax.distill import distill, fingerprint, inner_tx_of
from distill_jax.names import described, digest, resolve
from distill_jax.recipe import Recipe, best_recipe
from distill_jax.results import Result
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, in_chunks, take, with_model
from distill_jax.train import (
    NUM_STEPS,
    STEP_SIZES,
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

Method = Callable[[Task, int, int], TrainingSet | Sequence[TrainingSet]]
LINES = ("full", "majority", "tfidf")
LABEL_FREE = ("random", "kmeans_medoids_global")  # read the labels of their picks only


@dataclasses.dataclass(frozen=True)
class Selected:
    """Real sentences that a selection picks; see `selected`."""

    select: Any
    taught: bool = False
    seeds: int | None = None
    folder: Path | None = dataclasses.field(default=None, compare=False)
    protocol: Protocol = Protocol()

    def __call__(self, task: Task, examples_per_class: int, seed: int):
        n = examples_per_class * task.num_classes
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

    def __call__(self, task: Task, examples_per_class: int, seed: int) -> TrainingSet:
        """From a start of n / 5 random ones; each round's network is trained anew."""
        query = resolve(self.query, queries.QUERIES, "query")
        n, N = examples_per_class * task.num_classes, len(task.labels)
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
        done = active.ask_in_rounds(
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
    how: str = dataclasses.field(default="jit", compare=False)

    def __call__(self, task: Task, examples_per_class: int, seed: int):
        recipe = self.recipe or best_recipe(task.model_name)
        best = self.learned(task, recipe, examples_per_class, seed)
        native = Native(best, inner_tx_of(recipe))
        return distilled_sets(native, self.ways, labels_read=len(task.labels))

    def learned(
        self, task: Task, recipe: Recipe, examples_per_class: int, seed: int
    ) -> Distilled:
        """The set; from disk if it is there."""
        from distill_jax import artifact
        from distill_jax.stored import save

        n = examples_per_class * task.num_classes
        folder, checkpoints = None, None
        if self.folder is not None:
            folder = self.folder / self.name(task, examples_per_class, seed)
            if (folder / "artifact" / artifact.CARD).exists():
                return artifact.to_distilled(artifact.load(folder / "artifact"))
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
        return found.best

    def name(self, task: Task, examples_per_class: int, seed: int) -> str:
        """Of the folder: what told it apart is in the digest."""
        recipe = self.recipe or best_recipe(task.model_name)
        n = examples_per_class * task.num_classes
        told = digest(fingerprint(task, recipe, n, seed), 8)
        return f"{examples_per_class}pc-seed{seed}-{told}"

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
    how: str = "jit",
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

    def __call__(self, task: Task, examples_per_class: int, seed: int):
        from distill_jax import artifact
        from distill_jax.stored import inner_tx_of

        one = self.artifacts[seed % len(self.artifacts)]
        d = artifact.to_distilled(one)
        n, wanted = d.x.shape[0] * d.x.shape[1], examples_per_class * task.num_classes
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
        native = Native(d, inner_tx_of(one.card))
        return distilled_sets(native, self.ways, labels_read=len(task.labels))

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

    loaded = [artifact.load(a) if isinstance(a, str | Path) else a for a in artifacts]
    if not loaded:
        raise ValueError("saved() needs the folder of an artefact, got none")
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


def _random_recipe(task: Task, examples_per_class: int, protocol: Protocol) -> Tuned:
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


class Group(NamedTuple):
    """The rows of one method at one budget: they are made, and written, together.

    Attributes:
        name: of the method.
        examples_per_class: 0 for a line, that of all data say.
        settings: all that its numbers depend on but the data, as JSON.
        num_seeds: sets that it gives.
    """

    name: str
    examples_per_class: int
    settings: dict[str, Any]
    num_seeds: int

    def __str__(self) -> str:
        if not self.examples_per_class:
            return self.name
        return f"{self.name} at {self.examples_per_class} per class"


def plan(
    task: Task,
    methods: Mapping[str, Method],
    budgets: Sequence[int],
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    lines: Sequence[str] = LINES,
    many_at: Mapping[str, Sequence[int]] | None = None,
) -> list[Group]:
    """The groups of a comparison in the order they are made; see `compare`."""
    told = task.described
    facts = {"protocol": described(protocol), "network": told}
    groups = [Group(line, 0, facts | {"line": line}, 1) for line in lines]
    grid = {"grid": [list(STEP_SIZES), list(NUM_STEPS)]}
    for budget in budgets:
        for name, method in methods.items():
            count = getattr(method, "seeds", None)
            if count is None:
                count = protocol.selection_seeds
                if _is_random(method):
                    count = max(count, protocol.test_inits)
            once = (many_at or {}).get(name)
            if once is not None and budget not in once:
                count = 1
            how = getattr(method, "settings", None) or described(method)
            settings = facts | grid | {"method": how, "seeds": count}
            groups.append(Group(name, budget, settings, count))
    return groups


def _is_random(method: Method) -> bool:
    """Random sets differ most: there are as many as theta_0."""
    return isinstance(method, Selected) and method.select == "random"


def compare(
    task: Task,
    methods: Mapping[str, Method],
    budgets: Sequence[int],
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    lines: Sequence[str] = LINES,
    many_at: Mapping[str, Sequence[int]] | None = None,
    folder: str | Path | None = None,
    rows: str | Path | None = None,
    experiment: str = "compare",
    preset: str | None = None,
    share: bool = False,
    devices: parallel.Devices = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Trains on what each method gives at each budget, all by one protocol.

    Args:
        task: from `make_task`.
        methods: by the name that results have.
        budgets: examples of each class.
        protocol: how every set is tuned and tested.
        lines: of `full` (all of train), `majority` and `tfidf` (TF-IDF and logistic
            regression on all of train).
        many_at: for a method, the budgets at which it has several seeds.
        folder: where rows are kept, and found again: `folder/rows.jsonl`.
        rows: that file, if it is another.
        experiment, preset: what rows say.
        share: other processes work on the same rows; each takes what nobody has.
        devices: that share the networks; see `parallel.listed`.
        say: told of each row, and of what takes long.

    Returns:
        A `Result` for each row, old and new, in the order of the plan.

    Raises:
        ValueError: before any work, if a class has too few examples for a budget.
    """
    check_budgets(task, budgets)
    judge = Judge(task, protocol, devices=devices, report=_progress(say))
    path = (
        Path(rows) if rows else None if folder is None else Path(folder) / "rows.jsonl"
    )
    groups = plan(
        task,
        methods,
        budgets,
        protocol=protocol,
        lines=lines,
        many_at=many_at,
    )
    facts = {"experiment": experiment, "preset": preset, "model": task.model_name}
    found: dict[int, list[Result]] = {}

    def known() -> None:
        if path is not None:
            there = results.read(path)
            for i, group in enumerate(groups):
                if i not in found and (old := rows_of(there, task, group, facts)):
                    found[i] = old

    known()
    total = len(groups) - len(found)
    made = 0
    while len(found) < len(groups):
        waits = True
        for i, group in enumerate(groups):
            if i in found:
                continue
            with (
                _claimed(path, task, group, facts)
                if share
                else nullcontext(True) as mine
            ):
                if not mine:
                    continue
                if share:
                    known()
                    if i in found:
                        continue
                full = _full_accuracy(judge, groups, found, task, facts)
                new = made_rows(judge, methods, group, full, facts)
                if path is not None:
                    results.append(path, new)
                found[i] = [Result(row) for row in new]
            waits, made = False, made + 1
            for row in found[i]:
                say(f"[{made}/{total}] {group}, {line(row)}")
        if waits:
            time.sleep(2.0)
            known()
    return [row for i in range(len(groups)) for row in found[i]]


def check_budgets(task: Task, budgets: Sequence[int]) -> None:
    """Refuses budgets that a class has too few examples for."""
    counts = np.bincount(task.dataset.train.labels, minlength=task.num_classes)
    wrong = [b for b in budgets if not isinstance(b, int | np.integer) or b < 1]
    if wrong:
        raise ValueError(f"budgets must be whole numbers from 1, got {wrong[0]!r}")
    if budgets and max(budgets) > counts.min():
        raise ValueError(
            f"a budget of {max(budgets)} a class: class "
            f"{task.dataset.label_names[counts.argmin()]!r} has only {counts.min()} "
            "training examples"
        )


def rows_of(
    rows: Sequence[Mapping[str, Any]], task: Task, group: Group, facts: dict[str, Any]
) -> list[Result]:
    """The newest rows of a group: of the same data and settings, whatever its name."""
    newest: dict[Any, Result] = {}
    for row in rows:
        if (
            row.get("data") == task.sha256
            and all(row.get(name) == value for name, value in facts.items())
            and row["method"] == group.name
            and row["config"].get("settings") == group.settings
            and _per_class(row) == group.examples_per_class
        ):
            newest[row["labels"], row["training"]] = Result(row)
    return list(newest.values())


def _per_class(row: Mapping[str, Any]) -> int:
    return 0 if row["method"] in LINES else round(row["examples_per_class"])


def made_rows(
    judge: Judge,
    methods: Mapping[str, Method],
    group: Group,
    full: float | None,
    facts: dict[str, Any],
) -> list[results.Row]:
    """Makes the sets of a group, tunes, reads test, and gives the rows."""
    task, p = judge.task, judge.protocol
    if not group.examples_per_class:
        return [_line_row(judge, group, facts)]
    began = time.perf_counter()
    of_seeds = []
    for seed in range(p.seed, p.seed + group.num_seeds):
        sets = methods[group.name](task, group.examples_per_class, seed)
        several = isinstance(sets, list | tuple) and not isinstance(sets, TrainingSet)
        of_seeds.append(list(sets) if several else [as_set(task, sets)])
    compute = (time.perf_counter() - began) / group.num_seeds
    rows = []
    for ways in zip(*of_seeds, strict=True):
        began = time.perf_counter()
        sets = list(ways) if len(ways) < 2 or not _all_same(ways) else [ways[0]]
        inits = _inits(p, len(sets))
        tuned = validation = None
        if sets[0].native is None:
            tuned = judge.tuned([one.batch for one in sets])
            validation = tuned.accuracy
        else:
            validation = float(
                np.mean([judge.native_validation(one.native) for one in sets])
            )
        accuracies = judge.test_accuracies(sets, tuned, inits)
        chosen = {} if tuned is None else {"lr": tuned.lr, "num_steps": tuned.num_steps}
        rows.append(
            _row(
                judge,
                group,
                facts,
                accuracies,
                full,
                {"tuned": chosen, "validation_accuracy": validation, "inits": inits},
                labels=sets[0].labels,
                training=sets[0].training,
                bytes=_mean([one.bytes for one in sets]),
                labels_read=sets[0].labels_read,
                seconds=compute * group.num_seeds + time.perf_counter() - began,
                compute_seconds=compute,
            )
        )
    return rows


def _inits(protocol: Protocol, num_sets: int) -> list[list[int]]:
    """The theta_0 of each set: all, or in turn a few where there are as many sets."""
    R = protocol.test_inits
    count = min(protocol.selection_seeds, R)
    if num_sets < R or num_sets <= protocol.selection_seeds:
        return [list(range(R))] * num_sets
    return [[(s * count + j) % R for j in range(count)] for s in range(num_sets)]


def _all_same(sets: Sequence[TrainingSet]) -> bool:
    """Whether a choice does not depend on chance: the same sentences for all seeds."""
    return all(one.texts and set(one.texts) == set(sets[0].texts or ()) for one in sets)


def _mean(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return round(float(np.mean(known))) if known else None


def _line_row(judge: Judge, group: Group, facts: dict[str, Any]) -> results.Row:
    task, began = judge.task, time.perf_counter()
    N = len(task.labels)
    size = sum(len(text.encode()) for text in task.dataset.train.texts)
    more: dict[str, Any] = {"labels": "hard", "training": "standard", "bytes": size}
    config: dict[str, Any] = {"tuned": {}, "validation_accuracy": None, "inits": [[0]]}
    if group.name == "majority":
        accuracies = np.array([[judge.majority]])
        more = {"labels": None, "training": None, "bytes": None, "theta_0": None}
    elif group.name == "tfidf":
        from distill_jax.baselines import tfidf

        found = tfidf(task.dataset)
        accuracies = np.array([[found.accuracy]])
        config |= {"tuned": found.tuned, "validation_accuracy": found.validation}
        more["theta_0"] = None
    else:
        accuracies = judge.full_accuracies()
        config["tuned"] = judge.tuned_full()
        config["inits"] = [list(range(judge.protocol.test_inits))]
    full = float(accuracies.mean()) if group.name == "full" else None
    return _row(
        judge,
        group,
        facts,
        accuracies,
        full,
        config,
        labels_read=0 if group.name == "majority" else N,
        seconds=time.perf_counter() - began,
        compute_seconds=0.0,
        **more,
    )


def _row(judge, group: Group, facts, accuracies, full, config, **more) -> results.Row:
    task = judge.task
    found = statistics.summary(accuracies)
    corrected = None
    if full is not None and full > judge.majority:
        mean = float(np.asarray(accuracies, float).mean())
        corrected = statistics.chance_corrected(mean, full, judge.majority)
    examples = group.examples_per_class * task.num_classes
    if group.name in ("full", "tfidf"):
        examples = len(task.labels)
    return results.build(
        **facts,
        dataset=task.dataset.name,
        method=group.name,
        examples=examples,
        num_classes=task.num_classes,
        num_train=len(task.labels),
        accuracies=np.asarray(accuracies, float),
        full=full,
        majority=judge.majority,
        data=task.sha256,
        config={"settings": group.settings, **config},
        interval=[found.low, found.high],
        chance_corrected=corrected,
        **more,
    )


def _full_accuracy(judge, groups, found, task, facts) -> float | None:
    """That of all data, if its row is there: others are told relative to it."""
    for i, group in enumerate(groups):
        if group.name == "full" and i in found:
            return found[i][0]["accuracy_mean"]
    return None


def _claimed(path: Path | None, task: Task, group: Group, facts: dict[str, Any]):
    """Whether this process has the group now; nobody else has, while it does.

    A file that its process holds locked; the system frees it when the process ends,
    however it ends, so a lock cannot go stale.
    """
    from contextlib import contextmanager

    from filelock import FileLock, Timeout

    if path is None:
        raise ValueError("share needs a folder or a file of rows that all know")
    key = digest(
        [task.sha256, facts, group.name, group.examples_per_class, group.settings]
    )

    @contextmanager
    def claimed():
        folder = path.parent / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{path.stem}-{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    return claimed()


def _progress(say: Callable[[str], None]):
    del say
    return lambda what, done, total: None


def line(row: Mapping[str, Any]) -> str:
    """A row in a few words."""
    low, high = row["interval"]
    text = f"{row['accuracy_mean']:.1%} [{low:.1%}, {high:.1%}]"
    if row["relative_accuracy"] is not None:
        text += f", {row['relative_accuracy']:.0%} of all data"
    kind = ", ".join(
        filter(None, (row["labels"] and f"{row['labels']} labels", row["training"]))
    )
    return f"{kind}: {text}; {duration(row['seconds'])}" if kind else text


def duration(seconds: float) -> str:
    """Such as `90 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


__all__ = [
    "LINES",
    "Group",
    "Method",
    "compare",
    "distilled",
    "plan",
    "queried",
    "real",
    "saved",
    "selected",
]
