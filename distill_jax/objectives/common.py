"""What several objectives read."""

from collections.abc import Callable

import jax
from jax import lax

from distill_jax.losses import network_input
from distill_jax.types import Batch, Distilled, Model, Params


def whole(distilled: Distilled) -> Batch:
    """All distilled examples as one batch `[S * B, ...]`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), distilled.batches)


def features_of(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """Makes `(theta, batch) -> features [n, H]`; theta is not differentiated.

    Raises:
        ValueError: if the model has no `features`.
    """
    read = model.features
    if read is None:
        raise ValueError(
            "the model has no features, the layer before its output: set Model.features"
        )

    def features(theta: Params, batch: Batch) -> jax.Array:
        theta = lax.stop_gradient(theta)
        return read(theta, network_input(model, theta, batch), batch.mask)

    return features
