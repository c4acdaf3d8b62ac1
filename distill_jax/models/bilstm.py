"""A bidirectional LSTM (Hochreiter & Schmidhuber 1997; Graves & Schmidhuber 2005).

With z_t = W x_t + U h_{t-1} + b cut into four gates,

    c_t = sigmoid(z_f) c_{t-1} + sigmoid(z_i) tanh(z_g),   h_t = sigmoid(z_o) tanh(c_t),

from both ends of the sentence; a token under the mask leaves (h, c) as they are, so
the backward state is still zero at the last real token. The classifier reads the mean
of the states over the real tokens: on rotten_tomatoes it trains as well as their max
and more evenly than the final states, and unlike the max it is smooth. Axes beside the
usual: H the hidden width, 2 directions, 4 gates in the order i, f, g, o.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from distill_jax.models.adapters import from_linen, positive, probability, word_vectors
from distill_jax.types import Model


class _Layer(nn.Module):
    hidden: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        B, L, D = x.shape
        H = self.hidden
        # Xavier for each gate of each direction by itself, however they are fused.
        xavier_in = nn.initializers.glorot_uniform(0, 3, batch_axis=(1, 2))
        xavier_state = nn.initializers.glorot_uniform(1, 3, batch_axis=(0, 2))
        W = self.param("input", xavier_in, (D, 2, 4, H), self.param_dtype)
        U = self.param("state", xavier_state, (2, H, 4, H), self.param_dtype)
        b = self.param("bias", _forget_bias, (2, 4, H), self.param_dtype)

        z = x.reshape(B * L, D) @ W.reshape(D, 8 * H) + b.reshape(1, 8 * H)
        z = z.reshape(B, L, 2, 4 * H).transpose(1, 2, 0, 3)
        z = jnp.stack([z[:, 0], z[::-1, 1]], 1)
        keep = mask.astype(x.dtype).T[..., None]
        keep = jnp.stack([keep, keep[::-1]], 1)
        h = _states(z, keep, U.reshape(2, H, 4 * H))
        return jnp.concatenate([h[:, 0], h[::-1, 1]], -1).swapaxes(0, 1)


def _cell(z, h, c, keep):
    i, f, g, o = jnp.split(z, 4, -1)
    new_c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    new_h = nn.sigmoid(o) * jnp.tanh(new_c)
    return h + keep * (new_h - h), c + keep * (new_c - c)


# The gradient of U is a sum over tokens: by hand, one product after the backward scan
# instead of one in each of its steps.


@jax.custom_vjp
def _states(z: jax.Array, keep: jax.Array, U: jax.Array) -> jax.Array:
    """Hidden states `[L, 2, B, H]` of inputs `z [L, 2, B, 4H]`, mask `[L, 2, B, 1]`."""
    return _states_fwd(z, keep, U)[0]


def _states_fwd(z, keep, U):
    def step(state, token):
        h, c = state
        z, keep = token
        z = z + h @ U
        new_h, new_c = _cell(z, h, c, keep)
        return (new_h, new_c), (new_h, (z, h, c, keep))

    zero = jnp.zeros((*z.shape[1:3], U.shape[1]), z.dtype)
    _, (h, inputs) = lax.scan(step, (zero, zero), (z, keep))
    return h, (inputs, U)


def _states_bwd(saved, cotangent):
    inputs, U = saved

    def step(state, token):
        d_h, d_c = state
        inputs, d_out = token
        _, pull = jax.vjp(_cell, *inputs)
        d_z, d_h, d_c, _ = pull((d_h + d_out, d_c))
        return (d_h + d_z @ U.swapaxes(1, 2), d_c), d_z

    zero = jnp.zeros_like(cotangent[0])
    _, d_z = lax.scan(step, (zero, zero), (inputs, cotangent), reverse=True)
    return d_z, None, jnp.einsum("ldbh,ldbg->dhg", inputs[1], d_z)


_states.defvjp(_states_fwd, _states_bwd)


class _BiLSTM(nn.Module):
    num_classes: int
    hidden: int
    layers: int
    dropout: float
    param_dtype: Any
    headless: bool = False  # return what the output layer reads

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        for layer in range(self.layers):
            x = dropout(x) if layer else x
            x = _Layer(self.hidden, self.param_dtype, name=f"layer_{layer}")(x, mask)
        weight = mask.astype(x.dtype)[..., None]
        h = (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        if self.headless:
            return h
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="out")(
            dropout(h)
        )


def _forget_bias(key, shape, dtype):
    """Zero, and one for the forget gate (Jozefowicz et al. 2015)."""
    del key
    return jnp.zeros(shape, dtype).at[:, 1].set(1)


def bilstm(
    vectors: Any,
    num_classes: int,
    *,
    hidden: int = 100,
    layers: int = 1,
    dropout: float = 0.0,
) -> Model:
    """Bidirectional LSTM, mean of its states over the real tokens, logits.

    Args:
        vectors: frozen word vectors `[V, D]`, row 0 padding.
        num_classes: C.
        hidden: H, the width of one direction.
        layers: LSTM layers, each reading both directions of the one below
            (Sucholutsky & Schonlau 2019 use 2).
        dropout: rate between layers and before the logits, in [0, 1).

    Returns:
        The model; its parameters have the dtype of `vectors`.

    Raises:
        ValueError: on a size or rate out of its range, or a bad table.
    """
    table = word_vectors(vectors)
    positive(num_classes=num_classes, hidden=hidden, layers=layers)
    module = _BiLSTM(num_classes, hidden, layers, probability(dropout), table.dtype)
    headless = module.clone(headless=True)

    def features(params, x, mask):
        return headless.apply({"params": params}, x, mask, False)

    return from_linen(module, table)._replace(features=features)
