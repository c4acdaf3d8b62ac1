"""The paper's claims from made-up rows, and the transfer to another network."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from distill_jax import artifact
from distill_jax import results as result_rows
from distill_jax.report import claims, comparison_tables
from experiments import cells, compare, figures, transfer
from experiments import claims as claims_experiment
from experiments.scoring import Cell, cell_of
from tests.test_compare import TINY, write_corpus
from tests.test_results import active_row, compare_row

ROOT = Path(__file__).parents[1]
TARGET = "text_cnn"
BUDGETS = (1, 5)
NAMES = "full,random,kmeans_medoids,distilled"


def row_of(method, mean, *, dataset="a", budget=1, seeds=3, inits=20, sd=0.01, **more):
    """A row of a comparison whose accuracies have exactly this mean and spread."""
    rng = np.random.default_rng([len(method), budget, seeds])
    noise = rng.normal(0, sd, (seeds, inits))
    accuracies = mean + noise - noise.mean()
    settings = {"network": {}, "train": 90, "seed": 0, "test_inits": inits}
    settings |= more.pop("settings", {})
    return compare_row(
        dataset=dataset,
        model=more.pop("model", "bag"),
        method=method,
        labels=more.pop("labels", "hard"),
        training="standard",
        examples_per_class=budget,
        accuracy_mean=float(accuracies.mean()),
        accuracies=accuracies.tolist(),
        num_seeds=seeds,
        num_inits=inits,
        full_accuracy_mean=None,
        relative_accuracy=None,
        config={
            "settings": settings,
            "validation_accuracy": mean,
            "inits": [list(range(inits))] * seeds,
        },
        **more,
    )


def corpora(gains, **more):
    """Distilled beats random at 0.5 by the gain of each corpus."""
    return [
        row
        for name, gain in gains.items()
        for row in (
            row_of("distilled", 0.5 + gain, dataset=name, **more),
            row_of("random", 0.5, dataset=name, seeds=20, **more),
        )
    ]


def test_generality_is_told_by_the_corpora():
    gains = {"a": 0.2, "b": 0.1, "c": 0.15}
    first, at_one = claims.generality(corpora(gains))
    assert first.question == claims.GENERALITY and first.answer == "yes"
    assert first.corpora == ["a", "b", "c"] and first.network == "bag"
    values = list(gains.values())
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(
        (first.value, first.low, first.high), (0.15, low, high), atol=1e-9
    )
    assert at_one.question.endswith("1 a class") and at_one[2:] == first[2:]


def test_what_differs_over_corpora_is_not_general():
    """Each corpus is certain, and they contradict each other."""
    found = claims.generality(corpora({"a": 0.2, "b": -0.1, "c": 0.15}))[0]
    assert [pair.answer for pair in found.pairs] == ["yes", "no", "yes"]
    assert found.low < 0 < found.high and found.answer == "not told apart"
    lost = claims.generality(corpora({"a": -0.2, "b": -0.1, "c": -0.15}))[0]
    assert lost.answer == "no"


def test_corpora_with_more_budgets_weigh_no_more():
    rows = corpora({"a": 0.3, "b": 0.1}) + corpora({"a": 0.1}, budget=5)
    found = claims.generality(rows)
    assert found[0].value == pytest.approx((0.2 + 0.1) / 2)
    assert [claim.question[-9:] for claim in found[1:]] == ["1 a class", "5 a class"]
    assert found[2].corpora == ["a"] and found[2].answer == "not told apart"


def test_one_corpus_tells_nothing_about_others():
    found = claims.generality(corpora({"a": 0.2}))[0]
    assert found.pairs[0].answer == "yes"
    assert found.answer == "not told apart" and np.isnan(found.low)


def test_networks_are_answered_apart():
    rows = corpora({"a": 0.2, "b": 0.21}) + corpora({"a": -0.2}, model="text_cnn")
    found = {c.network: c for c in claims.generality(rows) if " a class" not in c[0]}
    assert found["bag"].value > 0 > found["text_cnn"].value


def test_sd_ratio_of_known_values():
    a = np.array([[0.0, 2.0], [1.0, 3.0]])  # means 1, 2: B = 0.5; W = 2
    value, low, high = claims.sd_ratio(a, 3 * a)
    assert value == pytest.approx(1 / 3) and low < value < high
    assert claims.sd_ratio(a, a)[0] == 1
    narrow = claims.sd_ratio(a, 3 * a, confidence=0.5)
    assert low < narrow[1] < narrow[2] < high
    # B + W / 2 = 1.5, over that of a without spread between seeds: W / 2 = 1.
    b = np.array([[0.0, 2.0], [0.0, 2.0]])
    assert claims.sd_ratio(a, b)[0] == pytest.approx(np.sqrt(1.5))


def test_the_interval_of_the_ratio_covers_it():
    """With three seeds that differ much: a bootstrap holds the truth in two of three"""
    rng, held = np.random.default_rng(0), 0
    for number in range(300):
        a = rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.3, (3, 20))
        b = rng.normal(0, 2, (20, 1)) + rng.normal(0, 0.3, (20, 5))
        _, low, high = claims.sd_ratio(a, b, num_draws=1000, seed=number)
        held += low <= np.sqrt((1 + 0.09) / (4 + 0.09)) <= high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0.1, 0.2]], [[0.1, 0.2]] * 2, r"a must be \[seeds, inits\]"),
        ([[0.1, 0.2]] * 2, [[0.1], [0.2]], r"b must be \[seeds, inits\]"),
        ([[0.1, 0.2]] * 2, [[0.1, 0.1]] * 2, "b does not vary"),
    ],
)
def test_sd_ratio_refuses_what_has_no_ratio(a, b, message):
    with pytest.raises(ValueError, match=message):
        claims.sd_ratio(a, b)


def test_stability_is_told_by_ratios():
    rows = []
    for name, sd in (("a", 0.01), ("b", 0.012), ("c", 0.008)):
        rows += [
            row_of("distilled", 0.7, dataset=name, sd=sd),
            row_of("random", 0.5, dataset=name, seeds=20, inits=5, sd=0.05),
            # Neither of these has what it takes.
            row_of("distilled", 0.7, dataset=name, budget=2, seeds=1),
            row_of("random", 0.5, dataset=name, budget=2, seeds=20),
            row_of("random", 0.5, dataset=name, seeds=20, labels="soft", sd=1e-4),
        ]
    (found,) = claims.stability(rows)
    assert len(found.pairs) == 3 and found.answer == "yes" and found.is_ratio
    geometric = np.exp(np.mean([np.log(pair.value) for pair in found.pairs]))
    assert found.value == pytest.approx(geometric) and 0.1 < found.value < 0.3
    assert found.low < found.value < found.high < 1
    assert all(pair.answer == "yes" for pair in found.pairs)
    alike = [row_of("distilled", 0.7, sd=0.05), row_of("random", 0.5, sd=0.05)]
    (same,) = claims.stability(alike)
    assert same.pairs[0].low < 1 < same.pairs[0].high
    assert same.pairs[0].answer == same.answer == "not told apart"
    swapped = [
        row | {"method": {"random": "distilled", "distilled": "random"}[row["method"]]}
        for row in rows
        if row["labels"] == "hard" and row["examples_per_class"] == 1
    ]
    (other,) = claims.stability(swapped)
    assert other.answer == "no" and other.value == pytest.approx(1 / found.value)


def moved(gain, dataset="a", **more):
    """Distilled with bag, and what stands beside it on text_cnn."""
    source = {"source": {"model": "bag"}}
    common = {"dataset": dataset, "model": "text_cnn", "preset": "transfer"}
    return [
        row_of("distilled", 0.6 + gain, settings=source, **common | more),
        row_of("random", 0.5, seeds=20, **common),
        row_of("herding", 0.6, seeds=5, **common),
    ]


def test_transfer_is_beside_the_same_network():
    rows = moved(0.05) + moved(0.07, "b")
    rows += corpora({"a": 0.4, "b": 0.4})  # of the network that has distilled
    # Another protocol: its 0.9 may not count.
    rows += [
        row_of("herding", 0.9, dataset=n, model="text_cnn", settings={"test_inits": 5})
        for n in "ab"
    ]
    random, best = claims.transfer(rows)
    assert random.question == claims.VS_RANDOM.format("bag")
    assert best.question == claims.VS_BEST.format("bag")
    assert random.network == best.network == "text_cnn"
    assert random.value == pytest.approx(0.16) and best.value == pytest.approx(0.06)
    assert all("herding" in pair.said for pair in best.pairs)
    assert [pair.answer for pair in best.pairs] == ["yes", "yes"]
    lost = claims.transfer(moved(-0.05))
    assert [claim.pairs[0].answer for claim in lost] == ["yes", "no"]


def test_rows_of_transfer_are_seen_by_no_other_table():
    rows, more = corpora({"a": 0.2, "b": 0.1}), moved(0.05)
    table = comparison_tables.compare
    assert table({"compare": rows}) == table({"compare": rows + more})
    assert claims.generality(rows) == claims.generality(rows + more)
    assert claims.stability(rows) == claims.stability(rows + more)


def test_the_table_has_a_line_for_each_answer():
    rows = corpora({"a": 0.2, "b": 0.21}) + moved(0.05)
    text = claims.claims({"compare": rows})
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(claims.answers(rows)) == 5
    assert "+20.5 [+14.1, +26.9] | **yes** |" in lines[0]
    assert "2 / 0 / 0" in lines[0] and "1 / 0 / 0" in lines[-1]
    assert lines[-1].endswith("+5.0 | **not told apart** |")
    assert "No rows" in claims.claims({"compare": []})


@pytest.fixture(scope="module")
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def compared(single_precision, tmp_path_factory):
    """A comparison on made-up text: the folder of its runs, its rows and corpus."""
    folder = tmp_path_factory.mktemp("claims")
    corpus = write_corpus(folder / "made_up")
    changes = {"methods": NAMES, "soft_labels": False}
    compare.run(
        compare.Config(**TINY | changes | {"dataset": str(corpus)}),
        out=folder / "runs" / "compare-made_up-bag",
        results=folder / "r.jsonl",
        say=lambda text: None,
    )
    return folder, corpus


class Moved:
    """A transfer in this process, into a copy of the rows."""

    def __init__(self, compared, folder, **changes):
        source, self.corpus = compared
        self.results, self.said = folder / "r.jsonl", []
        if not self.results.exists():
            shutil.copy(source / "r.jsonl", self.results)
        self.rows = transfer.run(
            **{
                "results": self.results,
                "targets": [TARGET],
                "runs": source / "runs",
                "methods": "random,kmeans_medoids",
                "say": self.said.append,
                "dataset": str(self.corpus),
                **changes,
            }
        )


@pytest.fixture(scope="module")
def transferred(compared, tmp_path_factory):
    return Moved(compared, tmp_path_factory.mktemp("moved"))


def planned():
    names = ("random", "kmeans_medoids")
    return [
        cell
        for n in BUDGETS
        for cell in [
            *(Cell(name, n) for name in names),
            Cell("distilled", n, "soft"),
            Cell("distilled", n, "hard"),
        ]
    ]


def facts(row):
    clock = {"seconds", "compute_seconds", "command", "commit"}
    return {name: value for name, value in row.items() if name not in clock}


def test_each_cell_is_a_row_of_the_target(transferred, compared):
    rows = {cell_of(row): row for row in transferred.rows}
    assert list(rows) == planned()
    read = result_rows.read(transferred.results)
    assert read[-len(rows) :] == json.loads(json.dumps(transferred.rows))
    for cell, row in rows.items():
        assert (row["preset"], row["model"]) == ("transfer", TARGET)
        if cell.method != "distilled":
            continue
        source = row["config"]["settings"]["source"]
        own = [
            r
            for r in read
            if r["model"] == "bag" and cell_of(r) == cell and r["preset"] is None
        ][0]
        assert source["model"] == "bag" and source["network"] == {"hidden": 8}
        assert len(source["sha256"]) == row["num_seeds"] == own["num_seeds"]
        assert row["config"]["inits"] == own["config"]["inits"]
        assert row["bytes"] == own["bytes"] and row["labels_read"] == 90
        assert row["accuracies"] != own["accuracies"]
    assert rows[Cell("distilled", 5, "soft")]["num_seeds"] == 2
    # The words of the corpus tell the classes, also to another network.
    assert rows[Cell("distilled", 5, "hard")]["accuracy_mean"] > 0.45


def test_it_trains_on_what_was_distilled(compared, transferred, monkeypatch):
    seen = {}
    real = cells.Workbench.score

    def watched(bench, cell, batches, distilled=()):
        if cell.method == "distilled":
            seen[cell] = [jax.tree.map(np.asarray, batch) for batch in batches]
        return real(bench, cell, batches, distilled)

    folder = transferred.results.parent / "again"
    folder.mkdir()
    monkeypatch.setattr(cells.Workbench, "score", watched)
    lost = ("transfer", Cell("distilled", 5, "soft"))
    kept = [
        row
        for row in result_rows.read(transferred.results)
        if (row["preset"], cell_of(row)) != lost
    ]
    result_rows.append(folder / "r.jsonl", kept)
    again = Moved(compared, folder)
    (row,) = again.rows
    before = [r for r in transferred.rows if cell_of(r) == cell_of(row)][0]
    assert facts(row) == facts(before)  # what was lost is done again, and the same
    (batches,) = seen.values()
    paths = sorted((compared[0] / "runs").glob("*/5pc-seed*/artifact"))
    assert len(paths) == len(batches) == 2
    for path, batch in zip(paths, batches, strict=True):
        saved = artifact.load(path).arrays
        np.testing.assert_array_equal(batch.x, saved["x"][0])
        np.testing.assert_allclose(batch.y, saved["y"][0], atol=1e-6)


def test_a_second_run_does_nothing(compared, transferred, monkeypatch):
    def never(*_):
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(cells.Workbench, "run", never)
    before = transferred.results.read_bytes()
    assert Moved(compared, transferred.results.parent).rows == []
    assert transferred.results.read_bytes() == before


def test_real_rows_are_those_of_a_comparison(compared, transferred, tmp_path):
    """So they stand in for each other, whichever was run first."""
    folder, corpus = compared
    settings = TINY | {"model": TARGET, "model_settings": (), "budgets": "5"}
    own = compare.run(
        compare.Config(
            **settings
            | {"methods": "random", "soft_labels": False, "dataset": str(corpus)}
        ),
        out=tmp_path / "run",
        results=tmp_path / "r.jsonl",
        say=lambda text: None,
    )
    row = [r for r in transferred.rows if cell_of(r) == Cell("random", 5)][0]
    assert facts(own[0]) == facts(row) | {"preset": None}
    result_rows.append(tmp_path / "r.jsonl", result_rows.read(folder / "r.jsonl"))
    again = Moved(compared, tmp_path, methods="random", dry_run=True)
    assert f"  {Cell('random', 5)}" not in again.said
    assert f"  {Cell('random', 1)}" in again.said


def test_the_claim_of_transfer_is_answered(compared, transferred):
    said = []
    found = claims_experiment.run(str(transferred.results), say=said.append)
    questions = [claim.question for claim in found if claim.network == TARGET]
    assert questions == [claims.VS_RANDOM.format("bag"), claims.VS_BEST.format("bag")]
    assert [len(c.pairs) for c in found if c.network == TARGET] == [2, 2]
    assert "transfer: distilled with bag beats random (text_cnn)?" in said[-1]


def test_a_dry_run_writes_nothing(compared, tmp_path):
    before = (compared[0] / "r.jsonl").read_bytes()
    run = Moved(compared, tmp_path, dry_run=True, budgets=["1"])
    assert run.rows == [] and run.results.read_bytes() == before
    assert [line.strip() for line in run.said[-4:]] == [str(c) for c in planned()[:4]]
    assert "made_up, bag to text_cnn: 4 of 4 to do. Estimate: " in run.said[-5]


def test_a_set_that_is_gone_is_left_out(compared, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(compared[0] / "runs", runs)
    shutil.rmtree(next(runs.glob("*/5pc-seed1-*")))
    run = Moved(compared, tmp_path, runs=runs, dry_run=True)
    assert run.said[0].startswith("Left out: made_up, bag at 5 per class: not all of")
    assert "4 of 4 to do" in run.said[1]
    shutil.rmtree(next(runs.glob("*/1pc-seed0-*")))
    with pytest.raises(FileNotFoundError, match="holds no distilled set of the rows"):
        Moved(compared, tmp_path, runs=runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["magic"]}, "unknown model 'magic'; known: bag"),
        ({"targets": ["bag"]}, "nothing to transfer: bag is what has distilled"),
        ({"corpora": ["imdb"]}, "--corpora: no distilled row is of 'imdb'; there are"),
        ({"sources": ["bilstm"]}, "--sources: no distilled row is of 'bilstm'"),
        ({"budgets": ["3"]}, "--budgets: no distilled row is of 3; there are: 1, 5"),
        ({"budgets": ["x"]}, "--budgets must be whole numbers with commas, got x"),
        ({"methods": "magic"}, "unknown method 'magic'"),
    ],
)
def test_bad_input_is_told_before_any_work(compared, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Moved(compared, tmp_path, **change)
    before = (compared[0] / "r.jsonl").read_bytes()
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_another_corpus_is_refused(compared, tmp_path):
    """The same words and labels, but one sentence has another of them."""
    other = tmp_path / "made_up"
    shutil.copytree(compared[1], other)
    text = (other / "test.tsv").read_text()
    (other / "test.tsv").write_text(text.replace("class0", "class1", 1))
    with pytest.raises(
        ValueError, match="made_up is not the corpus that was distilled"
    ):
        Moved(compared, tmp_path, dataset=str(other))


def test_sets_are_found_by_all_that_made_them(compared):
    row = [
        r
        for r in result_rows.read(compared[0] / "r.jsonl")
        if cell_of(r) == Cell("distilled", 5, "soft")
    ][0]
    cards = transfer._cards(compared[0] / "runs")
    names = [path.parent.name[:9] for path in transfer._folders(row, cards) or []]
    assert names == ["5pc-seed0", "5pc-seed1"]
    for part, name in (
        ("vocabulary", "sha256"),
        ("corpus", "name"),
        ("config", "num_meta_steps"),
    ):
        other = [
            (path, card | {part: card[part] | {name: "?"}}) for path, card in cards
        ]
        assert transfer._folders(row, other) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results=gone.jsonl"], "error: no gone.jsonl: run experiments.compare"),
        (["--results=r.jsonl"], "error: r.jsonl has no budget with distilled"),
        (["--results=r.jsonl", "--transfer=magic"], "error: unknown model 'magic'"),
    ],
)
def test_the_command_says_errors_in_a_line(tmp_path, arguments, message):
    (tmp_path / "r.jsonl").touch()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.claims", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_figure_4_has_distilled_sets_twice():
    asked = [
        active_row(method=method, num_labelled=n, seed=seed, accuracies=[a, a + 0.1])
        for method in ("random", "bald")
        for n, a in ((20, 0.5), (40, 0.6))
        for seed in (0, 1)
    ]
    compared = [
        row_of("distilled", mean, budget=n // 2) | more
        for n, mean in ((10, 0.7), (40, 0.75), (50, 0.8))
        for more in [{"training": "native", "examples": n, "labels_read": 900}]
    ]
    compared = [row | {"preset": None} for row in compared]
    compared.append(compared[0] | {"training": "standard", "accuracy_mean": 0.1})
    found = figures.figure4(asked, compared)
    assert list(found) == [
        "random",
        "bald",
        "distilled, stored",
        "distilled, labels read",
    ]
    assert [p[:2] for p in found["bald"]] == [(20, 0.55), (40, pytest.approx(0.65))]
    stored = [p[:2] for p in found["distilled, stored"]]
    assert stored == [(10, pytest.approx(0.7)), (40, pytest.approx(0.75))]  # 50: beyond
    assert [p[0] for p in found["distilled, labels read"]] == [900]
    assert found["distilled, labels read"][0][1] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="no rows of active learning"):
        figures.figure4([], compared)


def test_figure_3_ends_where_the_rows_do(compared, tmp_path):
    """The last step of each curve is the network that was measured."""
    folder, corpus = compared
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(folder / "r.jsonl", results / "compare.jsonl")
    said = []
    drawn = figures.run(
        dataset="made_up",
        model="bag",
        budget=5,
        num_inits=TINY["test_inits"],
        results=results,
        runs=folder / "runs",
        out=tmp_path / "figures",
        place=str(corpus),
        say=said.append,
    )
    assert said[0].startswith("No Figure 4") and len(drawn) == 2
    with open(drawn[0].with_suffix(".csv"), encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    last = {line["curve"]: line for line in lines}
    native = [line for line in lines if line["curve"] == "distilled, native"]
    assert [float(line["step"]) for line in native] == [1, 2, 4]
    assert float(native[0]["accuracy"]) < float(native[-1]["accuracy"])
    rows = {cell_of(row): row for row in result_rows.read(folder / "r.jsonl")}
    for name, cell in (
        ("distilled, standard", Cell("distilled", 5, "soft")),
        ("distilled, native", Cell("distilled", 5, "soft", "native")),
        ("kmeans_medoids", Cell("kmeans_medoids", 5)),
    ):
        expected = rows[cell]["accuracy_mean"]
        assert float(last[name]["accuracy"]) == pytest.approx(expected, abs=1e-6)
    tuned = rows[Cell("distilled", 5, "soft")]["config"]["tuned"]
    assert float(last["distilled, standard"]["step"]) == tuned["num_steps"]
    assert (
        abs(float(last["full"]["accuracy"]) - rows[Cell("full", 0)]["accuracy_mean"])
        < 0.15
    )
    for path in drawn:
        assert path.read_text(encoding="utf-8").rstrip().endswith("</svg>")
    sizes = drawn[1].with_suffix(".csv").read_text().splitlines()
    assert sizes[0] == "inner step,step size" and len(sizes) == 1 + TINY["num_passes"]
    with pytest.raises(ValueError, match="--inits must be at least 2, got 1"):
        figures.run(dataset="made_up", model="bag", budget=5, num_inits=1)
