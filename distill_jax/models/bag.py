"""A bag of embeddings: mean over the tokens, one hidden layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.types import Model


class _Bag(nn.Module):
    num_classes: int
    hidden: int
    dropout: float
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        h = x if x.ndim == mask.ndim else _mean(x, mask)
        h = nn.Dense(self.hidden, param_dtype=self.param_dtype, name="hidden")(h)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(h))
        if self.headless:
            return h
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="out")(h)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    weight = mask.astype(x.dtype)[..., None]
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def bag(
    vectors: Any, num_classes: int, *, hidden: int = 128, dropout: float = 0.0
) -> Model:
    """Mean of the word vectors, a ReLU layer, logits (Iyyer et al. 2015, one layer).

    Args:
        vectors: frozen word vectors `[V, D]`, row 0 padding.
        num_classes: C.
        hidden: width of the hidden layer.
        dropout: rate on the hidden layer, in [0, 1).

    Returns:
        The model, the mean its `frozen` part; parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size or rate out of its range, or a bad table.
    """
    table = word_vectors(vectors)
    positive(num_classes=num_classes, hidden=hidden)
    module = _Bag(num_classes, hidden, probability(dropout), table.dtype)
    headless = module.clone(headless=True)

    def features(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    def read(x, mask):
        return _mean(table[x] if jnp.issubdtype(x.dtype, jnp.integer) else x, mask)

    return from_linen(module, table)._replace(features=features, frozen=read)
