"""What distilled data can minimise: maps `(distilled, theta_0, real batch) -> scalar`.

`make` builds one by name for a network; each function can also be called as it is.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

from distill_jax.core import unrolled
from distill_jax.losses import cross_entropy
from distill_jax.objectives.feature_regression import feature_regression
from distill_jax.types import LossFn, Model, Objective


class Kind(NamedTuple):
    """An objective of the registry.

    Attributes:
        make: `(loss_fn or model, **settings) -> Objective`.
        takes: what it is made from, `loss_fn` or `model`.
        learns_lr: does the gradient reach the inner step sizes?
    """

    make: Callable[..., Objective]
    takes: str
    learns_lr: bool


OBJECTIVES: dict[str, Kind] = {
    "unrolled": Kind(unrolled, "loss_fn", learns_lr=True),
    "feature_regression": Kind(feature_regression, "model", learns_lr=False),
}

__all__ = ["OBJECTIVES", "Kind", "feature_regression", "get", "make", "unrolled"]


def get(name: str) -> Kind:
    """The objective of that name; ValueError lists the known ones."""
    if name not in OBJECTIVES:
        known = ", ".join(sorted(OBJECTIVES))
        raise ValueError(f"unknown objective {name!r}; known: {known}")
    return OBJECTIVES[name]


def make(
    name: str | Kind, model: Model, *, loss_fn: LossFn | None = None, **settings
) -> Objective:
    """Makes an objective for a network.

    Args:
        name: of `OBJECTIVES`, or a `Kind` of your own.
        model: the network.
        loss_fn: of the inner steps; its cross-entropy unless given.
        settings: keyword arguments of the objective.

    Raises:
        ValueError: for a name or setting that is not known, listing those that are.
    """
    kind = name if isinstance(name, Kind) else get(name)
    known = sorted(
        p.name
        for p in inspect.signature(kind.make).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    )
    for setting in settings:
        if setting not in known:
            raise ValueError(
                f"objective {kind.make.__name__} has no setting {setting!r}; known: "
                f"{', '.join(known) or 'none'}"
            )
    source = model if kind.takes == "model" else loss_fn or cross_entropy(model)
    return kind.make(source, **settings)
