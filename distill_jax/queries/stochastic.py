"""Any score, with chance in it, so that a batch is not n copies of one item.

Power sampling draws n items without replacement, each draw with probability
proportional to s_i^beta among those left. That is the n largest of

    beta log s_i + g_i,    g_i ~ Gumbel(0, 1) independent.
"""

import math

import jax
import numpy as np

from distill_jax.queries.common import (
    Context,
    Picked,
    Query,
    ScoreFn,
    generator,
    highest,
    scored,
    unlabelled,
)


def power(score_fn: ScoreFn, beta: float = 1.0, *, passes: int = 2) -> Query:
    """The query that samples by s^beta (Kirsch et al. 2022, power acquisition).

    Items of score 0 come after all others, in random order. `Picked.scores` are the
    s_i, and `n_tied_at_cut` counts ties only where it falls among the scores of 0.

    Args:
        score_fn: `(log_probs [F, N, C], key) -> scores [N]`, none negative.
        beta: above 0; larger is nearer to the n highest, smaller nearer to random.
        passes: the least F the score needs; 1 for scores of a single network.

    Raises:
        ValueError: for another beta, and when picking, for a negative score.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be a number above 0, got {beta!r}")

    def pick(context: Context, n: int, key: jax.Array) -> Picked:
        candidates = unlabelled(context, n)
        score_key, draw_key = jax.random.split(key)
        scores = scored(score_fn, context, passes, score_key)
        if (scores < 0).any():
            item = (scores < 0).argmax()
            raise ValueError(
                f"power sampling needs scores of at least 0, got {scores[item]} for "
                f"item {item}; shift the score"
            )
        scores = scores[candidates]
        rng = generator(draw_key)
        log_scores = np.full(len(scores), -np.inf)
        np.log(scores, out=log_scores, where=scores > 0, dtype=np.float64)
        chosen, tied = highest(beta * log_scores + rng.gumbel(size=len(scores)), n, rng)
        return Picked(candidates[chosen], scores[chosen], tied)

    return Query(pick, passes, features=False)
