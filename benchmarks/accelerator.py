"""A meta-step on an accelerator: measured on one, or compiled for a TPU without one.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator --configs=bag --num_theta_0=1,64 --devices=4
    python -m benchmarks.accelerator --mode=analysis --topologies=v5e:2x2

On a GPU or TPU: wall seconds (median), flop/s beside those of a large matrix product
at the same precision, and peak bytes of a meta-step for 1 to 1,024 theta_0, all at
once (`vmap`), over more than one device by `pmap`. A few minutes on one device.

Elsewhere nothing is timed. The *compile-time analysis* compiles the same meta-step,
`pmap` over theta_0, for TPU topologies that are not here, and reads from the compiled
program its bytes for each device and its all-reduces. It needs libtpu, which
`pip install "distill_jax[tpu]"` brings, and no TPU. A compilation takes from 3 (bag)
to 70 (text_cnn) CPU-seconds.

Flops are exact for the program as written (`benchmarks.flops`), and like the bytes
those of one device.
"""

import dataclasses
import functools
import importlib.util
import os
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common, meta_step
from benchmarks.common import Row, show

if TYPE_CHECKING:
    from benchmarks.flops import Flops
    from benchmarks.implementations import Config

MEASURED, ANALYSED = "measured", "compile-time analysis"

_CNN = meta_step.CONFIGS["text_cnn_t10"]
CONFIGS: dict[str, dict[str, Any]] = {
    f"text_cnn_{pooling}": {
        **_CNN,
        "settings": (*_CNN["settings"], ("pooling", pooling)),
    }
    for pooling in ("winners", "dense")
} | {
    "bag": meta_step.CONFIGS["bag_t10"],
    "transformer": meta_step.CONFIGS["transformer_t10"],
}
THETA_0S = tuple(4**i for i in range(6))
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:16x16")
ANALYSED_THETA_0S = (256,)  # the fewest that every topology divides
PRECISIONS = ("default", "high", "highest")
MATMUL_SIZE = 8192
# What libtpu asks a cloud's metadata server for, where there is neither.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_ALL_REDUCE = re.compile(r" all-reduce(?:-start)?\(")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled meta-step.

    Attributes:
        compiled: `(state, keys, batch) -> (state, info)`.
        keys_shape: how the keys are laid out over devices.
        flops: exact, of one device.
        peak_bytes: by the compiler, of one device.
        all_reduces: in the compiled program.
        compile_seconds: wall time.
    """

    compiled: Any
    keys_shape: tuple[int, ...]
    flops: "Flops"
    peak_bytes: int
    all_reduces: int
    compile_seconds: float


@functools.lru_cache(maxsize=1)
def problem(config: "Config") -> tuple[Any, Any, Any, Any, Any]:
    """`objective`, `init_fn`, `meta_tx`, the first state and a batch, in float32."""
    import jax.numpy as jnp
    import optax

    from benchmarks import implementations
    from distill_jax import core, gradients, losses
    from distill_jax.models import MODELS

    drawn = implementations.draw(dataclasses.replace(config, num_theta_0=1))
    model = MODELS[config.model](
        jnp.asarray(drawn.vectors), config.classes, **dict(config.settings)
    )
    loss_fn = losses.cross_entropy(model)
    chunk = min(implementations.CHUNK, config.real_batch)
    objective = core.unrolled(
        loss_fn,
        real_loss_fn=gradients.chunked(loss_fn, chunk),
        inner_grad=gradients.mixed_mode,
    )
    meta_tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.02))
    state = core.meta_init(meta_tx, drawn.distilled)
    return objective, model.init, meta_tx, state, drawn.batch


def compile_step(config: "Config", devices: Sequence[Any]) -> Program:
    """Compiles one meta-step: `jit` for one device, `pmap` over theta_0 for more.

    Args:
        config: its `num_theta_0` must divide by the number of devices.
        devices: here, or of a topology.

    Raises:
        ValueError: if it does not.
    """
    import jax

    from benchmarks.flops import count_jaxpr
    from distill_jax import core, parallel

    objective, init_fn, meta_tx, state, batch = problem(config)
    share, rest = divmod(config.num_theta_0, len(devices))
    if rest or not share:
        raise ValueError(
            f"{config.num_theta_0} theta_0 cannot be divided evenly over "
            f"{len(devices)} devices"
        )
    if len(devices) == 1:
        step: Any = parallel.jit_meta_step(objective, init_fn, meta_tx, devices=devices)
        keys_shape = (share,)
    else:
        # What parallel.pmap_meta_step maps. That one takes the keys of the devices
        # of its own process, and a topology has devices of many.
        step = jax.pmap(
            functools.partial(
                core.meta_step, objective, init_fn, meta_tx, axis_name=parallel.AXIS
            ),
            parallel.AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )
        keys_shape = (len(devices), share)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), keys_shape))
    specs = jax.eval_shape(lambda: (state, batch))
    args = specs[0], keys, specs[1]
    lowered = step.lower(*args)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return Program(
        compiled,
        keys_shape,
        count_jaxpr(jax.make_jaxpr(step)(*args).jaxpr),
        _peak_bytes(compiled.memory_analysis(), devices[0].platform),
        len(_ALL_REDUCE.findall(compiled.as_text())),
        seconds,
    )


def _peak_bytes(memory: Any, platform: str) -> int:
    if platform == "tpu":  # which reuses temporary memory, and counts it in no sum
        return memory.peak_memory_in_bytes
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def time_step(
    program: Program, config: "Config", devices: Sequence[Any], repeats: int
) -> tuple[float, int | None]:
    """Median wall seconds, and the device's own high-water mark of memory in bytes.

    The mark is None where the device does not tell, or had been higher before.

    Raises:
        ArithmeticError: if a meta-gradient is not finite; its time says nothing.
    """
    import jax
    import numpy as np

    *_, state, batch = problem(config)
    before = _high_water(devices)
    # A copy, as the step donates it; laid out as the program asks.
    state = jax.tree.map(np.array, state)
    keys = jax.random.split(jax.random.key(1), (repeats + 1, *program.keys_shape))
    (state_at, keys_at, batch_at), _ = program.compiled.input_shardings
    state = jax.device_put(state, state_at)
    batch = jax.device_put(batch, batch_at)
    seconds = []
    for k in range(repeats + 1):
        step_keys = jax.block_until_ready(jax.device_put(keys[k], keys_at))
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program.compiled(state, step_keys, batch))
        seconds.append(time.perf_counter() - start)
    if int(state.skipped):
        raise ArithmeticError(
            f"{int(state.skipped)} of {repeats + 1} meta-gradients are not finite"
        )
    after = _high_water(devices)
    rose = after is not None and before is not None and after > before
    return statistics.median(seconds[1:]), after if rose else None


def _high_water(devices: Sequence[Any]) -> int | None:
    marks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in devices]
    known = [mark for mark in marks if mark is not None]
    return max(known) if known else None


def row_of(
    name: str,
    config: "Config",
    program: Program,
    devices: Sequence[Any],
    *,
    topology: str | None = None,
    precision: str = "default",
    seconds: float | None = None,
    peak: float | None = None,
    measured_bytes: int | None = None,
) -> Row:
    """A row of what was compiled, and of what was measured if anything was."""
    measured_on = common.measured_on()
    here = measured_on["device"]
    if devices[0].platform != "cpu":
        here = f"{len(devices)} x {devices[0].device_kind}"
    return {
        "config": name,
        "kind": MEASURED if topology is None else ANALYSED,
        "topology": topology,
        "backend": devices[0].platform,
        "parallel": "jit" if len(devices) == 1 else "pmap",
        "num_devices": len(devices),
        "num_theta_0": config.num_theta_0,
        "T": config.T,
        "minibatch": config.minibatch,
        "tokens": config.tokens,
        "real_batch": config.real_batch,
        "precision": precision,
        "step_seconds": seconds,
        "flops": program.flops.total,
        "matmul_flops": program.flops.matmul,
        "flops_per_second": seconds and program.flops.total / seconds,
        "peak_flops_per_second": peak,
        "peak_bytes": program.peak_bytes,
        "measured_bytes": measured_bytes,
        "all_reduces": program.all_reduces,
        "compile_seconds": program.compile_seconds,
        "commit": measured_on["commit"],
        "device": here if topology is None else f"none; compiled for {here}",
    }


def measure(
    configs: "dict[str, Config]",
    theta_0s: Sequence[int] = THETA_0S,
    *,
    devices: Sequence[Any],
    precision: str = "default",
    repeats: int = 7,
    matmul_size: int = MATMUL_SIZE,
    results: str | Path | None = None,
) -> list[Row]:
    """Times a meta-step for each configuration and number of theta_0.

    Args:
        configs: by name.
        theta_0s: how many, all at once; numbers that the devices do not divide, and
            those above one that does not fit in memory, are left out, and said.
        devices: to divide them over.
        precision: of products, JAX's `default_matmul_precision`.
        repeats: calls that are timed, after one that is not.
        matmul_size: of the square product whose speed is the peak.
        results: file the rows are appended to, as they come; none if None.

    Raises:
        ValueError: on no theta_0, repeats or devices, or an unknown precision.
        ArithmeticError: if a meta-gradient is not finite.
    """
    import jax

    _check(theta_0s, precision)
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    if not devices:
        raise ValueError("devices must be one or more, got none")
    with jax.default_matmul_precision(precision):
        # More than one thread: by wall time, on a CPU too.
        peak = common.matmul_peak(threads=2, size=matmul_size)
        print(f"peak of a matrix product: {peak / 1e12:.3f} Tflop/s, {precision}")

        def row(name, config, program, where):
            seconds, used = time_step(program, config, devices, repeats)
            return row_of(
                name,
                config,
                program,
                devices,
                precision=precision,
                seconds=seconds,
                peak=peak,
                measured_bytes=used,
            )

        here = {f"{len(devices)} device(s)": devices}
        return _rows(configs, theta_0s, here, row, results)


def analyse(
    configs: "dict[str, Config]",
    theta_0s: Sequence[int] = ANALYSED_THETA_0S,
    *,
    topologies: Sequence[str] = TOPOLOGIES,
    precision: str = "default",
    results: str | Path | None = None,
) -> list[Row]:
    """Compiles a meta-step for TPU topologies that are not here; runs nothing.

    Args:
        configs: by name.
        theta_0s: how many; numbers that a topology does not divide are left out.
        topologies: such as "v5e:2x2", chips of a kind in a grid.
        precision: as for `measure`.
        results: as for `measure`.

    Raises:
        ModuleNotFoundError: without libtpu.
        ValueError: as `measure`, or on an unknown topology.
    """
    import jax

    _check(theta_0s, precision)
    chips = {name: topology_devices(name) for name in topologies}

    def row(name, config, program, where):
        return row_of(
            name, config, program, chips[where], topology=where, precision=precision
        )

    with jax.default_matmul_precision(precision):
        return _rows(configs, theta_0s, chips, row, results)


def _rows(configs, theta_0s, places, row, results) -> list[Row]:
    """Rows of what can be divided over a place's devices and fits in their memory."""
    import jax

    found: list[Row] = []
    for name, config in configs.items():
        for where, devices in places.items():
            for n in sorted(theta_0s):
                if n % len(devices):
                    print(f"{name}: {n} theta_0 cannot be divided over {where}")
                    continue
                sized = dataclasses.replace(config, num_theta_0=n)
                try:
                    one = row(name, sized, compile_step(sized, devices), where)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    print(f"{name}: {n} theta_0 do not fit in the memory of {where}")
                    break
                print(
                    f"{name}, {n} theta_0: compiled in {one['compile_seconds']:.1f} s "
                    f"for {one['topology'] or one['device']}",
                    flush=True,
                )
                common.append(results, [one])
                found.append(one)
    return found


def topology_devices(topology: str) -> list[Any]:
    """The devices of a TPU topology, to compile for.

    Raises:
        ModuleNotFoundError: without libtpu.
        ValueError: on an unknown topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "compiling for a TPU needs libtpu, which is not installed: "
            'pip install "distill_jax[tpu]"'
        )
    import jax
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"unknown TPU topology {topology!r}, known are such as "
            f"{', '.join(TOPOLOGIES)} ({str(error).splitlines()[0]})"
        ) from error
    return list(described.devices)


def _check(theta_0s: Sequence[int], precision: str) -> None:
    if not theta_0s or min(theta_0s) < 1:
        raise ValueError(f"num_theta_0 must be 1 or more, got {list(theta_0s)}")
    if precision not in PRECISIONS:
        raise ValueError(
            f"unknown precision {precision!r}, known: {', '.join(PRECISIONS)}"
        )


def table(rows: Sequence[Row]) -> str:
    """The rows as text; flops and bytes are of one device."""
    heads = (
        "configuration theta_0 devices on seconds Gflop Gflop/s of_peak peak_MB "
        "measured_MB all_reduces compile_s"
    )
    lines = []
    for row in rows:
        speed, peak = row["flops_per_second"], row["peak_flops_per_second"]
        lines.append(
            [
                row["config"],
                str(row["num_theta_0"]),
                str(row["num_devices"]),
                row["topology"] or row["backend"],
                show(row["step_seconds"], ".5f"),
                show(row["flops"], ".3f", 1e9),
                show(speed, ".1f", 1e9),
                show(speed and speed / peak, ".1%"),
                show(row["peak_bytes"], ".1f", 1e6),
                show(row["measured_bytes"], ".1f", 1e6),
                str(row["all_reduces"]),
                show(row["compile_seconds"], ".1f"),
            ]
        )
    return common.columns(heads, lines)


def _no_tpu_here() -> bool:
    """Are there no device files of a TPU? Asked before JAX is imported."""
    folders = {"/dev": "accel*", "/dev/vfio": "[0-9]*"}
    return not any(any(Path(f).glob(pattern)) for f, pattern in folders.items())


def _numbers(texts: Sequence[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise ValueError(
            f"num_theta_0 must be whole numbers, got {','.join(texts)}"
        ) from None


def main(argv: list[str]) -> None:
    from absl import flags

    f = flags.FLAGS
    with common.told_in_a_line(argv):
        names = common.chosen(f.configs, CONFIGS, "configuration")
        theta_0s = _numbers(f.num_theta_0)
        if _no_tpu_here():  # else libtpu, where it is installed, looks for one
            for name, value in NO_TPU.items():
                os.environ.setdefault(name, value)
        import jax

        from benchmarks.implementations import Config

        # Compile times are reported.
        jax.config.update("jax_enable_compilation_cache", False)
        configs = {name: Config(**CONFIGS[name]) for name in names}
        results = common.rows_path("accelerator")
        mode = f.mode
        if mode == "auto":
            mode = "analysis" if jax.default_backend() == "cpu" else "measure"
        if mode == "measure":
            devices = jax.local_devices()
            if f.devices > len(devices):
                raise ValueError(
                    f"devices is {f.devices}, but there are {len(devices)} here"
                )
            found = measure(
                configs,
                theta_0s or THETA_0S,
                devices=devices[: f.devices],
                precision=f.precision,
                repeats=f.repeats,
                matmul_size=f.matmul_size,
                results=results,
            )
        else:
            print("compile-time analysis for TPU topologies: nothing is run or timed")
            found = analyse(
                configs,
                theta_0s or ANALYSED_THETA_0S,
                topologies=f.topologies,
                precision=f.precision,
                results=results,
            )
        print(table(found))


def define_flags() -> None:
    """The flags of this benchmark."""
    from absl import flags

    flags.DEFINE_enum(
        "mode",
        "auto",
        ["auto", "measure", "analysis"],
        "auto measures where there is a GPU or TPU.",
    )
    flags.DEFINE_list("configs", ["all"], f"Of {', '.join(CONFIGS)}.")
    flags.DEFINE_list(
        "num_theta_0",
        [],
        f"How many; {','.join(map(str, THETA_0S))} to measure, "
        f"{','.join(map(str, ANALYSED_THETA_0S))} to analyse.",
    )
    flags.DEFINE_integer("devices", 1, "Devices to measure on.", lower_bound=1)
    flags.DEFINE_list("topologies", list(TOPOLOGIES), "To analyse.")
    flags.DEFINE_enum("precision", "default", PRECISIONS, "Of matrix products.")
    flags.DEFINE_integer("repeats", 7, "Calls that are timed.", lower_bound=1)
    flags.DEFINE_integer(
        "matmul_size", MATMUL_SIZE, "Of the product that is the peak.", lower_bound=1
    )
    common.define_rows("accelerator")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
