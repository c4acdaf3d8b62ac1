"""Figures are written, show what they are given, and refuse what makes no sense."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from distill_jax.report import plots

ROOT = Path(__file__).parents[1]
METHODS = {"distilled": [(10, 0.8, 0.01), (1, 0.7, 0.02)], "random": [(1, 0.5, 0.05)]}
LR = np.linspace(0.1, 0.6, 6).reshape(3, 2)


def svg(path):
    """The parsed file and what its comments say: the text, drawn as outlines."""
    content = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(content)
    assert root.tag.endswith("svg")
    return root, re.findall(r"<!-- (.*?) -->", content)


def line_points(root):
    """Number of points of each drawn line."""
    paths = (e.get("d", "") for e in root.iter("{http://www.w3.org/2000/svg}path"))
    return [len(re.findall("[ML]", d)) for d in paths if "z" not in d.lower()]


@pytest.mark.parametrize("lr", [LR, np.stack([LR, 2 * LR, 3 * LR])])
def test_a_run_is_drawn(tmp_path, lr):
    path = plots.plot_run(
        tmp_path / "figures" / "run.png", [0, 10, 20], [0.5, 0.6, 0.7], lr
    )
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in content[-12:]
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (1500, 540)


def test_a_run_shows_its_panels(tmp_path):
    path = plots.plot_run(
        tmp_path / "run.svg", range(9), [0.6] * 9, LR, full=0.9, majority=0.5
    )
    root, said = svg(path)
    for text in ("meta-step", "inner step", "learned step size", "full data"):
        assert text in said
    assert 9 in line_points(root) and LR.size in line_points(root)


def test_a_budget_shows_every_method(tmp_path):
    root, said = svg(plots.plot_budget(tmp_path / "b.svg", METHODS, 0.9, 0.5))
    for text in ("distilled", "random", "full data", "majority", "examples per class"):
        assert text in said
    assert "1" in said and "10" in said
    _, bare = svg(plots.plot_budget(tmp_path / "b.svg", METHODS))
    assert "majority" not in bare


CURVES = {
    "distilled": [(1, 0.7, 0.65, 0.72), (10, 0.8, 0.78, 0.81)],
    "random": [(10, 0.6, 0.5, 0.7), (1, 0.5, 0.5, 0.5)],
    "$odd_ $": [(1, 0.4, 0.4, 0.4)],
}


def texts(content):
    """What an SVG with its letters kept says, in order."""
    root = ElementTree.fromstring(content)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("log", [False, True])
def test_curves_show_every_name_and_level(log):
    drawn = plots.draw_curves(CURVES, xlabel="labels", full=0.9, majority=0.3, log=log)
    said = texts(plots.svg(drawn))
    assert {*CURVES, "full data", "majority", "labels", "test accuracy, %"} <= set(said)
    # The lines come first in the legend, then the levels.
    assert said[-5:] == [*CURVES, "full data", "majority"]
    assert drawn.axes[0].get_xscale() == ("log" if log else "linear")


def test_intervals_are_bars_or_bands():
    few = plots.draw_curves(CURVES, xlabel="x").axes[0]
    bars = [bar[2][0].get_segments() for bar in few.containers]
    heights = [segment[:, 1] for segments in bars for segment in segments]
    wanted = [(65, 72), (78, 81), (50, 50), (50, 70), (40, 40)]
    assert np.array(heights) == pytest.approx(np.array(wanted))
    many = [(x, 0.5, 0.4, 0.6) for x in range(13)]
    axis = plots.draw_curves({"a": many}, xlabel="x").axes[0]
    assert not axis.containers and len(axis.collections) == 1
    extent = axis.collections[0].get_paths()[0].get_extents()
    assert (extent.y0, extent.y1) == pytest.approx((40, 60))


def test_faint_curves_are_grey_and_share_a_label():
    drawn = plots.draw_curves(CURVES, xlabel="x", faint=["random", "$odd_ $"])
    said = texts(plots.svg(drawn))
    assert said.count("other methods") == 1 and "random" not in said
    grey = [line for line in drawn.axes[0].lines if line.get_color() == "0.8"]
    assert [line.get_ydata().tolist() for line in grey] == [[50, 60], [40]]


def test_many_lines_look_different():
    curves = {f"m{i}": [(1, 0.5, 0.4, 0.6)] for i in range(14)}
    axis = plots.draw_curves(curves, xlabel="x").axes[0]
    looks = {(bar[0].get_color(), bar[0].get_marker()) for bar in axis.containers}
    assert len(looks) == 14


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([1, 2, 5, 10], ["1", "2", "5", "10"]), ([100, 101, 5000], ["100", "200", "500"])],
)
def test_log_ticks_do_not_overlap(values, ticks):
    curves = {"a": [(x, 0.5, 0.5, 0.5) for x in values]}
    said = texts(plots.svg(plots.draw_curves(curves, xlabel="x", log=True)))
    shown = [text for text in said if text in ticks]
    assert shown == ticks and "101" not in said


def test_equal_figures_are_equal_bytes():
    first, second = (plots.svg(plots.draw_step_sizes(LR)) for _ in range(2))
    assert first == second
    assert first != plots.svg(plots.draw_step_sizes(2 * LR))
    assert {"inner step", "learned step size"} <= set(texts(first))


def test_curves_are_written(tmp_path):
    path = plots.plot_curves(tmp_path / "c.png", CURVES, xlabel="labels")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("curves", "settings", "message"),
    [
        ({}, {}, "no curves to draw"),
        ({"a": []}, {}, r"a must be \[\(x, mean, low, high\).*got \[0\]"),
        ({"a": [(1, 0.5)]}, {}, r"a must be .*got \[1, 2\]"),
        ({"a": [(1, 50, 40, 60)]}, {}, "accuracies of a must be fractions"),
        ({"a": [(np.inf, 0.5, 0.5, 0.5)]}, {}, "a: x must be finite"),
        ({"a": [(0, 0.5, 0.5, 0.5)]}, {"log": True}, "a: x must be above 0"),
        ({"a": [(1, 0.5, 0.6, 0.7)]}, {}, "a: an interval must hold its mean"),
        ({"a": [(1, 0.5, 0.4, 0.45)]}, {}, "a: an interval must hold its mean"),
    ],
)
def test_bad_curves(curves, settings, message):
    with pytest.raises(ValueError, match=message):
        plots.draw_curves(curves, xlabel="x", **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [0]}, r"must both be \[K\], got \[1\] and \[2\]"),
        ({"accuracies": [0.5, 70.0]}, r"accuracies must be fractions"),
        ({"accuracies": [0.5, np.nan]}, r"accuracies must be fractions"),
        ({"lr": [0.1]}, r"lr must be \[E, S\] or \[K, E, S\], got \[1\]"),
        ({"lr": LR * np.nan}, "must be finite"),
        ({"full": 90.0}, "full data must be fractions"),
        ({"path": "run.docx"}, "run.docx must end in one of: .*png.*svg"),
    ],
)
def test_a_bad_run(tmp_path, changes, message):
    args = {"steps": [0, 1], "accuracies": [0.5, 0.6], "lr": LR, "path": "run.png"}
    args |= changes
    with pytest.raises(ValueError, match=message):
        plots.plot_run(tmp_path / args.pop("path"), **args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "no methods"),
        ({"random": []}, "random must be"),
        ({"random": [(1, 0.5)]}, "random must be"),
        ({"random": [(0, 0.5, 0.1)]}, "above 0"),
        ({"random": [(1, 50.0, 0.1)]}, "random means must be fractions"),
    ],
)
def test_a_bad_budget(tmp_path, methods, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_budget(tmp_path / "budget.png", methods)


def test_importing_it_is_cheap_and_drawing_needs_no_pyplot(tmp_path):
    code = (
        "import sys; from distill_jax.report import plots; assert 'matplotlib' not in "
        "sys.modules; plots.plot_budget(sys.argv[1], {'random': [(1, 0.5, 0.1)]}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = tmp_path / "budget.png"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True)
    assert path.stat().st_size > 5000
