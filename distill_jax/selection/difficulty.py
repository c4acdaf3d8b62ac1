"""Examples by how far young networks are from their labels.

el2n_i = 1/R sum_r |p_r(x_i) - y_i|_2
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.selection.common import checked, within_classes

KEEP = ("easy", "hard", "middle")
_BATCH = 64
_STEPS = 50  # in an epoch at least, so that small corpora are learnt too
_LR = 1e-2


def el2n(
    features: np.ndarray,
    labels: np.ndarray,
    n: int,
    key: jax.Array,
    *,
    keep: str = "easy",
    num_networks: int = 10,
    num_epochs: int = 3,
) -> np.ndarray:
    """n examples by error-L2-norm early in training (Paul et al. 2021), per class.

    The networks are linear softmax classifiers of the features, trained by Adam for a
    few epochs. Small scores mark the examples that are learnt first: of very small
    budgets these are the ones to keep (Sorscher et al. 2022), so it is the default.
    Equally many of each class, as in `random_balanced`.

    Args:
        features: `[N, D]`, for instance mean word vectors; standardised before use.
        labels: `[N]` integers.
        n: how many, at most N.
        key: random key, for starts, minibatches, and which classes give one more.
        keep: `easy` for the smallest scores of a class, from the smallest; `hard` for
            the largest, from the largest; `middle` for those nearest to the median
            rank, from the nearest.
        num_networks: R.
        num_epochs: that each is trained.

    Returns:
        Distinct indices `[n]`.

    Raises:
        ValueError: on an unknown `keep`, no networks or epochs, or if more are asked
            for than exist, of all or of one class.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    if num_networks < 1 or num_epochs < 1:
        raise ValueError(
            "num_networks and num_epochs must be 1 or more, got "
            f"{num_networks} and {num_epochs}"
        )
    features, labels = checked(features, labels, n)
    train_key, pick_key = jax.random.split(key)
    # Sorted, so that the minibatches do not depend on the order of the corpus.
    canonical = np.lexsort((labels, *features.T))
    x, y = features[canonical], np.unique(labels[canonical], return_inverse=True)[1]
    sd = x.std(0)
    x = (x - x.mean(0)) / np.where(sd > 0, sd, 1.0)
    probs = _trained_probs(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y),
        jax.random.split(train_key, num_networks),
        num_classes=int(y.max()) + 1,
        num_epochs=num_epochs,
    )
    scores = np.empty(len(labels))
    scores[canonical] = el2n_scores(probs, y)
    return within_classes(
        scores[:, None], labels, n, pick_key, partial(_kept, keep=keep)
    )


def el2n_scores(probs: np.ndarray | jax.Array, labels: np.ndarray) -> np.ndarray:
    """Mean over R networks of `|p - y|_2` (Paul et al. 2021, Definition 2.2).

    Args:
        probs: `[R, N, C]` class probabilities, from early in training.
        labels: `[N]` integers in [0, C).

    Returns:
        Scores `[N]`, in [0, sqrt(2)]; 0 where every network is sure and right.

    Raises:
        ValueError: if the shapes do not fit, or a label is not in [0, C).
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    if probs.ndim != 3 or not probs.shape[0] or labels.shape != probs.shape[1:2]:
        raise ValueError(
            "probs must be [R, N, C] and labels [N], got "
            f"{list(probs.shape)} and {list(labels.shape)}"
        )
    wrong = labels[(labels < 0) | (labels >= probs.shape[-1])]
    if wrong.size:
        raise ValueError(
            f"labels must be in [0, {probs.shape[-1]}), got {wrong[0].item()}"
        )
    y = np.eye(probs.shape[-1], dtype=probs.dtype)[labels]
    return np.linalg.norm(probs - y, axis=-1).mean(0)


@partial(jax.jit, static_argnames=("num_classes", "num_epochs"))
def _trained_probs(x, labels, keys, *, num_classes, num_epochs):
    N, D = x.shape
    size = min(_BATCH, max(1, N // _STEPS))
    tx = optax.adam(_LR)

    def logits(params, x):
        return x @ params["w"] + params["b"][None]

    def loss(params, rows):
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, x[rows]), labels[rows]
        )
        return each.mean()

    def step(carry, rows):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def network(key):
        start_key, order_key = jax.random.split(key)
        w = jax.random.normal(start_key, (D, num_classes), x.dtype) / D**0.5
        params = {"w": w, "b": jnp.zeros(num_classes, x.dtype)}
        epochs = jax.random.split(order_key, num_epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, N))(epochs).ravel()
        order = order[: order.size // size * size].reshape(-1, size)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), order)
        return jax.nn.softmax(logits(params, x))

    return jax.lax.map(network, keys)


def _kept(scores: np.ndarray, count: int, seed: int, *, keep: str) -> np.ndarray:
    rising = scores[:, 0].argsort(kind="stable")
    if keep == "hard":
        rising = rising[::-1]
    elif keep == "middle":
        from_median = np.abs(np.arange(len(rising)) - (len(rising) - 1) / 2)
        rising = rising[from_median.argsort(kind="stable")]
    return rising[:count]
