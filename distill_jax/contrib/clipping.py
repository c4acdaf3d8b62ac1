"""A meta-gradient that is clipped at a multiple of its running mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class RunningMeanState(NamedTuple):
    """`mean`: running mean of the (clipped) norms, 0 before the first."""

    mean: jax.Array


def clip_by_running_mean(
    factor: float = 2.0, decay: float = 0.9
) -> optax.GradientTransformation:
    """Clips the global norm at `factor` times its running mean.

    As the meta-gradient of a long unroll is heavy-tailed (Feng et al. 2024,
    RaT-BPTT). The first gradient that is not zero passes and sets the scale; each
    later norm enters the mean as clipped, so that one outlier cannot raise the bar.

    Args:
        factor: how far above the mean a norm may be, over 1.
        decay: of the running mean, in [0, 1).

    Raises:
        ValueError: on a factor or decay out of its range.
    """
    if not factor > 1:
        raise ValueError(f"factor must be over 1, got {factor}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")

    def init(params):
        del params
        return RunningMeanState(jnp.zeros(()))

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(updates)
        first = state.mean == 0  # a norm of zero sets no bar
        limit = jnp.where(first, norm, factor * state.mean)
        scale = jnp.where(norm > limit, limit / jnp.maximum(norm, 1e-30), 1.0)
        updates = jax.tree.map(lambda u: (u * scale).astype(u.dtype), updates)
        clipped = jnp.minimum(norm, limit)
        mean = jnp.where(first, clipped, decay * state.mean + (1 - decay) * clipped)
        return updates, RunningMeanState(mean.astype(state.mean.dtype))

    return optax.GradientTransformation(init, update)
