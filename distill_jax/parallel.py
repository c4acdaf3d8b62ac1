"""One meta-step on many devices and hosts. The only file that knows they exist.

Each device averages its share of the N theta_0, then the devices average with one
`pmean`: the mean over all N, since every share has the same size. State and batch are
replicated, so the next state is an ordinary one wherever it came from.

`jax.pmap` and `jax.shard_map` run the same body and give the same bits on the same
devices; another number of devices changes the order of the sum, so the last digits.

Every maker takes `objective`, `init_fn` and `meta_tx` of `core.meta_step`, and

    devices: which to use. One by JAX's default for `jit`, else all, on every host.
    sequential: inside a device, one theta_0 after the other, not `vmap`.

and returns `(state, keys [N], batch) -> (state, info)`. The given state, of numpy
arrays or from this step, is donated: it is gone afterwards. With several hosts each
passes the same arguments, all N keys included.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
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

Devices = Sequence[Any] | None  # of jax.Device

StepFn = Callable[[MetaState, jax.Array, Batch], tuple[MetaState, MetaInfo]]


def jit_meta_step(
    objective: Objective,
    init_fn: InitFn,
    meta_tx: optax.GradientTransformation,
    *,
    devices: Devices = None,
    sequential: bool = False,
) -> StepFn:
    """Makes `core.meta_step` on one device, compiled; see the module for arguments.

    Raises:
        ValueError: for more than one device.
    """
    if devices is not None and len(devices) != 1:
        raise ValueError(
            f"jit_meta_step runs on one device, got {len(devices)}: pass one, or "
            "use pmap_meta_step"
        )
    step = partial(meta_step, objective, init_fn, meta_tx, sequential=sequential)
    if devices is None:
        return jax.jit(step, donate_argnums=0)
    here = SingleDeviceSharding(devices[0])
    return jax.jit(step, donate_argnums=0, in_shardings=here, out_shardings=here)


def pmap_meta_step(
    objective: Objective,
    init_fn: InitFn,
    meta_tx: optax.GradientTransformation,
    *,
    devices: Devices = None,
    sequential: bool = False,
) -> StepFn:
    """Makes `core.meta_step` with the N theta_0 divided over devices, by `jax.pmap`.

    Raises:
        ValueError: (from the step) if N does not divide by the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    mine = [i for i, d in enumerate(devices) if d.process_index == jax.process_index()]
    # Where the results lie. Else the second step, with another layout, compiles anew.
    here = NamedSharding(_mesh([devices[i] for i in mine]), PartitionSpec())
    mapped = jax.pmap(
        partial(
            meta_step,
            objective,
            init_fn,
            meta_tx,
            sequential=sequential,
            axis_name=AXIS,
        ),
        AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )

    def step(state: MetaState, keys: jax.Array, batch: Batch):
        share = _share(keys, len(devices))
        rows = keys.reshape(len(devices), share, *keys.shape[1:])
        return mapped(jax.device_put(state, here), rows[np.asarray(mine)], batch)

    return step


def shard_map_meta_step(
    objective: Objective,
    init_fn: InitFn,
    meta_tx: optax.GradientTransformation,
    *,
    devices: Devices = None,
    sequential: bool = False,
) -> StepFn:
    """Makes what `pmap_meta_step` does, by `jax.shard_map`; raises what it does."""
    devices = list(jax.devices() if devices is None else devices)
    mesh = _mesh(devices)

    def body(state: MetaState, keys: jax.Array, batch: Batch):
        share = _share(keys, len(devices))
        mine = lax.dynamic_slice_in_dim(keys, lax.axis_index(AXIS) * share, share)
        return meta_step(
            objective,
            init_fn,
            meta_tx,
            state,
            mine,
            batch,
            sequential=sequential,
            axis_name=AXIS,
        )

    # With the default check_vma=True the gradient of the replicated state arrives
    # summed over devices, and the mean after it is too large by their number.
    none = PartitionSpec()
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=none, out_specs=none, check_vma=False
    )
    mapped = jax.jit(mapped, donate_argnums=0)
    here = NamedSharding(mesh, none)

    def step(state: MetaState, keys: jax.Array, batch: Batch):
        return mapped(jax.device_put(state, here), keys, batch)

    return step


PARALLEL = {
    "jit": jit_meta_step,
    "pmap": pmap_meta_step,
    "shard_map": shard_map_meta_step,
}


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of a run on several hosts.

    Call it before anything else of JAX. Each process then runs the same program.

    Args:
        coordinator: `host:port` of process 0; found by itself under SLURM, Open MPI,
            Kubernetes and on Cloud TPU, as are the other two.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: if only some of the three are given, or do not fit together.
    """
    given = (coordinator, num_processes, process_id)
    if all(a is None for a in given):
        jax.distributed.initialize()
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            "give all of coordinator, num_processes and process_id, or none of them; "
            f"got {given}"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be in 0 .. {num_processes - 1}, got {process_id}"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def on_any_host(flag: bool) -> bool:
    """Is `flag` true on any host? Every host must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


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


def listed(devices):
    return [jax.devices()[0]] if devices is None else list(devices)


def over_devices(one, devices=None):
    def run(keys, *args):
        return lax.map(lambda key: one(key, *args), keys)

    return jax.jit(run)


def parse_devices(text):
    return (
        None
        if not text
        else list(jax.devices())
        if text == "all"
        else jax.devices()[: int(text)]
    )


def join(*a):
    initialize_distributed(*a)


def is_first_process():
    return jax.process_index() == 0
