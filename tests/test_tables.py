"""The tables of README.md and docs/ are what the committed rows give."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill_jax import results as results_lib
from distill_jax.report import active_tables, comparison_tables, tables, verdict
from distill_jax.report.speed_tables import speed
from tests.test_results import compare_row, experiment_row, speed_row

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (
    "# Title\n\n<!-- table:headline -->\nold\n<!-- /table -->\n\nBetween.\n\n"
    "<!-- table:first_rows -->\n<!-- /table -->\n"
    "<!-- table:speed -->\n<!-- /table -->\n"
)


def scored(method, mean, **changes):
    full = changes.setdefault("full_accuracy_mean", 0.75)
    return experiment_row(
        method=method, accuracy_mean=mean, relative_accuracy=mean / full, **changes
    )


@pytest.fixture
def results():
    other = {"dataset": "sst5", "examples": 5, "majority_accuracy": 0.286}
    return {
        "distill": [
            scored("distilled", 0.1),
            scored("distilled", 0.6, examples=2),
            scored("distilled", 0.7),
            scored("distilled", 0.99, labels="hard"),
            scored("distilled", 0.98, theta_0="fixed"),
            scored("distilled", 0.97, preset="li2021"),
            scored("distilled", 0.96, split="validation"),
            scored("distilled", 0.95, model="bag"),
            scored("random", 0.55, labels="hard", training="standard", num_seeds=5),
            scored("full", 0.74, examples=8000, labels="hard", training="standard"),
            scored("full", 0.75, examples=8000, labels="hard", training="standard"),
            scored("majority", 0.5, examples=0, theta_0=None, accuracy_sd=None),
            scored("distilled", 0.375, **other),
            scored("distilled", 0.45, split="validation", **other),
            scored("random", 0.25, **other),
            scored("kmeans_medoids", 0.3, **other),
            scored("kmeans_medoids", 0.9, **{**other, "examples": 100}),
            scored("full", 0.75, **other),
        ],
        "meta_step": [
            speed_row(seconds_median=9.0),
            speed_row(config="imdb", seconds_median=1.6),
            speed_row(
                implementation="torch_reference",
                seconds_median=1.18,
                ratio_to_torch=1.0,
                temp_bytes=None,
            ),
            speed_row(seconds_median=0.301),
        ],
    }


def test_of_several_recipes_that_with_the_best_validation_counts():
    def row(recipe, validation, mean=0.5, **changes):
        settings = {"distilled": {"meta_lr": recipe}} if recipe else {}
        facts = {"settings": settings, "validation_accuracy": validation}
        return scored("distilled", mean, config=facts) | changes

    weak, weak_hard = row(1, 0.6, 0.9), row(1, 0.5, labels="hard")
    strong, strong_hard = row(2, 0.7), row(2, 0.4, labels="hard")
    elsewhere = row(1, 0.1, examples_per_class=99.0)
    real = scored("random", 0.2, config={"validation_accuracy": 0.9})
    kept = verdict.of_best_recipe
    for order in ([weak, weak_hard, strong, strong_hard], [strong, weak, strong_hard]):
        wanted = [one for one in order if one in (strong, strong_hard)]
        assert kept([*order, elsewhere, real]) == [*wanted, elsewhere, real]
    equal = row(3, 0.7)
    assert kept([strong, equal]) == [equal]


def lines(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_headline_takes_the_newest_row_of_the_plain_setting(results):
    text = comparison_tables.headline(results)
    assert lines(text)[2:] == [
        "| **distilled** | 60.0 ± 1.0 | - | 70.0 ± 1.0 |",
        "| random real | - | - | 55.0 ± 1.0 |",
        "| random real, balanced | - | - | - |",
        "| k-means medoids | - | - | - |",
        "| all training data | 75.0 ± 1.0 | 75.0 ± 1.0 | 75.0 ± 1.0 |",
        "| majority class | 50.0 | 50.0 | 50.0 |",
        "| distilled, % of all training data | 80.0 | - | 93.3 |",
    ]
    assert "over 20 random θ0 and 1 to 5 seed(s)" in text


def test_first_rows_set_the_best_real_examples_beside(results):
    assert lines(comparison_tables.first_rows(results))[2:] == [
        "| sst5 | 5 | text_cnn | random | soft | **37.5 ± 1.0** "
        "| 30.0 ± 1.0 (kmeans_medoids) | 75.0 | 50.0 | 28.6 | validation | 1 × 20 |"
    ]


def test_speed_keeps_configurations_together(results):
    assert lines(speed(results))[2:] == [
        "| sst5 | 50 | 1 | distill_jax | 0.301 | 3.9× | 31.0 | cpu:1 cores, 1 thread |",
        "| sst5 | 50 | 1 | torch_reference | 1.18 | 1.0× | - | cpu:1 cores, 1 thread |",
        "| imdb | 50 | 1 | distill_jax | 1.6 | 3.9× | 31.0 | cpu:1 cores, 1 thread |",
    ]


def test_no_rows_yet_is_said():
    empty = {name: [] for name in tables.FILES}
    for name, table in tables.TABLES.items():
        assert "No rows in `results/" in table(empty), name


def test_a_short_trial_does_not_replace_the_headline(results):
    before = comparison_tables.headline(results)
    trial = dict(results["distill"][2], accuracy_mean=0.11)
    trial["config"] = {"num_meta_steps": 2}
    results["distill"].append(trial)
    assert comparison_tables.headline(results) == before
    trial["config"] = {"num_meta_steps": 1000}
    assert "11.0" in comparison_tables.headline(results)


def test_areas_under_learning_curves_are_set_beside_random():
    def row(method, seed, labels, accuracies):
        return {
            "dataset": "sst2",
            "model": "bag",
            "preset": None,
            "method": method,
            "seed": seed,
            "round": labels // 10,
            "num_labelled": labels,
            "accuracies": accuracies,
            "full_accuracy_mean": 0.8,
            "majority_accuracy": 0.5,
            "config": {"query": method, "lr": 0.1},
        }

    rows = [
        row(method, seed, labels, [base + gain + step, base + gain + step])
        for method, gain in (("random", 0.0), ("bald", 0.05))
        for seed, base in enumerate((0.5, 0.6))
        for labels, step in ((10, 0.0), (20, 0.1))
    ]
    text = active_tables.active({"active_learning": rows})
    assert "| random | 20 | 65.0 [60.0, 70.0] | 60.0 [55.0, 65.0] | - | 2 × 2 |" in text
    assert "| 65.0 [60.0, 70.0] | +5.0 [+5.0, +5.0] | 2 × 2 |" in text
    again = [dict(r, config={"lr": 0.2}, accuracies=[0.7, 0.7]) for r in rows]
    assert "| 70.0 [70.0, 70.0] | 70.0 [70.0" in active_tables.active(
        {"active_learning": rows + again}
    )


def test_render_changes_only_what_is_marked(results):
    text = tables.render(README, results)
    assert text.startswith("# Title\n\n<!-- table:headline -->\n\n| rotten")
    assert "old" not in text and "\n\nBetween.\n\n" in text
    assert tables.render(text, results) == text
    assert tables.outdated(text, results) == []
    results["meta_step"].append(speed_row(config="trec"))
    assert tables.outdated(text, results) == ["speed"]


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        (
            "<!-- table:magic -->\n<!-- /table -->\n",
            "unknown table 'magic'; known: summary, he",
        ),
        ("<!-- table:speed -->\n", "needs a line of its own and"),
        ("<!-- /table -->\n", "needs a line of its own and"),
        (
            "<!-- table:speed -->\n<!-- table:headline -->\n<!-- /table -->\n",
            "needs a line of its own and",
        ),
    ],
)
def test_broken_markers(readme, message, results):
    with pytest.raises(ValueError, match=message):
        tables.render(readme, results)


def test_the_command_rewrites_and_checks(tmp_path, results):
    readme, other = tmp_path / "README.md", tmp_path / "other.md"
    readme.write_text(README)
    other.write_text("No table.\n")
    for name in results:
        results_lib.append(tmp_path / "results" / f"{name}.jsonl", results[name])

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "experiments.tables", f"--pages={readme},{other}"]
            + [f"--results={tmp_path / 'results'}", *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    stale = run("--check")
    assert stale.returncode == 1
    assert "README.md: headline, first_rows, speed" in stale.stderr
    assert "other.md" not in stale.stderr
    assert readme.read_text() == README
    assert run().returncode == 0
    assert readme.read_text() == tables.render(README, results)
    assert run("--check").returncode == 0
    missing = run(f"--pages={tmp_path / 'absent.md'}")
    assert missing.returncode == 1 and "no " in missing.stderr
    assert "Traceback" not in missing.stderr
    other.write_text("<!-- table:magic -->\n<!-- /table -->\n")
    assert "other.md: unknown table 'magic'" in run().stderr


def test_the_committed_pages_are_current():
    results = tables.load(ROOT / "results")
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for name in tables.TABLES:
        assert text.count(f"<!-- table:{name} -->") == 1, name
    for path in PAGES:
        assert tables.outdated(path.read_text(encoding="utf-8"), results) == [], path


def test_the_contents_name_every_question():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in listed] == titles
    for title, anchor in listed:
        assert anchor == re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_summary_goes_from_the_fewest_sentences_to_the_most():
    def row(method, mean, budget, **changes):
        config = {"validation_accuracy": mean, "inits": [list(range(20))]}
        spread = [0.01 * (k % 2) - 0.005 for k in range(20)]
        return compare_row(
            method=method,
            examples=2 * budget,
            examples_per_class=budget,
            accuracies=[[mean + s for s in spread]],
            num_seeds=1,
            num_inits=20,
            accuracy_mean=mean,
            labels="hard",
            config=config,
            **changes,
        )

    rows = [
        row(method, mean, budget)
        for budget, ours, real in ((1, 0.6, 0.5), (5, 0.65, 0.55), (10, 0.7, 0.72))
        for method, mean in (("distilled", ours), ("random", real), ("el2n", 0.4))
    ]
    rows += [row("distilled", 0.9, 1, model="bag"), row("full", 0.99, 99)]
    rows += [
        row("distilled", 0.8, 1, dataset="sst5"),
        row("el2n", 0.5, 1, dataset="sst5"),
    ]
    text = comparison_tables.summary({"compare": rows})
    assert lines(text)[2:] == [
        "| rotten_tomatoes, text_cnn | 2 to 20 | **60.0 to 70.0** | 50.0 to 72.0 "
        "| 75.0 | 50.0 | 2 / 0 / 1 |",
        "| sst5, text_cnn | 2 | **80.0** | 50.0 | 75.0 | 50.0 | 1 / 0 / 0 |",
    ]
    assert "no: 3 / 0 / 1 with the labels" in text
    assert "0 / 0 / 0 with soft labels" in text
