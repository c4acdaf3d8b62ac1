"""The table of active learning: the end of the curves, and the areas under them."""

from distill_jax import statistics
from distill_jax.report import curves, markdown
from distill_jax.results import Row, grouped, newest


def active(results: dict[str, list[Row]]) -> str:
    """Active learning: the end of the curves, and the areas under them."""
    rows = results["active_learning"]
    if not rows:
        return markdown.no_rows("active_learning")
    runs = grouped(curves.newest_run(rows), "dataset", "model", "preset")
    return "".join(
        _asked(
            f"{dataset}, {model}" + (f" ({preset})" if preset else ""),
            newest(run, "method", "seed", "round"),
        )
        for (dataset, model, preset), run in runs.items()
    ) + (
        "Area: mean test accuracy in % between the first and the last number of "
        "labels, with the 95 % interval of a bootstrap over seeds and networks. Minus "
        "random: paired by seed, with a 95 % t interval, not corrected for the number "
        "of queries.\n\n"
    )


def _asked(title: str, rows: list[Row]) -> str:
    found = curves.curves(rows)
    areas = {name: curves.areas(points) for name, points in found.items()}
    random, lines = areas.get("random"), []
    for name, points in found.items():
        area, last = areas[name], list(points)[-1]
        better = "-"
        if name != "random" and area is not None and random is not None:
            if area.shape == random.shape and len(area) > 1:
                pair = statistics.paired_summary(area, random)
                better = markdown.points(pair.difference, pair.low, pair.high)
        lines.append(
            [
                name,
                f"{last:,}",
                markdown.bounds(points[last]),
                "-" if area is None else markdown.bounds(area),
                better,
                f"{len(points[last])} × {points[last].shape[1]}",
            ]
        )
    full, majority = rows[0]["full_accuracy_mean"], rows[0]["majority_accuracy"]
    lines += [
        ["all labels", "-", markdown.percent(full), "-", "-", "-"],
        ["majority class", "-", markdown.percent(majority), "-", "-", "-"],
    ]
    head = f"{title} | labels | accuracy | area | minus random | seeds × networks"
    return markdown.table(head.split(" | "), lines)
