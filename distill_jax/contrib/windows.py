"""Windows at the end of the unroll, and where gradients were large.

    truncated        s = T - W, the last steps (Williams & Peng 1990; T-BPTT)
    adaptive_window  s drawn where gradients were large; the idea that the gradient
                     places the window is of Li et al. (2025, arXiv:2510.04838,
                     AT-BPTT), the rule is importance sampling (Zhao & Zhang 2015)

With the notation of `distill_jax.windows`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.core import SGD
from distill_jax.types import Batch, Distilled, Keyed, LossFn, Objective, Params
from distill_jax.windows import at_least_one, num_starts, train_window


def truncated(
    loss_fn: LossFn,
    *,
    window: int,
    real_loss_fn: LossFn | None = None,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Objective:
    """Real-data loss after T steps, the last W differentiated (T-BPTT).

    Args:
        loss_fn, real_loss_fn, inner_tx, inner_grad, scan: as for `core.unrolled`.
        window: steps with a derivative, W, in 1 .. T.

    Returns:
        `(distilled, theta_0, real batch) -> meta_loss`.

    Raises:
        ValueError: on a window below 1; from the objective, on one above T.
    """
    at_least_one(window)
    real_loss_fn = real_loss_fn or loss_fn

    def objective(distilled: Distilled, theta_0: Params, batch: Batch) -> jax.Array:
        theta = train_window(
            loss_fn,
            theta_0,
            distilled.batches,
            distilled.lr,
            num_starts(distilled.raw_lr.size, window) - 1,
            window=window,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        return real_loss_fn(theta, batch)

    return objective


@flax.struct.dataclass
class Watched(Distilled):
    """Distilled data, and how large its gradients were with the window where.

    The possible starts are cut into P bins. `signal` moves by `watching` alone.

    Attributes:
        signal: `[2, P]`, for each bin the decayed sum of the gradient norms seen
            there, and of their weights; their ratio is the running mean.
    """

    signal: jax.Array


def watched(distilled: Distilled, num_bins: int = 10) -> Watched:
    """`distilled` with an empty signal, for `adaptive_window`.

    Raises:
        ValueError: on less than one bin.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    signal = jnp.zeros((2, num_bins), distilled.x.dtype)
    return _watched(distilled, signal)


def unwatched(distilled: Distilled) -> Distilled:
    """The distilled data without its signal."""
    names = [field.name for field in dataclasses.fields(Distilled)]
    return Distilled(**{name: getattr(distilled, name) for name in names})


def watching(meta_tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Makes `meta_tx` fit `Watched`: it sees `Distilled`, and the signal is kept.

    What `adaptive_window` gives as the gradient of `signal` is how far to move it,
    and is added as it is: not clipped, scaled or negated.
    """

    tx: Any = meta_tx  # optax's type of a tree has no room for ours

    def init(params):
        return tx.init(unwatched(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        rest = None if params is None else unwatched(params)
        moved, state = tx.update(unwatched(updates), state, rest)
        return _watched(moved, updates.signal), state

    return optax.GradientTransformation(init, update)


def adaptive_window(
    loss_fn: LossFn,
    *,
    window: int,
    earliest: int = 0,
    explore: float = 0.2,
    decay: float = 0.9,
    weighted: bool = False,
    real_loss_fn: LossFn | None = None,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Keyed:
    """Real-data loss after a window placed where gradients were large.

    With m_b the running mean of ||G_s|| over the starts s of bin b, n starts in all,

        p(s) = (1 - explore) m_bin(s) / sum_r m_bin(r) + explore / n

    where a bin not seen yet has the mean of the others: at first windows are uniform.
    `weighted` multiplies the gradient by (1 / n) / p(s). It then has the mean of
    `random_window`'s, at a variance that is least for p(s) proportional to the norm
    (Zhao & Zhang 2015).

    It learns `Watched` data with an optimizer from `watching`. As its gradient of
    `signal` is no derivative, it is made for `value_and_grad`, once. `MetaInfo`'s
    norm counts that leaf too.

    Args:
        loss_fn, real_loss_fn, inner_tx, inner_grad, scan: as for `core.unrolled`.
        window: steps with a derivative, W, in 1 .. T.
        earliest: least steps before the window, in 0 .. T - W.
        explore: share of the windows that is placed uniformly, in (0, 1].
        decay: of the running means, in [0, 1). A norm enters as at most twice the
            largest mean, so that an outlier does not draw all windows.
        weighted: weigh the gradient for where windows are rare.

    Returns:
        `(watched, theta_0, real batch, key) -> meta_loss`; it is `Keyed`. The loss is
        that at the end of the window, never weighted.

    Raises:
        ValueError: on a setting out of its range; from the objective, if the window
            does not fit into T.
        TypeError: from the objective, on data that is not `Watched`.
    """
    at_least_one(window, earliest)
    if not 0 < explore <= 1:
        raise ValueError(f"explore must be in (0, 1], got {explore}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    real_loss_fn = real_loss_fn or loss_fn

    def loss_at(distilled, theta_0, batch, start):
        theta = train_window(
            loss_fn,
            theta_0,
            distilled.batches,
            distilled.lr,
            earliest + start,
            window=window,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        return real_loss_fn(theta, batch)

    def draw(data, key):
        if not isinstance(data, Watched):
            raise TypeError(
                f"adaptive_window learns Watched data, got {type(data).__name__}: "
                "start from windows.watched(distilled)"
            )
        starts = num_starts(data.raw_lr.size, window, earliest)
        p = placement(data.signal, starts, explore)
        return jax.random.categorical(key, jnp.log(p)), p

    @jax.custom_vjp
    def loss(data, theta_0, batch, key):
        return loss_at(unwatched(data), theta_0, batch, draw(data, key)[0])

    def loss_and_grad(data, theta_0, batch, key):
        start, p = draw(data, key)
        loss, grad = jax.value_and_grad(loss_at)(unwatched(data), theta_0, batch, start)
        num_bins = data.signal.shape[1]
        here = jnp.arange(num_bins) == start * num_bins // p.size
        largest = _means(data.signal)[0].max()
        bar = jnp.where(largest > 0, 2 * largest, jnp.inf)
        seen = jnp.minimum(optax.tree.norm(grad), bar)
        seen = jnp.stack([seen, jnp.ones_like(seen)])[:, None]
        move = jnp.where(here, (1 - decay) * (seen - data.signal), 0)
        if weighted:
            grad = jax.tree.map(
                lambda g: (g / (p.size * p[start])).astype(g.dtype), grad
            )
        move = move.astype(data.signal.dtype)
        return loss, _watched(grad, move)

    def backward(grad, cotangent):
        grad = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grad)
        return grad, None, None, None

    loss.defvjp(loss_and_grad, backward)

    def objective(
        distilled: Watched, theta_0: Params, batch: Batch, key: jax.Array
    ) -> jax.Array:
        return loss(distilled, theta_0, batch, key)

    return Keyed(objective)


def placement(signal: jax.Array, starts: int, explore: float) -> jax.Array:
    """Probability of each start of a window, `[starts]`; see `adaptive_window`.

    Args:
        signal: `[2, P]`, from `Watched`.
        starts: how many there are.
        explore: the share that is uniform.
    """
    means, seen = _means(signal)
    others = means.sum() / jnp.maximum(seen.sum(), 1)
    means = jnp.where(seen, means, others)
    weight = means[jnp.arange(starts) * means.size // starts]
    total = weight.sum()
    share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 1 / starts)
    return (1 - explore) * share + explore / starts


def _means(signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Running mean of each bin, 0 where nothing was seen; and where it was."""
    norms, weights = signal
    seen = weights > 0
    return norms / jnp.where(seen, weights, 1), seen


def _watched(distilled: Distilled, signal: jax.Array) -> Watched:
    names = [field.name for field in dataclasses.fields(Distilled)]
    return Watched(signal=signal, **{n: getattr(distilled, n) for n in names})
