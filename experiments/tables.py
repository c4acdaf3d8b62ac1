"""Writes the README's tables from the rows in `results/`.

    python -m experiments.tables            # rewrite what is between the markers
    python -m experiments.tables --check    # change nothing; exit 1 if they differ

A table NAME stands in the README between the lines
`<!-- table:NAME -->` and `<!-- /table -->`. Of rows that measure the same thing, the
newest counts, and of distilled sets by several recipes those that are best on
validation. Means and standard deviations are in %.
"""

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from distill_jax import results as rows_lib
from distill_jax import statistics
from distill_jax.report import (
    ablation_tables,
    compact_tables,
    curves,
    markdown,
    suite_tables,
    verdict,
)
from distill_jax.report import claims as claims_lib
from distill_jax.results import Row

_README = flags.DEFINE_string("readme", "README.md", "The file that holds the tables.")
_RESULTS = flags.DEFINE_string("results", "results", "The folder of the rows.")
_CHECK = flags.DEFINE_bool("check", False, "Exit 1 if a table is out of date.")

HEADLINE_DATASET = "rotten_tomatoes"
HEADLINE_MODEL = "text_cnn"
HEADLINE_EXAMPLES = (2, 10, 20)
HEADLINE_META_STEPS = 1000  # of a whole run; a short trial does not replace one
METHODS = {
    "distilled": "**distilled**",
    "random": "random real",
    "random_balanced": "random real, balanced",
    "kmeans_medoids": "k-means medoids",
    "full": "all training data",
    "majority": "majority class",
}
NOT_CHOSEN = ("distilled", "full", "majority")

_MARKED = re.compile(
    r"(?P<start><!-- table:(?P<name>[\w-]+) -->\n)(?P<body>.*?)"
    r"(?P<end><!-- /table -->)",
    re.DOTALL,
)


def newest(rows: Sequence[Row], *key: str) -> list[Row]:
    """The last row for each value of the key fields, in the order they first came."""
    return list({tuple(str(row[k]) for k in key): row for row in rows}.values())


def headline(results: dict[str, list[Row]]) -> str:
    """Accuracy on rotten_tomatoes, by method and number of examples.

    Of `results/distill.jsonl`: no preset, random theta_0, the test split; the
    distilled rows are those with soft labels in their native training.
    """
    rows = [
        row
        for row in results["distill"]
        if row["dataset"] == HEADLINE_DATASET
        and row["model"] == HEADLINE_MODEL
        and row["preset"] is None
        and row["split"] == "test"
        and row["theta_0"] in ("random", None)
        and row["config"].get("num_meta_steps", math.inf) >= HEADLINE_META_STEPS
        and (
            row["method"] != "distilled"
            or (row["labels"], row["training"]) == ("soft", "native")
        )
    ]
    if not rows:
        return markdown.no_rows("distill")
    cells = {
        (row["method"], row["examples"]): row
        for row in newest(rows, "method", "examples")
    }
    # Full data and majority do not depend on the number of examples.
    same = {row["method"]: row for row in rows if row["method"] in ("full", "majority")}

    def cell(method: str, examples: int) -> Row | None:
        return same.get(method) or cells.get((method, examples))

    lines = [
        [name, *(markdown.accuracy(cell(method, n)) for n in HEADLINE_EXAMPLES)]
        for method, name in METHODS.items()
    ]
    relative = [cell("distilled", n) for n in HEADLINE_EXAMPLES]
    lines.append(
        [
            "distilled, % of all training data",
            *(
                markdown.percent(row["relative_accuracy"] if row else None)
                for row in relative
            ),
        ]
    )
    shown = [cell(method, n) for method in METHODS for n in HEADLINE_EXAMPLES]
    return markdown.table(
        [f"{HEADLINE_DATASET}, {HEADLINE_MODEL}"]
        + [f"{n} sentences" for n in HEADLINE_EXAMPLES],
        lines,
    ) + _counts([row for row in shown if row and row["method"] != "majority"])


def first_rows(results: dict[str, list[Row]]) -> str:
    """Each distilled row of the other corpora, beside the best real examples."""
    rows = [
        row
        for row in results["distill"]
        if row["dataset"] != HEADLINE_DATASET and row["split"] == "test"
    ]
    same_run = ("dataset", "model", "preset", "theta_0", "examples")
    distilled = newest(
        [row for row in rows if row["method"] == "distilled"],
        *same_run,
        "labels",
        "training",
        "selected_on",
    )
    if not distilled:
        return markdown.no_rows("distill")
    real = newest(
        [row for row in rows if row["method"] not in NOT_CHOSEN], *same_run, "method"
    )
    lines = []
    for row in sorted(
        distilled, key=lambda r: (r["dataset"], r["examples"], r["theta_0"] or "")
    ):
        rivals = [r for r in real if all(r[k] == row[k] for k in same_run)]
        best = max(rivals, key=lambda r: r["accuracy_mean"], default=None)
        lines.append(
            [
                row["dataset"] + (f" ({row['preset']})" if row["preset"] else ""),
                f"{row['examples']:,}",
                row["model"],
                row["theta_0"] or "-",
                row["labels"] or "-",
                f"**{markdown.accuracy(row)}**",
                markdown.accuracy(best) + (f" ({best['method']})" if best else ""),
                markdown.percent(row["full_accuracy_mean"]),
                markdown.percent(row["relative_accuracy"]),
                markdown.percent(row["majority_accuracy"]),
                row["selected_on"] or "-",
                f"{row['num_seeds']} × {row['num_inits']}",
            ]
        )
    head = (
        "dataset | examples | model | θ0 | labels | distilled | best real | all data "
        "| % of all data | majority | selected on | seeds × θ0"
    )
    return markdown.table(head.split(" | "), lines)


def speed(results: dict[str, list[Row]]) -> str:
    """Time and temporary memory of a meta-step, by configuration."""
    rows = newest(
        results["meta_step"],
        *("config", "implementation", "backend", "num_theta_0", "threads", "device"),
    )
    if not rows:
        return markdown.no_rows("meta_step")
    # Configurations stay together, in the order they were first measured.
    order = list(dict.fromkeys(str(row["config"]) for row in rows))
    lines = [
        [
            _config(row["config"]),
            f"{row['T']}",
            f"{row['num_theta_0']}",
            row["implementation"],
            f"{row['seconds_median']:.3g}",
            "-" if row["ratio_to_torch"] is None else f"{row['ratio_to_torch']:.1f}×",
            "-" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 1e6:,.1f}",
            f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}",
        ]
        for row in sorted(rows, key=lambda r: order.index(str(r["config"])))
    ]
    head = (
        "configuration | T | θ0 | implementation | seconds | times PyTorch's speed "
        "| temporary MB | device"
    )
    return markdown.table(head.split(" | "), lines)


def compare(results: dict[str, list[Row]]) -> str:
    """Accuracy of each method at each budget, for each corpus and network."""
    rows = newest(
        [row for row in results["compare"] if row["preset"] is None],
        *("dataset", "model", "method", "labels", "training", "examples_per_class"),
    )
    if not rows:
        return markdown.no_rows("compare")
    pairs = dict.fromkeys((row["dataset"], row["model"]) for row in rows)
    parts = [
        _compared(
            dataset,
            model,
            [r for r in rows if (r["dataset"], r["model"]) == (dataset, model)],
        )
        for dataset, model in pairs
    ]
    return "".join(parts) + (
        "Test accuracy in % with its 95 % bootstrap interval over sets and random θ0. "
        "The best of either side is chosen on validation; p-values are of sign flips "
        "over the θ0 that both share, after Holm's correction over the budgets. Yes "
        "and no need p ≤ 0.05 and an interval without 0.\n\n"
    )


def anonymous2022(results: dict[str, list[Row]]) -> str:
    """The table of the comparison paper: Original, Distilled and Random at 0.1 %."""
    rows = newest(
        [row for row in results["compare"] if row["preset"] == "anonymous2022"],
        *("dataset", "model", "method", "labels", "training"),
    )
    if not rows:
        return markdown.no_rows("compare")
    lines = []
    for dataset, model in dict.fromkeys((row["dataset"], row["model"]) for row in rows):
        here = [r for r in rows if (r["dataset"], r["model"]) == (dataset, model)]
        by_name = {verdict.name_of(row): row for row in here}
        native = by_name.get("distilled (soft labels, native)")
        if native is None:
            continue
        found = verdict.verdicts(here)
        lines.append(
            [
                f"{dataset}, {model}",
                f"{native['examples']} ({native['fraction_of_train']:.2%})",
                _interval(by_name.get("full")),
                _interval(native),
                _interval(by_name.get("distilled (soft labels, standard)")),
                _interval(by_name.get("random")),
                _interval(by_name.get("random_balanced")),
                markdown.percent(native["relative_accuracy"]),
                markdown.percent(native["majority_accuracy"]),
                f"{found[0]}" if found else "-",
            ]
        )
    head = (
        "corpus, network | examples | original | distilled, native | distilled, "
        "standard | random | random, balanced | distilled, % of original | majority "
        "| distilled beats the best real method"
    )
    return markdown.table(head.split(" | "), lines)


def active(results: dict[str, list[Row]]) -> str:
    """Active learning: the end of the curves, and the areas under them."""
    rows = results["active_learning"]
    if not rows:
        return markdown.no_rows("active_learning")
    runs = dict.fromkeys(_run_of(row) for row in rows)
    newest_run = {(dataset, model, preset): run for dataset, model, preset, run in runs}
    return "".join(
        _asked(
            f"{dataset}, {model}" + (f" ({preset})" if preset else ""),
            newest(
                [row for row in rows if _run_of(row) == (dataset, model, preset, run)],
                *("method", "seed", "round"),
            ),
        )
        for (dataset, model, preset), run in newest_run.items()
    ) + (
        "Area: mean test accuracy in % between the first and the last number of "
        "labels, with the 95 % interval of a bootstrap over seeds and networks. Minus "
        "random: paired by seed, with a 95 % t interval, not corrected for the number "
        "of queries.\n\n"
    )


def _run_of(row: Row) -> tuple[str, str, str | None, str]:
    settings = {
        k: v for k, v in row["config"].items() if k not in ("query", "seed", "seeds")
    }
    return row["dataset"], row["model"], row["preset"], f"{settings}"


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
                better = (
                    f"{100 * pair.difference:+.1f} [{100 * pair.low:+.1f}, "
                    f"{100 * pair.high:+.1f}]"
                )
        lines.append(
            [
                name,
                f"{last:,}",
                _bounds(points[last]),
                "-" if area is None else _bounds(area),
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


def _bounds(values) -> str:
    found = statistics.summary(values)
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def acquisition(results: dict[str, list[Row]]) -> str:
    """Time and memory of scoring a pool, and of picking from it."""
    rows = newest(results["acquisition"], "config", "implementation", "device")
    if not rows:
        return markdown.no_rows("acquisition")
    lines = [
        [
            row["config"],
            row["implementation"],
            f"{row['seconds_median']:.3g}",
            "-" if row["ratio_to_torch"] is None else f"{row['ratio_to_torch']:.1f}×",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            "-"
            if row["compiled_peak_bytes"] is None
            else f"{row['compiled_peak_bytes'] / 1e6:,.0f}",
            "-" if row["call_bytes"] is None else f"{row['call_bytes'] / 1e6:,.0f}",
            f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}",
        ]
        for row in rows
    ]
    head = (
        "task | implementation | seconds | times PyTorch's speed | process MB "
        "| process MB, compiled before | call MB | device"
    )
    return markdown.table(head.split(" | "), lines)


def accelerator(results: dict[str, list[Row]]) -> str:
    """What one meta-step asks of each device: measured, or told by the compiler."""
    rows = newest(
        results["accelerator"], "config", "kind", "topology", "num_theta_0", "device"
    )
    if not rows:
        return markdown.no_rows("accelerator")
    lines = [
        [
            row["config"],
            f"{row['num_theta_0']:,}",
            f"{row['num_devices']} ({row['topology'] or row['device']})",
            row["kind"],
            "-" if row["step_seconds"] is None else f"{row['step_seconds']:.3g}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['peak_bytes'] / 1e6:,.1f}",
            f"{row['all_reduces']}",
        ]
        for row in rows
    ]
    head = (
        "configuration | θ0 | devices | what | seconds | Gflop a device "
        "| peak MB a device | all-reduces"
    )
    return markdown.table(head.split(" | "), lines)


def _compared(dataset: str, model: str, rows: list[Row]) -> str:
    budgets = verdict.budgets(rows)
    names = dict.fromkeys(
        verdict.name_of(row) for row in sorted(rows, key=_distilled_first)
    )
    cells = {(verdict.name_of(row), row["examples_per_class"]): row for row in rows}
    same = {row["method"]: row for row in rows if row["method"] in verdict.NOT_CHOSEN}
    head = [f"{dataset}, {model}", *(f"{budget:g} a class" for budget in budgets)]
    lines = [
        [
            f"**{name}**" if name.startswith("distilled") else name,
            *(_interval(same.get(name) or cells.get((name, b))) for b in budgets),
        ]
        for name in names
    ]
    for question, title in verdict.TITLES.items():
        found = {v.examples_per_class: v for v in verdict.verdicts(rows, question)}
        if found:
            answers = [f"{found[b]}" if b in found else "-" for b in budgets]
            lines.append([title, *answers])
    return markdown.table(head, lines)


def _distilled_first(row: Row) -> tuple[bool, bool, bool]:
    """Distilled, selections, queries, and at last what no budget changes."""
    method = row["method"]
    return (
        method in verdict.NOT_CHOSEN,
        method.startswith("query:"),
        method != "distilled",
    )


TABLES: dict[str, Callable[[dict[str, list[Row]]], str]] = {
    "headline": headline,
    "first_rows": first_rows,
    "speed": speed,
    "compare": compare,
    "anonymous2022": anonymous2022,
    "active": active,
    "acquisition": acquisition,
    "claims": claims_lib.claims,
    "accelerator": accelerator,
    "compact": compact_tables.compact,
    "ablation": ablation_tables.ablation,
    "suite": suite_tables.suite,
    "label_robust": suite_tables.label_robust,
}
FILES = (
    "distill",
    "meta_step",
    "compare",
    "active_learning",
    "acquisition",
    "accelerator",
    "compact",
    "ablation",
)


def load(folder: str | Path) -> dict[str, list[Row]]:
    """The rows of each file the tables read; distilled ones of the best recipe."""
    rows = {name: rows_lib.read(Path(folder) / f"{name}.jsonl") for name in FILES}
    return rows | {"compare": verdict.of_best_recipe(rows["compare"])}


def render(readme: str, results: dict[str, list[Row]]) -> str:
    """The text with every marked table generated anew.

    Raises:
        ValueError: for a table that does not exist, or a marker without its end.
    """
    marks = len(_MARKED.findall(readme))
    if {readme.count("<!-- table:"), readme.count("<!-- /table -->")} != {marks}:
        raise ValueError(
            "each `<!-- table:NAME -->` needs a line of its own and a `<!-- /table -->`"
        )

    def generated(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        return match["start"] + TABLES[name](results) + match["end"]

    return _MARKED.sub(generated, readme)


def outdated(readme: str, results: dict[str, list[Row]]) -> list[str]:
    """Names of the tables that are not what the rows give."""
    fresh = render(readme, results)
    return [
        old["name"]
        for old, new in zip(
            _MARKED.finditer(readme), _MARKED.finditer(fresh), strict=True
        )
        if old["body"] != new["body"]
    ]


def run(readme: Path, results: Path, check: bool) -> list[str]:
    """Rewrites, or with `check` only compares; returns the tables that differed."""
    if not readme.is_file():
        raise FileNotFoundError(f"no {readme}; name the file with --readme")
    text, rows = readme.read_text(encoding="utf-8"), load(results)
    changed = outdated(text, rows)
    if changed and not check:
        readme.write_text(render(text, rows), encoding="utf-8")
    return changed


def _counts(rows: list[Row]) -> str:
    def span(name: str) -> str:
        values = sorted({row[name] for row in rows})
        return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"

    return (
        f"Test accuracy in %, mean ± sd over {span('num_inits')} random θ0 and "
        f"{span('num_seeds')} seed(s).\n\n"
    )


def _interval(row: Row | None) -> str:
    if row is None:
        return "-"
    mean = f"{100 * row['accuracy_mean']:.1f}"
    low, high = (100 * value for value in row["interval"])
    return mean if row["method"] == "majority" else f"{mean} [{low:.1f}, {high:.1f}]"


def _config(config: str | dict) -> str:
    if isinstance(config, str):
        return config
    return ", ".join(f"{name}={value}" for name, value in config.items())


def main(_: Sequence[str]) -> None:
    try:
        changed = run(Path(_README.value), Path(_RESULTS.value), _CHECK.value)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if changed and _CHECK.value:
        sys.exit(
            f"out of date in {_README.value}: {', '.join(changed)}; run "
            "python -m experiments.tables"
        )
    print(f"rewrote {', '.join(changed)}" if changed else "all tables are current")


if __name__ == "__main__":
    app.run(main)
