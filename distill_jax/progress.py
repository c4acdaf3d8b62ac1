"""What a run tells those who wait: bars of what takes long, and its cost."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Bars:
    """Shows `(what, done, of how many)` as a bar on stderr, one at a time.

    A bar appears after two seconds, with the time that is left, and goes at its end.
    """

    def __init__(self):
        self.bar: Any = None
        self.what: tuple[str, int] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.what != (what, total) or (self.bar is not None and done < self.bar.n):
            self.close()
            self.what = (what, total)
            self.bar = tqdm(total=total, desc=what, leave=False, delay=2, mininterval=1)
        assert self.bar is not None
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.what = None


def duration(seconds: float) -> str:
    """Such as `90 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def memory() -> str:
    """The most that this process has held so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GB at its peak"


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[Any], None]]:
    """Writes what validations report for TensorBoard, if there is a folder."""
    if folder is None:
        yield lambda progress: None
        return
    from tensorboardX import SummaryWriter

    def report(progress: Any) -> None:
        for name, value in (progress.row or {}).items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, progress.step)

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield report
