"""Recipes that differ from one in a single lever: what an ablation compares.

Where the sentences start, soft labels, learned step sizes, theta_0 in a meta-step, the
window of inner steps, and the warm-up.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from distill_jax.recipe import Recipe
from distill_jax.sources import FromRecipe

MANY = 4  # theta_0 in a meta-step, where all on has one


@dataclasses.dataclass(frozen=True)
class Variant(FromRecipe):
    """Sentences distilled by a recipe that is told apart by what all on is, too."""

    base: Recipe = Recipe()

    @property
    def settings(self) -> dict[str, Any]:
        """What its row depends on."""
        return super().settings | {"all_on": self.base.described}


def levers(base: Recipe) -> dict[str, dict[str, Any]]:
    """The changes that switch each lever off, by the name of the variant.

    Four theta_0 take a quarter of the meta-steps, so that as many networks are trained.
    What `base` has off already is absent.
    """
    if base.meta.steps < 1:
        raise ValueError(f"num_meta_steps must be at least 1, got {base.meta.steps}")
    T = base.inner.minibatches * base.inner.passes
    off: dict[str, dict[str, Any]] = {
        "noise start": {"start__kind": "noise"},
        "hard labels": {"start__labels": "hard"},
        "step sizes not learned": {"inner__learn_lr": False},
    }
    if base.meta.inits > 1:
        off["1 theta_0"] = {"meta__inits": 1}
    else:
        off[f"{MANY} theta_0, a quarter of the meta-steps"] = {
            "meta__inits": MANY,
            "meta__steps": max(1, base.meta.steps // MANY),
        }
    if base.inner.windows != "none":
        off["no windows"] = {"inner__windows": "none"}
    elif base.meta.objective == "unrolled" and T > 1:
        W = max(1, T // 3)
        windows = {"inner__windows": "random", "inner__window": W}
        off[f"random windows, {W} of {T} steps"] = windows
    off["no warm-up"] = {"start__warm_steps": 0}
    return {k: changes for k, changes in off.items() if base.replace(**changes) != base}


def changed(base: Recipe, items: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A variant for each change asked for, such as `inner__lr=0.1`, called as it is.

    Raises:
        ValueError: for what is not NAME=JSON_VALUE, or does not fit the recipe.
    """
    found = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            found[item] = {name: json.loads(value)}
            base.replace(**found[item])
        except json.JSONDecodeError:
            raise ValueError(
                f"a change is NAME=JSON_VALUE, such as inner__lr=0.1, got {item!r}"
            ) from None
        except TypeError as error:  # a word where a number belongs
            raise ValueError(f"{item}: {error}") from error
    return found
