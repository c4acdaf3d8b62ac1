"""The cells of a comparison: what one method gives at one budget, as a row."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import active, artifact, queries, statistics
from distill_jax import results as result_rows
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, in_chunks, mean_vectors, take
from distill_jax.types import Batch, Distilled
from experiments import fitting, recipe, saved
from experiments.baselines import teacher_labels
from experiments.running import learned
from experiments.scoring import QUERY, Bench, Cell, Score

QUERIES = [QUERY + name for name in queries.QUERIES if name != "random"]
WITH_TEACHER = ("random", "kmeans_medoids")  # with soft labels of a teacher too

LABEL_FREE = ("random", "kmeans_medoids_global")  # read the labels of their picks only


class Sets(NamedTuple):
    """What a method gives, once for each of its seeds.

    Attributes:
        batches: `[n, ...]` each.
        bytes: that one of them takes, on average.
        labels_read: labels of train that were looked at.
        seconds: to get one of them.
        distilled: where they were distilled, with order and step sizes.
    """

    batches: list[Batch]
    bytes: int
    labels_read: int
    seconds: float
    distilled: Sequence[Distilled] = ()


class Workbench(Bench):
    """Makes the sets of each cell; what cells share is made at its first use."""

    @cached_property
    def features(self) -> np.ndarray:
        """What selections see of each sentence, `[N, D]`."""
        return mean_vectors(self.task, self.task.train)

    def sets(self, cell: Cell) -> Sets:
        """The examples of each seed of a cell."""
        if cell.method == "distilled":
            return self._distilled(cell)
        if cell.method.startswith(QUERY):
            return self._queried(cell)
        return self._selected(cell)

    def _selected(self, cell: Cell) -> Sets:
        n = cell.examples_per_class * self.task.num_classes
        began = time.perf_counter()
        select, seeds = SELECTIONS[cell.method], self.num_seeds(cell)
        keys = [jax.random.fold_in(self.select_key, seed) for seed in range(seeds)]
        chosen = [select(self.features, self.labels, n, key) for key in keys]
        if all(set(rows) == set(chosen[0]) for rows in chosen):
            chosen = chosen[:1]  # it does not depend on chance
        seconds = (time.perf_counter() - began) / seeds
        read = n if cell.method in LABEL_FREE else len(self.labels)
        if cell.labels == "soft":
            read = len(self.labels)
        return self._real(chosen, cell, read, seconds)

    def _real(self, chosen, cell: Cell, labels_read: int, seconds: float) -> Sets:
        train = self.task.train
        if cell.labels == "soft":
            train = Batch(train.x, train.mask, jnp.asarray(self.teacher))
        texts = self.task.dataset.train.texts
        sizes = [sum(len(texts[i].encode()) for i in rows) for rows in chosen]
        batches = [take(train, np.asarray(rows)) for rows in chosen]
        return Sets(batches, round(float(np.mean(sizes))), labels_read, seconds)

    def _queried(self, cell: Cell) -> Sets:
        c = self.config
        n = cell.examples_per_class * self.task.num_classes
        best = self.random_recipe(cell.examples_per_class)
        began = time.perf_counter()
        query = queries.get(cell.method.removeprefix(QUERY))
        chosen = [
            self._acquired(query, n, best, seed) for seed in range(c.selection_seeds)
        ]
        seconds = (time.perf_counter() - began) / c.selection_seeds
        return self._real(chosen, cell, n, seconds)

    def _acquired(self, query, n: int, best: fitting.Recipe, seed: int) -> np.ndarray:
        """The rows that a query has asked for, from a start of n / 5 random ones."""
        c, train = self.config, self.task.train
        rng = np.random.default_rng([c.seed, 2, seed])
        N = len(self.labels)
        rows = np.sort(rng.permutation(N)[: c.pool_size or N])
        pool = take(train, rows)
        chunks = in_chunks(self.task, pool)
        oracle = active.simulated(self.labels[rows], self.task.num_classes)
        start = max(1, n // 5)
        sizes = [len(part) for part in np.array_split(range(n - start), c.query_rounds)]
        first = rng.permutation(len(rows))[:start]

        def fitted(pool_now, key, before):
            del before
            ids = np.flatnonzero(pool_now.labelled)
            known = jax.nn.one_hot(pool_now.labels[ids], self.task.num_classes)
            asked = take(pool, ids)
            data = Batch(asked.x, asked.mask, known)  # as the oracle said
            data = fitting.examples(self.task, data, room=n)
            order_rng = np.random.default_rng([c.seed, 3, seed, pool_now.round])
            order = self.order(n, order_rng, among=len(ids))
            return self._noisy_fit(data, order, key, best)

        done = active.acquire(
            query,
            active.Pool.unlabelled(len(rows)).ask(first),
            oracle,
            [size for size in sizes if size],
            fitted,
            active.score_with(self._scorers, query, chunks, len(rows), c.passes),
            jax.random.fold_in(self.query_key, seed),
        )
        return rows[np.flatnonzero(done.labelled)]

    @cached_property
    def _noisy(self) -> Task:
        """The same network with dropout, for queries."""
        settings = self.config.network | {"dropout": self.config.dropout}
        return saved.with_network(self.task, self.config.model, settings)

    @cached_property
    def _scorers(self) -> active.Scorers:
        return active.Scorers(*map(jax.jit, active.scorers(self._noisy.model)))

    @cached_property
    def _noisy_fit(self):
        task = self._noisy

        @jax.jit
        def train(data, order, key, lr, steps):
            init_key, dropout_key = jax.random.split(key)
            theta_0 = task.model.init(init_key)
            thetas = fitting.fit(
                task.loss_fn,
                data,
                order,
                theta_0,
                lr,
                steps[None],
                dropout_key=dropout_key,
            )
            return jax.tree.map(lambda a: a[0], thetas)

        return lambda data, order, key, best: train(
            data, jnp.asarray(order), key, best.lr, jnp.asarray(best.num_steps)
        )

    def random_recipe(self, examples_per_class: int) -> fitting.Recipe:
        """What is best for random examples; networks of a query are trained by it."""
        cell = Cell("random", examples_per_class)
        row = self.row_of(cell)
        if row is not None:
            return fitting.Recipe(**row["config"]["tuned"])
        return self.tuned(self.sets(cell).batches).recipe

    def _distilled(self, cell: Cell) -> Sets:
        found = [
            self.distill(cell.examples_per_class, seed)
            for seed in range(self.num_seeds(cell))
        ]
        sets = [distilled for distilled, _ in found]
        batches = []
        for distilled in sets:
            flat = jax.tree.map(
                lambda a: a.reshape(-1, *a.shape[2:]), distilled.batches
            )
            if cell.labels == "hard":
                y = jax.nn.one_hot(flat.y.argmax(-1), flat.y.shape[-1])
                flat = Batch(flat.x, flat.mask, y)
            batches.append(flat)
        kept = [sets[0].x, sets[0].y_logits, sets[0].raw_lr]
        if cell.training == "standard":
            kept = kept[:2]  # its step sizes and order are not used
        size = sum(a.nbytes for a in kept)
        if cell.labels == "hard":
            size += 4 * len(batches[0].y) - kept[1].nbytes  # an integer each
        seconds = float(np.mean([seconds for _, seconds in found]))
        return Sets(batches, size, len(self.labels), seconds, sets)

    def distill(self, examples_per_class: int, seed: int) -> tuple[Distilled, float]:
        """A distilled set and the seconds it took; from disk if it is there."""
        task = self.task
        config = self.config.distillation(examples_per_class, task.num_classes, seed)
        settings = recipe.fingerprint(config, task)
        folder = self.out / f"{examples_per_class}pc-seed{seed}-{_digest(settings)}"
        if (folder / "artifact" / artifact.CARD).exists():
            loaded = artifact.load(folder / "artifact")
            return artifact.to_distilled(loaded), loaded.card["results"]["seconds"]
        start = recipe.start_of(config, task)
        setup = recipe.build(config, task, start)
        result, seconds = learned(config, task, start, setup, folder / "checkpoints")
        best = jax.tree.map(jnp.asarray, result.best)
        facts = {"validation": result.best_accuracy, "seconds": seconds}
        saved.save(folder / "artifact", config, task, best, facts)
        return best, seconds

    @cached_property
    def teacher(self) -> np.ndarray:
        """Soft labels of train by a network trained on all of it, kept on disk."""
        full = Cell("full", 0)
        row = self.row_of(full)
        tuned = row["config"]["tuned"] if row else self.full().tuned
        path = self.out / f"teacher-{_digest([self.settings(full), tuned])}.npy"
        if not path.exists():
            probs = teacher_labels(self.task, tuned, self.teacher_key)
            self.out.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}.npy")
            np.save(new, probs, allow_pickle=False)
            os.replace(new, path)
        return np.load(path, allow_pickle=False)

    def run(self, cell: Cell) -> result_rows.Row:
        """Makes the sets of a cell, scores them, and gives its row."""
        began = time.perf_counter()
        N = len(self.labels)
        if cell.method == "majority":
            sets = Sets([], 0, 0, 0.0)
            score = Score(np.array([[self.majority]]), [[0]], None, {})
        elif cell.method == "full":
            size = sum(len(text.encode()) for text in self.task.dataset.train.texts)
            sets, score = Sets([], size, N, 0.0), self.full()
        else:
            sets = self.sets(cell)
            score = self.score(cell, sets.batches, sets.distilled)
        return self._row(cell, sets, score, time.perf_counter() - began)

    def _row(self, cell, sets: Sets, score: Score, seconds: float):
        c, C, N = self.config, self.task.num_classes, len(self.labels)
        n = cell.examples_per_class * C if cell.examples_per_class else 0
        n = N if cell.method == "full" else n
        accuracies = np.asarray(score.accuracies, float)
        mean = float(accuracies.mean())
        full = mean if cell.method == "full" else None
        if full is None and (known := self.row_of(Cell("full", 0))):
            full = known["accuracy_mean"]
        found = statistics.summary(accuracies)
        corrected = None
        if full is not None and full > self.majority:
            corrected = statistics.chance_corrected(mean, full, self.majority)
        trained = cell.method != "majority"
        return {
            "experiment": "compare",
            "preset": self.preset,
            "dataset": self.task.dataset.name,
            "model": c.model,
            "method": cell.method,
            "examples": n,
            "examples_per_class": n / C,
            "fraction_of_train": n / N,
            "bytes": sets.bytes if trained else None,
            "labels": cell.labels,
            "theta_0": "random" if trained else None,
            "training": cell.training,
            "selected_on": "validation",
            "split": "test",
            "accuracy_mean": mean,
            "accuracy_sd": None
            if accuracies.size < 2
            else float(accuracies.std(ddof=1)),
            "num_inits": accuracies.shape[1],
            "num_seeds": accuracies.shape[0],
            "full_accuracy_mean": full,
            "relative_accuracy": mean / full if full else None,
            "majority_accuracy": self.majority,
            "seconds": seconds,
            "device": result_rows.device(),
            "commit": result_rows.commit(),
            "command": result_rows.command(),
            "config": {
                "settings": self.settings(cell),
                "tuned": score.tuned,
                "validation_accuracy": score.validation,
                "inits": score.inits,
            },
            "accuracies": accuracies.tolist(),
            "interval": [found.low, found.high],
            "chance_corrected": corrected,
            "labels_read": sets.labels_read,
            "compute_seconds": sets.seconds,
        }


def _digest(value: Any) -> str:
    text = json.dumps(result_rows.portable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
