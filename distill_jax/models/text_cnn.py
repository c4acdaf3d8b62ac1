"""Convolution over windows of words, max over time (Kim 2014, arXiv:1408.5882).

    score[b, p, f] = W[f] . x[b, p : p + k] + bias[f]        windows of k words
    p*[b, f]       = argmax_p score[b, p, f]                 the winner of filter f
    feature[b, f]  = relu(score[b, p*, f])

Only the winning window carries a derivative, of any order. So the winners are found
by one dense product without derivatives (`route`), and their scores are taken again,
differentiably, from the gathered windows: 1/L of the dense work for each derivative.
`max_over_time_dense` is the plain form, and the oracle of the tests.

Axes: B examples, L tokens (and window positions), D embedding, F filters, k words.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from distill_jax.types import Model


def text_cnn(
    vectors: jax.Array,
    num_classes: int,
    *,
    widths: Sequence[int] = (2, 3),
    filters: int = 128,
    hidden: int | None = 256,
    dropout: float = 0.0,
    kernel_init: Any = None,
    pooling: str = "winners",
) -> Model:
    """TextCNN; the defaults are those of Li & Li (2021).

    A window counts if its first token is real, so padding changes nothing; an empty
    sentence is one window of zeros.

    Args:
        vectors: `[V, D]` word vectors, frozen; row 0 is padding.
        num_classes: C.
        widths: words in a window, one group of filters for each.
        filters: filters of each width.
        hidden: width of a linear layer before the output (no nonlinearity between,
            as Li & Li), or None.
        dropout: rate after pooling, in [0, 1).
        kernel_init: initialiser of all kernels; `lecun_normal` unless given.
        pooling: `winners`, or `dense` for the plain form.

    Raises:
        ValueError: on an unknown pooling.
    """
    if pooling not in ("winners", "dense"):
        raise ValueError(f"pooling must be 'winners' or 'dense', got {pooling!r}")
    dim = vectors.shape[-1]
    widths = tuple(widths)
    net = _TextCNN(
        num_classes,
        widths,
        filters,
        hidden,
        dropout,
        kernel_init or nn.initializers.lecun_normal(),
        pooling,
    )

    def init(key):
        x = jnp.zeros((1, max(widths), dim), vectors.dtype)
        return net.init(key, x, jnp.ones(x.shape[:2], x.dtype))["params"]

    def apply(params, x, mask, *, key=None, route=None):
        rngs = None if key is None else {"dropout": key}
        train = key is not None
        logits: Any = net.apply(
            {"params": params}, x, mask, route=route, train=train, rngs=rngs
        )
        return logits

    def route(params, x, mask):
        kernels = {name: group["kernel"] for name, group in params["conv"].items()}
        return winners(x, mask, kernels)

    def features(params, x, mask):
        h: Any = net.apply({"params": params}, x, mask, features=True)
        return h

    return Model(
        init=init,
        embed=lambda params, tokens: jnp.asarray(vectors)[tokens],
        apply=apply,
        route=route if pooling == "winners" else None,
        features=features,
    )


def kim_cnn(
    vectors: jax.Array,
    num_classes: int,
    *,
    widths: Sequence[int] = (3, 4, 5),
    filters: int = 100,
    hidden: int | None = None,
    dropout: float = 0.5,
    kernel_init: Any = None,
    pooling: str = "winners",
) -> Model:
    """`text_cnn` with the settings of Kim (2014) as defaults."""
    return text_cnn(
        vectors,
        num_classes,
        widths=widths,
        filters=filters,
        hidden=hidden,
        dropout=dropout,
        kernel_init=kernel_init,
        pooling=pooling,
    )


_TOKENS_IN_CACHE = 512


def winners(
    x: jax.Array, mask: jax.Array, kernels: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Where each filter's score is largest, without a derivative.

    Args:
        x: `[B, L, D]`.
        mask: `[B, L]`.
        kernels: groups of filters, each `[F, k * D]` with a k of its own.

    Returns:
        For each group positions `[B, F]` in [0, L), int32; the first of equals.
    """
    x, kernels = lax.stop_gradient((x, kernels))

    def one(example):
        x, mask = example
        scores = _dense_scores(x[None], mask[None], kernels)
        return {name: _first_of_largest(s)[0] for name, s in scores.items()}

    # Few sentences at a time, so that their windows and scores stay in cache.
    size = max(1, _TOKENS_IN_CACHE // x.shape[1])
    return lax.map(one, (x, mask), batch_size=min(size, x.shape[0]))


def max_over_time(
    x: jax.Array, mask: jax.Array, kernel: jax.Array, bias: jax.Array, route=None
) -> jax.Array:
    """Largest score of each filter `[B, F]`, differentiated at the winners only.

    Where nothing is differentiated and no `route` is given, the plain max alone is
    computed.
    """
    if route is None:
        return _largest(x, mask, {"": kernel})[""] + bias[None]
    return _winner_scores(_padded(x, mask, kernel), kernel, route) + bias[None]


def max_over_time_dense(
    x: jax.Array, mask: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """The same in the plain form: every window scored, then the max."""
    return _dense_scores(x, mask, {"": kernel})[""].max(1) + bias[None]


def _padded(x, mask, kernel):
    """`x` without what the mask hides, and k - 1 rows of zeros for the last windows."""
    k = kernel.shape[-1] // x.shape[-1]
    return jnp.pad(x * mask[..., None].astype(x.dtype), ((0, 0), (0, k - 1), (0, 0)))


def _dense_scores(x, mask, kernels):
    B, L, D = x.shape
    widest = max(kernels.values(), key=lambda kernel: kernel.shape[-1])
    padded, k = _padded(x, mask, widest), widest.shape[-1] // D
    # The windows of the widest filters begin with those of the others.
    windows = jnp.concatenate([padded[:, j : j + L] for j in range(k)], -1)
    windows = windows.reshape(B * L, k * D)
    counts = jnp.asarray(mask != 0).at[:, 0].set(True)[..., None]

    def score(kernel):
        scores = (windows[:, : kernel.shape[-1]] @ kernel.T).reshape(B, L, -1)
        return jnp.where(counts, scores, -jnp.inf)

    return {name: score(kernel) for name, kernel in kernels.items()}


def _first_of_largest(scores):
    # Two passes of max and min: several times faster than argmax on CPU.
    L = scores.shape[1]
    positions = jnp.arange(L, dtype=jnp.int32)[None, :, None]
    at_max = scores == scores.max(1, keepdims=True)
    return jnp.where(at_max, positions, L - 1).min(1)


# The score of a winner is bilinear in x and the kernel; these are the product and its
# two derivatives, one example at a time so that its windows stay in cache.


def _windows(padded, positions, width):
    """Windows `[F, k * D]` of one example `[L + k - 1, D]`."""
    flat, D = padded.reshape(-1), padded.shape[-1]
    return jax.vmap(lambda p: lax.dynamic_slice(flat, (p * D,), (width * D,)))(
        positions
    )


def _score_windows(padded, kernel, route):
    width = kernel.shape[-1] // padded.shape[-1]
    ones = jnp.ones(kernel.shape[-1:], kernel.dtype)

    def one(example):
        x, positions = example
        # A product with ones sums rows a third faster than sum(-1) on CPU.
        return (_windows(x, positions, width) * kernel) @ ones

    return lax.map(one, (padded, route))


# Value and tangent each in a loop of its own: where two products read one window, XLA
# writes it to memory first, four times slower on CPU.
@jax.custom_jvp
def _scores(padded, kernel, route):
    return _score_windows(padded, kernel, route)


def _scores_jvp(primals, tangents):
    padded, kernel, route = primals
    d_padded, d_kernel, _ = tangents
    out = _scores(padded, kernel, route)
    tangent = jnp.zeros_like(out)
    if not isinstance(d_kernel, SymbolicZero):
        tangent = tangent + _score_windows(padded, d_kernel, route)
    if not isinstance(d_padded, SymbolicZero):
        tangent = tangent + _score_windows(d_padded, kernel, route)
    return out, tangent


_scores.defjvp(_scores_jvp, symbolic_zeros=True)


@jax.custom_vjp
def _winner_scores(padded, kernel, route):
    return _scores(padded, kernel, route)


def _winner_scores_fwd(padded, kernel, route):
    return _scores(padded, kernel, route), (padded, kernel, route)


def _winner_scores_bwd(saved, cotangent):
    padded, kernel, route = saved
    D = padded.shape[-1]
    width = kernel.shape[-1] // D

    def add(total, example):
        x, positions, c = example
        return total + c[:, None] * _windows(x, positions, width), None

    zeros = jnp.zeros_like(kernel)
    d_kernel, _ = lax.scan(add, zeros, (padded, route, cotangent))

    def scatter(example):
        positions, c = example
        rows = positions[:, None] + jnp.arange(width)[None, :]
        updates = (c[:, None] * kernel).reshape(*rows.shape, D)
        zeros = jnp.zeros(padded.shape[1:], padded.dtype)
        return zeros.at[rows].add(updates, mode="promise_in_bounds")

    return lax.map(scatter, (route, cotangent)), d_kernel, None


_winner_scores.defvjp(_winner_scores_fwd, _winner_scores_bwd)


# Without a derivative, the plain max; with one, the winners of all groups at once.
@jax.custom_vjp
def _largest(x, mask, kernels):
    scores = _dense_scores(x, mask, kernels)
    return {name: score.max(1) for name, score in scores.items()}


def _largest_fwd(x, mask, kernels):
    route = winners(x, mask, kernels)
    out, saved = {}, {}
    for name, kernel in kernels.items():
        padded = _padded(x, mask, kernel)
        out[name], saved[name] = _winner_scores_fwd(padded, kernel, route[name])
    return out, (saved, mask)


def _largest_bwd(saved, cotangents):
    saved, mask = saved
    d_inputs, d_kernels = [], {}
    for name, cotangent in cotangents.items():
        d_padded, d_kernels[name], _ = _winner_scores_bwd(saved[name], cotangent)
        d_inputs.append(d_padded[:, : mask.shape[1]])
    d_x: Any = sum(d_inputs)
    return d_x * mask[..., None].astype(d_x.dtype), None, d_kernels


_largest.defvjp(_largest_fwd, _largest_bwd)


class _Filters(nn.Module):
    features: int
    kernel_init: Any

    @nn.compact
    def __call__(self, size: int, dtype):
        # The kernel is kept as [F, k * D], a row a filter, the layout windows have.
        def init(key, shape, dtype):
            return self.kernel_init(key, shape[::-1], dtype).T

        kernel = self.param("kernel", init, (self.features, size), dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
        return kernel, bias


class _Convolution(nn.Module):
    widths: tuple[int, ...]
    filters: int
    kernel_init: Any
    pooling: str

    @nn.compact
    def __call__(self, x, mask, route):
        groups = {}
        for k in self.widths:
            group: Any = _Filters(self.filters, self.kernel_init, name=str(k))
            groups[str(k)] = group(k * x.shape[-1], x.dtype)
        if self.pooling == "dense":
            pooled = [max_over_time_dense(x, mask, *g) for g in groups.values()]
        else:
            kernels = {name: kernel for name, (kernel, _) in groups.items()}
            if route is None:
                scores = _largest(x, mask, kernels)
            else:
                scores = {
                    name: _winner_scores(_padded(x, mask, kernel), kernel, route[name])
                    for name, kernel in kernels.items()
                }
            pooled = [scores[name] + bias[None] for name, (_, bias) in groups.items()]
        return jnp.concatenate(pooled, -1)


class _TextCNN(nn.Module):
    num_classes: int
    widths: tuple[int, ...]
    filters: int
    hidden: int | None
    dropout: float
    kernel_init: Any
    pooling: str

    @nn.compact
    def __call__(self, x, mask, route=None, train=False, features=False):
        settings = (self.widths, self.filters, self.kernel_init, self.pooling)
        h = nn.relu(_Convolution(*settings, name="conv")(x, mask, route))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if self.hidden is not None:
            h = self._dense(self.hidden, "hidden", x.dtype)(h)
        return h if features else self._dense(self.num_classes, "out", x.dtype)(h)

    def _dense(self, features, name, dtype):
        return nn.Dense(
            features, param_dtype=dtype, kernel_init=self.kernel_init, name=name
        )
