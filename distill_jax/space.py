"""What a tuner searches: settings of a recipe, each with the values that are tried."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distill_jax.distill import INNER_TX, at_most
from distill_jax.names import described, name_of
from distill_jax.recipe import Recipe
from distill_jax.starts import STARTS


class Range(NamedTuple):
    """Numbers between two above 0, tried evenly on a logarithmic scale."""

    low: float
    high: float


# A range, choices, or a range for each inner optimizer.
Space = Range | tuple[Any, ...] | Mapping[str, Range]
_INNER_LR = {
    "sgd": Range(0.01, 3.0),
    "momentum": Range(0.002, 0.5),
    "adam": Range(0.001, 0.3),
}
# Searched for distilled sentences, by the names of `Recipe.replace`.
SPACE: dict[str, Space] = {
    "inner__optimizer": tuple(INNER_TX),
    "inner__lr": _INNER_LR,
    "inner__passes": (10, 20, 40),
    "meta__inits": (1, 2, 4),
    "meta__lr": Range(0.002, 0.3),
    "meta__lr_labels": Range(0.002, 0.3),
    "meta__lr_steps": Range(0.0005, 0.1),
    "meta__clip_norm": (0.0, 0.1, 0.5, 2.0),
}
# The same, only where they are asked for.
MORE: dict[str, Space] = {
    "start__label_logit": Range(0.5, 8.0),
    "meta__b1": (0.0, 0.5, 0.9),
    "start__kind": tuple(STARTS),
    "inner__windows": ("none", "random"),
}
# Searched for real sentences.
BASELINE_SPACE: dict[str, Space] = {
    "inner__optimizer": tuple(INNER_TX),
    "inner__lr": _INNER_LR,
    "inner__passes": (5, 10, 20, 50, 100, 200, 500),
}
_OF_REAL = {*BASELINE_SPACE, "inner__minibatches", "inner__most"}


def space_of(
    recipe: Recipe, space: Mapping[str, Space] | None = None, *, real: bool = False
) -> dict[str, Space]:
    """What is searched, with the recipe within it.

    Args:
        recipe: of the first trial.
        space: as for `tune`.
        real: for real sentences.

    Raises:
        ValueError: for an unknown setting, one that has no effect, or a number that
            is not above 0.
    """
    present, idle = flat(recipe), {}
    if real:
        idle = dict.fromkeys(set(present) - _OF_REAL, "real sentences")
    else:
        if not recipe.inner.learn_lr:
            idle["meta__lr_steps"] = "inner__learn_lr=False"
        if recipe.start.labels != "soft":
            idle["meta__lr_labels"] = f"start__labels={recipe.start.labels}"
        if recipe.start.labels == "hard":
            idle["start__label_logit"] = "start__labels=hard"
    if space is None:
        usual = BASELINE_SPACE if real else SPACE
        space = {name: one for name, one in usual.items() if name not in idle}
    tried, found = [label(recipe.inner.optimizer)], {}
    # The optimizer stands before the step sizes that depend on it.
    for name in sorted(space, key=lambda name: name != "inner__optimizer"):
        if name not in present:
            raise ValueError(
                f"unknown setting {name!r} in the space; known: {', '.join(present)}"
            )
        if name in idle:
            raise ValueError(f"{name} has no effect with {idle[name]}")
        whole, value = space[name], present[name]
        if isinstance(whole, Mapping):
            whole = dict(whole)
            # The user's own optimizer: a factor of 30 up and down.
            whole.setdefault(tried[0], Range(value / 30, value * 30))
            missing = [optimizer for optimizer in tried if optimizer not in whole]
            if missing:
                raise ValueError(
                    f"the space of {name} has no range for the inner optimizer "
                    f"{missing[0]!r}; it has {', '.join(whole)}"
                )
            whole[tried[0]] = _with(name, value, whole[tried[0]])
            found[name] = {o: one for o, one in whole.items() if o in tried}
        else:
            found[name] = _with(name, value, whole)
        if name == "inner__optimizer":
            tried += [label(one) for one in found[name]]
    return found


def _with(name: str, value: Any, space: Any) -> Any:
    if isinstance(space, Range):
        if not 0 < min(space.low, value):
            raise ValueError(
                f"{name}={min(space.low, value)} cannot be searched on a logarithmic "
                "scale: begin above 0, or leave it out of what is searched"
            )
        return Range(min(space.low, value), max(space.high, value))
    if not isinstance(space, tuple | list):
        raise ValueError(
            f"the space of {name} must be a Range, choices in a tuple, or a Range for "
            f"each inner optimizer, got {space!r}"
        )
    if label(value) in map(label, space):
        return tuple(space)
    more = (*space, value)
    numbers = all(isinstance(one, int | float) for one in more)
    return tuple(sorted(more)) if numbers else more


def flat(recipe: Recipe, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Settings by the names of `Recipe.replace`: all, or those of `names`, in order."""
    whole = {
        f"{part}__{field.name}": getattr(getattr(recipe, part), field.name)
        for part in ("inner", "start", "meta")
        for field in dataclasses.fields(getattr(recipe, part))
    }
    return whole if names is None else {name: whole[name] for name in names}


def as_it_is(recipe: Recipe, space: Mapping[str, Space]) -> dict[str, Any]:
    """The recipe, by the names that Optuna knows settings by."""
    own = label(recipe.inner.optimizer)
    return {
        _known_as(name, space[name], own): label(value)
        for name, value in flat(recipe, space).items()
    }


def _known_as(name: str, space: Space, optimizer: str) -> str:
    return f"{name}.{optimizer}" if isinstance(space, Mapping) else name


def suggested(
    trial: Any, recipe: Recipe, space: Mapping[str, Space], n: int
) -> dict[str, Any]:
    """The settings of a trial; numbers have three digits, as they are written down.

    A window is cut to the inner steps there are.

    Args:
        trial: an `optuna.Trial`.
        recipe: of the first trial; what is one of its values stays as exact as it is.
        space: from `space_of`.
        n: sentences that are trained on.

    Returns:
        Values by the names of `Recipe.replace`; an object of the user's is its name.
    """
    settings, present, found = flat(recipe), as_it_is(recipe, space), {}
    optimizer: Any = label(recipe.inner.optimizer)
    for name, whole in space.items():
        known_as = _known_as(name, whole, optimizer)
        one: Any = whole[optimizer] if isinstance(whole, Mapping) else whole
        if not isinstance(one, Range):
            value = trial.suggest_categorical(known_as, [label(c) for c in one])
        elif isinstance(settings[name], int):
            low, high = max(1, round(one.low)), round(one.high)
            value = trial.suggest_int(known_as, low, high, log=True)
        else:
            value = trial.suggest_float(known_as, *one, log=True)
            if value != present.get(known_as):
                value = float(f"{value:.3g}")
        found[name] = value
        if name == "inner__optimizer":
            optimizer = value
    inner = at_most(with_params(recipe, space, found), n).inner
    if inner.windows != "none" and inner.window > inner.passes * inner.minibatches:
        found["inner__window"] = inner.passes * inner.minibatches
    return found


def with_params(
    recipe: Recipe, space: Mapping[str, Space], params: Mapping[str, Any]
) -> Recipe:
    """The recipe with what `suggested` gave."""
    changes = dict(params)
    for name, whole in space.items():
        if isinstance(whole, tuple) and not isinstance(whole, Range):
            changes[name] = {label(one): one for one in whole}[params[name]]
    return recipe.replace(**changes)


def label(value: Any) -> Any:
    """A setting as Optuna and rows have it; an object of the user's is its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) or type(value) in (list, tuple):
        return str(described(value))
    return name_of(value)


def shown(space: Space) -> str:
    """Such as `0.01 to 3`, or `10, 20, 40`."""
    if isinstance(space, Mapping):
        return ", ".join(f"{name} {shown(one)}" for name, one in space.items())
    if isinstance(space, Range):
        return f"{space.low:g} to {space.high:g}"
    return ", ".join(str(label(one)) for one in space)


__all__ = ["BASELINE_SPACE", "MORE", "SPACE", "Range", "space_of"]
