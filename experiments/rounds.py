"""One query with one seed, from its start set to its rows, saved in every round."""

import csv
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax import active, evaluate, queries
from distill_jax import checkpoints as ckpt
from distill_jax import results as result_rows
from distill_jax.active import annotation
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, labels_of
from distill_jax.types import Params
from experiments.acquisition import Config, Learner

_START = 2**31  # no round has this number


def fingerprint(config: Config, task: Task) -> dict[str, Any]:
    """The settings that make a run what it is."""
    places = ("query", "seeds", "seed", "full", "data_dir", "download", "pool")
    settings = dataclasses.asdict(config)
    kept = {name: value for name, value in settings.items() if name not in places}
    split = task.dataset.train
    return kept | {
        "dataset": task.dataset.name,
        "sha256": dict(task.dataset.sha256),
        "train_sha256": hashlib.sha256("\n".join(split.texts).encode()).hexdigest(),
        "vocabulary_sha256": task.vectors.vocabulary.sha256,
    }


class Run:
    """One query with one seed: its pool, what it found so far, and its folder."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        name: str,
        seed: int,
        folder: Path,
        resume: bool,
    ):
        self.config, self.learner, self.name = config, learner, name
        self.seed, self.folder = seed, folder
        self.history: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []  # in the order asked
        self.network, self.done = None, False
        self.about = fingerprint(config, learner.task) | {"query": name, "seed": seed}
        # Not of the query: with the same seed all begin with the same network.
        self.key = jax.random.key(seed)
        if resume and ckpt.latest_step(self.checkpoints) is not None:
            self._restore()
        else:
            self.pool = self._started()
            self._save(self.pool, None)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _started(self) -> active.Pool:
        config, train = self.config, self.learner.task.train
        ids = self.learner.start
        if ids is None:
            kind = {"random": "random", "balanced": "random_balanced"}[config.start]
            key = jax.random.fold_in(self.key, _START)
            nothing = np.zeros((len(train.y), 1))
            labels, n = labels_of(train), self.learner.num_start  # "random" reads none
            ids = SELECTIONS[kind](nothing, labels, n, key)
        self.asked += [{"round": 0, "id": int(i), "score": None} for i in ids]
        return active.Pool.unlabelled(len(train.y)).ask(ids)

    def _arrays(self, pool: active.Pool, network: Any) -> dict[str, Any]:
        arrays = {f.name: getattr(pool, f.name) for f in dataclasses.fields(pool)}
        if self.config.warm_start != "none":
            arrays["network"] = self._blank() if network is None else network
        return arrays

    def _blank(self) -> Params:
        """Of the shape of what `train` gives."""
        keys = jax.random.split(jax.random.key(0), self.config.num_inits)
        shapes = jax.eval_shape(self.learner.init, keys)
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)

    def _save(self, pool: active.Pool, network: Any) -> None:
        self.pool = pool
        facts = {"history": self.history, "asked": self.asked, "done": self.done}
        facts["trained"] = network is not None
        arrays = jax.device_get(self._arrays(pool, network))
        ckpt.save(self.checkpoints, pool.round + self.done, arrays, facts, self.about)

    def _restore(self) -> None:
        like = self._arrays(
            active.Pool.unlabelled(len(self.learner.task.train.y)), None
        )
        arrays, facts = ckpt.restore(self.checkpoints, like, self.about)
        network = arrays.pop("network", None)
        self.pool = active.Pool(**arrays)
        self.network = network if facts["trained"] else None
        self.history, self.asked = facts["history"], facts["asked"]
        self.done = facts["done"]

    def go(self, say: Callable[[str], None] = print) -> None:
        """Runs, or goes on with, the rounds."""
        if self.done:
            return
        self.began = time.perf_counter()
        query = queries.get(self.name)
        self.pool = active.acquire(
            query,
            self.pool,
            self._oracle(),
            self.learner.sizes,
            self.learner.train,
            self.learner.score_with(query),
            self.key,
            before=self.network,
            report=lambda now: self._report(now, say),
            save=self._save,
        )
        self._write_asked()
        self.done = True
        self._save(self.pool, self.network)

    def _oracle(self) -> active.Oracle:
        dataset = self.learner.task.dataset
        if self.config.oracle == "simulated":
            return active.simulated(
                dataset.train.labels,
                dataset.num_classes,
                noise=self.config.oracle_noise,
                seed=self.seed,
            )
        return self._human

    def _human(self, ids: np.ndarray) -> np.ndarray:
        """The answers, where somebody has filled in the file of this round."""
        dataset, asked = self.learner.task.dataset, ids.tolist()
        path = self.folder / f"queried-{self.pool.round}.csv"
        if path.exists():
            return annotation.read_answers(path, asked, dataset.label_names)
        texts = [dataset.train.texts[i] for i in asked]
        annotation.write_questions(path, asked, texts)
        raise annotation.AwaitingLabels(path, len(asked), dataset.label_names)

    def _report(self, now: active.Round, say: Callable[[str], None]) -> None:
        self.network = now.network
        accuracies = np.asarray(self.learner.test(now.network), float)
        number = int(now.pool.labelled.sum())
        picked = now.picked
        tied = None
        if picked is not None and queries.get(self.name).passes > 0:
            tied = int(picked.n_tied_at_cut)
        seconds = time.perf_counter() - self.began
        self.history.append(
            {
                "round": now.number,
                "num_labelled": number,
                "n_tied_at_cut": tied,
                "accuracies": accuracies.tolist(),
                "bytes": self._bytes(now.pool),
                "seconds": seconds,
            }
        )
        if picked is not None:
            self.asked += [
                {"round": now.number + 1, "id": int(i), "score": float(score)}
                for i, score in zip(picked.indices, picked.scores, strict=True)
            ]
        self.began = time.perf_counter()
        say(
            f"{self.name}, seed {self.seed}, round {now.number}: {number:,} labels, "
            f"{accuracies.mean():.1%}"
        )

    def _bytes(self, pool: active.Pool) -> int:
        texts = self.learner.task.dataset.train.texts
        return sum(len(texts[i].encode()) for i in np.flatnonzero(pool.labelled))

    def _write_asked(self) -> None:
        """What was asked, in order, with the answers."""
        dataset = self.learner.task.dataset
        with open(self.folder / "asked.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("round", "id", "score", "label", "text"))
            for item in self.asked:
                label = dataset.label_names[self.pool.labels[item["id"]]]
                text = dataset.train.texts[item["id"]]
                score = "" if item["score"] is None else item["score"]
                table.writerow((item["round"], item["id"], score, label, text))


def rows_of(
    config: Config, learner: Learner, one: Run, full: float | None, preset: str | None
) -> list[result_rows.Row]:
    """A row for each round of a run."""
    task = learner.task
    C, N = task.num_classes, len(task.train.y)
    majority = evaluate.majority_accuracy(
        task.dataset.test.labels, task.dataset.validation.labels, C
    )
    rows = []
    for found in one.history:
        accuracies = np.array(found["accuracies"])
        mean, n = float(accuracies.mean()), found["num_labelled"]
        rows.append(
            {
                "experiment": "active_learning",
                "preset": preset,
                "dataset": task.dataset.name,
                "model": config.model,
                "method": one.name,
                "examples": n,
                "examples_per_class": n / C,
                "fraction_of_train": n / N,
                "bytes": found["bytes"],
                "labels": "hard",
                "theta_0": "random",
                "training": "standard",
                "selected_on": "validation",
                "split": "test",
                "accuracy_mean": mean,
                "accuracy_sd": (
                    float(accuracies.std(ddof=1)) if accuracies.size > 1 else None
                ),
                "num_inits": accuracies.size,
                "num_seeds": 1,
                "full_accuracy_mean": full,
                "relative_accuracy": mean / full if full else None,
                "majority_accuracy": majority,
                "seconds": found["seconds"],
                "device": result_rows.device(),
                "commit": result_rows.commit(),
                "command": result_rows.command(),
                "config": dataclasses.asdict(config),
                "round": found["round"],
                "seed": one.seed,
                "num_labelled": n,
                "n_tied_at_cut": found["n_tied_at_cut"],
                "accuracies": found["accuracies"],
            }
        )
    return rows


def append_once(results: str | Path, rows: list[result_rows.Row]) -> None:
    """Appends the rows, unless a run that was killed right after had done so."""

    def told(row):
        free = ("seconds", "device", "commit", "command")
        return {k: result_rows.portable(v) for k, v in row.items() if k not in free}

    there = [told(row) for row in result_rows.read(results) if "round" in row]
    if told(rows[-1]) not in there:
        result_rows.append(results, rows)
