"""Mean of fixed Fourier features of words, centred, then one random layer.

    phi(w)   = [cos(Omega w), sin(Omega w)] / sqrt(F)    of a window w of k words
    d[b]     = mean_p phi(x[b, p : p + k]) - mean_r phi(r)    over reference windows r
    logits   = tanh(scale * W d) V + c

phi(w) . phi(w') is near exp(-kernel_scale^2 |w - w'|^2 / 2 k D): nearly nothing but for
the word itself and its neighbours (Rahimi & Recht 2007). Omega is drawn once and for
all; it belongs to the frozen word vectors, and what is read through it is done once for
a text. W, V and c are trained, from a random theta_0.

W starts with orthonormal rows, V at zero. Where W is no narrower than d, networks of
all theta_0 then take the same first step: W d . W d' = d . d', whatever W is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.models.mean_cnn import output_layer, reference_windows
from distill_jax.types import Model

KERNEL_SCALE, SCALE = 1.4, 10.0
# Tokens read at once; more than these are read in parts that stay in the cache.
AT_ONCE, PART = 4096, 512

# cos(2 pi t) in powers of t^2, to 1e-6 for |t| <= 1/2.
_COS = (
    0.99999921,
    -19.73898036,
    64.92865742,
    -85.27162153,
    58.79049212,
    -21.07110563,
)


@jax.custom_jvp
def cos(z: jax.Array) -> jax.Array:
    """The cosine; in float32 by a polynomial, to 1e-5."""
    if z.dtype != jnp.float32:
        return jnp.cos(z)
    turns = z / (2 * math.pi)
    t = (turns - jnp.round(turns)) ** 2
    total = jnp.full_like(t, _COS[-1])
    for factor in _COS[-2::-1]:
        total = total * t + factor
    return total


@cos.defjvp
def _(primals, tangents):
    (z,), (dz,) = primals, tangents
    return cos(z), cos(z + math.pi / 2) * dz


def frequencies(dim: int, count: int, kernel_scale: float) -> np.ndarray:
    """Omega `[dim, count]`, of deviation kernel_scale / sqrt(dim); always the same."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(dim, count)) * (kernel_scale / dim**0.5)


def fourier_features(w: jax.Array, omega: jax.Array) -> jax.Array:
    """phi `[..., 2 F]` of windows `[..., k D]`, for frequencies `[k D, F]`."""
    z = w @ omega
    waves = jnp.concatenate([cos(z), cos(z - math.pi / 2)], -1)
    return waves / math.sqrt(omega.shape[1])


class _FourierBag(nn.Module):
    num_classes: int
    hidden: int
    scale: float
    dropout: float
    out_scale: float
    frozen: Callable
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        d = x if x.ndim == mask.ndim else self.frozen(x, mask)
        hidden = nn.Dense(
            self.hidden,
            kernel_init=nn.initializers.orthogonal(),
            param_dtype=self.param_dtype,
            name="hidden",
        )
        h = jnp.tanh(hidden(self.scale * d))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if self.headless:
            return h
        return output_layer(self.num_classes, self.out_scale, self.param_dtype)(h)


def fourier_bag(
    vectors: Any,
    num_classes: int,
    *,
    widths: Sequence[int] = (1,),
    features: int = 512,
    hidden: int = 512,
    kernel_scale: float = KERNEL_SCALE,
    scale: float = SCALE,
    dropout: float = 0.0,
    references: int = 512,
    out_scale: float = 0.0,
) -> Model:
    """Mean of fixed Fourier features of words, a random tanh layer, logits.

    A window counts if its first token is real. The output layer starts at zero, so
    that networks of all theta_0 begin with one answer.

    Args:
        vectors: frozen word vectors `[V, D]` of deviation 1, row 0 padding, frequent
            words first.
        num_classes: C.
        widths: words in a window, one group of features for each; all different.
        features: of each width, an even number: 2 F.
        hidden: width of the random layer.
        kernel_scale: deviation of the frequencies, over 1 / sqrt(k D): the more, the
            nearer must words be to count as alike.
        scale: what the centred mean is multiplied with.
        dropout: rate on the random layer, in [0, 1).
        references: windows to centre by, of words drawn once in proportion to 1 over
            their row; 0 for features that are not centred.
        out_scale: of the output layer at the start, in units of LeCun's; from 0 on.

    Returns:
        The model, with `frozen`; its parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size, scale or rate out of its range, or a bad table.
    """
    table, widths = word_vectors(vectors), tuple(widths)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths must be different sizes of windows, got {widths}")
    positive(num_classes=num_classes, hidden=hidden, features=features)
    for width in widths:
        positive(width=width)
    if references:
        positive(references=references)
    if features % 2:
        raise ValueError(f"features must be even, sines and cosines, got {features}")
    for name, value in (("kernel_scale", kernel_scale), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")
    if not out_scale >= 0:
        raise ValueError(f"out_scale must be from 0 on, got {out_scale!r}")
    omegas = [
        jnp.asarray(
            frequencies(k * table.shape[1], features // 2, kernel_scale), table.dtype
        )
        for k in widths
    ]
    read = _reader(table, widths, omegas, references)
    module = _FourierBag(
        num_classes,
        hidden,
        float(scale),
        probability(dropout),
        float(out_scale),
        read,
        table.dtype,
    )
    headless = module.clone(headless=True)

    def features_fn(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    return from_linen(module, table)._replace(features=features_fn, frozen=read)


def _reader(table, widths, omegas, references) -> Callable:
    """Makes `(x [B, L, D] or tokens [B, L], mask [B, L]) -> d [B, M]`."""

    def mean_of_windows(x, mask):
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = table[x]
        weight = mask.astype(x.dtype)[..., None]
        x = x * weight
        after = jnp.pad(x, ((0, 0), (0, max(widths) - 1), (0, 0)))
        means = []
        for k, omega in zip(widths, omegas, strict=True):
            windows = [after[:, j : j + x.shape[1]] for j in range(k)]
            phi = fourier_features(jnp.concatenate(windows, -1), omega)
            total = jnp.einsum("bl,blm->bm", weight[..., 0], phi)
            means.append(total / jnp.maximum(weight.sum(1), 1))
        return jnp.concatenate(means, -1)

    words = reference_windows(np.asarray(table), references, max(widths))
    centre = jnp.zeros((1, sum(2 * omega.shape[1] for omega in omegas)), table.dtype)
    if words is not None:
        of_width = [
            fourier_features(jnp.asarray(words[:, :k].reshape(len(words), -1)), omega)
            for k, omega in zip(widths, omegas, strict=True)
        ]
        centre = jnp.concatenate(of_width, -1).mean(0, keepdims=True)

    def read(x, mask):
        x, mask = jnp.asarray(x), jnp.asarray(mask)
        if mask.size <= AT_ONCE:
            return mean_of_windows(x, mask) - centre
        means = lax.map(
            lambda one: mean_of_windows(one[0][None], one[1][None])[0],
            (x, mask),
            batch_size=max(1, PART // mask.shape[1]),
        )
        return means - centre

    return read
