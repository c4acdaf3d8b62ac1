"""Label-free choice of the next items to label: what active learning asks.

A `Query` reads a `Context` (log-probabilities of F sampled networks, features; never a
hidden label) and picks n unlabelled items. Most are a score of each item, lifted by
`by_score`; the rest look at the batch as a whole.
"""

import jax

from distill_jax.queries.batch import batch_bald
from distill_jax.queries.common import Context, Picked, Query, ScoreFn, by_score
from distill_jax.queries.geometry import badge, k_center
from distill_jax.queries.stochastic import power
from distill_jax.queries.uncertainty import (
    bald,
    least_confidence,
    margin,
    predictive_entropy,
    variation_ratio,
)
from distill_jax.queries.uniform import random

QUERIES: dict[str, Query] = {
    "random": Query(random, passes=0, features=False),
    "variation_ratio": by_score(jax.jit(variation_ratio), passes=2),
    "predictive_entropy": by_score(jax.jit(predictive_entropy), passes=1),
    "bald": by_score(jax.jit(bald), passes=2),
    "margin": by_score(jax.jit(margin), passes=1),
    "least_confidence": by_score(jax.jit(least_confidence), passes=1),
    "batch_bald": Query(batch_bald, passes=2, features=False),
    "badge": Query(badge, passes=1, features=True),
    "k_center": Query(k_center, passes=0, features=True),
    "power": power(jax.jit(bald), passes=2),
}

__all__ = [
    "QUERIES",
    "Context",
    "Picked",
    "Query",
    "ScoreFn",
    "badge",
    "bald",
    "batch_bald",
    "by_score",
    "get",
    "k_center",
    "least_confidence",
    "margin",
    "power",
    "predictive_entropy",
    "random",
    "variation_ratio",
]


def get(name: str) -> Query:
    """The query of that name; ValueError lists the known ones."""
    if name not in QUERIES:
        raise ValueError(f"unknown query {name!r}; known: {', '.join(sorted(QUERIES))}")
    return QUERIES[name]
