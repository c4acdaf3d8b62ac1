"""Convolution over windows of words, mean over time.

    feature[b, f] = mean_p relu(W[f] . x[b, p : p + k] + bias[f])    windows of k words

With k = 1 it is a sum of functions of words (Zaheer et al. 2017, Deep Sets). Every
window carries a derivative, where a max over time passes one alone: a distilled
sentence then speaks with all of its words.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.types import Model


class _MeanCNN(nn.Module):
    num_classes: int
    widths: tuple[int, ...]
    filters: int
    dropout: float
    out_scale: float
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        weight = mask.astype(x.dtype)[..., None]
        x = x * weight
        count = jnp.maximum(weight.sum(1), 1)
        pooled = []
        for k in self.widths:
            after = jnp.pad(x, ((0, 0), (0, k - 1), (0, 0)))
            windows = [after[:, j : j + x.shape[1]] for j in range(k)]
            scores = nn.Dense(
                self.filters,
                kernel_init=nn.initializers.he_normal(),
                param_dtype=self.param_dtype,
                name=f"conv_{k}",
            )(jnp.concatenate(windows, -1))
            pooled.append((nn.relu(scores) * weight).sum(1) / count)
        h = jnp.concatenate(pooled, -1)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if self.headless:
            return h
        init = nn.initializers.zeros
        if self.out_scale:
            init = nn.initializers.variance_scaling(
                self.out_scale**2, "fan_in", "truncated_normal"
            )
        return nn.Dense(
            self.num_classes, kernel_init=init, param_dtype=self.param_dtype, name="out"
        )(h)


def mean_cnn(
    vectors: Any,
    num_classes: int,
    *,
    widths: Sequence[int] = (1, 2, 3),
    filters: int = 128,
    dropout: float = 0.0,
    out_scale: float = 0.0,
) -> Model:
    """Mean over time of a ReLU convolution, logits.

    A window counts if its first token is real. The output layer starts at zero, so
    that networks of all theta_0 begin with one answer, and differ by their filters.

    Args:
        vectors: frozen word vectors `[V, D]`, row 0 padding.
        num_classes: C.
        widths: words in a window, one group of filters for each; all different.
        filters: filters of each width.
        dropout: rate after pooling, in [0, 1).
        out_scale: of the output layer at the start, in units of LeCun's; from 0 on.

    Returns:
        The model; its parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size or rate out of its range, or a bad table.
    """
    table, widths = word_vectors(vectors), tuple(widths)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths must be different sizes of windows, got {widths}")
    positive(num_classes=num_classes, filters=filters)
    for width in widths:
        positive(width=width)
    if not out_scale >= 0:
        raise ValueError(f"out_scale must be from 0 on, got {out_scale!r}")
    rate = probability(dropout)
    module = _MeanCNN(num_classes, widths, filters, rate, out_scale, table.dtype)
    headless = module.clone(headless=True)

    def features(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    return from_linen(module, table)._replace(features=features)
