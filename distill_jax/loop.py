"""The host loop: batches in, meta-step, validate, checkpoint, resume. No maths.

Everything the loop does at a step depends on the step alone: its keys, its batch, and
whether it validates, saves or reports. So a run that was killed and resumed does what
it would have done.
"""

import dataclasses
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import checkpoints as ckpt
from distill_jax.parallel import StepFn, on_any_host
from distill_jax.types import Batch, MetaInfo, MetaState

# No meta-step ever has this number.
_VALIDATION = np.uint32(2**32 - 1)


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
        report_every: how often the losses are fetched from the device.
        max_skipped_in_a_row: meta-gradients that are not finite, before giving up.
        select_from: the first that may be the best; at most `num_meta_steps`.
    """

    num_meta_steps: int
    validate_every: int
    checkpoint_every: int
    report_every: int = 10
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
    step_fn: StepFn,
    state: MetaState,
    next_batch: Callable[[int], Batch],
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

    Ctrl-C and SIGTERM end the run after the meta-step at hand, with a checkpoint; a
    second one ends it at once.

    Args:
        step_fn: `(state, keys [N], batch) -> (state, info)`, from `parallel`.
        state: from `core.meta_init`. It is copied, not donated.
        next_batch: the real batch of a meta-step, a pure function of its number.
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
            has a run, without `resume`; `resume` without a folder.
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
        pending: list[MetaInfo] = []  # still on the device: fetching waits for it
        losses: list[float] = []
        while step < schedule.num_meta_steps:
            keys = jax.random.split(jax.random.fold_in(key, step), num_inits)
            state, info = step_fn(state, keys, next_batch(step))
            pending.append(info)
            step += 1
            at_end = step == schedule.num_meta_steps
            validates = at_end or step % schedule.validate_every == 0
            saves = at_end or step % schedule.checkpoint_every == 0
            reports = validates or step % schedule.report_every == 0
            stops = on_any_host(bool(caught))
            if not (saves or reports or stops):
                continue
            losses += record.fetch(pending, state, step, schedule, checkpoints)
            pending = []
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

    def fetch(self, pending, state, step, schedule, folder) -> list[float]:
        """Takes in the infos of the last steps; gives the losses of the good ones."""
        losses = []
        first = step - len(pending) + 1
        for k, info in enumerate(jax.device_get(pending), start=first):
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
    last = ckpt.latest_step(folder)
    if last is not None and not resume:
        raise ValueError(
            f"{folder} already has a run, at step {last}: resume it, or use another "
            "folder"
        )
    return last


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
