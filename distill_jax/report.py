"""Figures of a run: what was learned over meta-steps, and what a budget buys.

Accuracies come as fractions in [0, 1] and are drawn in %. The format is the suffix of
the path (`.png`, `.svg`, `.pdf`). No display is needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

# Colour-blind safe (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_run(
    path: str | Path,
    steps: ArrayLike,
    accuracies: ArrayLike,
    lr: ArrayLike,
    *,
    full: float | None = None,
    majority: float | None = None,
) -> Path:
    """Accuracy over meta-steps, and learned step sizes over inner steps.

    The two panels of Figure 3 of the comparison paper (Anonymous 2022).

    Args:
        path: where to write it.
        steps: `[K]` meta-steps at which the run was validated.
        accuracies: `[K]` mean validation accuracies.
        lr: step sizes `[E, S]`, or their history `[K, E, S]`, oldest first.
        full: full-data accuracy, drawn as a line.
        majority: accuracy of the best constant answer, drawn as a line.

    Returns:
        The path.

    Raises:
        ValueError: for shapes that do not fit, no values, or values not finite.
    """
    steps, accuracies = np.asarray(steps, float), _fractions(accuracies, "accuracies")
    history = np.asarray(lr, float)
    if steps.ndim != 1 or steps.shape != accuracies.shape:
        raise ValueError(
            "steps and accuracies must both be [K], got "
            f"{list(steps.shape)} and {list(accuracies.shape)}"
        )
    if history.ndim not in (2, 3) or not history.size:
        raise ValueError(f"lr must be [E, S] or [K, E, S], got {list(history.shape)}")
    if not np.isfinite(history).all() or not np.isfinite(steps).all():
        raise ValueError("steps and lr must be finite, got NaN or infinity")
    figure, (left, right) = _axes(2)
    left.plot(steps, 100 * accuracies, color=_COLOURS[0], marker=".", label="distilled")
    _levels(left, full, majority)
    left.set(xlabel="meta-step", ylabel="validation accuracy, %")
    left.legend(frameon=False)

    if history.ndim == 2:
        history = history[None]
    num_passes, num_minibatches = history.shape[1:]
    inner = np.arange(num_passes * num_minibatches)
    marker = "o" if len(inner) <= 60 else ""
    for age, sizes in enumerate(history):
        newest = age == len(history) - 1
        right.plot(
            inner,
            sizes.ravel(),
            color=_COLOURS[0] if newest else "0.5",
            alpha=1 if newest else 0.15 + 0.45 * age / len(history),
            marker=marker if newest else "",
            markersize=4,
            label={True: "last", False: "earlier" if age == 0 else None}[newest],
        )
    for start in range(num_minibatches, len(inner), num_minibatches):
        right.axvline(start - 0.5, color="0.9", linewidth=0.8, zorder=0)
    right.set(xlabel="inner step", ylabel="learned step size")
    right.set_ylim(bottom=0)
    right.xaxis.get_major_locator().set_params(integer=True)
    if len(history) > 1:
        right.legend(frameon=False)
    return _write(figure, path)


def plot_budget(
    path: str | Path,
    methods: Mapping[str, Sequence[tuple[float, float, float]]],
    full: float | None = None,
    majority: float | None = None,
) -> Path:
    """Accuracy against examples per class, one line for each method.

    Args:
        path: where to write it.
        methods: for each name, `(examples_per_class, mean, sd)` in any order; sd is
            drawn as a bar.
        full: full-data accuracy, drawn as a line.
        majority: accuracy of the best constant answer, drawn as a line.

    Returns:
        The path.

    Raises:
        ValueError: for no methods, an empty one, or values out of range.
    """
    if not methods:
        raise ValueError("there are no methods to draw")
    figure, (axis,) = _axes(1)
    budgets: set[float] = set()
    for i, (name, points) in enumerate(methods.items()):
        table = np.asarray(sorted(points), float)
        if table.ndim != 2 or table.shape[1] != 3:
            raise ValueError(
                f"{name} must be [(examples_per_class, mean, sd), ...], "
                f"got {list(table.shape)}"
            )
        examples, means, sds = table.T
        if not (examples > 0).all():
            raise ValueError(f"{name}: examples per class must be above 0")
        axis.errorbar(
            examples,
            100 * _fractions(means, f"{name} means"),
            100 * _fractions(sds, f"{name} sds"),
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5,
            capsize=3,
            label=name,
        )
        budgets.update(examples.tolist())
    _levels(axis, full, majority)
    axis.set_xscale("log")
    ticks = sorted(budgets)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="examples per class", ylabel="test accuracy, %")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _write(figure, path)


def _axes(count: int):
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _levels(axis, full: float | None, majority: float | None) -> None:
    for value, style, name in ((full, "--", "full data"), (majority, ":", "majority")):
        if value is not None:
            level = 100 * float(_fractions(value, name))
            axis.axhline(level, color="0.3", linestyle=style, linewidth=1, label=name)


def _fractions(values: ArrayLike, name: str) -> np.ndarray:
    numbers = np.asarray(values, float)
    if not numbers.size or not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError(f"{name} must be fractions in [0, 1], got {values}")
    return numbers


def _write(figure, path: str | Path) -> Path:
    path = Path(path)
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:] not in known:
        raise ValueError(f"{path.name} must end in one of: {', '.join(known)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
