"""What every benchmark does: pin the process, take turns, print, and append rows.

Neither JAX nor PyTorch is imported before it is needed, and the library imports JAX: a
process is pinned first, and one whose memory is measured has only one of the two.
"""

import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

VOCABULARY = 10_000  # words
WIDTH = 100  # of an embedding
SCALE = 0.3  # of a word vector's entries, as in GloVe; at 1 the unroll diverges


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians in seconds; `wall` and `cpu` are of the same calls."""

    wall: float
    cpu: float


def chosen(names: Sequence[str], known: Mapping[str, Any], what: str) -> list[str]:
    """The known names that are asked for by name, by their beginning, or by `all`.

    Raises:
        ValueError: on a name that is not known.
    """
    found: list[str] = []
    for name in names:
        exact = [k for k in known if k == name]
        hits = exact or [k for k in known if name == "all" or k.startswith(name + "_")]
        if not hits:
            raise ValueError(
                f"unknown {what} {name!r}, known: all, {', '.join(sorted(known))}"
            )
        found += [k for k in hits if k not in found]
    return found


def runnable(names: Sequence[str], known: Mapping[str, Any], threads: int) -> list[str]:
    """The implementations that are asked for, without PyTorch's beside an accelerator.

    Raises:
        ValueError: on a name that is not known.
        ModuleNotFoundError: if one needs PyTorch, and it is not installed.
    """
    import jax

    found = chosen(names, known, "implementation")
    if jax.default_backend() != "cpu":
        print(f"PyTorch runs on CPUs here, not beside {jax.default_backend()}")
        found = [name for name in found if not name.startswith("torch")]
    theirs = [name for name in found if name.startswith("torch")]
    if theirs:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{theirs[0]} needs PyTorch, which is not installed: "
                'pip install "distill_jax[torch]", or name other --implementations'
            ) from error
        torch.set_num_threads(threads)
    return found


def pin(threads: int) -> int:
    """Keeps this process on its first `threads` cores. Call it before JAX is imported.

    Returns:
        The threads it may use from now on.

    Raises:
        ValueError: if it may not use that many cores, or JAX is here already.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    if "jax" in sys.modules or "torch" in sys.modules:
        raise ValueError("pin before jax or torch is imported: their threads are made")
    if not hasattr(os, "sched_setaffinity"):
        print("this system cannot pin a process: XLA may use every core")
        return threads
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise ValueError(
            f"threads is {threads}, but this process may use {len(allowed)} cores"
        )
    os.sched_setaffinity(0, set(allowed[:threads]))
    return threads


def time_in_turn(ready: Mapping[str, Any], repeats: int) -> dict[str, Timing]:
    """Median wall and CPU seconds of each `run()`, in turn, `repeats` times.

    Raises:
        ValueError: if repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(repeats):
        for name, one in ready.items():
            cpu, wall = time.process_time(), time.perf_counter()
            one.run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            seen[name].append((wall, cpu))
    return {
        name: Timing(*map(statistics.median, zip(*times, strict=True)))
        for name, times in seen.items()
    }


def cpu_clock(threads: int) -> bool:
    """Is CPU time what rows hold? On one thread it is: a busy machine adds nothing."""
    import jax

    return threads == 1 and jax.default_backend() == "cpu"


def matmul_peak(threads: int = 1, size: int = 1024, repeats: int = 10) -> float:
    """Flops a second of the fastest of several float32 products, by the rows' clock."""
    import jax
    import jax.numpy as jnp

    clock = time.process_time if cpu_clock(threads) else time.perf_counter
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b).lower(a, a).compile()
    best = math.inf
    for _ in range(repeats):
        start = clock()
        product(a, a).block_until_ready()
        best = min(best, clock() - start)
    return 2 * size**3 / best


def measured_on() -> Row:
    """The fields of a row that say which code ran, and where."""
    from distill_jax import results

    return {"commit": results.commit(), "device": results.device()}


def append(path: str | Path | None, rows: Sequence[Row]) -> None:
    """Appends rows to a file, if there is one."""
    if path is not None:
        from distill_jax import results

        results.append(path, rows)


def show(value: float | None, form: str, scale: float = 1.0) -> str:
    """A number of a table in units of `scale`; `-` for none."""
    return "-" if value is None else format(value / scale, form)


def columns(heads: str, lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines below their heads, the first `left` columns flush left."""
    table = [heads.split(), *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


@contextmanager
def told_in_a_line(argv: Sequence[str]) -> Iterator[None]:
    """Ends the process with one line on stderr where a main raises.

    Args:
        argv: what absl passes to main; more than the program is refused.
    """
    from absl import app, logging

    if argv[1:]:
        raise app.UsageError(f"no arguments but flags, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    errors = ArithmeticError, ImportError, OSError, RuntimeError, ValueError
    try:
        yield
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def define_rows(name: str) -> None:
    """The flags of where rows go: `rows_path` reads them."""
    from absl import flags

    flags.DEFINE_string(
        "results", None, f"Where rows are appended; runs/{name}.jsonl unless given."
    )
    flags.DEFINE_bool(
        "publish", False, f"Append to results/{name}.jsonl, the rows of the project."
    )


def rows_path(name: str) -> Path:
    """Where rows go, by --results and --publish."""
    from absl import flags

    from distill_jax import results

    f = flags.FLAGS
    return results.place(name, publish=f.publish, given=f.results)
