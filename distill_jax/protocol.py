"""By what every set is trained on and judged, and what a set is."""

import dataclasses
from typing import NamedTuple

import jax
import optax

from distill_jax.recipe import setting
from distill_jax.types import Batch, Distilled


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every set is trained on and judged, the same for all that are compared."""

    seed: int = setting(0, "Of everything random.")
    test_inits: int = setting(20, "Fresh random theta_0 for each number reported.")
    tuning_inits: int = setting(3, "Theta_0 for each recipe tried on validation.")
    selection_seeds: int = setting(5, "Draws of each choice of real examples.")
    batch: int = setting(
        32, "Examples in a minibatch of ordinary training.", flag="fit_batch"
    )
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    full_epochs: int = setting(8, "Epochs tried for full data, at most.")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 0 if field.name == "seed" else 1
            if getattr(self, field.name) < least:
                raise ValueError(
                    f"{field.name} must be at least {least}, got "
                    f"{getattr(self, field.name)}"
                )


class Native(NamedTuple):
    """A set in its own order: S minibatches, E passes, and the inner optimizer."""

    distilled: Distilled
    inner_tx: optax.GradientTransformation


class TrainingSet(NamedTuple):
    """What is trained on, in one way.

    Attributes:
        batch: `[n, ...]`, token ids or embedded sentences; its `y` hard or soft.
        native: train in its order and step sizes; None for standard training.
        labels_read: labels of train that were looked at to make it; None: all.
        bytes: that it takes on disk.
        texts: the sentences, where they are text.
        seconds: that it took, if it was made before.
    """

    batch: Batch
    native: Native | None = None
    labels_read: int | None = None
    bytes: int | None = None
    texts: tuple[str, ...] | None = None
    seconds: float | None = None

    @property
    def labels(self) -> str:
        """`hard` where each row of `y` is 0 and 1, else `soft`."""
        return "hard" if float(self.batch.y.max(-1).min()) > 1 - 1e-6 else "soft"

    @property
    def training(self) -> str:
        """`standard` or `native`."""
        return "standard" if self.native is None else "native"


class Keys(NamedTuple):
    """One key for each purpose, so that none meets another."""

    tuning: jax.Array
    test: jax.Array
    select: jax.Array
    query: jax.Array
    teacher: jax.Array


def purpose_keys(seed: int) -> Keys:
    """The keys of a comparison with that seed."""
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), 20), 5))
