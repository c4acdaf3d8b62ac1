"""Items at random: what every other query has to beat."""

import jax
import numpy as np

from distill_jax.queries.common import Context, Picked, generator, unlabelled


def random(context: Context, n: int, key: jax.Array) -> Picked:
    """n unlabelled items, each as likely as any other; scores are 0.

    Raises:
        ValueError: if n is not an integer from 1 to the unlabelled items.
    """
    candidates = unlabelled(context, n)
    chosen = generator(key).choice(candidates, n, replace=False)
    return Picked(chosen, np.zeros(n), 0)
