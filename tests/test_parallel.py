"""The number of devices or hosts changes nothing but the last digits."""

import json
import os
import re
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.core import meta_init, meta_step, unroll
from distill_jax.parallel import (
    PARALLEL,
    first_says,
    is_first_process,
    join,
    meta_steps,
    on_any_host,
    over_devices,
    parse_devices,
)
from tests.tiny import (
    LOSS,
    MODEL,
    OBJECTIVE,
    TRAIN,
    TX,
    B,
    D,
    E,
    L,
    S,
    next_rows,
    problem,
)

N = 8


def three_steps(step, state, batch):
    infos = []
    for k in range(3):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), k), N)
        state, info = step(state, keys, batch)
        infos.append(info)
    return jax.device_get((state, infos))


@pytest.fixture(scope="module")
def by_vmap():
    step = jax.jit(partial(meta_step, OBJECTIVE, MODEL.init, TX))
    return three_steps(step, *problem())


def assert_same(actual, desired, rtol=1e-9, atol=1e-14):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        actual,
        desired,
    )


@pytest.mark.parametrize("num_devices", [4, 2, 1])
def test_pmap_and_shard_map_equal_vmap(by_vmap, num_devices):
    devices = jax.devices()[:num_devices]
    results = {}
    for name in ("pmap", "shard_map"):
        step = PARALLEL[name](OBJECTIVE, MODEL.init, TX, devices=devices)
        results[name] = three_steps(step, *problem())
        assert_same(results[name], by_vmap)
    assert_same(results["shard_map"], results["pmap"], rtol=0)


def test_jit_equals_vmap(by_vmap):
    last = jax.devices()[-1]
    step = PARALLEL["jit"](OBJECTIVE, MODEL.init, TX, devices=[last])
    assert_same(three_steps(step, *problem()), by_vmap)
    state, _ = step(problem()[0], jax.random.split(jax.random.key(0), N), problem()[1])
    assert state.step.devices() == {last}


def test_sequential_inside_each_device_equals_vmap(by_vmap):
    step = PARALLEL["pmap"](
        OBJECTIVE, MODEL.init, TX, devices=jax.devices()[:2], sequential=True
    )
    assert_same(three_steps(step, *problem()), by_vmap)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_the_gradient_is_a_mean_over_devices_not_a_sum(name):
    """Adam hides a wrong scale; plain SGD on a known gradient does not."""
    weights = jnp.asarray([1.0, 2.0, 3.0])

    def objective(distilled, theta_0, batch):
        return (distilled * weights).sum() * theta_0

    def init(key):  # must depend on the key, or the trap of check_vma stays hidden
        return 1.0 + 0.0 * jax.random.normal(key)

    step = PARALLEL[name](objective, init, optax.sgd(1.0))
    state = jax.device_get(meta_init(optax.sgd(1.0), np.zeros(3)))
    state, info = step(state, jax.random.split(jax.random.key(0), N), np.zeros(1))
    np.testing.assert_allclose(state.distilled, -weights, rtol=1e-12)
    np.testing.assert_allclose(info.grad_norm, np.sqrt(14.0), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_it_compiles_once(name):
    traces = []

    def objective(distilled, theta_0, batch):
        traces.append(name)
        return (distilled * theta_0 * batch).sum()

    tx = optax.sgd(0.1)
    step = PARALLEL[name](objective, jax.random.normal, tx)
    state = jax.device_get(meta_init(tx, jnp.ones(3)))
    keys = jax.random.split(jax.random.key(0), N)
    for k in range(3):
        state, _ = step(state, keys, np.ones(3) * k)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_the_next_state_is_an_ordinary_one(name):
    state, batch = problem()
    step = PARALLEL[name](OBJECTIVE, MODEL.init, TX)
    after, info = step(state, jax.random.split(jax.random.key(0), N), batch)
    assert after.distilled.x.shape == (S, B, L, D)
    assert after.step.shape == info.meta_loss.shape == ()
    assert int(after.step) == 1
    assert (after.distilled.lr + 1.0).shape == (E, S)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
@pytest.mark.parametrize("n", [6, 0])
def test_theta_0_that_do_not_divide_are_refused(name, n):
    state, batch = problem()
    step = PARALLEL[name](OBJECTIVE, MODEL.init, TX)
    keys = jax.random.split(jax.random.key(0), N)[:n]
    with pytest.raises(ValueError, match=f"{n} theta_0 .* 4 devices: use a multiple"):
        step(state, keys, batch)


def test_jit_refuses_two_devices():
    with pytest.raises(ValueError, match="one device, got 2"):
        PARALLEL["jit"](OBJECTIVE, MODEL.init, TX, devices=jax.devices()[:2])


def in_one_precision(tree, dtype):
    floats = lambda a: a.astype(dtype) if a.dtype.kind == "f" else a  # noqa: E731
    return jax.tree.map(floats, jax.device_get(tree))


def many(how, devices, dtype, sizes, K=4):
    """Six meta-steps in dispatches of `sizes`, of up to K."""
    state, train = in_one_precision((problem()[0], TRAIN), dtype)
    place, run = many_steps(how, devices)
    train, infos, done = place(train), [], 0
    for n in sizes:
        rows = np.zeros((K, 8), int)
        rows[:n] = [next_rows(done + i) for i in range(n)]
        state, some = run(state, jax.random.key(0), rows, n, train, N)
        infos.append(jax.tree.map(lambda a, n=n: a[:n], jax.device_get(some)))
        done += n
    infos = jax.tree.map(lambda *a: np.concatenate(a), *infos)
    return jax.device_get(state), infos


@cache
def many_steps(how, devices):
    return meta_steps(
        OBJECTIVE, MODEL.init, TX, how=how, devices=devices, sequential=True
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "how, num_devices", [("jit", 1), ("pmap", 4), ("shard_map", 2)]
)
def test_steps_in_one_dispatch_are_the_same_bits_as_one_by_one(how, num_devices, dtype):
    devices = tuple(jax.devices()[:num_devices])
    with jax.enable_x64(dtype == "float64"):
        step = PARALLEL[how](
            OBJECTIVE, MODEL.init, TX, devices=devices, sequential=True
        )
        state, train = in_one_precision((problem()[0], TRAIN), dtype)
        infos = []
        for k in range(6):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), k), N)
            rows = next_rows(k)
            batch = jax.tree.map(lambda a, rows=rows: a[rows], train)
            state, info = step(state, keys, batch)
            infos.append(jax.device_get(info))
        infos = jax.tree.map(lambda *a: np.stack(a), *infos)
        expected = (jax.device_get(state), infos)
        assert state.distilled.x.dtype == dtype
        for sizes in ([1] * 6, [4, 2], [3, 3]):
            assert_same(many(how, devices, dtype, sizes), expected, rtol=0, atol=0)


def test_the_corpus_is_no_constant_of_the_program_and_it_compiles_once():
    traces = []

    def objective(distilled, theta_0, batch):
        traces.append(1)
        return (distilled * theta_0 * batch.x.sum()).sum()

    tx = optax.sgd(0.1)
    place, run = meta_steps(objective, jax.random.normal, tx)
    train, after = place(TRAIN), []
    for sentences in (train, train.replace(x=train.x * 2)):
        state = jax.device_get(meta_init(tx, jnp.ones(3)))
        for n in (1, 3, 4):
            rows = np.zeros((4, 8), int)
            state, _ = run(state, jax.random.key(0), rows, n, sentences, 2)
        after.append(np.asarray(state.distilled))
    assert len(traces) == 1
    np.testing.assert_allclose(after[1] - 1, 2 * (after[0] - 1), rtol=1e-12)


def test_several_devices_are_shared_by_default_and_unknown_ways_refused():
    tx = optax.sgd(0.1)
    place, _ = meta_steps(OBJECTIVE, MODEL.init, tx, devices="all")
    assert place(np.ones(3)).devices() == set(jax.devices())
    place, _ = meta_steps(OBJECTIVE, MODEL.init, tx, devices=jax.devices()[2:3])
    assert place(np.ones(3)).devices() == {jax.devices()[2]}
    with pytest.raises(ValueError, match=r"one of \['jit', .*\], got 'vmap'"):
        meta_steps(OBJECTIVE, MODEL.init, tx, how="vmap")
    with pytest.raises(ValueError, match="one device, got 4"):
        meta_steps(OBJECTIVE, MODEL.init, tx, how="jit", devices="all")
    with pytest.raises(ValueError, match="a list, \"all\" or None, got 'every'"):
        meta_steps(OBJECTIVE, MODEL.init, tx, devices="every")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5, 8])
def test_scores_are_the_same_bits_on_any_number_of_devices(n, dtype):
    with jax.enable_x64(dtype == "float64"):
        state, held_out = in_one_precision((problem()[0], TRAIN), dtype)
        lr = np.full((50, S), 0.5, dtype)

        def one(key, batches, held_out):
            theta, _ = unroll(LOSS, MODEL.init(key), batches, lr)
            return theta["w"], LOSS(theta, held_out)

        keys = jax.random.split(jax.random.key(1), n)
        batches = state.distilled.batches
        expected = jax.jit(
            lambda keys, *args: jax.lax.map(lambda key: one(key, *args), keys)
        )(keys, batches, held_out)
        assert len(np.unique(expected[1])) == n
        for devices in (None, "all", *(jax.devices()[:d] for d in (1, 2, 4))):
            scores = over_devices(one, devices)(keys, batches, held_out)
            assert_same(scores, expected, rtol=0, atol=0)


def test_each_device_scores_its_share():
    where = over_devices(lambda key: jax.lax.axis_index("init"), "all")
    keys = jax.random.split(jax.random.key(1), 6)
    assert where(keys).tolist() == [0, 0, 1, 1, 2, 2]


def test_devices_of_a_flag():
    assert parse_devices("") is None and parse_devices(None) is None
    assert parse_devices("all") == "all"
    assert parse_devices("2") == jax.devices()[:2]
    for wrong in ("5", "0", "two", "-1"):
        with pytest.raises(ValueError, match=f"\"all\" or .* 1 .. 4, got '{wrong}'"):
            parse_devices(wrong)


@pytest.mark.parametrize(
    "given, message",
    [
        (("127.0.0.1:1234", 2), "give all of coordinator .*, num_processes"),
        ((None, 2, 0), "give all of coordinator .*, num_processes"),
        (("auto", 2, 0), 'or coordinator="auto" alone, or none'),
        (("127.0.0.1", 2, 0), "must be host:port, got '127.0.0.1'"),
        (("127.0.0.1:1234", 2, 2), r"process_id must be in 0 .. 1, got 2"),
    ],
)
def test_join_refuses_half_an_address(given, message):
    with pytest.raises(ValueError, match=message):
        join(*given)


def test_join_alone_does_nothing():
    join()
    assert jax.process_count() == 1 and is_first_process() and first_says(7) == 7


@pytest.mark.parametrize(
    "before, message",
    [
        ("", "ValueError: coordinator is auto, but no cluster that JAX knows"),
        ("jax.devices(); ", "RuntimeError: .*must be called before"),
    ],
)
def test_join_auto_says_what_is_wrong(before, message):
    code = f"import jax; from distill_jax import parallel; {before}"
    given = '"auto"' if not before else '"127.0.0.1:1234", 2, 0'
    done = subprocess.run(
        [sys.executable, "-c", f"{code}parallel.join({given})"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr


def test_on_any_host_with_one_host():
    assert on_any_host(True) is True
    assert on_any_host(False) is False


def test_two_processes_equal_one(by_vmap, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    root = Path(__file__).parents[1]
    folder = str(tmp_path / "run")
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", str(port), str(i), folder],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        ended = [p.communicate(timeout=120) for p in running]
    finally:
        for p in running:
            p.kill()
    assert [p.returncode for p in running] == [0, 0], ended
    state, infos = by_vmap
    expected = {
        "x": state.distilled.x.tolist(),
        "raw_lr": state.distilled.raw_lr.tolist(),
        "meta_loss": [float(i.meta_loss) for i in infos],
    }
    keys = jax.random.split(jax.random.key(0), 3)
    scores = jax.vmap(lambda key: jax.random.normal(key))(keys).tolist()
    both = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert both[0]["loop"] == both[1]["loop"]
    for said in both:
        stops = [said["stopped"], *(resumed for resumed, _ in said["loop"])]
        assert stops == [4, 4, 4]  # one was told, both stopped
        assert said.pop("any") == [True, False]
        for name in ("pmap", "shard_map"):
            assert_same(said[name], expected)
        assert said["first"] == [10, said is both[0]]
        assert said["scores"] == scores
