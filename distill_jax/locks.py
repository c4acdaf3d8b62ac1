"""Which process has which piece of work, without a server.

A lock is a file that its process holds; the system frees it when the process ends,
however it ends, so a lock cannot go stale.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Locks(NamedTuple):
    """The locks of those who share a file of rows.

    Attributes:
        folder: of the locks; made at the first lock.
        name: of the file, as one folder may serve several.
    """

    folder: Path
    name: str

    @contextmanager
    def of(self, key: str) -> Iterator[bool]:
        """Whether this process has that work now; nobody else has, while it does."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{self.name}-{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def file(self) -> Iterator[None]:
        """No other process reads or writes the rows meanwhile."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{self.name}.lock"):
            yield
