"""The loop of pool-based active learning (Gal, Islam & Ghahramani 2017).

Train on what is labelled, score the pool, ask for the labels of a few items, again.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.active.pool import Oracle, Pool
from distill_jax.active.scoring import Score, Scored
from distill_jax.queries import Context, Picked, Query

# (pool, key, network of the round before or None) -> network
Train = Callable[[Pool, jax.Array, Any], Any]

_TRAIN, _SCORE, _QUERY = range(3)  # what a key of a round is for


class Round(NamedTuple):
    """What one round did.

    Attributes:
        number: 0 is the network of the start set.
        pool: what it was trained on.
        network: what `train` gave; None where the query needs no network.
        picked: what it asks for next; None after the last round.
    """

    number: int
    pool: Pool
    network: Any
    picked: Picked | None


def ask_in_rounds(
    query: Query,
    pool: Pool,
    oracle: Oracle,
    sizes: Sequence[int],
    train: Train,
    score: Score,
    key: jax.Array,
    *,
    before: Any = None,
    report: Callable[[Round], None] | None = None,
    save: Callable[[Pool, Any], None] | None = None,
) -> Pool:
    """The loop: train on what is labelled, score the pool, query, label, again.

    Each round depends on the pool, the key and the round's number alone (and, with a
    warm start, on the network before). So from the pool that `save` was given last,
    with the same key, a run goes on as if it had never stopped.

    Args:
        query: what is asked next.
        pool: its start set must have been asked for, `Pool.unlabelled(N).ask(ids)`.
        oracle: the label of an id. What it raises ends the loop, after `save`.
        sizes: `sizes[r]` items are asked for by the network of round r.
        train: `(pool, key, network before) -> network`.
        score: `(network, key) -> Scored`, see `score_with`.
        key: round r draws from `fold_in(key, r)`.
        before: the network that `save` was given with the pool, for a warm start.
        report: called in each round. With it the last labels are trained on too, and
            reported; without, no network is trained that no query reads.
        save: called with the pool after each query, before it is answered, and the
            network.

    Returns:
        The pool with all labels.

    Raises:
        ValueError: if nothing was asked for before, or more than `sizes` has rounds.
    """
    if not 0 <= pool.round <= len(sizes):
        raise ValueError(
            f"the pool is in round {pool.round}, it must be from 0 (the start set was "
            f"asked for) to {len(sizes)}"
        )
    network = before
    pool = _answered(pool, pool.unanswered, oracle)
    for number in range(pool.round, len(sizes) + 1):
        last = number == len(sizes)
        keys = jax.random.fold_in(key, number)
        if report or not last and (query.passes or query.features):
            network = train(pool, jax.random.fold_in(keys, _TRAIN), network)
        if last:
            if report:
                report(Round(number, pool, network, None))
            break
        scored = Scored()
        if query.passes or query.features:
            scored = score(network, jax.random.fold_in(keys, _SCORE))
        context = Context(pool.acquired_round >= 0, *scored)
        picked = query.pick(context, sizes[number], jax.random.fold_in(keys, _QUERY))
        if report:
            report(Round(number, pool, network, picked))
        pool = pool.ask(picked.indices)
        if save:
            save(pool, network)
        pool = _answered(pool, picked.indices, oracle)
    return pool


def _answered(pool: Pool, ids: np.ndarray, oracle: Oracle) -> Pool:
    return pool.answer(ids, oracle(ids)) if len(ids) else pool
