"""Active learning of a task: a query asks for labels in rounds, an oracle gives them.

`acquire(task, "bald")` is all of it. In each round networks are trained on all labels
so far, the best epoch chosen on validation; the first scores the pool, and the query
picks what is labelled next. Test measures each round and chooses nothing.
"""

import csv
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax import checkpoints
from distill_jax.active.loop import Round, ask_in_rounds
from distill_jax.active.pool import Oracle, Pool, simulated
from distill_jax.active.rounds import STARTS, Plan, Rounds, plan
from distill_jax.active.training import Learner, Training, learner_of
from distill_jax.names import described, resolve
from distill_jax.queries import QUERIES, Query
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task
from distill_jax.train import Report

_START, _ALL = 2**31, 2**31 + 1  # numbers of keys that no round has


@dataclasses.dataclass(frozen=True)
class Acquired(Pool):
    """A pool after its rounds, and how it came about.

    Attributes:
        history: for each round `round`, `num_labelled`, `accuracies` on test of the R
            networks, `n_tied_at_cut` (None where the query scores nothing), `bytes` of
            the labelled texts, `seconds`.
        asked: for each item `round`, `id` and `score`, in the order asked.
    """

    history: Sequence[Mapping[str, Any]] = ()
    asked: Sequence[Mapping[str, Any]] = ()


def acquire(
    task: Task,
    query: Any,
    oracle: Oracle | None = None,
    *,
    rounds: Rounds = Rounds(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    folder: str | Path | None = None,
    on_round: Callable[[Mapping[str, Any]], None] = lambda found: None,
    report: Report = lambda what, done, total: None,
) -> Acquired:
    """Asks for labels in rounds, and goes on with what is in `folder`.

    Args:
        task: from `make_task`; its train split is the pool.
        query: a name of `QUERIES`, or a `queries.Query`, `named` or not.
        oracle: `ids [n] -> labels [n]`; the labels of train unless given. What it
            raises ends the run, and the same call goes on with the question. A start
            set that is `balanced` reads the labels of train.
        rounds: how many labels are asked for, and when.
        training: how the networks of a round are trained.
        seed: of everything random. Queries with the same seed share their start.
        folder: where every round is saved, and `asked.csv` written at the end; nothing
            is saved where it is None.
        on_round: told what a round found, see `Acquired.history`.
        report: told the progress of what takes long.

    Returns:
        The pool with all labels that were asked for.

    Raises:
        ValueError: as `plan`; for a folder with a run of other settings or other data.
        ArithmeticError: if a network cannot be trained.
        checkpoints.CheckpointNotSaved: on a full disk, say.
    """
    planned = plan(task, rounds, [query])
    learner = learner_of(task, training, planned.num_labels[-1])
    run = _Run(learner, planned, rounds, query, seed, oracle, folder)
    return run.go(on_round, report)


def all_labels(
    task: Task,
    *,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    folder: str | Path | None = None,
    report: Report = lambda what, done, total: None,
) -> np.ndarray:
    """Reads test after the same training on all labels of train: accuracies `[R]`.

    Args:
        task, training, seed, report: as for `acquire`.
        folder: where it is kept, and found again.
    """
    about = _identity(task, training) | {"seed": seed}
    if folder is not None and checkpoints.latest_step(folder) is not None:
        like = {"accuracies": np.zeros(training.num_inits)}
        return checkpoints.restore(folder, like, about)[0]["accuracies"]
    N = len(task.train.y)
    learner, everything = learner_of(task, training, N), np.arange(N)
    pool = Pool.unlabelled(N).ask(everything).answer(everything, task.labels)
    thetas = learner.train(
        pool,
        jax.random.fold_in(jax.random.key(seed), _ALL),
        report=lambda done, total: report("all labels", done, total),
    )
    accuracies = np.asarray(learner.accuracies(thetas), float)
    if folder is not None:
        checkpoints.save(folder, 0, {"accuracies": accuracies}, {}, about)
    return accuracies


def estimate(
    task: Task,
    queries: Sequence[Any],
    *,
    rounds: Rounds = Rounds(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    seeds: int = 1,
    full: bool = True,
    report: Report = lambda what, done, total: None,
) -> float:
    """Seconds that runs take, without what the queries compute; compiles what they do.

    Args:
        task, rounds, training, report: as for `acquire`.
        queries: that are run, each with so many `seeds`.
        full: with `all_labels` too.
    """
    planned, N = plan(task, rounds, queries), len(task.train.y)
    learner = learner_of(task, training, N if full else planned.num_labels[-1])
    R, key = training.num_inits, jax.random.key(0)
    thetas = jax.device_get(learner.init(jax.random.split(key, R)))
    rows = np.zeros((training.epochs * learner.most, training.batch_size), np.int32)
    done, total = 0, 3 + len(queries)

    def timed(fn: Callable[[], Any]) -> float:
        nonlocal done
        report("timing", done, total)
        jax.block_until_ready(fn())
        began = time.perf_counter()
        jax.block_until_ready(fn())
        done += 1
        report("timing", done, total)
        return time.perf_counter() - began

    def fit(num_steps: int) -> Callable[[], Any]:
        theta_0, labels = jax.tree.map(lambda a: a[0], thetas), np.zeros(N, np.int32)
        return lambda: learner.fit(theta_0, task.train, labels, rows, num_steps, key)

    many = min(learner.most, 9)
    base = timed(fit(1))
    step = max(timed(fit(many)) - base, 0.0) / max(many - 1, 1)
    one = lambda n: R * (base + step * training.steps(n))  # noqa: E731
    test = timed(lambda: learner.accuracies(thetas))
    seconds = 0.0
    for query in queries:
        score = learner.score_with(resolve(query, QUERIES, "query"), rounds.passes)
        seconds += len(planned.sizes) * timed(lambda score=score: score(thetas, key))
        seconds += sum(one(n) + test for n in planned.num_labels)
    return seeds * seconds + (one(N) + test if full else 0.0)


class _Run:
    """One query with one seed: its pool, what it found so far, and its folder."""

    def __init__(
        self,
        learner: Learner,
        planned: Plan,
        rounds: Rounds,
        query: Any,
        seed: int,
        oracle: Oracle | None,
        folder: str | Path | None,
    ):
        task = learner.task
        self.learner, self.plan, self.rounds = learner, planned, rounds
        self.query: Query = resolve(query, QUERIES, "query")
        self.oracle = oracle or simulated(task.labels, task.num_classes)
        self.folder = None if folder is None else Path(folder)
        self.history: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []  # in the order asked
        self.network, self.done = None, False
        if planned.start is not None:
            rounds = dataclasses.replace(rounds, start=planned.start)
        self.about = _identity(task, learner.training) | described(rounds)
        self.about |= {"query": described(query), "seed": seed}
        self.about["oracle"] = _told(self.oracle)
        # Not of the query: with the same seed all begin with the same network.
        self.key = jax.random.key(seed)
        if self.folder and checkpoints.latest_step(self.checkpoints) is not None:
            self._restore()
        else:
            self.pool = self._started()
            self._save(self.pool, None)

    @property
    def checkpoints(self) -> Path:
        assert self.folder is not None
        return self.folder / "checkpoints"

    def _started(self) -> Pool:
        ids, task = self.plan.start, self.learner.task
        if ids is None:
            select = SELECTIONS[STARTS[self.rounds.start]]
            key = jax.random.fold_in(self.key, _START)
            nothing = np.zeros((len(task.labels), 1))
            # "random" reads none of the labels.
            ids = select(nothing, task.labels, self.plan.num_start, key)
        self.asked += [{"round": 0, "id": int(i), "score": None} for i in ids]
        return Pool.unlabelled(len(task.labels)).ask(np.asarray(ids))

    def _arrays(self, pool: Pool, network: Any) -> dict[str, Any]:
        arrays = {f.name: getattr(pool, f.name) for f in dataclasses.fields(Pool)}
        if self.learner.training.warm_start != "none":
            arrays["network"] = self._blank() if network is None else network
        return arrays

    def _blank(self) -> Any:
        """Of the shape of what `train` gives."""
        keys = jax.random.split(jax.random.key(0), self.learner.training.num_inits)
        shapes = jax.eval_shape(self.learner.init, keys)
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)

    def _save(self, pool: Pool, network: Any) -> None:
        self.pool = pool
        if self.folder is None:
            return
        facts = {"history": self.history, "asked": self.asked, "done": self.done}
        facts["trained"] = network is not None
        arrays = jax.device_get(self._arrays(pool, network))
        step = pool.round + self.done
        checkpoints.save(self.checkpoints, step, arrays, facts, self.about)

    def _restore(self) -> None:
        like = self._arrays(Pool.unlabelled(len(self.learner.task.labels)), None)
        arrays, facts = checkpoints.restore(self.checkpoints, like, self.about)
        network = arrays.pop("network", None)
        self.pool = Pool(**arrays)
        self.network = network if facts["trained"] else None
        self.history, self.asked = facts["history"], facts["asked"]
        self.done = facts["done"]

    def go(self, on_round: Callable, report: Report) -> Acquired:
        """Runs, or goes on with, the rounds."""
        if not self.done:
            self.began = time.perf_counter()
            self.pool = ask_in_rounds(
                self.query,
                self.pool,
                self.oracle,
                self.plan.sizes,
                lambda pool, key, before: self.learner.train(
                    pool,
                    key,
                    before,
                    lambda done, total: report(f"round {pool.round}", done, total),
                ),
                self.learner.score_with(self.query, self.rounds.passes),
                self.key,
                before=self.network,
                report=lambda now: on_round(self._measured(now)),
                save=self._save,
            )
            self._write_asked()
            self.done = True
            self._save(self.pool, self.network)
        pool = {f.name: getattr(self.pool, f.name) for f in dataclasses.fields(Pool)}
        return Acquired(**pool, history=self.history, asked=self.asked)

    def _measured(self, now: Round) -> dict[str, Any]:
        self.network = now.network
        accuracies = np.asarray(self.learner.accuracies(now.network), float)
        ids, texts = np.flatnonzero(now.pool.labelled).tolist(), self._texts
        picked, tied = now.picked, None
        if picked is not None:
            if self.query.passes:
                tied = int(picked.n_tied_at_cut)
            self.asked += [
                {"round": now.number + 1, "id": int(i), "score": float(score)}
                for i, score in zip(picked.indices, picked.scores, strict=True)
            ]
        self.history.append(
            {
                "round": now.number,
                "num_labelled": len(ids),
                "n_tied_at_cut": tied,
                "accuracies": accuracies.tolist(),
                "bytes": sum(len(texts[i].encode()) for i in ids),
                "seconds": time.perf_counter() - self.began,
            }
        )
        self.began = time.perf_counter()
        return self.history[-1]

    @property
    def _texts(self) -> Sequence[str]:
        return self.learner.task.dataset.train.texts

    def _write_asked(self) -> None:
        """What was asked, in order, with the answers."""
        if self.folder is None:
            return
        names = self.learner.task.dataset.label_names
        with open(self.folder / "asked.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("round", "id", "score", "label", "text"))
            for item in self.asked:
                label = names[self.pool.labels[item["id"]]]
                score = "" if item["score"] is None else item["score"]
                text = self._texts[item["id"]]
                table.writerow((item["round"], item["id"], score, label, text))


def _identity(task: Task, training: Training) -> dict[str, Any]:
    """What a checkpoint must agree on: content, not names."""
    told = {"data": task.sha256, "network": task.described}
    return told | described(training)


def _told(oracle: Oracle) -> Any:
    """Of the user's own the name: it may be mended between two rounds."""
    if dataclasses.is_dataclass(oracle):
        return described(oracle)
    return getattr(oracle, "__name__", type(oracle).__name__)
