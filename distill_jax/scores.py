"""How much of a distilled set's accuracy is the sentences, and how much the labels.

Soft labels carry what a teacher knows and lift randomly chosen data too. DD-Ranking
(Li et al. 2025, arXiv:2505.13300) so compares hard labels with the whole corpus, and
each kind of label with random data that has the same kind:

    HLR = acc(full, hard) - acc(syn, hard)         hard-label recovery, less is better
    IOR = acc(syn, any) - acc(random, any)         improvement over random
    alpha = w IOR - (1 - w) HLR
    LRS = (e^alpha - e^-1) / (e - e^-1)            label-robust score, in [0, 1]

The score of a set as good as all data without soft labels, and no better than random
ones, is LRS(0) = 0.27.
"""

import math
from typing import NamedTuple

WEIGHT = 0.5


class LabelRobust(NamedTuple):
    """The three numbers of DD-Ranking.

    Attributes:
        recovery: HLR, in [-1, 1]; less is better.
        improvement: IOR, in [-1, 1].
        score: LRS, in [0, 1].
    """

    recovery: float
    improvement: float
    score: float


def hard_label_recovery(full_hard: float, syn_hard: float) -> float:
    """HLR = acc(full, hard) - acc(syn, hard), Li et al. (2025).

    Args:
        full_hard: accuracy after training on all data, in [0, 1].
        syn_hard: the same on the distilled set with hard labels.

    Raises:
        ValueError: if an accuracy is not in [0, 1].
    """
    _check(full_hard=full_hard, syn_hard=syn_hard)
    return full_hard - syn_hard


def improvement_over_random(syn_any: float, random_any: float) -> float:
    """IOR = acc(syn, any) - acc(random, any), Li et al. (2025).

    Args:
        syn_any: accuracy after training on the distilled set, in [0, 1], with labels
            of any kind.
        random_any: the same on as many random examples with labels of that kind.

    Raises:
        ValueError: if an accuracy is not in [0, 1].
    """
    _check(syn_any=syn_any, random_any=random_any)
    return syn_any - random_any


def label_robust(
    full_hard: float,
    syn_hard: float,
    syn_any: float,
    random_any: float,
    *,
    weight: float = WEIGHT,
) -> LabelRobust:
    """HLR, IOR and the label-robust score, Li et al. (2025).

    Args:
        full_hard, syn_hard: as for `hard_label_recovery`.
        syn_any, random_any: as for `improvement_over_random`.
        weight: w, the share of IOR, in [0, 1].

    Returns:
        The three.

    Raises:
        ValueError: if an accuracy or the weight is not in [0, 1].
    """
    _check(weight=weight)
    recovery = hard_label_recovery(full_hard, syn_hard)
    improvement = improvement_over_random(syn_any, random_any)
    alpha = weight * improvement - (1 - weight) * recovery
    score = (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    return LabelRobust(recovery, improvement, score)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")
