"""A user's Flax module as a `Model`: `from_linen` and `from_nnx`.

The module reads embeddings, `__call__(x [B, L, D], mask [B, L]) -> logits [B, C]`, or
`__call__(x, mask, train)` where it has dropout. Tokens are looked up in a frozen table
of word vectors that is no part of the parameters.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.types import Model


def word_vectors(vectors: Any) -> jax.Array:
    """Checks a table of word vectors.

    Args:
        vectors: `[V, D]` floats; row 0 is padding.

    Returns:
        The table as a JAX array.

    Raises:
        ValueError: if it is not a table of finite floats.
    """
    host = np.asarray(vectors)
    if host.ndim != 2 or 0 in host.shape or not np.issubdtype(host.dtype, np.floating):
        raise ValueError(
            "vectors must be a [V, D] table of floats, "
            f"got {list(host.shape)} of {host.dtype}"
        )
    if not np.isfinite(host).all():
        row = int(np.argwhere(~np.isfinite(host))[0, 0])
        raise ValueError(
            f"vectors must be finite, row {row} is not; drop or repair that word"
        )
    return jnp.asarray(vectors)


def positive(**sizes: int) -> None:
    """Raises a ValueError that names the first size that is no integer from 1 on."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {size!r}")


def probability(dropout: float) -> float:
    """Returns a dropout rate, or raises a ValueError outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    return dropout


def from_linen(module: nn.Module, vectors: Any, *, example_length: int = 8) -> Model:
    """A Flax Linen module as a `Model`.

    Args:
        module: its `__call__` takes `(x, mask)` or `(x, mask, train)` and returns
            logits; dropout draws from the stream `"dropout"`.
        vectors: frozen word vectors `[V, D]`, row 0 padding.
        example_length: tokens of the sentence that `init` sees; matters only to a
            module whose parameters depend on the length.

    Returns:
        The model. Dropout is on exactly when `apply` gets a key.

    Raises:
        ValueError: if it is not a Linen module of that signature, keeps state beside
            its parameters (as BatchNorm does), or does not return `[B, C]`.
    """
    table = word_vectors(vectors)
    positive(example_length=example_length)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module must be an instance of flax.linen.Module, got {module!r}; "
            "an nnx module goes to from_nnx"
        )
    train = _train_argument(module)
    x = jnp.zeros((1, example_length, table.shape[1]), table.dtype)
    mask = jnp.ones((1, example_length), table.dtype)

    def init(key):
        return module.init({"params": key}, x, mask, **train(None)).get("params", {})

    def embed(params, tokens):
        del params
        return table[tokens]

    def apply(params, x, mask, *, key=None) -> Any:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, mask, rngs=rngs, **train(key))

    shapes = jax.eval_shape(
        lambda key: module.init({"params": key}, x, mask, **train(None)),
        jax.random.key(0),
    )
    _no_state(set(shapes) - {"params"}, module)
    _check_logits(apply, shapes.get("params", {}), table, example_length, module)
    return Model(init, embed, apply)


def from_nnx(ctor: Callable[[Any], Any], vectors: Any) -> Model:
    """A Flax NNX module as a `Model`.

    Args:
        ctor: `(rngs) -> module`, such as
            `lambda rngs: MyNet(100, num_classes=2, rngs=rngs)`. The module takes
            `(x, mask)` or `(x, mask, train)` and returns logits.
        vectors: frozen word vectors `[V, D]`, row 0 padding.

    Returns:
        The model; its parameters are a plain dict. Dropout is on exactly when `apply`
        gets a key: the module is put in `train()` or `eval()` mode, and its random
        streams start from that key.

    Raises:
        ValueError: if `ctor` does not make such a module, or the module keeps state
            beside its parameters (as BatchNorm does).
    """
    from flax import nnx

    table = word_vectors(vectors)
    if isinstance(ctor, nnx.Module) or not callable(ctor):
        raise ValueError(
            "ctor must make the module from its random streams, as in "
            f"from_nnx(lambda rngs: MyNet(..., rngs=rngs), vectors); got {ctor!r}"
        )
    abstract = nnx.eval_shape(lambda: ctor(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(f"ctor must return an nnx.Module, got {abstract!r}")
    train = _train_argument(abstract)
    graph, shapes, streams, rest = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    _no_state({type(v).__name__ for _, v in nnx.to_flat_state(rest)}, abstract)

    def init(key):
        return nnx.to_pure_dict(nnx.state(ctor(nnx.Rngs(key)), nnx.Param))

    def embed(params, tokens):
        del params
        return table[tokens]

    def seeded(key):
        leaves, tree = jax.tree.flatten(streams)
        return tree.unflatten(
            jax.random.fold_in(key, i)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        )

    def apply(params, x, mask, *, key=None):
        weights = jax.tree.map(lambda a: a, shapes)
        nnx.replace_by_pure_dict(weights, params)
        random = seeded(jax.random.key(0) if key is None else key)
        module = nnx.merge(graph, weights, random)
        if key is None:
            module.eval()
        else:
            module.train()
        return module(x, mask, **train(key))

    _check_logits(apply, nnx.to_pure_dict(shapes), table, 8, abstract)
    return Model(init, embed, apply)


def _train_argument(module: Any) -> Callable[[Any], dict[str, Any]]:
    """Makes `(key) -> {"train": is there a key}`, or `{}` where it is not taken."""
    names = list(inspect.signature(type(module).__call__).parameters)[1:]
    extra = names[2:]
    if len(names) < 2 or extra not in ([], ["train"]):
        raise ValueError(
            f"{type(module).__name__}.__call__ must take (x, mask) or "
            f"(x, mask, train), it takes ({', '.join(names)})"
        )
    return lambda key: {"train": key is not None} if extra else {}


def _no_state(kinds: set[str], module: Any) -> None:
    if kinds:
        raise ValueError(
            f"{type(module).__name__} keeps state beside its parameters "
            f"({', '.join(sorted(kinds))}); use layers without it, such as LayerNorm "
            "for BatchNorm"
        )


def _check_logits(apply, params, table, length: int, module: Any) -> None:
    x = jax.ShapeDtypeStruct((2, length, table.shape[1]), table.dtype)
    mask = jax.ShapeDtypeStruct((2, length), table.dtype)
    logits = jax.eval_shape(apply, params, x, mask)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"{type(module).__name__} must return logits [B, C], "
            f"for B = 2 it returned {logits}"
        )
