"""The flop counter, and a whole run of the speed benchmark on a tiny network."""

import ast
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import common, implementations, meta_step, pooling
from benchmarks.flops import Flops, count
from benchmarks.implementations import Config
from distill_jax import results

ROOT = Path(__file__).parents[1]
M, K, N = 3, 4, 5
A, B, W = jnp.ones((M, K)), jnp.ones((K, N)), jnp.ones((K, K))
PRODUCT = 2 * M * K * K  # of A and W


def chain(a, w):
    return (a @ w @ w).sum()


@jax.custom_vjp
def doubled(a):
    return 2 * a


doubled.defvjp(lambda a: (doubled(a), ()), lambda _, g: ((g @ W @ W @ W),))


def grouped_convolution(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1,), "VALID", feature_group_count=2)


PROGRAMS = {
    "product": (lambda a: a @ B, (A,), (2 * M * K * N, 0)),
    "batch of products": (
        lambda a: jnp.einsum("bmk,bkn->bmn", a, jnp.ones((7, K, N))),
        (jnp.ones((7, M, K)),),
        (7 * 2 * M * K * N, 0),
    ),
    # 2 examples, 6 features of 5 positions, each from 2 channels and 4 taps.
    "convolution": (
        grouped_convolution,
        (jnp.ones((2, 4, 8)), jnp.ones((6, 2, 4))),
        (2 * 2 * 6 * 5 * 2 * 4, 0),
    ),
    "elementwise": (lambda a: jnp.exp(a) + a, (A,), (0, 2 * M * K)),
    "sum": (lambda a: a.sum(0), (A,), (0, M * K)),
    "integers": (lambda a: (a + 1).sum(), (jnp.ones(9, jnp.int32),), (0, 0)),
    "choice": (lambda a: jnp.where(a > 0, a, 1.0), (A,), (0, 0)),
    "scatter": (
        lambda a: a.at[jnp.array([0, 0])].add(jnp.ones((2, K))),
        (A,),
        (0, 2 * K),
    ),
    "scan of ten": (
        lambda a: lax.scan(lambda c, _: (c @ W, None), a, None, length=10)[0],
        (A,),
        (10 * PRODUCT, 0),
    ),
    "scan in a scan": (
        lambda a: lax.fori_loop(0, 3, lambda _, c: lax.fori_loop(0, 4, step, c), a),
        (A,),
        (12 * PRODUCT, 0),
    ),
    "jit": (jax.jit(chain), (A, W), (2 * PRODUCT, M * K)),
    "checkpoint": (jax.checkpoint(chain), (A, W), (2 * PRODUCT, M * K)),
    "dearest branch": (
        lambda a: lax.cond(a[0, 0] > 0, lambda: a @ W @ W, lambda: a @ W),
        (A,),
        (2 * PRODUCT, 0),
    ),
    "custom vjp": (doubled, (A,), (0, M * K)),
}


def step(_, carry):
    return carry @ W


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_flops_of_known_programs(name):
    fn, args, expected = PROGRAMS[name]
    assert count(fn, *args) == Flops(*expected)


def test_a_gradient_is_three_times_a_chain_of_products():
    forward = count(chain, A, W).matmul
    both = count(jax.grad(chain, (0, 1)), A, W).matmul
    assert (forward, both) == (2 * PRODUCT, 3 * 2 * PRODUCT)


def test_the_backward_rule_of_a_custom_vjp_counts():
    assert count(jax.grad(lambda a: doubled(a).sum()), A).matmul == 3 * PRODUCT


def test_recomputation_counts_again():
    def loss(a):
        return jnp.tanh(jnp.tanh(a @ W) @ W).sum()

    plain, again = (count(jax.grad(f), A).matmul for f in (loss, jax.checkpoint(loss)))
    assert (plain, again) == (4 * PRODUCT, 6 * PRODUCT)


def test_a_while_needs_its_trip_count():
    def until(a):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ W, a)

    with pytest.raises(ValueError, match="give while_trips"):
        count(until, A)
    assert count(until, A, while_trips=6).matmul == 6 * PRODUCT


# One configuration, end to end


TINY = {"T": 3, "minibatch": 2, "tokens": 6, "real_batch": 4, "num_theta_0": 2}
CNN = Config("text_cnn", **TINY, settings=(("filters", 3), ("hidden", None)))


@functools.cache
def problem():
    """Float32, as it is measured."""
    return implementations.draw(CNN)


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


def test_a_run_writes_valid_rows(tmp_path, capsys, float32):
    pytest.importorskip("torch", reason="PyTorch is the extra torch")
    path = tmp_path / "results" / "meta_step.jsonl"
    names = ("distill_jax", "distill_jax_dense", "torch_reference")
    got = meta_step.run({"tiny": CNN}, names, repeats=2, results=path)
    text = capsys.readouterr().out
    assert [row["implementation"] for row in got] == list(names)
    assert results.read(path) == [json.loads(json.dumps(row)) for row in got]
    ours, dense, torch_row = got
    for name, size in TINY.items():
        assert ours[name] == size
    assert ours["config"] == "tiny" and ours["threads"] == 1
    assert 0 < ours["flops"] < dense["flops"]
    assert ours["temp_bytes"] > 0 and ours["compile_seconds"] > 0
    assert torch_row["ratio_to_torch"] == 1 and torch_row["flops"] is None
    assert ours["ratio_to_torch"] == pytest.approx(
        torch_row["seconds_median"] / ours["seconds_median"]
    )
    assert "distill_jax from torch_reference" in text
    assert all(f"tiny           {name}" in text for name in names)
    verdict = pooling.verdict(got[:2])
    assert verdict.startswith("tiny: ") and "faster on cpu" in verdict


def test_all_compute_the_same(float32):
    names = ["distill_jax", "distill_jax_plain", "distill_jax_nested"]
    if importlib.util.find_spec("torch"):
        names.append("torch_reference")
    results = {n: implementations.IMPLEMENTATIONS[n](problem()).run() for n in names}
    for name in names[:-1]:
        apart = meta_step.departures(results[name], results[names[-1]])
        assert max(largest for _, largest in apart.values()) < 1e-4
    meta_step.agree(results)
    loss, grad = results[names[0]]
    with pytest.raises(ArithmeticError, match="off and .* disagree on raw_lr:"):
        meta_step.agree(
            {"off": (loss, grad | {"raw_lr": 1.01 * grad["raw_lr"]})} | results
        )
    with pytest.raises(ArithmeticError, match="disagree on x:"):
        meta_step.agree({"off": (loss, grad | {"x": np.nan * grad["x"]})} | results)


def test_temporary_memory_grows_no_faster_than_the_root_of_the_steps(float32):
    def temp_bytes(implementation, T):
        config = Config(
            "bag", T, 1, 2, 2, classes=2, settings=(("hidden", 256),)
        )  # theta is far larger than a minibatch
        make = implementations.IMPLEMENTATIONS[implementation]
        return make(implementations.draw(config)).temp_bytes or 0

    few, many = 10, 160
    nested = [temp_bytes("distill_jax_nested", T) for T in (few, many)]
    plain = [temp_bytes("distill_jax", T) for T in (few, many)]
    assert nested[1] / nested[0] <= (many / few) ** 0.5
    assert plain[1] / plain[0] > 1.5 * (many / few) ** 0.5
    assert nested[1] < plain[1] / 3


def test_growth_takes_off_one_gradient():
    def row(T, temp_bytes):
        sizes = {"minibatch": 2, "tokens": 5, "implementation": "distill_jax_nested"}
        return {"T": T, "temp_bytes": temp_bytes, **sizes}

    gradient = 4 * 2 * 5 * common.WIDTH  # of one step, in bytes
    text = meta_step.growth(
        [row(10, 10 * gradient + 100_000), row(40, 40 * gradient + 300_000)]
    )
    assert "net of the gradient  3.00 times, root of T  2.00" in text


# Where rows go, and what is imported


@pytest.mark.parametrize("name", ["meta_step", "accelerator", "acquisition"])
def test_rows_go_to_runs_unless_they_are_published(name):
    code = (
        f"from absl import flags; from benchmarks import common, {name} as b\n"
        "b.define_flags()\n"
        "for more in [], ['--publish'], ['--publish', '--results=mine.jsonl']:\n"
        "    flags.FLAGS.unparse_flags(); flags.FLAGS(['benchmark', *more])\n"
        f"    print(common.rows_path({name!r}).as_posix())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [
        f"runs/{name}.jsonl",
        f"results/{name}.jsonl",
        "mine.jsonl",
    ], done.stderr


def test_benchmarks_import_the_library_and_each_other_in_one_direction():
    names = {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
    left, others = {}, set()
    for name in names:
        found = set()
        tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: this test reads absolute imports"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        others |= {one for one in found if one.startswith("experiments")}
        ours = {one.split(".")[1] for one in found if one.startswith("benchmarks.")}
        left[name] = ours & names - {name}
    assert not others
    while left:
        free = [name for name, needs in left.items() if not needs & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_an_implementation_that_needs_pytorch_says_so_without_it(monkeypatch):
    known = {"distill_jax": None, "torch_reference": None}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert common.runnable(["distill_jax"], known, 1) == ["distill_jax"]
    with pytest.raises(ModuleNotFoundError, match=r"needs PyTorch.*distill_jax\[torch"):
        common.runnable(["all"], known, 1)


# What is asked for


def test_names_are_chosen_exactly_or_by_their_beginning():
    known = dict.fromkeys(("a_1", "a_10", "ab", "b"))
    assert common.chosen(["a_1"], known, "thing") == ["a_1"]
    assert common.chosen(["b", "a"], known, "thing") == ["b", "a_1", "a_10"]
    everything = ["b", "a_1", "a_10", "ab"]
    assert common.chosen(["b", "all"], known, "thing") == everything
    with pytest.raises(
        ValueError, match="unknown thing 'c', known: all, a_1, a_10, ab, b"
    ):
        common.chosen(["c"], known, "thing")


def test_every_configuration_names_a_known_model():
    for table in (meta_step.CONFIGS, meta_step.MEMORY_CONFIGS):
        for fields in table.values():
            assert Config(**fields).model in implementations.MODELS


def test_dense_is_for_a_max_over_time():
    bag = implementations.draw(Config("bag", 1, 1, 2, 2))
    with pytest.raises(ValueError, match="not bag"):
        implementations.distill_jax_dense(bag)


def test_it_is_too_late_to_pin():
    with pytest.raises(ValueError, match="before jax or torch is imported"):
        common.pin(1)
    with pytest.raises(ValueError, match="threads must be 1 or more, got 0"):
        common.pin(0)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="only Linux pins a process"
)
def test_pinning_leaves_one_core_and_errors_take_one_line():
    code = (
        "import os, sys; from benchmarks import common, meta_step; common.pin(1); "
        "print(len(os.sched_getaffinity(0)), 'jax' in sys.modules)"
    )
    run = functools.partial(
        subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    pinned = run([sys.executable, "-c", code])
    assert pinned.stdout.split() == ["1", "False"], pinned.stderr
    bad = run([sys.executable, "-m", "benchmarks.meta_step", "--configs=nope"])
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: unknown configuration 'nope', known: all, ")
    assert len(bad.stderr.splitlines()) == 1
