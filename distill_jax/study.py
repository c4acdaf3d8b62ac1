"""An Optuna study in a folder: one process at a time, and nothing lost at a stop.

It is an SQLite file in which Optuna keeps numbers, dates and JSON text. (It pickles in
its CMA-ES sampler and in journals kept by Redis, which are not used.)
"""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import results as result_rows


def need_optuna():
    """Imports Optuna, which takes a moment; ModuleNotFoundError says how to get it."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'tuning needs Optuna: pip install "distill_jax[tune]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def opened(
    folder: str | Path | None,
    settings: dict[str, Any],
    *,
    warmup: int,
    startup_trials: int,
) -> Iterator[Any]:
    """The study in a folder, made where there is none.

    Trials that a process was at when it ended are given up.

    Args:
        folder: made if absent; nothing is kept where it is None.
        settings: what the study must agree on; what JSON can hold.
        warmup: reports up to this step stop no trial early; below 0: none does.
        startup_trials: completed trials before any is stopped early.

    Yields:
        An `optuna.Study` that maximises, with a user attribute `id`.

    Raises:
        ValueError: for a study of other settings, a file of another version of
            Optuna, or a second process.
        OSError: for a file that is no study, or a full disk.
    """
    optuna = need_optuna()
    pruner = optuna.pruners.NopPruner()
    if warmup >= 0:
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=startup_trials, n_warmup_steps=warmup
        )
    with _storage(optuna, folder) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name="tune",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        _agree(study, settings, folder)
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study


def ask(study, number: int, *, seed: int, startup_trials: int, first: dict[str, Any]):
    """A trial to make, by the Tree-structured Parzen Estimator.

    What it suggests depends on the trials that are done and on `number`, not on
    whether a process was stopped between them.

    Args:
        study: from `opened`.
        number: trials that are done.
        seed: of the sampler, with `number`.
        startup_trials: these are random.
        first: the parameters of trial 0.

    Returns:
        An `optuna.Trial`.
    """
    optuna = need_optuna()
    state = np.random.SeedSequence([seed, number]).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=startup_trials, seed=int(state[0])
    )
    if number == 0 and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(first)
    return study.ask()


def tell(study, trial, row: result_rows.Row) -> None:
    """Ends a trial; its row is kept in the study too, for `rows_of`."""
    optuna = need_optuna()
    trial.set_user_attr("row", row)
    if row["state"] == "complete":
        study.tell(trial, row["accuracy_mean"])
    else:  # the sampler ranks it below those that were completed
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def rows_of(study) -> list[result_rows.Row]:
    """The rows of the trials that are done, in their order."""
    state = need_optuna().trial.TrialState
    done = study.get_trials(states=(state.COMPLETE, state.PRUNED))
    return [trial.user_attrs["row"] for trial in done]


def _agree(study, settings: dict[str, Any], folder: Any) -> None:
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("id", uuid.uuid4().hex[:12])
        study.set_user_attr("settings", settings)
        return
    for name in sorted({*before, *settings}):
        told = [repr(d[name]) if name in d else "absent" for d in (before, settings)]
        if told[0] != told[1]:
            raise ValueError(
                f"{folder} has a study with another {name}, {told[0]}, now {told[1]}: "
                "use those settings or another folder"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuses a second process in a folder; the lock ends with the process."""
    lock = sqlite3.connect(folder / "lock.db", timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"another process is tuning in {folder} ({error}): wait for it, or use "
                "another folder"
            ) from error
        yield
    finally:
        lock.close()


@contextmanager
def _storage(optuna, folder: str | Path | None) -> Iterator[Any]:
    if folder is None:
        yield optuna.storages.InMemoryStorage()
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), _file(optuna, folder / "study.db") as storage:
        yield storage


@contextmanager
def _file(optuna, path: Path) -> Iterator[Any]:
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    url = URL.create("sqlite", database=str(path)).render_as_string()
    try:
        storage = optuna.storages.RDBStorage(url)
    except SQLAlchemyError as error:
        raise OSError(
            f"{path} cannot be read as a study ({error.__cause__ or error}): delete "
            "it, or use another folder"
        ) from error
    except RuntimeError as error:  # how Optuna tells of a file of another version
        raise ValueError(
            f"{path} is of another version of Optuna ({error}): use that one, or "
            "another folder"
        ) from error
    try:
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise OSError(
            f"{path} cannot be written ({cause}): free some space, and give the same "
            "command"
        ) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()
