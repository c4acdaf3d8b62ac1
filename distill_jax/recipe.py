"""How sentences are learned: the settings, nested by what they belong to.

`recipe("bag", inner__lr=0.1)` is the best known for a network with changes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill_jax import objectives
from distill_jax.names import described

LABELS = ("soft", "frozen", "hard")
THETA_0 = ("random", "fixed")
SELECT_ON = ("validation", "test")


def setting(
    default: Any,
    text: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with its help, what flags call it, and what it may be.

    A default that is a dictionary is empty.
    """
    metadata = {"help": text, "flag": flag, "choices": choices}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _at_least(settings: Any, least: float, names: str) -> None:
    for name in names.split():
        value = getattr(settings, name)
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _above_0(settings: Any, names: str) -> None:
    for name in names.split():
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(settings, name)}")


def _one_of(settings: Any, *names: str) -> None:
    """A name of ours must be known; the user's own objects pass."""
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), field.metadata.get("choices")
        if field.name in names and choices and isinstance(value, str):
            if value not in choices:
                raise ValueError(
                    f"unknown {field.name} {value!r}; known: {', '.join(choices)}"
                )


@dataclasses.dataclass(frozen=True)
class Inner:
    """How a network is trained on distilled sentences."""

    optimizer: Any = setting(
        "adam",
        "Direction of an inner step: sgd, momentum or adam; from Python also an optax "
        "transformation at unit step, `named`.",
        flag="inner_optimizer",
        choices=("sgd", "momentum", "adam"),
    )
    lr: float = setting(0.02, "Inner step size at the start.", flag="inner_lr")
    learn_lr: bool = setting(True, "Learn a step size for each inner step.")
    minibatches: int = setting(
        1, "Minibatches they are cut into, S.", flag="num_minibatches"
    )
    most: int = setting(
        0,
        "Cut into minibatches of at most so many, with as many steps; 0: as given.",
        flag="distill_batch",
    )
    passes: int = setting(20, "Passes over the minibatches, E.", flag="num_passes")
    grad: str = setting(
        "mixed",
        "How the meta-gradient flows through a step.",
        flag="inner_grad",
        choices=("mixed", "plain"),
    )
    recompute: str = setting(
        "none", "Trade time for memory.", choices=("none", "nested")
    )
    windows: Any = setting(
        "none",
        "Which inner steps are differentiated: all, or a window at random.",
        choices=("none", "random"),
    )
    window: int = setting(20, "Inner steps of a window.")
    window_earliest: int = setting(0, "Inner steps before a window, at least.")

    def __post_init__(self):
        _at_least(self, 1, "minibatches passes window")
        _at_least(self, 0, "most window_earliest")
        _above_0(self, "lr")
        _one_of(self, "optimizer", "grad", "recompute", "windows")


@dataclasses.dataclass(frozen=True)
class Start:
    """What the distilled sentences are before the first meta-step."""

    kind: Any = setting(
        "real",
        "What the sentences start from: noise, real, keywords, or a selection.",
        flag="start",
    )
    labels: str = setting(
        "soft", "Learned soft, frozen soft, or hard labels.", choices=LABELS
    )
    label_logit: float = setting(2.0, "Logit of the true class at the start.")
    length: int = setting(
        0,
        "Words of a distilled sentence; 0: as many as tokens of a real one.",
        flag="distilled_length",
    )
    words_kept: float = setting(
        1.0,
        "Share of their words that distilled sentences keep, the longest of all, so "
        "that each learns its length; the others go in the first half of the run.",
    )
    warm_steps: int = setting(
        0,
        "Meta-steps of feature regression before the others: quick ones, to a start "
        "that trains the last layer well.",
    )
    warm_lr: float = setting(0.05, "Outer Adam's step size in these.")
    warm_ridge: float = setting(
        0.01, "Their ridge: the more, the fewer inner steps come to the same."
    )
    # An array [S, B, ...], or what makes it from the sentences [S, B, L, D].
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _at_least(self, 0, "length warm_steps")
        _above_0(self, "warm_lr warm_ridge")
        _one_of(self, "labels")
        if not 0 < self.words_kept <= 1:
            raise ValueError(f"words_kept must be in (0, 1], got {self.words_kept}")


@dataclasses.dataclass(frozen=True)
class Meta:
    """How the distilled sentences are learned, and how the best step is chosen."""

    steps: int = setting(1000, "Updates of the distilled data.", flag="num_meta_steps")
    inits: int = setting(1, "Random theta_0 in a meta-step, N.", flag="num_inits")
    theta_0: str = setting("random", "Fresh theta_0, or one fixed.", choices=THETA_0)
    lr: float = setting(
        0.05, "Outer Adam's step size for the sentences.", flag="meta_lr"
    )
    lr_labels: float = setting(
        0.05, "The same for the label logits.", flag="meta_lr_labels"
    )
    lr_steps: float = setting(
        0.02, "The same for the raw inner step sizes.", flag="meta_lr_steps"
    )
    # The same for leaves of `Start.more`; that of the sentences unless given.
    lr_more: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decay: str = setting(
        "cosine", "How these fall.", flag="meta_decay", choices=("cosine", "none")
    )
    b1: float = setting(0.9, "Outer Adam's decay of the first moment.", flag="meta_b1")
    clip_norm: float = setting(0.5, "Largest norm of the meta-gradient; 0: any.")
    real_batch: int = setting(256, "Real examples in a meta-step.")
    real_chunk: int = setting(64, "Of these, at once in memory.")
    objective: Any = setting(
        "unrolled",
        "What the distilled data minimises.",
        choices=tuple(sorted(objectives.OBJECTIVES)),
    )
    objective_settings: Mapping[str, Any] = setting(
        {}, "A setting of the objective, NAME=JSON_VALUE; repeat for more."
    )
    select_on: str = setting(
        "validation", "Where the best step is chosen.", choices=SELECT_ON
    )
    validate_every: int = setting(50, "Meta-steps between validations.")
    checkpoint_every: int = setting(100, "Meta-steps between checkpoints.")
    validation_inits: int = setting(8, "Random theta_0 at a validation.")
    validation_examples: int = setting(1000, "Validation examples used, at most.")

    def __post_init__(self):
        _at_least(
            self,
            1,
            "inits real_batch real_chunk validate_every checkpoint_every "
            "validation_inits validation_examples",
        )
        _at_least(self, 0, "steps clip_norm")
        _one_of(self, "theta_0", "decay", "objective", "select_on")
        if self.real_batch % self.real_chunk:
            raise ValueError(
                f"real_chunk={self.real_chunk} must divide real_batch={self.real_batch}"
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that makes distilled sentences what they are, but task, number and seed."""

    inner: Inner = Inner()
    start: Start = Start()
    meta: Meta = Meta()

    def __post_init__(self):
        if self.inner.windows != "none" and self.meta.objective != "unrolled":
            raise ValueError(
                f"windows={self.inner.windows} is for objective=unrolled, got "
                f"{self.meta.objective}"
            )

    @property
    def described(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        return {
            part: told
            for part, told in described(
                {name: getattr(self, name) for name in ("inner", "start", "meta")}
            ).items()
            if told
        }

    def replace(self, **changes: Any) -> "Recipe":
        """With changes such as `inner__lr=0.1`, or a whole `inner=Inner(...)`.

        Raises:
            ValueError: for a setting that is not known, listing those that are.
        """
        whole = {k: v for k, v in changes.items() if "__" not in k}
        of_part: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            part, nested, field = name.partition("__")
            if part not in _PARTS:
                raise ValueError(f"unknown setting {name!r}; known: {_known()}")
            if nested:
                if field not in {f.name for f in dataclasses.fields(_PARTS[part])}:
                    raise ValueError(f"unknown setting {name!r}; known: {_known()}")
                of_part.setdefault(part, {})[field] = value
        for part, fields in of_part.items():
            whole[part] = dataclasses.replace(
                whole.get(part, getattr(self, part)), **fields
            )
        return dataclasses.replace(self, **whole)


_PARTS: dict[str, type] = {"inner": Inner, "start": Start, "meta": Meta}

# How a network is distilled best, where that is not by the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "bag": {
        "inner__optimizer": "sgd",
        "inner__lr": 0.1,
        "inner__grad": "plain",
        "meta__lr": 0.02,
        "meta__lr_labels": 0.02,
        "meta__lr_steps": 0.005,
        "meta__steps": 1500,
    },
    "fourier_bag": {
        "inner__optimizer": "momentum",
        "inner__lr": 0.1,
        "inner__passes": 30,
        "meta__lr": 0.02,
        "meta__lr_labels": 0.02,
        "meta__steps": 500,
        "meta__real_batch": 512,
        "meta__real_chunk": 512,
    },
    "mean_cnn": {
        "inner__optimizer": "momentum",
        "inner__lr": 0.3,
        "inner__passes": 60,
        "start__warm_steps": 800,
        "meta__lr": 0.03,
        "meta__lr_labels": 0.03,
        "meta__steps": 600,
    },
}


def recipe(model: Any = None, **changes: Any) -> Recipe:
    """The best recipe known for a network, with changes.

    Args:
        model: a name of `models.MODELS`; for others, and your own, the defaults.
        changes: as for `Recipe.replace`.
    """
    return Recipe().replace(**RECIPES.get(model, {}) | changes)


best_recipe = recipe  # where a variable is called recipe


def _known() -> str:
    return ", ".join(
        f"{part}__{field.name}"
        for part, kind in _PARTS.items()
        for field in dataclasses.fields(kind)
    )


__all__ = ["RECIPES", "Inner", "Meta", "Recipe", "Start", "recipe", "setting"]
