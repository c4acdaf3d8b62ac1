"""What has no row in `results/` yet: it works and is tested, and may change or go.

Nothing in the library imports it. Each thing goes where ours go: `Meta(objective=
OBJECTIVES["gradient_matching"])`, `Start(kind=class_means)`.
"""

from distill_jax.contrib import experts
from distill_jax.contrib.class_means import class_means
from distill_jax.contrib.clipping import clip_by_running_mean
from distill_jax.contrib.distribution_matching import distribution_matching
from distill_jax.contrib.gradient_matching import gradient_matching
from distill_jax.contrib.partly_trained import (
    Aged,
    after_training,
    aged,
    from_experts,
    partly_trained,
)
from distill_jax.contrib.trajectory_matching import (
    Segment,
    segments,
    trajectory_matching,
)
from distill_jax.contrib.windows import adaptive_window, truncated
from distill_jax.objectives import Kind

# The theta_0 of trajectory matching is a `Segment`, from `segments`.
OBJECTIVES: dict[str, Kind] = {
    "gradient_matching": Kind(gradient_matching, "loss_fn", learns_lr=False),
    "distribution_matching": Kind(distribution_matching, "model", learns_lr=False),
    "trajectory_matching": Kind(trajectory_matching, "loss_fn", learns_lr=True),
}
WINDOWS = {"last": truncated, "adaptive": adaptive_window}

__all__ = [
    "OBJECTIVES",
    "WINDOWS",
    "Aged",
    "Segment",
    "adaptive_window",
    "after_training",
    "aged",
    "class_means",
    "clip_by_running_mean",
    "distribution_matching",
    "experts",
    "from_experts",
    "gradient_matching",
    "partly_trained",
    "segments",
    "trajectory_matching",
    "truncated",
]
