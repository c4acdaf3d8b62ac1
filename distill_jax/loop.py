"""The host loop: rows in, meta-steps, validate, checkpoint, resume. No maths.

Everything the loop does at a step depends on the step alone: its keys, its rows, and
whether it validates, saves or reports. So a run that was killed and resumed does what
it would have done. How many steps a dispatch takes follows the clock and changes no bit
of the result.
"""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import checkpoints as ckpt
from distill_jax.parallel import MetaSteps, first_says, on_any_host
from distill_jax.types import Batch, MetaInfo, MetaState

# No meta-step ever has this number.
_VALIDATION = np.uint32(2**32 - 1)

REPORT_EVERY = 10  # meta-steps, unless told otherwise

# Of a dispatch: a signal waits for its end.
_SECONDS = 0.5


class NonFiniteMetaGradient(ArithmeticError):
    """Several meta-gradients in a row were not finite; says which part and why."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after saving.

    Attributes:
        signal: `signal.SIGINT` or `signal.SIGTERM`.
        step: meta-steps done.
    """

    def __init__(self, message: str, caught: signal.Signals, step: int):
        super().__init__(message)
        self.signal, self.step = caught, step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When to do what, in meta-steps.

    Attributes:
        num_meta_steps: how many in all.
        validate_every: also validated before the first and after the last step.
        checkpoint_every: also saved before the first and after the last step.
        report_every: how often `report` is called; a dispatch takes no more steps.
        max_skipped_in_a_row: meta-gradients that are not finite, before giving up.
        select_from: the first that may be the best; at most `num_meta_steps`.
    """

    num_meta_steps: int
    validate_every: int
    checkpoint_every: int
    report_every: int = REPORT_EVERY
    max_skipped_in_a_row: int = 5
    select_from: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("num_meta_steps", "select_from") else 1
            value = getattr(self, field.name)
            if value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")
        if self.select_from > self.num_meta_steps:
            raise ValueError(
                f"select_from must be at most the {self.num_meta_steps} meta-steps, "
                f"got {self.select_from}"
            )

    def until_event(self, step: int) -> int:
        """Meta-steps from `step` to the next that validates, saves or reports."""
        every = (self.validate_every, self.checkpoint_every, self.report_every)
        ahead = [e - step % e for e in every]
        return min(*ahead, self.num_meta_steps - step)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `report` is told.

    Attributes:
        step: meta-steps done.
        num_meta_steps: of how many.
        meta_loss: mean since the last report, in nats; None if all were skipped.
        skipped_in_a_row: meta-steps skipped since the last good one.
        best_accuracy: on validation, in [0, 1]; -1 before `select_from`.
        best_step: where it was reached.
        row: the new row of the history, where this step validated.
    """

    step: int
    num_meta_steps: int
    meta_loss: float | None
    skipped_in_a_row: int
    best_accuracy: float
    best_step: int
    row: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """What a run gives, as numpy arrays.

    Attributes:
        best: the distilled data with the best validation accuracy (the first such).
        best_accuracy: in [0, 1], on validation.
        best_step: meta-steps that made it.
        history: one row for each validation: `step`, `accuracy`, `meta_loss` and
            `grad_norm` (means since the row before; None where there is none),
            `skipped` (since the start), `lr_min`, `lr_mean`, `lr_max`.
        state: the last state.
        resumed_from: the step of the checkpoint it began with, None for a new run.
    """

    best: Any
    best_accuracy: float
    best_step: int
    history: list[dict[str, Any]]
    state: MetaState
    resumed_from: int | None


def distill(
    steps: MetaSteps,
    state: MetaState,
    next_rows: Callable[[int], np.ndarray],
    train: Batch,
    validate: Callable[[Any, jax.Array], float],
    schedule: Schedule,
    *,
    key: jax.Array,
    num_inits: int,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    fingerprint: dict[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> DistillResult:
    """Takes meta-steps, keeps the best distilled data, saves, and resumes.

    Ctrl-C and SIGTERM end the run after the dispatch at hand, with a checkpoint; a
    second one ends it at once. A dispatch takes half a second, or one meta-step where
    that is longer; with several hosts, up to `report_every` meta-steps, as their
    clocks differ.

    Args:
        steps: from `parallel.meta_steps`.
        state: from `core.meta_init`. It is copied, not donated.
        next_rows: `(k) -> integers [R]`, the rows of `train` that are the real batch of
            meta-step k, a pure function of its number; R is the same for all.
        train: the real examples `[N, ...]`, put on the devices once.
        validate: `(distilled, key) -> accuracy` in [0, 1], on validation data only.
            The key is the same each time, so that accuracies compare.
        schedule: when to do what.
        key: step k draws its theta_0 from `split(fold_in(key, k), num_inits)`.
        num_inits: how many theta_0 in a meta-step, N.
        checkpoints: a folder to save in; nothing is saved where it is None.
        resume: go on from the last checkpoint there, if there is one.
        fingerprint: the settings that make this run what it is; what JSON can hold.
            A checkpoint with others is refused.
        report: called every `report_every` steps and after each validation.

    Returns:
        The best distilled data, the history and the last state.

    Raises:
        ValueError: for a checkpoint of another run or shape; a folder that already
            has a run, without `resume`; `resume` without a folder; rows that `train`
            does not have.
        NonFiniteMetaGradient: after `max_skipped_in_a_row` skipped meta-steps.
        Interrupted: after Ctrl-C or SIGTERM.
        checkpoints.CheckpointNotSaved: on a full disk. The last checkpoint survives.
    """
    if num_inits < 1:
        raise ValueError(f"num_inits must be at least 1, got {num_inits}")
    state = _to_host(state)
    settings = (fingerprint or {}) | {
        "num_inits": num_inits,
        "key": _key_data(key).tolist(),
    }
    _require_json(settings)
    last = _last_checkpoint(checkpoints, resume)
    record = _Record(state.distilled)
    if last is not None:
        state, record = _restored(checkpoints, state, settings)
    step = int(state.step)
    if step > schedule.num_meta_steps:
        raise ValueError(
            f"the checkpoint in {checkpoints} is at step {step}, beyond "
            f"num_meta_steps {schedule.num_meta_steps}: ask for more, or use another "
            "folder"
        )
    validation_key = jax.random.fold_in(key, _VALIDATION)

    def validated() -> dict[str, Any]:
        host = _to_host(state)
        accuracy = float(validate(host.distilled, validation_key))
        return record.add(host, accuracy, chosen=step >= schedule.select_from)

    def save() -> None:
        if checkpoints is not None:
            arrays = {"state": _to_host(state), "best": record.best}
            ckpt.save(checkpoints, step, arrays, record.facts(), settings)

    def progress(losses: list[float], row: dict[str, Any] | None) -> Progress:
        return Progress(
            step,
            schedule.num_meta_steps,
            _mean(losses),
            record.skipped_in_a_row,
            record.best_accuracy,
            record.best_step,
            row,
        )

    with _caught_signals() as caught:
        if last is None:
            row = validated()
            save()
            report(progress([], row))
        train = steps.place(train)
        losses: list[float] = []
        at_once = 1
        while step < schedule.num_meta_steps:
            n = min(at_once, schedule.until_event(step))
            rows = _rows(next_rows, step, n, schedule.report_every, len(train.y))
            began = time.perf_counter()
            state, infos = steps.run(state, key, rows, n, train, num_inits)
            infos = _unstacked(jax.device_get(infos))[:n]  # waits
            at_once = _next_size(n, time.perf_counter() - began, schedule.report_every)
            losses += record.take(infos, state, step, schedule, checkpoints)
            step += n
            at_end = step == schedule.num_meta_steps
            validates = at_end or step % schedule.validate_every == 0
            saves = at_end or step % schedule.checkpoint_every == 0
            reports = validates or step % schedule.report_every == 0
            stops = on_any_host(bool(caught))
            row = validated() if validates else None
            if saves or stops:
                save()
            if reports:
                report(progress(losses, row))
                losses = []
            if stops:
                raise _interrupted(caught, step, schedule, checkpoints)
    return DistillResult(
        record.best,
        record.best_accuracy,
        record.best_step,
        record.history,
        _to_host(state),
        last,
    )


@dataclasses.dataclass
class _Record:
    """What the host remembers of a run, besides the state."""

    best: Any
    best_accuracy: float = -1.0
    best_step: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    window: list[list[float]] = dataclasses.field(default_factory=list)
    skipped_in_a_row: int = 0

    def facts(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "best"]
        return {name: getattr(self, name) for name in names}

    def take(self, infos, state, step, schedule, folder) -> list[float]:
        """Takes in what the steps after `step` report; gives the good losses."""
        losses = []
        for k, info in enumerate(infos, start=step + 1):
            loss, norm = float(info.meta_loss), float(info.grad_norm)
            leaves = map(bool, jax.tree.leaves(info.finite))
            if math.isfinite(loss) and math.isfinite(norm) and all(leaves):
                self.skipped_in_a_row = 0
                self.window.append([loss, norm])
                losses.append(loss)
                continue
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= schedule.max_skipped_in_a_row:
                raise _non_finite(info, state, k, self.skipped_in_a_row, folder)
        return losses

    def add(
        self, state: MetaState, accuracy: float, *, chosen: bool = True
    ) -> dict[str, Any]:
        """Adds a row to the history; keeps what is best so far, of the `chosen`."""
        if not 0 <= accuracy <= 1:
            raise ValueError(f"validate must return a number in [0, 1], got {accuracy}")
        step = int(state.step)
        lr = _step_sizes(state.distilled)
        row = {
            "step": step,
            "accuracy": accuracy,
            "meta_loss": _mean([loss for loss, _ in self.window]),
            "grad_norm": _mean([norm for _, norm in self.window]),
            "skipped": int(state.skipped),
            "lr_min": None if lr is None else float(lr.min()),
            "lr_mean": None if lr is None else float(lr.mean()),
            "lr_max": None if lr is None else float(lr.max()),
        }
        self.history.append(row)
        self.window = []
        if chosen and accuracy > self.best_accuracy:
            self.best, self.best_accuracy = state.distilled, accuracy
            self.best_step = step
        return row


def _rows(next_rows, step: int, n: int, most: int, num_examples: int) -> np.ndarray:
    """The rows of `n` steps, `[most, R]`: one shape, so one program."""
    rows = np.stack([np.asarray(next_rows(k)) for k in range(step, step + n)])
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"next_rows must return integers [R], got {rows.dtype} "
            f"{list(rows.shape[1:])}"
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < num_examples:
        raise ValueError(
            f"next_rows must return rows in 0 .. {num_examples - 1}, got "
            f"{rows.min()} .. {rows.max()} from step {step}"
        )
    return np.pad(rows, [(0, most - n), (0, 0)])


def _next_size(n: int, seconds: float, most: int) -> int:
    """How many steps to take at once, after `n` in so many `seconds`."""
    if jax.process_count() > 1:
        return most  # the same on every host
    return max(1, min(most, int(n * _SECONDS / seconds)))


def _unstacked(infos: MetaInfo) -> list[MetaInfo]:
    leaves, structure = jax.tree.flatten(infos)
    return [structure.unflatten(one) for one in zip(*leaves, strict=True)]


def _to_host(tree):
    """A copy in numpy: a view would keep the step from reusing the donated state."""
    return jax.tree.map(np.array, jax.device_get(tree))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _step_sizes(distilled) -> np.ndarray | None:
    lr = getattr(distilled, "lr", None)
    return None if lr is None or not np.size(lr) else np.asarray(lr)


def _key_data(key: jax.Array) -> np.ndarray:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key)


def _require_json(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"fingerprint[{name!r}] must be what JSON can hold, got {value!r}"
            ) from None


def _last_checkpoint(folder: str | Path | None, resume: bool) -> int | None:
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the checkpoints, got None")
        return None
    last = _agreed_last_step(folder)
    if last is not None and not resume:
        raise ValueError(
            f"{folder} already has a run, at step {last}: resume it, or use another "
            "folder"
        )
    return last


def _agreed_last_step(folder: str | Path) -> int | None:
    """Process 0 says whether there is one: reading it is a collective."""
    if not first_says(Path(folder).is_dir()):
        return None
    if not Path(folder).is_dir():
        raise ValueError(
            f"process 0 sees the checkpoints in {folder}, process "
            f"{jax.process_index()} does not: use a folder that all hosts share"
        )
    last = ckpt.latest_step(folder)
    last = first_says(-1 if last is None else last)
    return None if last < 0 else last


def _restored(folder, state: MetaState, settings) -> tuple[MetaState, _Record]:
    like = {"state": state, "best": state.distilled}
    arrays, facts = ckpt.restore(folder, like, settings)
    return arrays["state"], _Record(arrays["best"], **facts)


def _non_finite(info: MetaInfo, state: MetaState, step, in_a_row, folder):
    bad = [
        jax.tree_util.keystr(path, simple=True, separator=".") or "distilled"
        for path, fine in jax.tree_util.tree_leaves_with_path(info.finite)
        if not fine
    ]
    lr = _step_sizes(_to_host(state.distilled))
    what = f"of {', '.join(bad)}" if bad else "in its loss or its norm"
    size = "" if lr is None else f", largest inner step size {float(lr.max()):.3g}"
    kept = (
        "No checkpoint was asked for"
        if folder is None
        else f"The checkpoint of step {ckpt.latest_step(folder)} is in {folder}"
    )
    return NonFiniteMetaGradient(
        f"the meta-gradient was not finite for {in_a_row} meta-steps in a row (to "
        f"step {step}): {what}; meta_loss {float(info.meta_loss):.3g}{size}. Lower the "
        f"first inner step size, clip the meta-gradient, or make fewer passes. {kept}"
    )


def _interrupted(caught: list[signal.Signals], step, schedule, folder) -> Interrupted:
    by = caught[0] if caught else signal.SIGTERM  # else: another host was told
    done = f"stopped by {by.name} after step {step} of {schedule.num_meta_steps}"
    if folder is None:
        return Interrupted(f"{done}; nothing was saved: no checkpoint folder", by, step)
    return Interrupted(f"{done}; saved in {folder}: resume to go on", by, step)


@contextmanager
def _caught_signals() -> Iterator[list[signal.Signals]]:
    """Notes the first SIGINT or SIGTERM; raises at the second.

    A step that is cut short has already given its state away.
    """
    caught: list[signal.Signals] = []

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler or signal.SIG_DFL)
