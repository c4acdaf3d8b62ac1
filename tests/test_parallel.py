"""The number of devices or hosts changes nothing but the last digits."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.core import meta_init, meta_step
from distill_jax.parallel import PARALLEL, initialize_distributed, on_any_host
from tests.tiny import MODEL, OBJECTIVE, TX, B, D, E, L, S, problem

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


def assert_same(actual, desired, rtol=1e-9):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14),
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


def test_initialize_distributed_refuses_half_an_address():
    with pytest.raises(ValueError, match="all of coordinator, num_processes"):
        initialize_distributed("127.0.0.1:1234", 2)
    with pytest.raises(ValueError, match=r"process_id must be in 0 .. 1, got 2"):
        initialize_distributed("127.0.0.1:1234", 2, 2)


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
    both = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert both[0]["loop"] == both[1]["loop"]
    for said in both:
        assert said["stopped"] == said["loop"][0] == 4  # one was told, both stopped
        assert said.pop("any") == [True, False]
        for name in ("pmap", "shard_map"):
            assert_same(said[name], expected)
