"""Pool-based active learning: train, score the pool, ask for labels, train again.

`scoring` says what a network thinks of every item, `pool` who has a label and who gives
it, `training` fits a network on them, `loop` puts the three together.
"""

from distill_jax.active.loop import Round, Train, acquire
from distill_jax.active.pool import Oracle, Pool, num_items, query_sizes, simulated
from distill_jax.active.scoring import (
    Score,
    Scored,
    Scorers,
    check_passes,
    has_dropout,
    mc_log_probs,
    plain_log_probs,
    pool_features,
    score_with,
    scorers,
)
from distill_jax.active.training import (
    WARM_STARTS,
    Fitted,
    Order,
    fit,
    shuffled,
    steps_of_epoch,
)

__all__ = [
    "WARM_STARTS",
    "Fitted",
    "Oracle",
    "Order",
    "Pool",
    "Round",
    "Score",
    "Scored",
    "Scorers",
    "Train",
    "acquire",
    "check_passes",
    "fit",
    "has_dropout",
    "mc_log_probs",
    "num_items",
    "plain_log_probs",
    "pool_features",
    "query_sizes",
    "score_with",
    "scorers",
    "shuffled",
    "simulated",
    "steps_of_epoch",
]
