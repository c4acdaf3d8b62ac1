"""Ctrl-C and SIGTERM: a run ends with what it has, after the step at hand."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after saving.

    Attributes:
        signal: `signal.SIGINT` or `signal.SIGTERM`.
        step: meta-steps done.
    """

    def __init__(self, message: str, caught: signal.Signals, step: int):
        super().__init__(message)
        self.signal, self.step = caught, step


def interrupted(caught: list[signal.Signals], step, schedule, folder) -> Interrupted:
    by = caught[0] if caught else signal.SIGTERM  # else: another host was told
    done = f"stopped by {by.name} after step {step} of {schedule.num_meta_steps}"
    if folder is None:
        return Interrupted(f"{done}; nothing was saved: no checkpoint folder", by, step)
    return Interrupted(f"{done}; saved in {folder}: resume to go on", by, step)


@contextmanager
def caught_signals() -> Iterator[list[signal.Signals]]:
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
