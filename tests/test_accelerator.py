"""The accelerator benchmark: measured on CPUs, and the analysis of what it compiles."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator
from benchmarks.implementations import MODELS, Config
from distill_jax import parallel, results, schema

ROOT = Path(__file__).parents[1]
TINY = {"T": 2, "minibatch": 2, "tokens": 4, "real_batch": 4}
BAG = Config("bag", **TINY, num_theta_0=8)
TIMES = ("step_seconds", "flops_per_second", "peak_flops_per_second")


@pytest.fixture(autouse=True)
def float32():
    """As it is measured; what was drawn in another type is forgotten."""
    accelerator.problem.cache_clear()
    with jax.enable_x64(False):
        yield
    accelerator.problem.cache_clear()


def measure(devices, theta_0s, path=None):
    return accelerator.measure(
        {"tiny": BAG},
        theta_0s,
        devices=devices,
        repeats=2,
        matmul_size=64,
        results=path,
    )


# Measured, on CPUs


def test_one_device_is_measured_for_each_number_of_theta_0(tmp_path, capsys):
    path = tmp_path / "results" / "accelerator.jsonl"
    got = measure(jax.devices()[:1], (8, 1), path)
    assert results.read(path) == [json.loads(json.dumps(row)) for row in got]
    assert list(got[0]) == list(schema.ACCELERATOR_FIELDS)
    one, eight = got
    for row, n in ((one, 1), (eight, 8)):
        assert (row["num_theta_0"], row["num_devices"], row["parallel"]) == (
            n,
            1,
            "jit",
        )
        assert (row["kind"], row["topology"]) == ("measured", None)
        assert (row["backend"], row["precision"]) == ("cpu", "default")
        assert all(row[name] == size for name, size in TINY.items())
        assert row["flops_per_second"] == row["flops"] / row["step_seconds"]
        assert row["peak_flops_per_second"] > 0
        assert row["all_reduces"] == 0
    assert eight["matmul_flops"] == 8 * one["matmul_flops"] > 0
    assert eight["flops"] > eight["matmul_flops"]
    assert eight["peak_bytes"] > one["peak_bytes"]
    *_, state, batch = accelerator.problem(BAG)
    held = sum(a.nbytes for a in jax.tree.leaves((state, batch)))
    assert one["peak_bytes"] > held
    assert "tiny, 8 theta_0: compiled in" in capsys.readouterr().out


def test_devices_share_the_theta_0_and_reduce_their_gradients(capsys):
    (alone,) = measure(jax.devices()[:1], (8,))
    (shared,) = measure(jax.devices(), (1, 8))
    assert (shared["parallel"], shared["num_devices"]) == ("pmap", 4)
    assert "1 theta_0 cannot be divided over 4 device(s)" in capsys.readouterr().out
    assert 4 * shared["matmul_flops"] == alone["matmul_flops"]
    assert shared["peak_bytes"] < alone["peak_bytes"]
    assert shared["all_reduces"] >= 1


def test_what_is_compiled_is_what_the_library_runs():
    devices = jax.devices()
    objective, init_fn, meta_tx, state, batch = accelerator.problem(BAG)
    keys = jax.random.split(jax.random.key(1), 8)
    start = jax.tree.map(np.array, state)
    step = parallel.pmap_meta_step(objective, init_fn, meta_tx, devices=devices)
    expected, info = step(jax.tree.map(np.array, start), keys, batch)
    program = accelerator.compile_step(BAG, devices)
    args = jax.device_put(
        (start, keys.reshape(program.keys_shape), batch),
        program.compiled.input_shardings[0],
    )
    got, got_info = program.compiled(*args)
    assert got_info.meta_loss == info.meta_loss
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(got.distilled.x - state.distilled.x).max() > 0


def test_a_gradient_that_is_not_finite_is_no_measurement(monkeypatch):
    *fns, state, batch = accelerator.problem(BAG)
    broken = state.distilled.replace(x=jnp.full_like(state.distilled.x, jnp.nan))
    drawn = (*fns, state.replace(distilled=broken), batch)
    monkeypatch.setattr(accelerator, "problem", lambda config: drawn)
    with pytest.raises(ArithmeticError, match="3 of 3 meta-gradients are not finite"):
        measure(jax.devices()[:1], (8,))


def failing(message, above):
    compile_step = accelerator.compile_step

    def step(config, devices):
        if config.num_theta_0 > above:
            raise jax.errors.JaxRuntimeError(message)
        return compile_step(config, devices)

    return step


def test_what_does_not_fit_ends_a_configuration(monkeypatch, capsys):
    full = "RESOURCE_EXHAUSTED: Out of memory"
    monkeypatch.setattr(accelerator, "compile_step", failing(full, above=1))
    (row,) = measure(jax.devices()[:1], (1, 4, 8))
    out = capsys.readouterr().out
    assert row["num_theta_0"] == 1
    assert (
        "tiny: 4 theta_0 do not fit in the memory of 1 device(s)" in out
        and "8 theta_0" not in out
    )
    monkeypatch.setattr(accelerator, "compile_step", failing("INTERNAL: else", 0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        measure(jax.devices()[:1], (1,))


def test_a_mark_counts_only_where_it_rose():
    program = accelerator.compile_step(BAG, jax.devices()[:1])

    def run(*marks):
        left = iter(marks)
        stats = lambda: {"peak_bytes_in_use": next(left)}  # noqa: E731
        return accelerator.time_step(
            program, BAG, [SimpleNamespace(memory_stats=stats)], repeats=1
        )

    assert run(5, 9)[1] == 9
    assert run(9, 9)[1] is None
    silent = SimpleNamespace(memory_stats=lambda: None)
    assert accelerator.time_step(program, BAG, [silent], repeats=1)[1] is None


# Compiled only


def test_the_analysis_times_nothing(monkeypatch, tmp_path, capsys):
    asked = []

    def devices(topology):
        asked.append(topology)
        return jax.devices()

    monkeypatch.setattr(accelerator, "topology_devices", devices)
    path = tmp_path / "accelerator.jsonl"
    (row,) = accelerator.analyse(
        {"tiny": BAG}, (6, 8), topologies=["v5e:2x2"], results=path
    )
    assert asked == ["v5e:2x2"]
    assert results.read(path) == [json.loads(json.dumps(row))]
    assert (row["kind"], row["topology"]) == ("compile-time analysis", "v5e:2x2")
    assert all(row[name] is None for name in (*TIMES, "measured_bytes"))
    assert (row["num_theta_0"], row["num_devices"]) == (8, 4)
    assert row["device"].startswith("none; compiled for ")
    assert row["all_reduces"] >= 1 and row["flops"] > 0 and row["peak_bytes"] > 0
    out = capsys.readouterr().out
    assert "6 theta_0 cannot be divided over v5e:2x2" in out
    monkeypatch.setattr(
        accelerator, "compile_step", failing("RESOURCE_EXHAUSTED: hbm", 0)
    )
    assert accelerator.analyse({"tiny": BAG}, (8,), topologies=["v5e:2x2"]) == []
    assert "8 theta_0 do not fit in the memory of v5e:2x2" in capsys.readouterr().out


def test_rows_are_either_measured_or_analysed():
    (row,) = measure(jax.devices()[:1], (1,))
    with pytest.raises(ValueError, match="topology must be null if measured"):
        results.check(row | {"topology": "v5e:2x2"})
    with pytest.raises(ValueError, match="step_seconds must be null if nothing"):
        results.check(row | {"step_seconds": None})
    analysed = {"kind": "compile-time analysis", "topology": "v5e:2x2"}
    with pytest.raises(ValueError, match="step_seconds must be null if nothing"):
        results.check(row | analysed)
    results.check(row | analysed | dict.fromkeys(TIMES))


def test_peak_bytes_by_platform():
    memory = SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=50,
        alias_size_in_bytes=40,
        temp_size_in_bytes=7,
        peak_memory_in_bytes=110,
    )
    assert accelerator._peak_bytes(memory, "gpu") == 117
    assert accelerator._peak_bytes(memory, "tpu") == 110


def test_all_reduces_are_counted_once_each():
    text = """
      %a = f32[] all-reduce(%x), to_apply=%add
      %s = f32[] all-reduce-start(%x), to_apply=%add
      %d = f32[] all-reduce-done(%s)
      %c = f32[] copy(%all-reduce.1)
    """
    assert len(accelerator._ALL_REDUCE.findall(text)) == 2


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_a_program_for_256_chips_reduces_once(tmp_path):
    path = tmp_path / "accelerator.jsonl"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.accelerator", "--mode=analysis"),
            *("--configs=bag", "--topologies=v5e:16x16", f"--results={path}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (row,) = results.read(path)
    assert (row["num_devices"], row["num_theta_0"], row["all_reduces"]) == (256, 256, 1)
    assert (row["backend"], row["device"]) == (
        "tpu",
        "none; compiled for 256 x TPU v5 lite",
    )
    with pytest.raises(ValueError, match="unknown TPU topology 'v5e:3x9'"):
        accelerator.topology_devices("v5e:3x9")


# What is asked for


def test_every_configuration_is_a_known_model_and_pooling_differs():
    configs = {name: Config(**c) for name, c in accelerator.CONFIGS.items()}
    assert all(c.model in MODELS for c in configs.values())
    winners, dense = (
        dict(configs[f"text_cnn_{p}"].settings)["pooling"] for p in ("winners", "dense")
    )
    assert (winners, dense) == ("winners", "dense")
    assert accelerator.THETA_0S == (1, 4, 16, 64, 256, 1024)


def test_bad_input_is_named(monkeypatch):
    here = jax.devices()[:1]
    with pytest.raises(ValueError, match=r"num_theta_0 must be 1 or more, got \[0\]"):
        measure(here, (0,))
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        accelerator.measure({}, (1,), devices=here, repeats=0)
    with pytest.raises(ValueError, match="devices must be one or more, got none"):
        measure([], (1,))
    with pytest.raises(ValueError, match="unknown precision 'half', known: default"):
        accelerator.analyse({}, (1,), precision="half")
    with pytest.raises(ValueError, match="8 theta_0 cannot be divided evenly over 3"):
        accelerator.compile_step(BAG, jax.devices()[:3])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"distill_jax\[tpu\]"):
        accelerator.topology_devices("v5e:2x2")


def test_the_table_shows_shares_of_the_peak():
    (row,) = measure(jax.devices()[:1], (1,))
    row |= {"flops_per_second": 5e9, "peak_flops_per_second": 2e10}
    analysed = row | {"topology": "v5e:2x2"} | dict.fromkeys(TIMES)
    text = accelerator.table([row, analysed])
    assert "25.0%" in text.splitlines()[1] and "cpu" in text.splitlines()[1]
    assert "25.0%" not in text.splitlines()[2] and "v5e:2x2" in text.splitlines()[2]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--configs=nothing", "unknown configuration 'nothing', known: all, bag"),
        ("--num_theta_0=many", "num_theta_0 must be whole numbers, got many"),
    ],
)
def test_errors_take_one_line(flag, message):
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
