"""Convolution over windows of words, mean over time, centred.

    h[w]          = activation(W . w + bias)                 of a window w of k words
    feature[b]    = mean_p h[x[b, p : p + k]] - mean_r h[r]  over reference windows r

With k = 1 it is a sum of functions of words (Zaheer et al. 2017, Deep Sets). Every
window carries a derivative, where a max over time passes one alone: a distilled
sentence then speaks with all of its words. A mean of these is nearly the same vector
for all sentences, and gradient descent on what is left is slow. So the mean over a
fixed batch of reference windows is taken off, as in virtual batch normalisation
(Salimans et al. 2016), here without their division by the deviation.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.types import Model

ACTIVATIONS = {"relu": nn.relu, "tanh": jnp.tanh}


class _MeanCNN(nn.Module):
    num_classes: int
    widths: tuple[int, ...]
    filters: int
    activation: str
    kernel_scale: float
    orthogonal: bool
    dropout: float
    out_scale: float
    references: Any  # words [R, widest, D], or None
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        weight = mask.astype(x.dtype)[..., None]
        x = x * weight
        count = jnp.maximum(weight.sum(1), 1)
        act = ACTIVATIONS[self.activation]
        gain = 2.0 if self.activation == "relu" else 1.0
        variance = gain * self.kernel_scale**2
        kernel_init = nn.initializers.variance_scaling(
            variance, "fan_in", "truncated_normal"
        )
        pooled = []
        for k in self.widths:
            if self.orthogonal:
                inputs = k * x.shape[-1]
                frame = max(inputs, self.filters)
                kernel_init = nn.initializers.orthogonal(
                    (variance * frame / inputs) ** 0.5
                )
            filters = nn.Dense(
                self.filters,
                kernel_init=kernel_init,
                param_dtype=self.param_dtype,
                name=f"conv_{k}",
            )
            after = jnp.pad(x, ((0, 0), (0, k - 1), (0, 0)))
            windows = [after[:, j : j + x.shape[1]] for j in range(k)]
            h = act(filters(jnp.concatenate(windows, -1)))
            h = (h * weight).sum(1) / count
            if self.references is not None:
                words = jnp.asarray(self.references)[:, :k]
                h -= act(filters(words.reshape(len(words), -1))).mean(0)[None]
            pooled.append(h)
        h = jnp.concatenate(pooled, -1)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if self.headless:
            return h
        return output_layer(self.num_classes, self.out_scale, self.param_dtype)(h)


def output_layer(num_classes: int, out_scale: float, param_dtype: Any) -> nn.Dense:
    """Logits from features; at the start zero, or `out_scale` times LeCun's."""
    init = nn.initializers.zeros
    if out_scale:
        init = nn.initializers.variance_scaling(
            out_scale**2, "fan_in", "truncated_normal"
        )
    return nn.Dense(num_classes, kernel_init=init, param_dtype=param_dtype, name="out")


def mean_cnn(
    vectors: Any,
    num_classes: int,
    *,
    widths: Sequence[int] = (1, 2, 3),
    filters: int = 128,
    activation: str = "relu",
    kernel_scale: float = 1.0,
    orthogonal: bool = False,
    dropout: float = 0.0,
    references: int = 128,
    out_scale: float = 0.0,
) -> Model:
    """Mean over time of a convolution, centred, then logits.

    A window counts if its first token is real. The output layer starts at zero, so
    that networks of all theta_0 begin with one answer, and differ by their filters.

    Args:
        vectors: frozen word vectors `[V, D]`, row 0 padding, frequent words first.
        num_classes: C.
        widths: words in a window, one group of filters for each; all different.
        filters: filters of each width.
        activation: `relu` or `tanh`.
        kernel_scale: of the filters at the start, in units of He's for `relu` and of
            LeCun's for `tanh`, of which a large one makes nearly a sign.
        orthogonal: start from filters whose matrix has orthogonal rows (or columns, of
            less than k D filters): then networks of all theta_0 agree on the linear
            part of their kernel (Yu et al. 2016, orthogonal random features).
        dropout: rate after pooling, in [0, 1).
        references: windows to centre by, of words drawn once in proportion to 1 over
            their row; 0 for features that are not centred.
        out_scale: of the output layer at the start, in units of LeCun's; from 0 on.

    Returns:
        The model; its parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size, scale or rate out of its range, an unknown activation, or
            a bad table.
    """
    table, widths = word_vectors(vectors), tuple(widths)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths must be different sizes of windows, got {widths}")
    positive(num_classes=num_classes, filters=filters)
    for width in widths:
        positive(width=width)
    if references:
        positive(references=references)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, got {activation!r}")
    if not isinstance(orthogonal, bool):
        raise ValueError(f"orthogonal must be true or false, got {orthogonal!r}")
    if not kernel_scale > 0:
        raise ValueError(f"kernel_scale must be above 0, got {kernel_scale!r}")
    if not out_scale >= 0:
        raise ValueError(f"out_scale must be from 0 on, got {out_scale!r}")
    words = reference_windows(np.asarray(table), references, max(widths))
    module = _MeanCNN(
        num_classes,
        widths,
        filters,
        activation,
        float(kernel_scale),
        orthogonal,
        probability(dropout),
        out_scale,
        words,
        table.dtype,
    )
    headless = module.clone(headless=True)

    def features(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    return from_linen(module, table)._replace(features=features)


def reference_windows(table: np.ndarray, count: int, width: int) -> np.ndarray | None:
    """Words of random windows `[count, width, D]`, by Zipf's law; the same each time.

    None where `count` is 0. `table` `[V, D]` has padding first, then frequent words.
    """
    if not count:
        return None
    odds = 1 / np.arange(1, len(table))  # row 0 is padding
    rng = np.random.default_rng(0)
    return table[1 + rng.choice(len(odds), (count, width), p=odds / odds.sum())]
