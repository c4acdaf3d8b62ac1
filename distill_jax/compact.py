"""The same accuracy from fewer bytes: smaller numbers on disk, fewer in memory.

On disk (`save`, `load`) the sentences are float32, float16, or int8 with one scale for
each token (symmetric, round to nearest: Jacob et al. 2018, Eq. 1 with Z = 0), labels
and step sizes float16 or float32. A file is one safetensors file; its header holds the
card. In memory, sentences can be learned in fewer numbers: each `[L, D]` matrix as a
product of rank r (`low_rank`), or all tokens as mixtures of k shared vectors
(`shared_basis`, as the linear combinations of Deng & Russakovsky 2022, Sec. 3.2). Or
each sentence learns how many words it needs (`drop_words`); only these are stored.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from distill_jax import artifact
from distill_jax.types import Batch, Distilled, Objective, Params

FORMAT = "distill_jax/compact/1"
KINDS = ("float32", "float16", "int8")
_LARGEST = 127
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_PARTS = {
    "whole": ("x",),
    "low_rank": ("x.left", "x.right"),
    "shared_basis": ("x.weights", "x.basis"),
}


def quantise(distilled: Distilled, kind: str) -> dict[str, np.ndarray]:
    """The arrays that are stored.

    An int8 row is `scale * x` with `scale = max |row| / 127`, so that no number is off
    by more than half of `scale`; a float16 one by 2^-11 of itself. Rows of thin factors
    are short: float16 is smaller there.

    Args:
        distilled: what was learned; `x` may be factors, from `compress`.
        kind: of `KINDS`.

    Returns:
        `x [S, B, L, D]`, or of sentences of their own lengths the words `x [K, D]` and
        `x.kept [S, B, L]` (uint8); or factors as `x.left` and `x.right`, or `x.weights`
        and `x.basis`; for int8 also `NAME.scale [..., 1]` (float32) of each; and
        `y_logits` and `raw_lr`, which are float32 for float32 and float16 else.

    Raises:
        ValueError: for another kind, or a number that it cannot hold.
    """
    _check_kind(kind)
    fields = getattr(distilled.x, "_asdict", None)
    named = {"x": distilled.x}
    if fields is not None:
        named = {f"x.{name}": a for name, a in fields().items()}
    stored: dict[str, np.ndarray] = {}
    if distilled.ragged:
        kept = np.asarray(distilled.mask) > 0
        stored["x.kept"] = kept.astype(np.uint8)
        named = {"x": np.asarray(distilled.x)[kept]}
    for name, a in named.items():
        stored |= _small(name, a, kind)
    rest = "float32" if kind == "float32" else "float16"
    for name in ("y_logits", "raw_lr"):
        stored |= _small(name, getattr(distilled, name), rest)
    for name, a in distilled.more.items():
        stored |= _small(f"more.{name}", a, rest)
    return stored


def restore(arrays: dict[str, np.ndarray]) -> Distilled:
    """What `quantise` stored, in float32, with factors expanded.

    Args:
        arrays: from `quantise`; their names and types tell the kind.

    Returns:
        The distilled set, ready to train on.

    Raises:
        ValueError: if names, types or shapes are not those of `quantise`.
    """
    kept = arrays.get("x.kept")
    if kept is not None:
        arrays = {name: a for name, a in arrays.items() if name != "x.kept"}
    more = {n[5:]: a for n, a in arrays.items() if n.startswith("more.")}
    arrays = {n: a for n, a in arrays.items() if not n.startswith("more.")}
    names = {n for n in arrays if n[0] == "x" and not n.endswith(".scale")}
    scales = {f"{n}.scale" for n in names if arrays[n].dtype == np.int8}
    form = next((f for f, parts in _PARTS.items() if names == set(parts)), None)
    if form is None or set(arrays) != names | scales | {"y_logits", "raw_lr"}:
        raise ValueError(
            "expected y_logits, raw_lr and x, x.left and x.right, or x.weights and "
            "x.basis, with NAME.scale where it is int8; got "
            + (", ".join(sorted(arrays)) or "nothing")
        )
    whole = {}
    for name in names:
        a = arrays[name]
        _check_kind(str(a.dtype))
        whole[name] = jnp.asarray(a.astype(np.float32))
        if a.dtype == np.int8:
            scale, expected = arrays[f"{name}.scale"], (*a.shape[:-1], 1)
            if scale.shape != expected:
                raise ValueError(
                    f"{name}.scale must be {list(expected)}, got {list(scale.shape)}"
                )
            whole[name] = whole[name] * jnp.asarray(scale, jnp.float32)
    x = _EXPAND[form](*(whole[name] for name in _PARTS[form]))
    if kept is not None:
        x = _spread(x, kept)
    rest = (arrays[n].astype(np.float32) for n in ("y_logits", "raw_lr"))
    more = {n: jnp.asarray(a.astype(np.float32)) for n, a in more.items()}
    return Distilled(x, *map(jnp.asarray, rest), more=more, ragged=kept is not None)


def _spread(words: jax.Array, kept: np.ndarray) -> jax.Array:
    """Words `[K, D]` at the places of `kept`, zeros elsewhere."""
    if words.ndim != 2 or kept.dtype != np.uint8 or kept.sum() != len(words):
        raise ValueError(
            f"x.kept must mark the {len(words)} words of x [K, D] by 1, got "
            f"{kept.dtype} with {kept.sum()} marks"
        )
    x = np.zeros((*kept.shape, words.shape[-1]), np.float32)
    x[kept > 0] = words
    return jnp.asarray(x)


def _small(name: str, array: Any, kind: str) -> dict[str, np.ndarray]:
    """One array as it is stored."""
    # Types that numpy lacks, such as bfloat16, go by way of float32 too.
    a = np.asarray(array).astype(np.float32)
    limit = _FLOAT16_MAX if kind == "float16" else np.finfo(np.float32).max
    if not (abs(a) <= limit).all():
        raise ValueError(
            f"{name} must be finite and at most {limit:g} for {kind}: use float32"
        )
    if kind != "int8":
        return {name: a.astype(kind)}
    # A row of zeros, or one so small that its scale would be none.
    scale = abs(a).max(-1, keepdims=True) / np.float32(_LARGEST)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    q = np.clip(np.rint(a / scale), -_LARGEST, _LARGEST).astype(np.int8)
    return {name: q, f"{name}.scale": scale}


def num_bytes(arrays: Any) -> int:
    """Bytes of all arrays of a tree, without names and headers."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))


def save(
    path: str | Path, distilled: Distilled, card: dict[str, Any], *, kind: str
) -> Path:
    """Writes one file; what was there before stays whole until this one is.

    Args:
        path: the file, by custom `NAME.safetensors`.
        distilled: what was learned.
        card: JSON values, such as `artifact.load(...).card`; kept whole.
        kind: of `KINDS`.

    Returns:
        The file.

    Raises:
        ValueError: as `quantise`, or for a card that is not JSON.
        OSError: if it cannot be written.
    """
    path = Path(path)
    arrays = {n: np.ascontiguousarray(a) for n, a in quantise(distilled, kind).items()}
    try:
        text = json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card must hold finite JSON values: {error}") from error
    header = {"format": FORMAT, "kind": kind, "card": text, "sha256": _digest(arrays)}
    content = safetensors.numpy.save(arrays, metadata=header)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        new.unlink(missing_ok=True)
        raise
    os.replace(new, path)
    return path


def load(path: str | Path) -> artifact.Artifact:
    """Reads a compact file as an artefact, for all that takes one.

    Args:
        path: what `save` wrote.

    Returns:
        The arrays of `artifact.AXES` in float32, and the card with `compact`: the kind
        and the bytes of the stored arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or not a compact file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no compact file at {path}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not whole safetensors: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {header.get('format')!r}, this version reads {FORMAT!r}"
        )
    if header.get("sha256") != _digest(arrays):
        raise ValueError(f"{path} was changed: its sha256 differs; copy it again")
    distilled = restore(arrays)
    card = json.loads(header["card"])
    card["compact"] = {"kind": header["kind"], "bytes": num_bytes(arrays)}
    return artifact.Artifact(artifact.from_distilled(distilled), card)


class Parametrisation(NamedTuple):
    """Sentences in fewer numbers.

    Attributes:
        compress: `(x [S, B, L, D]) -> factors`, the closest in least squares.
        expand: `(factors) -> x [S, B, L, D]`, differentiable.
    """

    compress: Callable[[jax.Array], Any]
    expand: Callable[[Any], jax.Array]


class LowRank(NamedTuple):
    """`left [S, B, L, r]` and `right [S, B, r, D]`: r (L + D) numbers a sentence."""

    left: jax.Array
    right: jax.Array


class SharedBasis(NamedTuple):
    """`weights [S, B, L, k]` and `basis [k, D]`: k L a sentence, and k D for all."""

    weights: jax.Array
    basis: jax.Array


def low_rank(rank: int) -> Parametrisation:
    """Each sentence as a product of two thin matrices, x = U V.

    It starts from the truncated singular value decomposition, the closest matrix of
    that rank (Eckart & Young 1936), with the singular values shared out evenly.

    Args:
        rank: r, from 1; below L D / (L + D) it saves bytes.
    """
    _at_least_one("rank", rank)

    def compress(x: jax.Array) -> LowRank:
        return LowRank(*_factors(x, rank, "rank"))

    return Parametrisation(compress, lambda f: _product(*f))


def shared_basis(k: int) -> Parametrisation:
    """All tokens of all sentences as mixtures of k vectors, x = W basis.

    It starts from the truncated singular value decomposition of all tokens.

    Args:
        k: vectors, from 1.
    """
    _at_least_one("k", k)

    def compress(x: jax.Array) -> SharedBasis:
        weights, basis = _factors(x.reshape(-1, x.shape[-1]), k, "k")
        return SharedBasis(weights.reshape(*x.shape[:-1], k), basis)

    return Parametrisation(compress, lambda f: _mixtures(*f))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return left @ right


def _mixtures(weights: jax.Array, basis: jax.Array) -> jax.Array:
    flat = weights.reshape(-1, basis.shape[0]) @ basis
    return flat.reshape(*weights.shape[:-1], basis.shape[1])


_EXPAND: dict[str, Callable[..., jax.Array]] = {
    "whole": lambda x: x,
    "low_rank": _product,
    "shared_basis": _mixtures,
}


class DropState(NamedTuple):
    """`count`: updates so far, int32."""

    count: jax.Array


def drop_words(kept: float, num_steps: int) -> optax.GradientTransformation:
    """Lets each sentence learn its length: the shortest of all words are dropped.

    After update k, of all N words of the distilled sentences the K longest are left,

        K = N * (kept + (1 - kept) * (1 - k / num_steps)^3)     until k = num_steps

    (gradual pruning by magnitude, Zhu & Gupta 2018, Eq. 1), and one that is gone stays
    gone: it has no gradient. Each sentence keeps its longest word. It comes last in a
    chain, for the leaf `x` of a `Distilled` that is `ragged`.

    Args:
        kept: share of the words that is left in the end, in (0, 1].
        num_steps: updates until then, from 1 on.

    Raises:
        ValueError: on a share or number out of its range; from the update, without the
            parameters.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept must be in (0, 1], got {kept}")
    _at_least_one("num_steps", num_steps)

    def init(params):
        del params
        return DropState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("drop_words needs the parameters: tx.update(.., params)")
        count = state.count + 1
        to_go = 1 - jnp.minimum(count / num_steps, 1)

        def leaf(x, u):
            word = jnp.where((x != 0).any(-1, keepdims=True), x + u, 0)
            norm = jnp.linalg.norm(word, axis=-1, keepdims=True)
            N = norm.size
            K = jnp.ceil(N * (kept + (1 - kept) * to_go**3)).astype(int)
            least = jnp.sort(norm, None)[N - jnp.clip(K, 1, N)]
            longest = norm == norm.max(-2, keepdims=True)
            left = jnp.where((norm >= least) | longest, word, 0)
            return left.astype(x.dtype) - x

        return jax.tree.map(leaf, params, updates), DropState(count)

    return optax.GradientTransformation(init, update)


def compress(distilled: Distilled, parametrisation: Parametrisation) -> Distilled:
    """The same set with factors in place of `x`, to learn on.

    Raises:
        ValueError: for sentences of their own lengths, whose zeros factors would lose.
    """
    if distilled.ragged:
        raise ValueError("sentences of learned lengths are stored whole, not factored")
    x = parametrisation.compress(distilled.x)
    return distilled.replace(x=x)  # type: ignore[attr-defined]


def expand(distilled: Distilled, parametrisation: Parametrisation) -> Distilled:
    """The set itself, from one with factors in place of `x`."""
    x = parametrisation.expand(distilled.x)
    return distilled.replace(x=x)  # type: ignore[attr-defined]


def composed(objective: Objective, parametrisation: Parametrisation) -> Objective:
    """An objective of the factors: theirs of the sentences that they stand for.

    Args:
        objective: `(distilled, theta_0, batch) -> scalar`.
        parametrisation: `low_rank(r)` or `shared_basis(k)`.

    Returns:
        The same for what `compress` gives.
    """

    def of_factors(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        return objective(expand(distilled, parametrisation), theta_0, batch)

    return of_factors


def _factors(x: jax.Array, rank: int, name: str) -> tuple[jax.Array, jax.Array]:
    if rank > min(x.shape[-2:]):
        raise ValueError(
            f"{name} must be at most {min(x.shape[-2:])} for matrices of "
            f"{x.shape[-2]} x {x.shape[-1]}, got {rank}"
        )
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    return u[..., :rank] * root[..., None, :], root[..., None] * v[..., :rank, :]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    h = hashlib.sha256()
    for name in sorted(arrays):
        a = arrays[name]
        h.update(f"{name} {a.dtype} {a.shape}".encode() + a.tobytes())
    return h.hexdigest()
