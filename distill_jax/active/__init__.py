"""Pool-based active learning: train, score the pool, ask for labels, train again.

`acquire` does it for a task, `learning_curves` for several queries. Of their parts,
`scoring` says what a network thinks of every item, `pool` who has a label and who gives
it, `training` fits networks on them, and `loop` puts these together, also for what
trains and scores in another way.
"""

from distill_jax.active.curves import learning_curves
from distill_jax.active.loop import Round, Train, ask_in_rounds
from distill_jax.active.pool import Oracle, Pool, num_items, query_sizes, simulated
from distill_jax.active.rounds import Plan, Rounds, plan
from distill_jax.active.runs import Acquired, acquire, all_labels, estimate
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
    Learner,
    Order,
    Training,
    best_epoch,
    learner_of,
    shuffled,
)

__all__ = [
    "WARM_STARTS",
    "Acquired",
    "Fitted",
    "Learner",
    "Oracle",
    "Order",
    "Plan",
    "Pool",
    "Round",
    "Rounds",
    "Score",
    "Scored",
    "Scorers",
    "Train",
    "Training",
    "acquire",
    "all_labels",
    "ask_in_rounds",
    "best_epoch",
    "check_passes",
    "estimate",
    "has_dropout",
    "learner_of",
    "learning_curves",
    "mc_log_probs",
    "num_items",
    "plain_log_probs",
    "plan",
    "pool_features",
    "query_sizes",
    "score_with",
    "scorers",
    "shuffled",
    "simulated",
]
