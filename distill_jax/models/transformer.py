"""A small pre-norm transformer encoder (Vaswani et al. 2017; Xiong et al. 2020).

    x <- x + attention(norm(x)),  x <- x + mlp(norm(x)),  logits = W mean(norm(x)) + b,

the mean over the real tokens. Positions are sinusoids, so any length will do.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.types import Model


class _Transformer(nn.Module):
    num_classes: int
    width: int
    heads: int
    layers: int
    mlp: int
    dropout: float
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        L = x.shape[1]
        head = (3, self.heads, self.width // self.heads)
        mask = mask.astype(x.dtype)
        seen = (mask != 0)[:, None, None, :]
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        def norm(name):
            return nn.LayerNorm(
                use_fast_variance=False, param_dtype=self.param_dtype, name=name
            )

        def dense(features, name, axis: int | tuple[int, int] = -1):
            return nn.DenseGeneral(
                features, axis=axis, param_dtype=self.param_dtype, name=name
            )

        # A sinusoid is about as long as a projected word vector only after scaling.
        scale = self.param(
            "position", nn.initializers.constant(0.1), (1, 1, 1), self.param_dtype
        )
        x = dense(self.width, "input")(x) + scale * _sinusoids(L, self.width, x.dtype)
        for i in range(self.layers):
            qkv = dense(head, f"qkv_{i}")(norm(f"norm_attention_{i}")(x))
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
            # Not jax.nn's: its softmax is float32 whatever it is given.
            h = nn.dot_product_attention(q, k, v, mask=seen)
            x = x + dropout(dense(self.width, f"attention_{i}", (-2, -1))(h))
            h = nn.gelu(dense(self.mlp, f"mlp_in_{i}")(norm(f"norm_mlp_{i}")(x)))
            x = x + dropout(dense(self.width, f"mlp_out_{i}")(h))
        x = norm("norm_out")(x) * mask[..., None]
        h = x.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return h if self.headless else dense(self.num_classes, "out")(h)


def _sinusoids(length: int, width: int, dtype: Any) -> jax.Array:
    """`[1, L, width]`: sines, then cosines, of wavelengths 2 pi to 20000 pi."""
    rate = 10000.0 ** (-np.arange(width // 2) / (width // 2))
    angle = np.arange(length)[:, None] * rate[None, :]
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], 1)[None], dtype)


def transformer(
    vectors: Any,
    num_classes: int,
    *,
    width: int = 128,
    heads: int = 4,
    layers: int = 2,
    mlp: int = 512,
    dropout: float = 0.0,
) -> Model:
    """Pre-norm transformer encoder, mean over the real tokens, logits.

    Args:
        vectors: frozen word vectors `[V, D]`, row 0 padding.
        num_classes: C.
        width: of the residual stream; even, and a multiple of `heads`.
        heads: attention heads in a layer.
        layers: blocks of attention and MLP.
        mlp: hidden width of the MLP.
        dropout: rate on what each half-block adds, in [0, 1).

    Returns:
        The model; its parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size or rate out of its range, or a bad table.
    """
    table = word_vectors(vectors)
    positive(num_classes=num_classes, width=width, heads=heads, layers=layers, mlp=mlp)
    if width % heads or width % 2:
        raise ValueError(
            f"width must be even and a multiple of heads = {heads}, got {width}"
        )
    module = _Transformer(
        num_classes, width, heads, layers, mlp, probability(dropout), table.dtype
    )
    headless = module.clone(headless=True)

    def features(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    return from_linen(module, table)._replace(features=features)
