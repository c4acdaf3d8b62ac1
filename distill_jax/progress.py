"""Progress bars of what takes longer than two seconds."""

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
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.what = None
