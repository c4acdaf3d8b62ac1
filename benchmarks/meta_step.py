"""Time and memory of one meta-step, beside PyTorch double backward of the same.

    python -m benchmarks.meta_step
    python -m benchmarks.meta_step --configs=text_cnn_sst5,bag --repeats=3
    python -m benchmarks.meta_step --memory

A meta-step here is inner unroll, real-data loss, and the full gradient for sentences,
labels and step sizes. All implementations of a configuration take turns in one run, so
that a machine that drifts drifts for all; rows hold medians. One CPU thread: the
process is pinned before JAX starts, and `seconds_median` is then CPU time, which a busy
machine does not inflate; with more threads, or on an accelerator, it is wall time.
PyTorch runs on CPUs only. About 15 minutes on one core for everything.

Flops are exact for the program as written (`benchmarks.flops`), products and other
arithmetic together; temporary bytes are the compiler's.
"""

import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_jax import results as rows_lib
from distill_jax.results import Row

if TYPE_CHECKING:
    from benchmarks.implementations import Compiled, Config

WIDTH = 100  # of an embedding
# As dicts: JAX may be imported only after the process is pinned.
_KIM = {"model": "kim_cnn", "settings": (("dropout", 0.0),)}
_SMALL = {"minibatch": 20, "tokens": 56, "real_batch": 256}
_SST = {**_KIM, "minibatch": 5, "tokens": 56, "real_batch": 1024}
# Its reference windows have no PyTorch twin, and out_scale 0 trains no filter at first.
_MEAN = {"model": "mean_cnn", "settings": (("references", 0), ("out_scale", 1.0))}
_FOURIER = {
    "model": "fourier_bag",
    "settings": (("references", 0), ("out_scale", 1.0)),
}
_ENCODER = {"model": "transformer", "minibatch": 8, "tokens": 64, "real_batch": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "text_cnn_sst5": {**_SST, "T": 50},
    "text_cnn_imdb": {
        **_KIM,
        "T": 5,
        "minibatch": 20,
        "tokens": 400,
        "real_batch": 1024,
        "classes": 2,
    },
    **{f"text_cnn_t{T}": {**_KIM, **_SMALL, "T": T} for T in (1, 5, 10, 20, 50, 100)},
    "text_cnn_16_theta_0": {**_KIM, **_SMALL, "T": 10, "num_theta_0": 16},
    "transformer_t10": {**_ENCODER, "T": 10},
    "transformer_t50": {**_ENCODER, "T": 50},
    "bag_t10": {"model": "bag", **_SMALL, "T": 10},
    "mean_cnn_t10": {**_MEAN, **_SMALL, "T": 10},
    "fourier_bag_t10": {**_FOURIER, **_SMALL, "T": 10},
    "bilstm_t10": {"model": "bilstm", **_SMALL, "T": 10},
}
MEMORY_CONFIGS: dict[str, dict[str, Any]] = {
    f"memory_t{T}": {**_SST, "T": T} for T in (10, 20, 40, 80, 160)
}
# In float32 a near-tie of a max may fall the other way, so single entries can differ
# by more; equality is proven in float64, in the tests.
LARGEST_DEPARTURE = 1e-3
DEFAULT_IMPLEMENTATIONS = (
    "distill_jax",
    "distill_jax_plain",
    "distill_jax_nested",
    "torch_reference",
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians in seconds; `wall` and `cpu` are of the same calls."""

    wall: float
    cpu: float


def chosen(names: Sequence[str], known: dict[str, Any], what: str) -> list[str]:
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


def departures(ours: Any, theirs: Any) -> dict[str, tuple[float, float]]:
    """How far results are apart: median and largest `|a - b| / max|b|` of each part."""
    import numpy as np

    parts = {"loss": (ours[0], theirs[0])}
    parts |= {name: (ours[1][name], theirs[1][name]) for name in theirs[1]}
    apart = {}
    for name, (a, b) in parts.items():
        scale = max(float(np.abs(b).max()), 1e-30)
        off = np.abs(np.subtract(a, b)) / scale
        apart[name] = float(np.median(off)), float(off.max())
    return apart


def agree(results: dict[str, Any]) -> None:
    """Prints how far every implementation is from the last one.

    Raises:
        ArithmeticError: if one computes something else.
    """
    *others, last = results
    for name in others:
        apart = departures(results[name], results[last])
        text = ", ".join(f"{p} {m:.0e} ({h:.0e})" for p, (m, h) in apart.items())
        print(f"  {name} from {last}, median (largest): {text}", flush=True)
        bad = [p for p, (m, _) in apart.items() if not m <= LARGEST_DEPARTURE]
        if bad:
            raise ArithmeticError(
                f"{name} and {last} disagree on {', '.join(bad)}: no speeds to compare"
            )


def time_in_turn(compiled: "dict[str, Compiled]", repeats: int) -> dict[str, Timing]:
    """Median wall and CPU seconds of each, called in turn `repeats` times."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in compiled}
    for _ in range(repeats):
        for name, one in compiled.items():
            cpu, wall = time.process_time(), time.perf_counter()
            one.run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            seen[name].append((wall, cpu))
    return {
        name: Timing(*map(statistics.median, zip(*times, strict=True)))
        for name, times in seen.items()
    }


def measure(
    name: str,
    config: "Config",
    implementations: Sequence[str],
    *,
    repeats: int,
    threads: int,
) -> tuple[list[Row], dict[str, Timing]]:
    """Rows of one configuration, with both clocks by implementation.

    Raises:
        ValueError: on an unknown implementation or no repeats.
        ArithmeticError: if two implementations disagree.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    import jax

    from benchmarks.implementations import IMPLEMENTATIONS, draw

    problem = draw(config)
    compiled: dict[str, Compiled] = {}
    for each in chosen(implementations, IMPLEMENTATIONS, "implementation"):
        compiled[each] = IMPLEMENTATIONS[each](problem)
    agree({each: one.run() for each, one in compiled.items()})
    timings = time_in_turn(compiled, repeats)
    by_cpu = cpu_clock(threads)
    seconds = {each: t.cpu if by_cpu else t.wall for each, t in timings.items()}
    torch_seconds = seconds.get("torch_reference")
    rows = [
        {
            "config": name,
            "implementation": each,
            "T": config.T,
            "minibatch": config.minibatch,
            "tokens": config.tokens,
            "real_batch": config.real_batch,
            "num_theta_0": config.num_theta_0,
            "threads": threads,
            "backend": jax.default_backend(),
            "seconds_median": seconds[each],
            "ratio_to_torch": torch_seconds and torch_seconds / seconds[each],
            "flops": one.flops and one.flops.total,
            "temp_bytes": one.temp_bytes,
            "compile_seconds": one.compile_seconds,
            "commit": rows_lib.commit(),
            "device": rows_lib.device(),
        }
        for each, one in compiled.items()
    ]
    return rows, timings


def cpu_clock(threads: int) -> bool:
    """Is CPU time what the rows hold? On one thread it is; see the top of this file."""
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


def table(rows: Sequence[Row], peak: float, walls: Sequence[float]) -> str:
    """The rows as text, `walls` being their wall seconds."""
    heads = (
        "configuration implementation seconds wall torch/this temp_MB Gflop of_peak "
        "compile_s"
    ).split()
    lines = [list[str](heads)]
    for row, wall in zip(rows, walls, strict=True):
        of_peak = row["flops"] and row["flops"] / row["seconds_median"] / peak

        def show(value, form, scale=1.0):
            return "-" if value is None else format(value / scale, form)

        lines.append(
            [
                row["config"],
                row["implementation"],
                show(row["seconds_median"], ".4f"),
                show(wall, ".4f"),
                show(row["ratio_to_torch"], ".2f"),
                show(row["temp_bytes"], ".1f", 1e6),
                show(row["flops"], ".3f", 1e9),
                show(of_peak, ".0%"),
                show(row["compile_seconds"], ".1f"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def growth(rows: Sequence[Row]) -> str:
    """How temporary memory grows with T, beside the root of T.

    The gradient for the sentences is as large as the sentences, so it grows with T
    whatever is recomputed. The second ratio is net of one such gradient, the sum over
    the theta_0; the first takes nothing off.

    Args:
        rows: of one implementation, in rising T.
    """

    def net(row: Row) -> float:
        floats = row["T"] * row["minibatch"] * row["tokens"] * WIDTH
        return row["temp_bytes"] - 4 * floats

    first = rows[0]
    lines = [f"temporary memory of {first['implementation']}, from T = {first['T']}"]
    for row in rows:
        lines.append(
            f"T = {row['T']:4d}  {row['temp_bytes'] / 1e6:7.2f} MB  "
            f"{row['temp_bytes'] / first['temp_bytes']:5.2f} times, "
            f"net of the gradient {net(row) / net(first):5.2f} times, "
            f"root of T {math.sqrt(row['T'] / first['T']):5.2f}"
        )
    return "\n".join(lines)


def run(
    configs: "dict[str, Config]",
    implementations: Sequence[str],
    *,
    repeats: int = 7,
    threads: int = 1,
    results: str | Path | None = None,
) -> list[Row]:
    """Measures, prints, and appends a row for each configuration and implementation.

    Args:
        configs: by name. `distill_jax_dense` is left out where it does not apply.
        implementations: names in `IMPLEMENTATIONS`.
        repeats: calls that are timed.
        threads: that the process is pinned to, see `pin`.
        results: file the rows are appended to, as they come; none if None.
    """
    import jax

    from benchmarks.implementations import IMPLEMENTATIONS

    names = chosen(implementations, IMPLEMENTATIONS, "implementation")
    if "torch_reference" in names and jax.default_backend() != "cpu":
        print(f"torch_reference runs on CPUs, not beside {jax.default_backend()}")
        names.remove("torch_reference")
    if "torch_reference" in names:
        import torch

        torch.set_num_threads(threads)
    peak = matmul_peak(threads)
    rows, walls = [], []
    for name, config in configs.items():
        print(name, flush=True)
        here = [n for n in names if n != "distill_jax_dense" or "cnn" in config.model]
        found, timings = measure(name, config, here, repeats=repeats, threads=threads)
        rows += found
        walls += [timings[row["implementation"]].wall for row in found]
        if results is not None:
            rows_lib.append(results, found)
    print(table(rows, peak, walls))
    print(f"peak of a matrix product: {peak / 1e9:.1f} Gflop/s on {rows_lib.device()}")
    return rows


def main(argv: list[str]) -> None:
    from absl import app, flags, logging

    if argv[1:]:
        raise app.UsageError(f"no arguments but flags, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    f = flags.FLAGS
    known = MEMORY_CONFIGS if f.memory else CONFIGS
    try:
        names = chosen(f.configs, known, "configuration")
        threads = pin(f.threads)
        import jax

        from benchmarks.implementations import Config

        # Compile times are measured.
        jax.config.update("jax_enable_compilation_cache", False)
        implementations = f.implementations
        if f.memory:
            implementations = ["distill_jax_nested"]
        rows = run(
            {name: Config(**known[name]) for name in names},
            implementations,
            repeats=f.repeats,
            threads=threads,
            results=f.results if f.append else None,
        )
        if f.memory:
            print(growth(rows))
    except (ValueError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def define_flags() -> None:
    """The flags of this benchmark."""
    from absl import flags

    flags.DEFINE_list("configs", ["all"], f"Of {', '.join(CONFIGS)}; or a model.")
    flags.DEFINE_list(
        "implementations",
        list(DEFAULT_IMPLEMENTATIONS),
        "Of those, distill_jax_dense, or all.",
    )
    flags.DEFINE_integer("repeats", 7, "Calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 1, "Cores to use.", lower_bound=1)
    flags.DEFINE_string("results", "results/meta_step.jsonl", "File for the rows.")
    flags.DEFINE_bool("append", True, "Append rows to that file.")
    flags.DEFINE_bool("memory", False, "Memory of nested recomputation against T.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
