"""Meta-steps and scoring on devices and hosts. The only file that knows they exist.

Each device averages its share of the N theta_0, then the devices average with one
`pmean`: the mean over all N, since every share has the same size. State and data are
replicated, so the next state is an ordinary one wherever it came from.

`jax.pmap` and `jax.shard_map` run the same body and give the same bits on the same
devices; another number of devices changes the order of the sum, so the last digits.
What is scored is not summed over devices: any number of them gives the same bits.

The makers of meta-steps take `objective`, `init_fn` and `meta_tx` of `core.meta_step`,
and

    devices: which to use: a list, or "all" on every host. None is one, by JAX's default
        for `jit`, else all.
    sequential: inside a device, one theta_0 after the other, not `vmap`.

What they make donates the state that it is given, of numpy arrays or from itself: it
is gone afterwards. With several hosts each passes the same arguments.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from distill_jax.core import meta_step
from distill_jax.types import Batch, InitFn, MetaInfo, MetaState, Objective

AXIS = "init"

Devices = Sequence[Any] | str | None  # of jax.Device, or "all"

StepFn = Callable[[MetaState, jax.Array, Batch], tuple[MetaState, MetaInfo]]


class MetaSteps(NamedTuple):
    """Many meta-steps in one dispatch, from `meta_steps`.

    Attributes:
        place: `(train) -> train`, on the devices; done once, since `run` would copy
            what lies elsewhere at each call.
        run: `(state, key, rows [K, R], n, train, num_inits) -> (state, infos [K])`:
            takes n <= K meta-steps. That with number k, which the state counts, draws
            its theta_0 from `split(fold_in(key, k), num_inits)`; the real batch of the
            i-th taken is the rows `rows[i]` of `train`. Infos from the n-th on mean
            nothing. One program serves any n.
    """

    place: Callable[[Batch], Batch]
    run: Callable[..., tuple[MetaState, MetaInfo]]


def meta_steps(
    objective: Objective,
    init_fn: InitFn,
    meta_tx: optax.GradientTransformation,
    *,
    devices: Devices = None,
    how: str | None = None,
    sequential: bool = False,
) -> MetaSteps:
    """Makes many meta-steps that are one dispatch; see the module for arguments.

    Args:
        how: a name of `PARALLEL`; None is `jit` on one device, else `shard_map`.

    Raises:
        ValueError: for `jit` on several devices, or an unknown name; from `run`, if
            `num_inits` does not divide by the number of devices.
    """
    if how is None:
        one = devices is None or (devices != "all" and len(devices) == 1)
        how = "jit" if one else "shard_map"
    if how not in PARALLEL:
        raise ValueError(f"how must be one of {sorted(PARALLEL)}, got {how!r}")

    def steps(num_inits, share, axis_name, state, key, rows, n, train):
        @partial(jax.jit, inline=True)  # so that it is traced once, not twice
        def one(state, taken):
            keys = jax.random.split(jax.random.fold_in(key, state.step), num_inits)
            return meta_step(
                objective,
                init_fn,
                meta_tx,
                state,
                share(keys),
                jax.tree.map(lambda a: a[taken], train),
                sequential=sequential,
                axis_name=axis_name,
            )

        def body(i, carry):
            state, info = one(carry[0], rows[i])
            return state, jax.tree.map(lambda a, b: a.at[i].set(b), carry[1], info)

        infos = jax.tree.map(
            lambda a: jnp.zeros((len(rows), *a.shape), a.dtype),
            jax.eval_shape(one, state, rows[0])[1],
        )
        return lax.fori_loop(0, n, body, (state, infos))

    compiled = cache(lambda num_inits: _spread(how, devices, partial(steps, num_inits)))

    def run(state, key, rows, n, train, num_inits):
        rows, n = np.asarray(rows, np.int32), np.asarray(n, np.int32)
        return compiled(num_inits)(state, key, rows, n, train)

    return MetaSteps(_placing(how, devices), run)


def jit_meta_step(objective, init_fn, meta_tx, *, devices=None, sequential=False):
    """Makes `core.meta_step` on one device, compiled; see the module for arguments.

    Returns:
        `(state, keys [N], batch) -> (state, info)`.

    Raises:
        ValueError: for more than one device.
    """
    return _one_step("jit", objective, init_fn, meta_tx, devices, sequential)


def pmap_meta_step(objective, init_fn, meta_tx, *, devices=None, sequential=False):
    """Makes `core.meta_step` with the N theta_0 divided over devices, by `jax.pmap`.

    Returns:
        `(state, keys [N], batch) -> (state, info)`; on each host, all N keys.

    Raises:
        ValueError: (from the step) if N does not divide by the number of devices.
    """
    return _one_step("pmap", objective, init_fn, meta_tx, devices, sequential)


def shard_map_meta_step(objective, init_fn, meta_tx, *, devices=None, sequential=False):
    """Makes what `pmap_meta_step` does, by `jax.shard_map`; raises what it does."""
    return _one_step("shard_map", objective, init_fn, meta_tx, devices, sequential)


PARALLEL: dict[str, Callable[..., StepFn]] = {
    "jit": jit_meta_step,
    "pmap": pmap_meta_step,
    "shard_map": shard_map_meta_step,
}


def over_devices(one: Callable[..., Any], devices: Devices = None) -> Callable:
    """Compiles a function of a key for many keys, each device with its share of them.

    Args:
        one: `(key, *args) -> tree of arrays`, such as a fresh network's accuracy.
        devices: which to use: a list, or "all" on every host; None is one, by JAX's
            default. They change no bit of what comes out.

    Returns:
        `(keys [N], *args) -> tree [N, ...]`, for any N, one key after the other on
        each device. Every host gives the same arguments and gets all N.
    """

    def mapped(keys, args):
        return lax.map(lambda key: one(key, *args), keys)

    devices = _listed(devices)
    if devices is None or len(devices) == 1:
        compiled = jax.jit(mapped, **_on(devices))
        return lambda keys, *args: compiled(keys, args)
    mesh, num = _mesh(devices), len(devices)
    split = jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec()),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def shared(keys, args):
        n = keys.shape[0]
        filled = keys[np.arange(n + -n % num) % n]
        return jax.tree.map(lambda a: a[:n], split(filled, args))

    return lambda keys, *args: shared(keys, args)


def listed(devices: Devices) -> list[Any]:
    """Those of this host: a list, all for "all", and the first for None."""
    found = _listed(devices)
    return [d for d in found if _is_mine(d)] if found else jax.local_devices()[:1]


def dealt(items: Sequence[Any]) -> Sequence[Any]:
    """Those that this process works on, where `collected` puts all together."""
    return items[jax.process_index() :: jax.process_count()]


def collected(mine: np.ndarray, total: int) -> np.ndarray:
    """What all processes made of what was `dealt`, `[total, ...]` in its order."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    most = -(-total // jax.process_count())
    filled = np.pad(mine, [(0, most - len(mine))] + [(0, 0)] * (mine.ndim - 1))
    parts = multihost_utils.process_allgather(filled)  # [processes, most, ...]
    return np.swapaxes(parts, 0, 1).reshape(-1, *mine.shape[1:])[:total]


def parse_devices(text: str | None) -> Devices:
    """The devices of a flag: empty or None, JAX's default; "all"; or how many.

    Raises:
        ValueError: if it is none of these, or more than there are.
    """
    if not text or text == "all":
        return text or None
    there = jax.devices()
    if not text.isdecimal() or not 1 <= int(text) <= len(there):
        raise ValueError(
            f'devices must be "all" or a number in 1 .. {len(there)}, got {text!r}'
        )
    return there[: int(text)]


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of a run on several hosts, if there are any.

    Call it before anything else of JAX. Each process then runs the same program.

    Args:
        coordinator: `host:port` of process 0. "auto" is what the cluster says, under
            SLURM, Open MPI, Kubernetes and on Cloud TPU; the other two are not given
            then. None is no other process.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: if only some of the three are given, do not fit together, or
            nothing is known of the cluster.
        RuntimeError: if JAX has been used before.
    """
    rest = (num_processes, process_id)
    if coordinator is None and rest == (None, None):
        return
    if coordinator == "auto" and rest == (None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                "coordinator is auto, but no cluster that JAX knows started this "
                f"process: give coordinator, num_processes and process_id. {error}"
            ) from error
        return
    if coordinator in (None, "auto") or num_processes is None or process_id is None:
        raise ValueError(
            "give all of coordinator (host:port), num_processes and process_id, or "
            f'coordinator="auto" alone, or none; got {(coordinator, *rest)}'
        )
    if not coordinator.rpartition(":")[0] or not coordinator.split(":")[-1].isdecimal():
        raise ValueError(f"coordinator must be host:port, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be in 0 .. {num_processes - 1}, got {process_id}"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def is_first_process() -> bool:
    """Is this the process that writes rows, artefacts and pages?"""
    return jax.process_index() == 0


def first_says(value: int) -> int:
    """The `value` of process 0, on every host; each must ask at the same point.

    For what starts a collective, such as whether a file is there: hosts that answer
    for themselves may differ, and wait for each other for ever.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def on_any_host(flag: bool) -> bool:
    """Is `flag` true on any host? Every host must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def _one_step(how, objective, init_fn, meta_tx, devices, sequential) -> StepFn:
    def step(share, axis_name, state, keys, batch):
        return meta_step(
            objective,
            init_fn,
            meta_tx,
            state,
            share(keys),
            batch,
            sequential=sequential,
            axis_name=axis_name,
        )

    return _spread(how, devices, step)


def _spread(how: str, devices: Devices, body: Callable) -> Callable:
    """Compiles `body(share, axis_name, state, *args)`, which donates its state.

    `share` cuts the keys of a device out of all N, which divide by the devices.
    """
    devices = _listed(devices)
    if how == "jit":
        alone = partial(body, lambda keys: keys, None)
        return jax.jit(alone, donate_argnums=0, **_on(_at_most_one(devices)))
    devices = jax.devices() if devices is None else devices
    place = _placing(how, devices)

    def on_one(state, args, index):
        def share(keys):
            size = _share(keys, len(devices))
            return lax.dynamic_slice_in_dim(keys, index * size, size)

        return body(share, AXIS, state, *args)

    # A state that lies elsewhere, as the first does, would compile the program anew.
    if how == "pmap":
        mine = np.asarray([i for i, d in enumerate(devices) if _is_mine(d)])
        mapped = jax.pmap(
            on_one,
            AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )
        return lambda state, *args: mapped(place(state), args, mine)
    none = PartitionSpec()
    # With the default check_vma=True the gradient of the replicated state arrives
    # summed over devices, and the mean after it is too large by their number.
    sharded = jax.shard_map(
        lambda state, args: on_one(state, args, lax.axis_index(AXIS)),
        mesh=_mesh(devices),
        in_specs=none,
        out_specs=none,
        check_vma=False,
    )
    compiled = jax.jit(sharded, donate_argnums=0)
    return lambda state, *args: compiled(place(state), args)


def _placing(how: str, devices: Devices) -> Callable[[Any], Any]:
    """Puts a tree where `_spread` reads it, a whole copy on each device."""
    devices = _listed(devices)
    if how == "jit":
        one = _at_most_one(devices)
        return lambda tree: jax.device_put(tree, None if one is None else one[0])
    devices = jax.devices() if devices is None else devices
    mine = [d for d in devices if _is_mine(d)] if how == "pmap" else devices
    here = NamedSharding(_mesh(mine), PartitionSpec())
    return lambda tree: jax.device_put(tree, here)


def _listed(devices: Devices) -> list[Any] | None:
    if isinstance(devices, str):
        if devices != "all":
            raise ValueError(f'devices must be a list, "all" or None, got {devices!r}')
        return jax.devices()
    return None if devices is None else list(devices)


def _at_most_one(devices: list[Any] | None) -> list[Any] | None:
    if devices is not None and len(devices) != 1:
        raise ValueError(
            f"jit runs on one device, got {len(devices)}: pass one, or use pmap or "
            "shard_map"
        )
    return devices


def _on(devices: list[Any] | None) -> dict[str, Any]:
    """The options of `jit` that say where."""
    if devices is None:
        return {}
    here = SingleDeviceSharding(devices[0])
    return {"in_shardings": here, "out_shardings": here}


def _is_mine(device: Any) -> bool:
    return device.process_index == jax.process_index()


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _share(keys: jax.Array, num_devices: int) -> int:
    share, rest = divmod(keys.shape[0], num_devices)
    if rest or not share:
        raise ValueError(
            f"{keys.shape[0]} theta_0 cannot be divided evenly over {num_devices} "
            f"devices: use a multiple of {num_devices}, or fewer devices"
        )
    return share
