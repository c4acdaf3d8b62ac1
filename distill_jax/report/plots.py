"""Figures of a run: what was learned over meta-steps, and what a budget buys.

Accuracies come as fractions in [0, 1] and are drawn in %. The `plot_*` functions write
a file, whose format is the suffix of the path (`.png`, `.svg`, `.pdf`); the `draw_*`
functions return a matplotlib figure, and `svg` turns one into text for a page. No
display is needed.
"""

import io
import itertools
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Colour-blind safe (Okabe and Ito 2008). One marker more than colours, so that the
# pair repeats after 42 lines and not after 6.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Beyond this many points a line's intervals are a band, not bars.
_MOST_BARS = 12
_SMALL = (4.3, 2.9)  # inches: readable where a phone shows it 343 pixels wide
_LONG_NAME = 22  # letters; two such do not fit side by side

Curves = Mapping[str, Sequence[tuple[float, float, float, float]]]


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
    if steps.ndim != 1 or steps.shape != accuracies.shape:
        raise ValueError(
            "steps and accuracies must both be [K], got "
            f"{list(steps.shape)} and {list(accuracies.shape)}"
        )
    history = _history(lr)
    if not np.isfinite(steps).all():
        raise ValueError("steps and lr must be finite, got NaN or infinity")
    figure, (left, right) = _axes(2)
    left.plot(steps, 100 * accuracies, color=_COLOURS[0], marker=".", label="distilled")
    _levels(left, full, majority)
    left.set(xlabel="meta-step", ylabel="validation accuracy, %")
    left.legend(frameon=False)
    _step_sizes(right, history)
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
    curves = {}
    for name, points in methods.items():
        table = np.asarray(sorted(points), float)
        if table.ndim != 2 or table.shape[1] != 3:
            raise ValueError(
                f"{name} must be [(examples_per_class, mean, sd), ...], "
                f"got {list(table.shape)}"
            )
        if not (table[:, 0] > 0).all():
            raise ValueError(f"{name}: examples per class must be above 0")
        examples, means, sds = table.T
        _fractions(means, f"{name} means")
        _fractions(sds, f"{name} sds")
        curves[name] = np.stack([examples, means, means - sds, means + sds], 1)
    _log_ticks(axis, curves)
    _lines(axis, curves)
    _levels(axis, full, majority)
    axis.set(xlabel="examples per class", ylabel="test accuracy, %")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _write(figure, path)


def plot_curves(path: str | Path, curves: Curves, **settings) -> Path:
    """Writes what `draw_curves` draws; same arguments, errors and a path first."""
    return _write(draw_curves(curves, **settings), path)


def draw_curves(
    curves: Curves,
    *,
    xlabel: str,
    ylabel: str = "test accuracy, %",
    full: float | None = None,
    majority: float | None = None,
    log: bool = False,
    faint: Container[str] = (),
):
    """Learning curves with their intervals, in the size of a phone's screen.

    Args:
        curves: for each name, `(x, mean, low, high)` in any order; the interval is a
            bar, or a band where there are many points.
        xlabel, ylabel: of the axes.
        full: full-data accuracy, drawn as a line.
        majority: accuracy of the best constant answer, drawn as a line.
        log: draw x on a logarithmic scale.
        faint: names to draw in grey behind the others, without their own label.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: for no curves, an empty one, values out of range, an interval
            that does not hold its mean, or x not above 0 where `log`.
    """
    if not curves:
        raise ValueError("there are no curves to draw")
    tables = {}
    for name, points in curves.items():
        table = np.asarray(sorted(points), float)
        if table.ndim != 2 or table.shape[1] != 4:
            raise ValueError(
                f"{name} must be [(x, mean, low, high), ...], got {list(table.shape)}"
            )
        x, mean, low, high = table.T
        _fractions(table[:, 1:], f"accuracies of {name}")
        if not np.isfinite(x).all() or (log and not (x > 0).all()):
            raise ValueError(f"{name}: x must be {'above 0' if log else 'finite'}")
        # The mean of rows and the bootstrap's draws round differently.
        if (low > mean + 1e-6).any() or (high < mean - 1e-6).any():
            raise ValueError(f"{name}: an interval must hold its mean, got {points}")
        tables[name] = table
    bright = sum(name not in faint for name in curves)
    bright += (bright < len(curves)) + (full is not None) + (majority is not None)
    columns = 1 if max(map(len, curves)) > _LONG_NAME else 2
    rows = math.ceil(bright / columns)
    figure, (axis,) = _axes(1, (_SMALL[0], _SMALL[1] + 0.19 * rows))
    if log:
        _log_ticks(axis, tables)
    _lines(axis, tables, faint)
    _levels(axis, full, majority)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    last = ("other methods", "full data", "majority")
    shown = sorted(
        zip(*axis.get_legend_handles_labels(), strict=True),
        key=lambda item: item[1] in last,
    )
    figure.legend(
        *zip(*shown, strict=True),
        frameon=False,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
    )
    return figure


def draw_step_sizes(lr: ArrayLike):
    """Learned step sizes over inner steps, in the size of a phone's screen.

    Args:
        lr: step sizes `[E, S]`, or their history `[K, E, S]`, oldest first.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: for another shape or values that are not finite.
    """
    history = _history(lr)
    figure, (axis,) = _axes(1, (_SMALL[0], _SMALL[1] + 0.19))
    _step_sizes(axis, history)
    return figure


def svg(figure) -> str:
    """A figure as SVG text: letters stay letters, and equal figures equal bytes."""
    import matplotlib

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "distill_jax"}
    content = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Only measured with matplotlib's font; the reader's browser draws the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _axes(count: int, size: tuple[float, float] | None = None):
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (5 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(axis, tables: Mapping[str, np.ndarray], faint: Container[str] = ()) -> None:
    """One line for each table of `(x, mean, low, high)`, its intervals side by side."""
    label = "other methods"
    for x, mean, _, _ in (t.T for name, t in tables.items() if name in faint):
        axis.plot(x, 100 * mean, color="0.8", linewidth=1, zorder=1, label=label)
        label = None
    tables = {name: table for name, table in tables.items() if name not in faint}
    span = max((t[:, 0].max() for t in tables.values()), default=0)
    for i, (name, table) in enumerate(tables.items()):
        style = {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": 4,
            "label": _plain(name),
        }
        x, mean, low, high = table.T
        mean, low, high = 100 * mean, 100 * low, 100 * high
        if len(x) > _MOST_BARS:
            axis.plot(x, mean, **style | {"marker": ""})
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
            continue
        offset = i - (len(tables) - 1) / 2
        log = axis.get_xscale() == "log"
        x = x * 1.02**offset if log else x + 0.004 * span * offset
        below, above = np.maximum(mean - low, 0), np.maximum(high - mean, 0)
        axis.errorbar(
            x, mean, (below, above), **style, capsize=2, elinewidth=0.9, linewidth=1.3
        )


def _log_ticks(axis, tables: Mapping[str, np.ndarray]) -> None:
    from matplotlib import ticker

    axis.set_xscale("log")
    ticks = sorted({float(x) for table in tables.values() for x in table[:, 0]})
    apart = all(b >= 1.5 * a for a, b in itertools.pairwise(ticks))
    if apart and len(ticks) <= 8:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        subs = (1, 2, 5) if ticks[-1] < 200 * ticks[0] else (1,)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.xaxis.set_minor_locator(ticker.NullLocator())


def _step_sizes(axis, history: np.ndarray) -> None:
    num_passes, num_minibatches = history.shape[1:]
    inner = np.arange(num_passes * num_minibatches)
    marker = "o" if len(inner) <= 60 else ""
    for age, sizes in enumerate(history):
        newest = age == len(history) - 1
        axis.plot(
            inner,
            sizes.ravel(),
            color=_COLOURS[0] if newest else "0.5",
            alpha=1 if newest else 0.15 + 0.45 * age / len(history),
            marker=marker if newest else "",
            markersize=4,
            label={True: "last", False: "earlier" if age == 0 else None}[newest],
        )
    for start in range(num_minibatches, len(inner), num_minibatches):
        axis.axvline(start - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axis.set(xlabel="inner step", ylabel="learned step size")
    axis.set_ylim(0, 1.08 * history.max())
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(history) > 1:
        axis.legend(frameon=False)


def _history(lr: ArrayLike) -> np.ndarray:
    history = np.asarray(lr, float)
    if history.ndim not in (2, 3) or not history.size:
        raise ValueError(f"lr must be [E, S] or [K, E, S], got {list(history.shape)}")
    if not np.isfinite(history).all():
        raise ValueError("steps and lr must be finite, got NaN or infinity")
    return history[None] if history.ndim == 2 else history


def _levels(axis, full: float | None, majority: float | None) -> None:
    for value, style, name in ((full, "--", "full data"), (majority, ":", "majority")):
        if value is not None:
            level = 100 * float(_fractions(value, name))
            axis.axhline(level, color="0.3", linestyle=style, linewidth=1, label=name)


def _plain(name: str) -> str:
    """A label that matplotlib takes as it is: no formula, and not left out."""
    text = name.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


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
