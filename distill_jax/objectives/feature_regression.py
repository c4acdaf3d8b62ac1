"""Feature regression (Zhou, Nezhadarya & Ba 2022, arXiv:2206.00719).

Only the last layer is trained, and in closed form. With features F_s of the n
distilled and F_t of the m real examples, at a theta_0 that is not differentiated, and
labels Y centred at 1 / C,

    prediction = F_t F_s' (F_s F_s' + ridge * tr(F_s F_s') / n * I)^-1 Y_s
    D          = |Y_t - prediction|^2 / (2 m)

With `targets="logits"` it is ours, for networks that are trained by cross-entropy on
soft labels: Y_s are the label logits, centred in each row, features have a 1 after the
last for the bias, and D is the cross-entropy of the real labels under the prediction as
logits. Gradient descent on the last layer from zero would come to that prediction.

It is one step of truncated backpropagation: the features are taken as constant in
what they were trained on. With fresh theta_0 only, it is a sampled form of the kernel
inducing points of Nguyen et al. (2021).
"""

import jax
import jax.numpy as jnp
from jax import lax

from distill_jax.objectives.common import features_of, whole
from distill_jax.types import Batch, Distilled, Model, Objective, Params

TARGETS = ("labels", "logits")


def feature_regression(
    model: Model, *, ridge: float = 1e-3, targets: str = "labels"
) -> Objective:
    """Error of ridge regression from the distilled data (Zhou et al. 2022).

    The step sizes get no gradient. Real rows whose `y` is all zero count for nothing.

    Args:
        model: a network with `features`.
        ridge: times the mean eigenvalue of the distilled features' Gram matrix, over
            0. The authors take 1e-6.
        targets: regress on the `labels` by squared error, as the authors, or on their
            `logits` by cross-entropy, in nats.

    Returns:
        `(distilled, theta_0, real batch) -> half the mean squared error`, or the mean
        cross-entropy.

    Raises:
        ValueError: if the model has no `features`, or on a ridge that is not positive
            or unknown targets.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be over 0, got {ridge}")
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {targets}")
    features = features_of(model)

    def squared_error(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        ours = features(theta_0, whole(distilled))
        real = lax.stop_gradient(features(theta_0, batch))
        C = batch.y.shape[-1]
        y = distilled.y.reshape(-1, C) - 1 / C
        predicted = real @ (ours.T @ _solve(ours, y, ridge))
        error = ((batch.y - 1 / C - predicted) ** 2).sum(-1)
        return _mean_of_real(error, batch) / 2

    def cross_entropy(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        ours = _with_one(features(theta_0, whole(distilled)))
        real = lax.stop_gradient(_with_one(features(theta_0, batch)))
        y = distilled.y_logits.reshape(-1, batch.y.shape[-1])
        y = y - y.mean(-1, keepdims=True)
        predicted = real @ (ours.T @ _solve(ours, y, ridge))
        nats = -(batch.y * jax.nn.log_softmax(predicted)).sum(-1)
        return _mean_of_real(nats, batch)

    return squared_error if targets == "labels" else cross_entropy


def _with_one(features: jax.Array) -> jax.Array:
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], -1)


def _mean_of_real(values: jax.Array, batch: Batch) -> jax.Array:
    counts = (batch.y != 0).any(-1)
    return jnp.where(counts, values, 0).sum() / jnp.maximum(counts.sum(), 1)


def _solve(features: jax.Array, y: jax.Array, ridge: float) -> jax.Array:
    """`(K + ridge * tr(K) / n * I)^-1 y` with the Gram matrix K, `[n, C]`."""
    gram = features @ features.T
    mean = jnp.trace(gram) / gram.shape[0]
    # Features that are all zero (dead units) would leave nothing to divide by.
    mean = jnp.where(mean > 0, mean, 1)
    regular = gram + ridge * mean * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.solve(regular, y, assume_a="pos")
