"""Time and memory of acquisition: MC-dropout scoring beside PyTorch, k-center, BADGE.

    python -m benchmarks.acquisition
    python -m benchmarks.acquisition --configs=mc_dropout --dataset=FOLDER
    python -m benchmarks.acquisition --configs=k_center,badge --repeats=3

The implementations of a configuration take turns in one run, on one thread, by the
clock of `benchmarks.meta_step`; rows hold medians. `torch_reference` is the usual loop
of F passes in training mode; `torch_trunk_once` does by hand what ours does unasked,
the layers before the dropout once. Both have the same weights as ours. Before they are
timed, all must agree without dropout. `distill_jax_dense` is ours with a `text_cnn`
whose pooling is `dense`.

Memory is of a process each, which makes one call and has only one of JAX and PyTorch:
`peak_bytes` is the most that was ever resident, imports and compiling included;
`compiled_peak_bytes` the same where JAX finds its programs in the compilation cache, as
the later runs of an experiment do; `call_bytes` is how far the call itself rose above
what was resident before it.

About ten minutes on one core.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common
from benchmarks.common import Row, show

SST5 = 8_544  # sentences in its training split
_POOL: dict[str, Any] = {
    "task": "mc_dropout",
    "items": SST5,
    "tokens": 56,
    "classes": 5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mc_dropout_f10": {**_POOL, "passes": 10},
    "mc_dropout_f50": {**_POOL, "passes": 50},
    "k_center": {
        "task": "k_center",
        "items": SST5,
        "features": 768,
        "picks": 20,
        "labelled": 100,
    },
    "badge": {
        "task": "badge",
        "items": 20_000,
        "features": 768,
        "classes": 100,
        "picks": 20,
    },
}
LARGEST_DEPARTURE = 1e-4  # of log-probabilities, in nats, in float32
_FASTER, _SECONDS, _BYTES = 3.0, 3.0, 2**30  # what is asked of each task


def agree(problem: Any, implementations: Sequence[str]) -> None:
    """Compares one pass without dropout, and prints the largest difference.

    Raises:
        ArithmeticError: if one computes something else.
    """
    import numpy as np

    from benchmarks.acquirers import IMPLEMENTATIONS, Problem

    config = dataclasses.replace(problem.config, passes=1, dropout=0.0)
    plain = Problem(config, problem.arrays)
    first, *others = (IMPLEMENTATIONS[name](plain).run() for name in implementations)
    for name, result in zip(implementations[1:], others, strict=True):
        apart = float(np.abs(first - result).max())
        print(f"  {implementations[0]} from {name}: {apart:.0e} nats", flush=True)
        if not apart <= LARGEST_DEPARTURE:
            raise ArithmeticError(
                f"{implementations[0]} and {name} disagree: no speeds to compare"
            )


class Memory(NamedTuple):
    """Bytes of a process that makes one call.

    Attributes:
        peak: the most that was ever resident.
        call: how far the call rose above what was resident; None but on Linux.
        compiled_peak: as `peak`, with programs from the compilation cache; None
            without JAX.
    """

    peak: int
    call: int | None
    compiled_peak: int | None


def memory(problem: Any, implementation: str, threads: int = 1) -> Memory:
    """Memory of one call in a process of its own.

    Raises:
        RuntimeError: if that process fails.
    """
    peak, call = _process(problem, implementation, threads)
    if implementation.startswith("torch"):
        return Memory(peak, call, None)
    with tempfile.TemporaryDirectory() as cache:
        _process(problem, implementation, threads, cache)
        compiled, _ = _process(problem, implementation, threads, cache)
    return Memory(peak, call, compiled)


def _process(
    problem: Any, implementation: str, threads: int, cache: str | None = None
) -> tuple[int, int | None]:
    """Peak and rise of one process; `cache` is a folder of compiled programs."""
    from benchmarks import acquirers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problem.npz")
        acquirers.save(problem, path)
        config = json.dumps(dataclasses.asdict(problem.config))
        code = "import sys; from benchmarks import acquisition as a; a.child(*sys.argv)"
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(bool(cache))}
        if cache:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                implementation,
                config,
                str(path),
                str(threads),
            ],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise RuntimeError(f"measuring {implementation}'s memory failed: {reason}")
    peak, call = json.loads(done.stdout.splitlines()[-1])
    return peak, call


def child(_: str, implementation: str, config: str, path: str, threads: str) -> None:
    """What the process of `memory` runs; prints both numbers as JSON."""
    from benchmarks.acquirers import IMPLEMENTATIONS, Config, load

    if implementation.startswith("torch"):
        import torch

        torch.set_num_threads(int(threads))
    fields = json.loads(config)
    fields["settings"] = tuple(map(tuple, fields["settings"]))
    ready = IMPLEMENTATIONS[implementation](load(Config(**fields), path))

    before, made = _memory("VmRSS"), _peak()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
    except OSError:
        before = None
    ready.run()
    peak = _peak()
    grown = None if before is None else max(0, peak - before)
    print(json.dumps([max(made, peak), grown]))


def _peak() -> int:
    """Most bytes of this process that were ever resident, or since the last mark."""
    # Not ru_maxrss on Linux: there a process starts from its parent's.
    peak = _memory("VmHWM")
    if peak is None:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak


def _memory(field: str) -> int | None:
    """A field of Linux's status of this process, in bytes; None elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def measure(
    name: str,
    problem: Any,
    implementations: Sequence[str],
    *,
    repeats: int,
    threads: int,
) -> list[Row]:
    """Rows of one configuration.

    Raises:
        ArithmeticError: if two implementations disagree.
    """
    import jax

    from benchmarks.acquirers import IMPLEMENTATIONS

    c = problem.config
    if len(implementations) > 1:
        agree(problem, implementations)
    ready: dict[str, Any] = {n: IMPLEMENTATIONS[n](problem) for n in implementations}
    if "distill_jax" in ready:
        ready["distill_jax"].run()  # a query compiles its own small programs
    timings = common.time_in_turn(ready, repeats)
    by_cpu = common.cpu_clock(threads)
    seconds = {n: t.cpu if by_cpu else t.wall for n, t in timings.items()}
    del ready
    torch_seconds = seconds.get("torch_reference")
    rows = []
    for each in implementations:
        used = memory(problem, each, threads)
        rows.append(
            {
                "config": name,
                "implementation": each,
                "items": c.items,
                "passes": c.passes,
                "length": c.tokens,
                "features": c.features,
                "classes": c.classes,
                "picks": c.picks,
                "threads": threads,
                "backend": jax.default_backend(),
                "seconds_median": seconds[each],
                "ratio_to_torch": torch_seconds and torch_seconds / seconds[each],
                "peak_bytes": used.peak,
                "compiled_peak_bytes": used.compiled_peak,
                "call_bytes": used.call,
            }
            | common.measured_on()
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    heads = (
        "configuration implementation seconds torch/this peak_MB compiled_MB call_MB"
    )
    lines = [
        [
            row["config"],
            row["implementation"],
            show(row["seconds_median"], ".3f"),
            show(row["ratio_to_torch"], ".2f"),
            show(row["peak_bytes"], ".0f", 1e6),
            show(row["compiled_peak_bytes"], ".0f", 1e6),
            show(row["call_bytes"], ".0f", 1e6),
        ]
        for row in rows
    ]
    return common.columns(heads, lines, left=2)


def verdicts(rows: Sequence[Row]) -> str:
    """Whether each of ours is as fast and as small as is asked of it."""
    lines = []
    for row in rows:
        if not row["implementation"].startswith("distill_jax"):
            continue
        name, who = row["config"], f"{row['config']}, {row['implementation']}"
        loop = [
            r
            for r in rows
            if (r["config"], r["implementation"]) == (name, "torch_reference")
        ]
        if loop:
            ratio = row["ratio_to_torch"]
            lines.append(
                f"{who}: {ratio:.2f} times as fast as PyTorch's loop, at least "
                f"{_FASTER:.0f} asked: {_yes(ratio >= _FASTER)}"
            )
            for field, what in (
                ("call_bytes", "call"),
                ("compiled_peak_bytes", "process, compiled before,"),
                ("peak_bytes", "process"),
            ):
                ours = row[field]
                theirs = loop[0]["call_bytes" if what == "call" else "peak_bytes"]
                if ours is not None and theirs:
                    lines.append(
                        f"{who}: memory of the {what} {ours / theirs:.2f} times "
                        f"PyTorch's, at most 1 asked: {_yes(ours <= theirs)}"
                    )
        elif name.startswith("k_center"):
            seconds = row["seconds_median"]
            lines.append(
                f"{who}: {seconds:.2f} s, below {_SECONDS:.0f} asked: "
                f"{_yes(seconds < _SECONDS)}"
            )
        elif name.startswith("badge"):
            peak = row["peak_bytes"]
            lines.append(
                f"{who}: {peak / 2**30:.2f} GiB, at most 1 asked: "
                f"{_yes(peak <= _BYTES)}"
            )
    return "\n".join(lines)


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def run(
    problems: dict[str, Any],
    implementations: Sequence[str],
    *,
    repeats: int = 3,
    threads: int = 1,
    results: str | Path | None = None,
) -> list[Row]:
    """Measures, prints, and appends a row for each configuration and implementation.

    Args:
        problems: by name. Where there is no network, only `distill_jax` is measured.
        implementations: names in `acquirers.IMPLEMENTATIONS`.
        repeats: calls that are timed.
        threads: that the process is pinned to, see `common.pin`.
        results: file the rows are appended to, as they come; none if None.

    Raises:
        ValueError: on an unknown implementation or no repeats.
        ArithmeticError: if two implementations disagree.
    """
    from benchmarks.acquirers import IMPLEMENTATIONS

    names = common.runnable(implementations, IMPLEMENTATIONS, threads)
    rows = []
    for name, problem in problems.items():
        print(name, flush=True)
        has_network = problem.config.task == "mc_dropout"
        here = [n for n in names if has_network or n == "distill_jax"]
        found = measure(name, problem, here, repeats=repeats, threads=threads)
        rows += found
        common.append(results, found)
    print(table(rows))
    print(verdicts(rows))
    return rows


def corpus_tokens(path: str, length: int) -> Any:
    """Word ids `[N, L]` of a corpus's train split, duplicates and all."""
    from distill_jax import data

    texts = data.files(path, deduplicate=False).train.texts
    return data.Vocabulary.build(texts).encode(texts, length)


def main(argv: list[str]) -> None:
    from absl import flags

    f = flags.FLAGS
    with common.told_in_a_line(argv):
        names = common.chosen(f.configs, CONFIGS, "configuration")
        threads = common.pin(f.threads)
        import jax

        from benchmarks.acquirers import Config, draw

        jax.config.update("jax_enable_compilation_cache", False)
        problems = {}
        for name in names:
            config, tokens = Config(**CONFIGS[name]), None
            if f.dataset and config.task == "mc_dropout":
                tokens = corpus_tokens(f.dataset, config.tokens or 1)
                config = dataclasses.replace(config, items=len(tokens))
                name += "_" + Path(f.dataset).name
            problems[name] = draw(config, tokens)
        run(
            problems,
            f.implementations,
            repeats=f.repeats,
            threads=threads,
            results=common.rows_path("acquisition"),
        )


def define_flags() -> None:
    """The flags of this benchmark."""
    from absl import flags

    flags.DEFINE_list("configs", ["all"], f"Of {', '.join(CONFIGS)}; or a beginning.")
    flags.DEFINE_list(
        "implementations",
        ["all"],
        "Of distill_jax, distill_jax_dense, torch_trunk_once, torch_reference.",
    )
    flags.DEFINE_string(
        "dataset", None, "Folder of a corpus, for the pool; random words without it."
    )
    flags.DEFINE_integer("repeats", 3, "Calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 1, "Cores to use.", lower_bound=1)
    common.define_rows("acquisition")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
