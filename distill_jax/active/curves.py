"""Learning curves: several queries with several seeds, and a row for each round."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import results
from distill_jax.active.pool import Oracle
from distill_jax.active.rounds import Rounds, plan
from distill_jax.active.runs import acquire, all_labels
from distill_jax.active.training import Training
from distill_jax.fit import majority_accuracy
from distill_jax.names import described
from distill_jax.results import Result
from distill_jax.task import Task
from distill_jax.train import Report


def learning_curves(
    task: Task,
    queries: Mapping[str, Any],
    seeds: Sequence[int] = (0, 1, 2),
    oracle: Callable[[int], Oracle] | None = None,
    *,
    rounds: Rounds = Rounds(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    full: bool = True,
    folder: str | Path | None = None,
    rows: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    preset: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    report: Report = lambda what, done, total: None,
) -> list[Result]:
    """Runs `acquire` for each seed and query, and goes on with what is in `folder`.

    Args:
        task, rounds, training, report: as for `acquire`.
        queries: names or `Query`s, by the name that rows have.
        seeds: of the runs; one seed is one start set, the same for all queries.
        oracle: `seed -> oracle`; the labels of train unless given.
        full: train on all labels of train too, with the first seed.
        folder: where runs are kept: `folder/QUERY-SEED`, and `folder/full`.
        rows: a `.jsonl` file, to which the rows of a run are appended at its end.
        config: what rows say of further settings.
        preset: the name of the paper whose settings they are.
        say: told of each round.

    Returns:
        A `Result` for each round, those of finished runs in `folder` too.

    Raises:
        Exception: as `acquire`, and what the oracle raises.
    """
    plan(task, rounds, list(queries.values()))  # before any work
    level, found = None, []
    settings = _settings(rounds) | _settings(training)
    where = lambda name: None if folder is None else Path(folder) / name  # noqa: E731
    shared: dict[str, Any] = {"training": training, "report": report}
    if full:
        kept = where("full")
        accuracies = all_labels(task, seed=seeds[0], folder=kept, **shared)
        level = float(accuracies.mean())
        say(f"All {len(task.labels):,} labels: {level:.1%} on test.")
    for seed in seeds:
        for name, query in queries.items():

            def told(now, name=name, seed=seed):
                say(
                    f"{name}, seed {seed}, round {now['round']}: "
                    f"{now['num_labelled']:,} labels, {np.mean(now['accuracies']):.1%}"
                )

            run = acquire(
                task,
                query,
                oracle and oracle(seed),
                rounds=rounds,
                seed=seed,
                folder=where(f"{name}-{seed}"),
                on_round=told,
                **shared,
            )
            facts = {"method": name, "seed": seed, "full": level, "preset": preset}
            facts["config"] = dict(config or {}) | settings
            fresh = _rows(task, run.history, facts)
            if rows is not None:
                _append_once(Path(rows), fresh)
            found += fresh
    return found


def _settings(group: Any) -> dict[str, Any]:
    """Those that are flags, as JSON has them."""
    return {
        f.name: str(value)
        if isinstance(value := getattr(group, f.name), Path)
        else described(value)
        for f in dataclasses.fields(group)
        if "help" in f.metadata
    }


def _rows(
    task: Task, history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> list[Result]:
    """A row for each round of a run."""
    dataset, C = task.dataset, task.num_classes
    majority = majority_accuracy(dataset.test.labels, dataset.validation.labels, C)
    return [
        results.build(
            experiment="active_learning",
            dataset=dataset.name,
            model=task.model_name,
            examples=found["num_labelled"],
            num_classes=C,
            num_train=len(task.labels),
            labels="hard",
            training="standard",
            majority=majority,
            data=task.sha256,
            **facts,
            **found,
        )
        for found in history
    ]


def _append_once(path: Path, rows: Sequence[Result]) -> None:
    """Appends the rows, unless a run that was killed right after had done so."""

    def told(row):
        free = ("seconds", "device", "commit", "command")
        return {k: results.portable(v) for k, v in row.items() if k not in free}

    if told(rows[-1]) not in [told(row) for row in results.read(path)]:
        results.append(path, rows)
