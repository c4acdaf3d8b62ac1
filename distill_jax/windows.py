"""Meta-gradients through a window of the inner steps, for long unrolls.

Training takes steps t = 0 .. T - 1. A window of W steps that begins at step s is
differentiated, and what was before it is not: with a stopped theta_s,

    theta_{t+1} = theta_t - lr_t * direction(grad_theta loss(theta_t, d_t)), t < s + W
    G_s = d/d(d, lr) loss(theta_{s+W}, real batch)
        = - g^T sum_{t=s}^{s+W-1} (prod_{j=t+1}^{s+W-1} (1 - lr_j H_j)) lr_t M_t

(the last line for d and SGD, later factors to the left),
with g the real-data gradient at theta_{s+W}, H_j the Hessian at theta_j and M_t the
mixed second derivative in theta and d at step t. Step sizes and minibatches that the
window does not use get a gradient of zero, and so does theta_0. Memory is that of W
steps, whatever T; with W = T it is `core.unrolled`.

    truncated        s = T - W, the last steps (Williams & Peng 1990; T-BPTT)
    random_window    s uniform, so that every step is reached (RaT-BPTT, Feng et al.
                     2024, arXiv:2311.07025); training ends where the window does
    adaptive_window  s drawn where gradients were large; the idea that the gradient
                     places the window is of Li et al. (2025, arXiv:2510.04838,
                     AT-BPTT), the rule is importance sampling (Zhao & Zhang 2015)

The last two need a key, which `core.meta_grad` hands to an objective that is `keyed`.
The start is traced, so one program serves all of them. Under `vmap` the steps before
the windows go on until the latest window of the theta_0 begins.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from distill_jax.core import SGD, frozen_once, inner_step
from distill_jax.types import Batch, Distilled, Keyed, LossFn, Objective, Params


def train_window(
    loss_fn: LossFn,
    theta_0: Params,
    batches: Batch,
    lr: jax.Array,
    start: int | jax.Array,
    *,
    window: int,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Params:
    """Trains up to step `start + window`, with a derivative from `start` on.

    Args:
        loss_fn, theta_0, inner_tx, inner_grad, scan: as for `core.unroll`.
        batches: `Batch` with leading axis `[S]`.
        lr: step sizes `[E, S]`, T = E * S of them.
        start: first step of the window, 0 .. T - window; may be traced.
        window: steps of the window, W.

    Returns:
        `theta_{start + window}`.

    Raises:
        ValueError: if the second axis of `lr` is not the number of minibatches.
    """
    S = batches.y.shape[0]
    if lr.ndim != 2 or lr.shape[1] != S:
        raise ValueError(
            f"lr must be [E, S] with S = {S} minibatches, got {list(lr.shape)}"
        )
    grad_fn = inner_grad(loss_fn)
    batches = frozen_once(loss_fn, batches)

    def one_step(carry, step):
        batch, step_lr = step
        carry, _ = inner_step(grad_fn, inner_tx, carry, batch, step_lr)
        return carry, None

    sizes = lr.reshape(-1)
    before = lax.stop_gradient((batches, sizes))

    def step_before(t, carry):
        now = jax.tree.map(
            lambda a, i: lax.dynamic_index_in_dim(a, i, keepdims=False),
            before,
            (jax.tree.map(lambda _: t % S, batches), t),
        )
        return one_step(carry, now)[0]

    carry = lax.stop_gradient((theta_0, inner_tx.init(theta_0)))
    carry = lax.fori_loop(0, start, step_before, carry)

    # The minibatches in the order of the window, each once: it passes over them.
    used = min(S, window)
    if S > 1:
        order = (start + jnp.arange(used)) % S
        batches = jax.tree.map(lambda a: a[order], batches)
    sizes = lax.dynamic_slice_in_dim(sizes, start, window)
    passes, rest = divmod(window, used)
    whole = passes * used
    if passes == 1:
        carry, _ = scan(one_step, carry, (batches, sizes[:whole]))
    else:
        carry, _ = scan(
            lambda carry, pass_lr: scan(one_step, carry, (batches, pass_lr)),
            carry,
            sizes[:whole].reshape(passes, used),
        )
    if rest:
        few = jax.tree.map(lambda a: a[:rest], batches)
        carry, _ = scan(one_step, carry, (few, sizes[whole:]))
    return carry[0]


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
    _at_least_one(window)
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


def random_window(
    loss_fn: LossFn,
    *,
    window: int,
    earliest: int = 0,
    real_loss_fn: LossFn | None = None,
    inner_tx: optax.GradientTransformation = SGD,
    inner_grad: Callable = jax.value_and_grad,
    scan: Callable = lax.scan,
) -> Keyed:
    """Real-data loss after a window at a uniform place (Feng et al. 2024, RaT-BPTT).

    Each theta_0 has a window of its own.

    Args:
        loss_fn, real_loss_fn, inner_tx, inner_grad, scan: as for `core.unrolled`.
        window: steps with a derivative, W, in 1 .. T.
        earliest: least steps before the window, in 0 .. T - W.

    Returns:
        `(distilled, theta_0, real batch, key) -> meta_loss`; it is `Keyed`.

    Raises:
        ValueError: on a window below 1 or a negative `earliest`; from the objective,
            if the two do not fit into T.
    """
    _at_least_one(window, earliest)
    real_loss_fn = real_loss_fn or loss_fn

    def objective(
        distilled: Distilled, theta_0: Params, batch: Batch, key: jax.Array
    ) -> jax.Array:
        starts = num_starts(distilled.raw_lr.size, window, earliest)
        theta = train_window(
            loss_fn,
            theta_0,
            distilled.batches,
            distilled.lr,
            earliest + jax.random.randint(key, (), 0, starts),
            window=window,
            inner_tx=inner_tx,
            inner_grad=inner_grad,
            scan=scan,
        )
        return real_loss_fn(theta, batch)

    return Keyed(objective)


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


def _watched(distilled: Distilled, signal: jax.Array) -> Watched:
    names = [field.name for field in dataclasses.fields(Distilled)]
    return Watched(signal=signal, **{n: getattr(distilled, n) for n in names})


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
    _at_least_one(window, earliest)
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


def num_starts(steps: int, window: int, earliest: int = 0) -> int:
    """How many places a window has among the inner steps.

    Raises:
        ValueError: if it has none.
    """
    if earliest + window > steps:
        after = f" after the first {earliest}" if earliest else ""
        raise ValueError(
            f"a window of {window}{after} does not fit into T = {steps} inner steps: "
            f"use at most {max(steps - earliest, 0)}, or more passes"
        )
    return steps - window - earliest + 1


def _at_least_one(window: int, earliest: int = 0) -> None:
    if window < 1:
        raise ValueError(f"window must be at least 1 inner step, got {window}")
    if earliest < 0:
        raise ValueError(f"earliest must be at least 0, got {earliest}")


WINDOWS: dict[str, Any] = {
    "last": truncated,
    "random": random_window,
    "adaptive": adaptive_window,
}
