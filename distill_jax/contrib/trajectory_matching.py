"""Trajectory matching (Cazenavette et al. 2022, arXiv:2203.11932).

An expert is a network trained on real data, theta*_k its weights after k epochs.
Training from theta*_k on the distilled data, T steps, shall end where the expert is
M epochs later:

    D = |theta_T - theta*_{k+M}|^2 / |theta*_k - theta*_{k+M}|^2

`experts` records and keeps the trajectories; `segments` draws (theta*_k, theta*_{k+M})
in place of a theta_0. The real batch is not read.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import numpy as np
import optax
from jax import lax

from distill_jax.core import SGD, unroll
from distill_jax.types import Batch, Distilled, InitFn, LossFn, Objective, Params


@flax.struct.dataclass
class Segment:
    """Part of an expert's trajectory.

    Attributes:
        start: theta*_k.
        target: theta*_{k+M}.
    """

    start: Params
    target: Params


def trajectory_matching(
    loss_fn: LossFn,
    *,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Objective:
    """Distance from the expert after training (Cazenavette et al. 2022).

    Args:
        loss_fn: loss of the inner steps.
        inner_tx, inner_grad, scan: as for `core.unroll`.

    Returns:
        `(distilled, segment, real batch) -> D`, with a `Segment` as theta_0: 1 for an
        end as far from the target as the start is, 0 on the target.
    """

    def objective(distilled: Distilled, theta_0: Segment, batch: Batch) -> jax.Array:
        del batch
        theta_T, _ = unroll(
            loss_fn,
            theta_0.start,
            distilled.batches,
            distilled.lr,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        ours = _square(theta_T, theta_0.target)
        return ours / _square(theta_0.start, theta_0.target)

    return objective


def _square(a: Params, b: Params) -> Any:
    leaves = jax.tree.map(lambda x, y: ((x - y) ** 2).sum(), a, b)
    return sum(jax.tree.leaves(leaves))


def segments(experts: Params, *, span: int, max_start: int | None = None) -> InitFn:
    """Makes `(key) -> Segment` of a random expert, from a random epoch.

    Args:
        experts: trajectories, leaves `[K, M + 1, ...]`, from `experts.load`.
        span: epochs between start and target, at least 1.
        max_start: last epoch to start from; as late as fits unless given.

    Raises:
        ValueError: if the trajectories are too short, or an expert stands still.
    """
    K, epochs = jax.tree.leaves(experts)[0].shape[:2]
    last = epochs - 1 - span
    first_to = last if max_start is None else max_start
    if span < 1 or not 0 <= first_to <= last:
        raise ValueError(
            f"experts of {epochs - 1} epochs have no segments of {span} from epochs 0 "
            f"to {first_to}: record longer ones, or ask for shorter segments"
        )
    moved = sum(
        (np.asarray(a[:, : first_to + 1] != a[:, span : span + first_to + 1]))
        .reshape(K, first_to + 1, -1)
        .sum(-1)
        for a in jax.tree.leaves(experts)
    )
    still = np.argwhere(moved == 0)
    if len(still):
        k, start = still[0]
        raise ValueError(
            f"expert {k} stands still from epoch {start} to {start + span}: train it "
            "with a larger step size"
        )

    def init(key: jax.Array) -> Segment:
        expert_key, start_key = jax.random.split(key)
        k = jax.random.randint(expert_key, (), 0, K)
        start = jax.random.randint(start_key, (), 0, first_to + 1)
        at = lambda epoch: jax.tree.map(lambda a: a[k, epoch], experts)  # noqa: E731
        return Segment(at(start), at(start + span))

    return init
