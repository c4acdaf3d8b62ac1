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

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.common import WIDTH, Row, Timing, show

if TYPE_CHECKING:
    from benchmarks.implementations import Compiled, Config

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
        ValueError: if repeats is below 1.
        ArithmeticError: if two implementations disagree.
    """
    import jax

    from benchmarks.implementations import IMPLEMENTATIONS, draw

    problem = draw(config)
    compiled: dict[str, Compiled] = {
        each: IMPLEMENTATIONS[each](problem) for each in implementations
    }
    agree({each: one.run() for each, one in compiled.items()})
    timings = common.time_in_turn(compiled, repeats)
    by_cpu = common.cpu_clock(threads)
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
        }
        | common.measured_on()
        for each, one in compiled.items()
    ]
    return rows, timings


def table(rows: Sequence[Row], peak: float, walls: Sequence[float]) -> str:
    """The rows as text, `walls` being their wall seconds."""
    heads = (
        "configuration implementation seconds wall torch/this temp_MB Gflop of_peak "
        "compile_s"
    )
    lines = []
    for row, wall in zip(rows, walls, strict=True):
        of_peak = row["flops"] and row["flops"] / row["seconds_median"] / peak
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
    return common.columns(heads, lines, left=2)


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
        threads: that the process is pinned to, see `common.pin`.
        results: file the rows are appended to, as they come; none if None.
    """
    from benchmarks.implementations import IMPLEMENTATIONS

    names = common.runnable(implementations, IMPLEMENTATIONS, threads)
    peak = common.matmul_peak(threads)
    rows, walls = [], []
    for name, config in configs.items():
        print(name, flush=True)
        here = [n for n in names if n != "distill_jax_dense" or "cnn" in config.model]
        found, timings = measure(name, config, here, repeats=repeats, threads=threads)
        rows += found
        walls += [timings[row["implementation"]].wall for row in found]
        common.append(results, found)
    print(table(rows, peak, walls))
    where = common.measured_on()["device"]
    print(f"peak of a matrix product: {peak / 1e9:.1f} Gflop/s on {where}")
    return rows


def main(argv: list[str]) -> None:
    from absl import flags

    f = flags.FLAGS
    with common.told_in_a_line(argv):
        known = MEMORY_CONFIGS if f.memory else CONFIGS
        names = common.chosen(f.configs, known, "configuration")
        threads = common.pin(f.threads)
        import jax

        from benchmarks.implementations import Config

        # Compile times are measured.
        jax.config.update("jax_enable_compilation_cache", False)
        rows = run(
            {name: Config(**known[name]) for name in names},
            ["distill_jax_nested"] if f.memory else f.implementations,
            repeats=f.repeats,
            threads=threads,
            results=common.rows_path("meta_step"),
        )
        if f.memory:
            print(growth(rows))


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
    flags.DEFINE_bool("memory", False, "Memory of nested recomputation against T.")
    common.define_rows("meta_step")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
