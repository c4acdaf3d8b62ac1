"""The speed benchmark of acquisition on a tiny network: equal results, valid rows."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import acquirers, acquisition, common
from benchmarks.acquirers import IMPLEMENTATIONS, Config, Problem, draw
from distill_jax import results, selection

ROOT = Path(__file__).parents[1]
SMALL = (("filters", 3), ("widths", (2, 3)), ("hidden", 4))
MC = Config("mc_dropout", 6, 3, 2, 5, dropout=0.5, settings=SMALL)
K_CENTER = Config("k_center", 12, features=4, picks=3, labelled=2)
BADGE = Config("badge", 12, features=4, classes=3, picks=3)
TORCH = ["torch_reference", "torch_trunk_once"]


@functools.cache
def problem():
    """Sentences of every length from none to L, in float64."""
    tokens = np.random.default_rng(1).integers(1, 50, (6, 5), np.int32)
    tokens[np.arange(5)[None] >= np.arange(6)[:, None]] = 0
    drawn = draw(MC, tokens)
    arrays = {
        name: a.astype(np.float64) if a.dtype.kind == "f" else a
        for name, a in drawn.arrays.items()
    }
    biases = {n: np.arange(len(a)) - 1.0 for n, a in arrays.items() if "bias" in n}
    return Problem(MC, arrays | biases)


@functools.cache
def result(name, passes, dropout):
    config = dataclasses.replace(MC, passes=passes, dropout=dropout)
    return IMPLEMENTATIONS[name](Problem(config, problem().arrays)).run()


@pytest.mark.parametrize("name", ["distill_jax_dense", *TORCH])
def test_without_dropout_all_are_equal(name):
    if name in TORCH:
        pytest.importorskip("torch", reason="PyTorch is the extra torch")
    got, ours = result(name, 2, 0.0), result("distill_jax", 2, 0.0)
    assert got.shape == (2, 6, 3) and got.dtype == np.float64
    np.testing.assert_allclose(got, ours, atol=1e-12)
    np.testing.assert_allclose(np.exp(got).sum(-1), 1)
    assert got[0].std(0).min() > 1e-3


@pytest.mark.parametrize("name", TORCH)
def test_dropout_is_of_the_same_law(name):
    """Means over many passes agree, and passes do not."""
    torch = pytest.importorskip("torch", reason="PyTorch is the extra torch")
    torch.manual_seed(0)
    ours, theirs = (np.exp(result(n, 2000, 0.5)) for n in ("distill_jax", name))
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.2)
    assert theirs.std(0).min() > 1e-3


def test_only_agreeing_implementations_are_timed(monkeypatch, capsys):
    names = ["distill_jax", "distill_jax_dense"]
    acquisition.agree(problem(), names)
    assert "distill_jax from distill_jax_dense: " in capsys.readouterr().out
    right = acquirers.distill_jax_dense

    def wrong(problem):
        ready = right(problem)
        return dataclasses.replace(ready, run=lambda: 1.001 * ready.run())

    monkeypatch.setitem(IMPLEMENTATIONS, "distill_jax_dense", wrong)
    with pytest.raises(ArithmeticError, match="distill_jax_dense disagree"):
        acquisition.agree(problem(), names)


def test_a_problem_survives_its_file(tmp_path):
    path = tmp_path / "problem.npz"
    acquirers.save(problem(), path)
    again = acquirers.load(MC, path)
    assert again.config == MC and again.arrays.keys() == problem().arrays.keys()
    for name, a in problem().arrays.items():
        np.testing.assert_array_equal(again.arrays[name], a)


def test_picks_are_those_of_the_queries():
    got = acquirers.distill_jax(draw(K_CENTER)).run()
    features = draw(K_CENTER).arrays["features"].astype(np.float64)
    assert got.tolist() == selection.coverage.furthest_first(features, 3, [0, 1])
    assert len(set(acquirers.distill_jax(draw(BADGE)).run().tolist())) == 3
    with pytest.raises(ValueError, match="unknown task 'magic', known: mc_dropout"):
        draw(Config("magic", 3))
    with pytest.raises(ValueError, match="badge has no pooling"):
        acquirers.distill_jax_dense(draw(BADGE))


def test_a_run_writes_valid_rows(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is the extra torch")
    memory = {
        "mc_dropout": acquisition.Memory(2**29, 2**20, 2**28),
        "k_center": acquisition.Memory(2**28, None, None),
    }
    monkeypatch.setattr(
        acquisition, "memory", lambda p, name, threads: memory[p.config.task]
    )
    path = tmp_path / "acquisition.jsonl"
    names = ["distill_jax", "torch_reference"]
    with jax.enable_x64(False):
        problems = {"mc_dropout_f2": draw(MC), "k_center": draw(K_CENTER)}
        got = acquisition.run(problems, names, repeats=2, results=path)
    assert results.read(path) == [json.loads(json.dumps(row)) for row in got]
    ours, loop, k_center = got
    asked = [row["implementation"] for row in got]
    assert asked == [*names, "distill_jax"]
    assert (ours["items"], ours["passes"], ours["length"]) == (6, 2, 5)
    assert (k_center["picks"], k_center["passes"]) == (3, None)
    assert loop["ratio_to_torch"] == 1 and k_center["ratio_to_torch"] is None
    assert ours["ratio_to_torch"] == pytest.approx(
        loop["seconds_median"] / ours["seconds_median"]
    )
    for one in (ours, k_center):
        fields = "peak_bytes call_bytes compiled_peak_bytes".split()
        found = acquisition.Memory(*(one[field] for field in fields))
        assert found == memory["k_center" if one is k_center else "mc_dropout"]
    text = capsys.readouterr().out
    assert "mc_dropout_f2  torch_reference" in text
    assert "k_center, distill_jax: 0.00 s, below 3 asked: yes" in text


def test_memory_is_that_of_the_call():
    """More items are more bytes, on top of what importing and reading them took."""
    few, many = (
        draw(dataclasses.replace(K_CENTER, items=n, features=256))
        for n in (4_000, 32_000)
    )
    (peak, call, compiled), (peak_many, call_many, _) = (
        acquisition.memory(one, "distill_jax") for one in (few, many)
    )
    assert compiled is not None and peak / 2 < compiled < peak
    features = many.arrays["features"].nbytes - few.arrays["features"].nbytes
    assert peak_many - peak > 2 * features  # in float64
    if call is None or call_many is None:
        assert sys.platform != "linux"
    else:
        assert 2 * features < call_many - call < 10 * features
        assert call_many < peak_many
    with pytest.raises(RuntimeError, match="measuring magic's memory failed: KeyError"):
        acquisition.memory(few, "magic")


def test_the_process_of_pytorch_has_no_jax(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is the extra torch")
    acquirers.save(problem(), tmp_path / "problem.npz")
    code = (
        "import sys; from benchmarks import acquisition as a; a.child(*sys.argv); "
        "print('torch' in sys.modules, 'jax' in sys.modules)"
    )
    config = json.dumps(dataclasses.asdict(MC))
    arguments = ["torch_reference", config, str(tmp_path / "problem.npz"), "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    numbers, modules = done.stdout.splitlines()
    peak, call = json.loads(numbers)
    assert 2**26 < peak < 2**31 and (call is None or 0 <= call < peak)
    assert modules == "True False"


def row(implementation, config="mc_dropout_f10", **changed):
    return {
        "config": config,
        "implementation": implementation,
        "seconds_median": 1.0,
        "ratio_to_torch": 1.0,
        "peak_bytes": 2**30,
        "compiled_peak_bytes": None,
        "call_bytes": 2**20,
    } | changed


def test_verdicts():
    loop = row("torch_reference")
    fast = row("distill_jax", ratio_to_torch=3.5, peak_bytes=2**29, call_bytes=2**18)
    assert acquisition.verdicts([fast, loop]).splitlines() == [
        "mc_dropout_f10, distill_jax: 3.50 times as fast as PyTorch's loop, at least 3 "
        "asked: yes",
        "mc_dropout_f10, distill_jax: memory of the call 0.25 times PyTorch's, at most "
        "1 asked: yes",
        "mc_dropout_f10, distill_jax: memory of the process 0.50 times PyTorch's, at "
        "most 1 asked: yes",
    ]
    slow = row(
        "distill_jax", ratio_to_torch=2.9, peak_bytes=2**30 + 1, call_bytes=2**20 + 1
    )
    assert acquisition.verdicts([slow, loop]).count("asked: NO") == 3
    cached = row("distill_jax", compiled_peak_bytes=2**29)
    assert (
        "memory of the process, compiled before, 0.50 times PyTorch's, at most 1 "
        "asked: yes" in acquisition.verdicts([cached, loop])
    )
    unknown = row("distill_jax", call_bytes=None)
    assert "call" not in acquisition.verdicts([unknown, loop])
    late = row("distill_jax", "k_center", seconds_median=3.0)
    large = row("distill_jax", "badge", peak_bytes=2**30 + 1)
    assert acquisition.verdicts([late, large]).count("asked: NO") == 2


def test_the_pool_of_a_corpus(tmp_path):
    lines = ["text\tlabel", "a b c\t0", "a b c\t1", "a d\t1"]
    for part in ("train", "validation", "test"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    tokens = acquisition.corpus_tokens(str(tmp_path), 4)
    assert tokens.shape == (3, 4) and (tokens != 0).sum(1).tolist() == [3, 3, 2]


def test_errors_take_one_line():
    command = [sys.executable, "-m", "benchmarks.acquisition", "--configs=nope"]
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: unknown configuration 'nope', known: all, ")
    assert len(bad.stderr.splitlines()) == 1
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        common.time_in_turn({}, repeats=0)
