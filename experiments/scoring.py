"""How the sets of a comparison are scored, and which scores are known already.

Every set of n examples, chosen or distilled, is trained on by `fitting.fit`, tuned on
validation with the same grid, and scored on test from theta_0 that all methods share.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax import evaluate
from distill_jax import results as result_rows
from distill_jax.task import Task, in_chunks, labels_of, take
from distill_jax.types import Batch, Distilled
from experiments import fitting, recipe
from experiments.baselines import tuned_full, validation_chunks

QUERY = "query:"  # before the name of a query: k_center is a selection too


class Cell(NamedTuple):
    """One row of a comparison.

    Attributes:
        method: `distilled`, `full`, `majority`, a selection, or `query:NAME`.
        examples_per_class: 0 for `full` and `majority`.
        labels: hard or soft.
        training: standard, or native: the order and step sizes of distillation.
    """

    method: str
    examples_per_class: int
    labels: str | None = "hard"
    training: str | None = "standard"

    def __str__(self) -> str:
        if not self.examples_per_class:
            return self.method
        kind = f", {self.labels} labels, {self.training}"
        return f"{self.method} at {self.examples_per_class} per class{kind}"


class Score(NamedTuple):
    """What a cell measures.

    Attributes:
        accuracies: `[S, R]` on test.
        inits: which theta_0 each has, `[S][R]`.
        validation: mean accuracy there, of the recipe chosen.
        tuned: that recipe.
    """

    accuracies: np.ndarray
    inits: list[list[int]]
    validation: float | None
    tuned: dict[str, Any]


class Bench:
    """Trains and scores the sets of a task, from theta_0 that all share.

    Args:
        config: the `compare.Config`.
        task: from `recipe.load`.
        out: folder of distillations and the teacher.
        results: the file of the rows.
        preset: a name for the rows.
    """

    def __init__(
        self,
        config: Any,
        task: Task,
        out: Path,
        results: Path,
        preset: str | None = None,
    ):
        self.config, self.task, self.out, self.results = config, task, out, results
        self.preset = preset
        root = jax.random.fold_in(jax.random.key(config.seed), 20)
        tuning, test, self.select_key, self.query_key, self.teacher_key = (
            jax.random.split(root, 5)
        )
        self.tuning_keys = jax.random.split(tuning, config.tuning_inits)
        self.test_keys = jax.random.split(test, config.test_inits)
        self.validation = validation_chunks(
            task,
            task.validation,
            seed=config.seed,
            num_examples=config.validation_examples,
        )
        self.test = in_chunks(task, task.test)
        self.trainer = fitting.Trainer(task)
        self.labels = labels_of(task.train)
        self.majority = evaluate.majority_accuracy(
            task.dataset.test.labels, task.dataset.validation.labels, task.num_classes
        )

    @cached_property
    def native(self):
        """Trains in the order of distillation, see `recipe.native_scorer`."""
        inner_tx = recipe.INNER_TX[self.config.inner_optimizer]
        return recipe.native_scorer(self.task, self.task.model.init, inner_tx)

    def row_of(
        self, cell: Cell, rows: Sequence[result_rows.Row] | None = None
    ) -> result_rows.Row | None:
        """The newest row of this cell with these settings, if there is one.

        Args:
            cell: which.
            rows: those of the file, read anew unless given.
        """
        wanted = self.settings(cell)
        found = None
        for row in result_rows.read(self.results) if rows is None else rows:
            if (
                (row["experiment"], row["preset"]) == ("compare", self.preset)
                and row["dataset"] == self.task.dataset.name
                and row["model"] == self.config.model
                and cell_of(row) == cell
                and row["config"]["settings"] == wanted
            ):
                found = row
        return found

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the numbers of a cell depend on, as JSON has it."""
        c = self.config
        names = ["seed", "length", "vectors", "test_inits"]
        facts: dict[str, Any] = {"network": c.network, "train": len(self.labels)}
        if cell.method in ("full", "majority"):
            names += ["full_epochs", "validation_examples"]
        else:
            names += ["tuning_inits", "validation_examples", "fit_batch"]
            facts["grid"] = [fitting.STEP_SIZES, fitting.NUM_STEPS]
            if cell.method == "distilled":
                config = c.distillation(cell.examples_per_class, self.task.num_classes)
                facts["distilled"] = recipe.fingerprint(config, self.task)
                facts["seeds"] = c.num_distillations(cell.examples_per_class)
            else:
                names += ["selection_seeds"]
            if cell.method.startswith(QUERY):
                names += ["passes", "dropout", "query_rounds", "pool_size"]
            if cell.method != "distilled" and cell.labels == "soft":
                names += ["full_epochs"]
        facts |= {name: getattr(c, name) for name in names}
        return json.loads(json.dumps(result_rows.portable(facts)))

    def num_seeds(self, cell: Cell) -> int:
        """Sets of a cell: of random ones many, as these differ most."""
        if cell.method == "distilled":
            return self.config.num_distillations(cell.examples_per_class)
        if cell.method == "random":
            return self.config.test_inits
        return self.config.selection_seeds

    def inits(self, cell: Cell, seed: int) -> list[int]:
        """The theta_0 that a set is trained from: all, or in turn a few of them."""
        c = self.config
        if cell.method != "random":
            return list(range(c.test_inits))
        count = min(c.selection_seeds, c.test_inits)
        return [(seed * count + j) % c.test_inits for j in range(count)]

    def order(self, n: int, rng, *, among: int | None = None) -> np.ndarray:
        size = min(self.config.fit_batch, n)
        return fitting.minibatch_order(among or n, size, max(fitting.NUM_STEPS), rng)

    def _jobs(self, batch: Batch, keys, purpose: int, which: Sequence[int]):
        data = fitting.examples(self.task, batch)
        n = len(batch.y)
        return [
            fitting.Job(
                data,
                keys[r],
                self.order(n, np.random.default_rng([self.config.seed, purpose, r])),
                0.0,
            )
            for r in which
        ]

    def tuned(self, batches: Sequence[Batch]) -> fitting.Tuned:
        jobs = [
            job
            for r in range(len(self.tuning_keys))
            for job in self._jobs(batches[r % len(batches)], self.tuning_keys, 0, [r])
        ]
        return fitting.tune(self.trainer, jobs, self.validation)

    def probe_jobs(self, n: int) -> list[fitting.Job]:
        """As many networks as are trained at once, on the first n examples."""
        batch = take(self.task.train, np.arange(n))
        jobs = self._jobs(batch, self.tuning_keys, 0, [0])
        return [job._replace(lr=1e-3) for job in jobs] * self.trainer.width

    def score(
        self, cell: Cell, batches: Sequence[Batch], distilled: Sequence[Distilled] = ()
    ) -> Score:
        """Tunes on validation, then reads test.

        Args:
            cell: how they are trained on.
            batches: one for each seed, `[n, ...]`.
            distilled: the same with order and step sizes, for native training.
        """
        inits = [self.inits(cell, seed) for seed in range(len(batches))]
        if cell.training == "native":
            return self._native_score(distilled, inits)
        best = self.tuned(batches)
        lr, steps = best.recipe
        accuracies = []
        for batch, which in zip(batches, inits, strict=True):
            jobs = self._jobs(batch, self.test_keys, 1, which)
            jobs = [job._replace(lr=lr) for job in jobs]
            scored = self.trainer.accuracies(jobs, (steps, steps), self.test)
            accuracies.append(scored[:, 1])
        return Score(np.stack(accuracies), inits, best.accuracy, best.recipe._asdict())

    def _native_score(self, sets: Sequence[Distilled], inits) -> Score:
        validation = [
            float(
                self.native(d.batches, d.lr, self.tuning_keys, self.validation).mean()
            )
            for d in sets
        ]
        accuracies = [
            np.asarray(self.native(d.batches, d.lr, self.test_keys, self.test))
            for d in sets
        ]
        return Score(np.stack(accuracies), inits, float(np.mean(validation)), {})

    def full(self) -> Score:
        c = self.config
        score, tuned = tuned_full(
            self.task, self.validation, seed=c.seed, max_epochs=c.full_epochs
        )
        accuracies = np.asarray(score(self.test_keys, self.test))[None]
        return Score(accuracies, [list(range(c.test_inits))], None, tuned)


def cell_of(row: result_rows.Row) -> Cell:
    """The cell that a row is of."""
    per_class = round(row["examples_per_class"])
    if row["method"] in ("full", "majority"):
        per_class = 0
    return Cell(row["method"], per_class, row["labels"], row["training"])
