"""Distribution matching (Zhao & Bilen 2023, arXiv:2110.04181).

With psi the features of a network at a random theta_0,

    D = sum_c | mean_{real x of c} psi(x) - mean_{distilled x of c} psi(x) |^2

the linear-kernel maximum mean discrepancy of each class. Nothing is trained.
"""

import jax
import jax.numpy as jnp
from jax import lax

from distill_jax.objectives.common import features_of, whole
from distill_jax.types import Batch, Distilled, Model, Objective, Params


def distribution_matching(model: Model) -> Objective:
    """Squared distance of class-wise feature means (Zhao & Bilen 2023).

    With soft labels each example counts for a class by its share of it. A class that
    the real batch or the distilled data do not have is left out. The step sizes get no
    gradient.

    Args:
        model: a network with `features`.

    Returns:
        `(distilled, theta_0, real batch) -> sum over the classes`.

    Raises:
        ValueError: if the model has no `features`.
    """
    features = features_of(model)

    def objective(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        ours, weight = _class_means(features(theta_0, whole(distilled)), distilled.y)
        real, count = _class_means(features(theta_0, batch), batch.y)
        gap = ((ours - lax.stop_gradient(real)) ** 2).sum(-1)
        return jnp.where((weight > 0) & (count > 0), gap, 0).sum()

    return objective


def _class_means(features: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means `[C, H]` of features `[n, H]` weighted by `y [..., C]`, and the weights."""
    y = y.reshape(-1, y.shape[-1])
    weight = y.sum(0)
    return (y.T @ features) / jnp.where(weight > 0, weight, 1)[:, None], weight
