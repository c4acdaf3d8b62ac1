"""Feature regression (Zhou, Nezhadarya & Ba 2022, arXiv:2206.00719).

Only the last layer is trained, and in closed form. With features F_s of the n
distilled and F_t of the m real examples, at a theta_0 that is not differentiated, and
labels Y centred at 1 / C,

    prediction = F_t F_s' (F_s F_s' + ridge * tr(F_s F_s') / n * I)^-1 Y_s
    D          = |Y_t - prediction|^2 / (2 m)

It is one step of truncated backpropagation: the features are taken as constant in
what they were trained on. With fresh theta_0 only, it is a sampled form of the kernel
inducing points of Nguyen et al. (2021).
"""

import jax
import jax.numpy as jnp
from jax import lax

from distill_jax.objectives.common import features_of, whole
from distill_jax.types import Batch, Distilled, Model, Objective, Params


def feature_regression(model: Model, *, ridge: float = 1e-3) -> Objective:
    """Squared error of ridge regression from the distilled data (Zhou et al. 2022).

    The step sizes get no gradient. Real rows whose `y` is all zero count for nothing.

    Args:
        model: a network with `features`.
        ridge: times the mean eigenvalue of the distilled features' Gram matrix, over
            0. The authors take 1e-6.

    Returns:
        `(distilled, theta_0, real batch) -> half the mean squared error`.

    Raises:
        ValueError: if the model has no `features`, or on a ridge that is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be over 0, got {ridge}")
    features = features_of(model)

    def objective(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        ours = features(theta_0, whole(distilled))
        real = lax.stop_gradient(features(theta_0, batch))
        C = batch.y.shape[-1]
        y = distilled.y.reshape(-1, C) - 1 / C
        predicted = real @ (ours.T @ _solve(ours, y, ridge))
        counts = (batch.y != 0).any(-1)
        error = ((batch.y - 1 / C - predicted) ** 2).sum(-1)
        return jnp.where(counts, error, 0).sum() / (2 * jnp.maximum(counts.sum(), 1))

    return objective


def _solve(features: jax.Array, y: jax.Array, ridge: float) -> jax.Array:
    """`(K + ridge * tr(K) / n * I)^-1 y` with the Gram matrix K, `[n, C]`."""
    gram = features @ features.T
    mean = jnp.trace(gram) / gram.shape[0]
    # Features that are all zero (dead units) would leave nothing to divide by.
    mean = jnp.where(mean > 0, mean, 1)
    regular = gram + ridge * mean * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.solve(regular, y, assume_a="pos")
