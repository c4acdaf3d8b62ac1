"""One network trained on what another has distilled, and the figures of it."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import artifact, measured, results
from distill_jax import transfer as moving
from distill_jax.report import claims, figures, verdict
from distill_jax.train import Judge
from experiments import claims as claims_experiment
from experiments import figures as figures_experiment
from tests.test_results import active_row, compare_row

ROOT = Path(__file__).parents[1]
TARGET, BUDGETS = "text_cnn", (1, 5)
PROTOCOL = dj.Protocol(
    test_inits=4,
    tuning_inits=2,
    selection_seeds=2,
    batch=8,
    validation_examples=40,
    full_epochs=60,
)
RECIPE = dj.recipe(
    "bag",
    inner__passes=4,
    meta__steps=30,
    meta__validate_every=10,
    meta__checkpoint_every=10,
    meta__real_batch=32,
    meta__real_chunk=32,
    meta__validation_inits=2,
    meta__validation_examples=40,
)


def write_corpus(folder: Path) -> Path:
    """Three classes, each with words of its own among those of all."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, size in (("train", 90), ("validation", 45), ("test", 45)):
        lines = ["text\tlabel"]
        for i in range(size):
            own = [f"w{i % 3}{rng.integers(4)}" for _ in range(2)]
            words = own + [f"all{k}" for k in rng.integers(8, size=4)]
            words.append(f"n{split}{i}")
            lines.append(" ".join(rng.permutation(words)) + f"\tclass{i % 3}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison on made-up text: the folder of its runs, its rows and corpus."""
    folder = tmp_path_factory.mktemp("compared")
    corpus = write_corpus(folder / "made_up")
    task = dj.make_task(corpus, "bag", embedder="random", length=6, hidden=8)
    source = {"dataset": str(corpus), "vectors": "random"}
    task = dataclasses.replace(task, source=source)
    methods = {name: dj.selected(name) for name in ("random", "kmeans_medoids")}
    run = folder / "runs" / "compare-made_up-bag"
    methods["distilled"] = dj.distilled(RECIPE, folder=run, seeds=2)
    dj.compare(
        task,
        methods,
        BUDGETS,
        protocol=PROTOCOL,
        lines=("full", "majority"),
        many_at={"distilled": [5]},
        rows=folder / "r.jsonl",
    )
    return folder, corpus


class Moved:
    """A transfer in this process, into a copy of the rows."""

    def __init__(self, compared, folder, **changes):
        source, self.corpus = compared
        self.results, self.said = folder / "r.jsonl", []
        if not self.results.exists():
            shutil.copy(source / "r.jsonl", self.results)
        before = len(results.read(self.results))
        dry_run = changes.pop("dry_run", False)
        values = {
            "transfer": TARGET,
            "runs": str(source / "runs"),
            "methods": "random,kmeans_medoids",
            "dataset": str(self.corpus),
        }
        self.claims = claims_experiment.run(
            values | changes, rows=self.results, dry_run=dry_run, say=self.said.append
        )
        self.rows = results.read(self.results)[before:]


@pytest.fixture(scope="module")
def transferred(compared, tmp_path_factory):
    return Moved(compared, tmp_path_factory.mktemp("moved"))


def cell(row):
    return row["method"], row["examples_per_class"], row["labels"]


def planned():
    names = (("random", "hard"), ("kmeans_medoids", "hard"))
    ways = (*names, ("distilled", "soft"), ("distilled", "hard"))
    return [(name, n, labels) for n in BUDGETS for name, labels in ways]


def facts(row):
    clock = {"seconds", "compute_seconds", "command", "commit"}
    return {name: value for name, value in row.items() if name not in clock}


def of_source(path, method, budget, labels="hard", training="standard"):
    wanted = {"method": method, "labels": labels, "training": training}
    rows = [r for r in results.read(path) if r["preset"] is None]
    if method != "full":
        wanted["examples_per_class"] = budget
    found = results.find(rows, model="bag", **wanted)
    assert found is not None
    return found


def test_each_cell_is_a_row_of_the_target(transferred):
    rows = {cell(row): row for row in transferred.rows}
    assert list(rows) == planned()
    for (method, budget, labels), row in rows.items():
        assert (row["preset"], row["model"]) == ("transfer", TARGET)
        if method != "distilled":
            continue
        source = row["config"]["settings"]["method"]["source"]
        own = of_source(transferred.results, method, budget, labels)
        assert source["model"] == "bag" and source["network"] == {"hidden": 8}
        assert len(source["sha256"]) == row["num_seeds"] == own["num_seeds"]
        for name in ("bytes", "labels_read", "data"):
            assert row[name] == own[name]
        assert row["config"]["inits"] == own["config"]["inits"]
        assert row["accuracies"] != own["accuracies"]
    assert rows["distilled", 5, "soft"]["num_seeds"] == 2
    # The words of the corpus tell the classes, also to another network.
    assert rows["distilled", 5, "hard"]["accuracy_mean"] > 0.45


def test_it_trains_on_what_was_distilled(compared, transferred, monkeypatch, tmp_path):
    """A cell that is lost is done again, and the same, from the tensors on disk."""
    seen = []
    real = Judge.test_accuracies

    def watched(judge, sets, tuned, inits):
        seen.append([jax.tree.map(np.asarray, one.batch) for one in sets])
        return real(judge, sets, tuned, inits)

    monkeypatch.setattr(Judge, "test_accuracies", watched)
    lost = ("distilled", 5)
    kept = [
        row
        for row in results.read(transferred.results)
        if row["preset"] is None or cell(row)[:2] != lost
    ]
    results.append(tmp_path / "r.jsonl", kept)
    again = Moved(compared, tmp_path)
    before = [row for row in transferred.rows if cell(row)[:2] == lost]
    assert list(map(facts, again.rows)) == list(map(facts, before))
    paths = sorted((compared[0] / "runs").glob("*/5pc-seed*/artifact"))
    assert len(paths) == len(seen[0]) == 2
    for path, batch in zip(paths, seen[0], strict=True):
        there = artifact.load(path).arrays
        np.testing.assert_array_equal(batch.x, there["x"][0])
        np.testing.assert_allclose(batch.y, there["y"][0], atol=1e-6)


def test_a_second_run_does_nothing(compared, transferred, monkeypatch):
    monkeypatch.setattr(moving, "compare", None)
    before = transferred.results.read_bytes()
    again = Moved(compared, transferred.results.parent)
    assert again.rows == [] and transferred.results.read_bytes() == before
    assert again.said[0] == "made_up, bag to text_cnn: 0 of 6 to do."


def test_real_rows_are_those_of_a_comparison(compared, transferred, tmp_path):
    """So they stand in for each other, whichever was run first."""
    task = dj.make_task(compared[1], TARGET, embedder="random", length=6)
    (own,) = dj.compare(
        task,
        {"random": dj.selected("random")},
        [5],
        protocol=PROTOCOL,
        lines=(),
        rows=tmp_path / "r.jsonl",
    )
    (row,) = [r for r in transferred.rows if cell(r) == ("random", 5, "hard")]
    assert facts(own) == facts(row) | {"preset": None}
    results.append(tmp_path / "r.jsonl", results.read(compared[0] / "r.jsonl"))
    again = Moved(compared, tmp_path, methods="random", dry_run=True)
    assert "  random at 5 per class" not in again.said
    assert "  random at 1 per class" in again.said


def test_the_claim_of_transfer_is_answered(transferred):
    found = [claim for claim in transferred.claims if claim.network == TARGET]
    assert [claim.question for claim in found] == [
        claims.VS_RANDOM.format("bag"),
        claims.VS_BEST.format("bag"),
    ]
    assert [len(claim.pairs) for claim in found] == [2, 2]
    told = "transfer: distilled with bag beats random (text_cnn)?"
    assert told in transferred.said[-1]


def test_sets_of_two_networks_do_not_beat_each_other_away(transferred):
    """They have one cell, and no recipe of the network that is trained."""
    (row,) = [r for r in transferred.rows if cell(r) == ("distilled", 5, "soft")]
    settings = row["config"]["settings"]
    source = settings["method"]["source"] | {"model": "mean_cnn"}
    method = settings["method"] | {"source": source}
    config = row["config"] | {"settings": settings | {"method": method}}
    other = row | {"config": config | {"validation_accuracy": 1.0}}
    assert verdict.of_best_recipe([row, other]) == [row, other]


def test_a_dry_run_writes_nothing(compared, tmp_path):
    before = (compared[0] / "r.jsonl").read_bytes()
    run = Moved(compared, tmp_path, dry_run=True, budgets="1")
    assert run.rows == [] and run.results.read_bytes() == before
    assert [line.strip() for line in run.said[-3:]] == [
        f"{name} at 1 per class" for name in ("random", "kmeans_medoids", "distilled")
    ]
    assert "made_up, bag to text_cnn: 3 of 3 to do. Estimate: " in run.said[-4]


def test_a_set_that_is_gone_is_left_out(compared, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(compared[0] / "runs", runs)
    shutil.rmtree(next(runs.glob("*/5pc-seed1-*")))
    run = Moved(compared, tmp_path, runs=str(runs), dry_run=True)
    assert run.said[0].startswith("Left out: made_up, bag at 5 per class: not all of")
    assert "3 of 3 to do" in run.said[1]
    shutil.rmtree(next(runs.glob("*/1pc-seed0-*")))
    with pytest.raises(FileNotFoundError, match="holds no distilled set of the rows"):
        Moved(compared, tmp_path, runs=str(runs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer": "magic"}, "unknown model 'magic'; known: bag"),
        ({"transfer": "bag"}, "nothing to transfer: bag is what has distilled"),
        ({"corpora": "imdb"}, "--corpora: no distilled row is of 'imdb'; there are"),
        ({"sources": "bilstm"}, "--sources: no distilled row is of 'bilstm'"),
        ({"budgets": "3"}, "--budgets: no distilled row is of 3; there are: 1, 5"),
        ({"budgets": "x"}, "--budgets must be whole numbers from 1, with commas"),
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


def cards_of(folder):
    paths = sorted((folder / "runs").glob(f"*/*/artifact/{artifact.CARD}"))
    return [(path.parent, artifact.load(path.parent).card) for path in paths]


def test_sets_are_found_by_all_that_made_them(compared):
    row = of_source(compared[0] / "r.jsonl", "distilled", 5, "soft")
    cards = cards_of(compared[0])
    found = measured.folders_of(row, cards) or []
    assert [path.parent.name[:9] for path in found] == ["5pc-seed0", "5pc-seed1"]
    for part, name in (
        ("corpus", "data"),
        ("model", "settings"),
        ("preprocessing", "length"),
        ("config", "recipe"),
        ("config", "seed"),
    ):
        other = [
            (path, card | {part: card[part] | {name: "?"}}) for path, card in cards
        ]
        assert measured.folders_of(row, other) is None, name
    # A name decides nothing.
    for _, card in cards:
        card["corpus"]["name"] = "moved"
    assert measured.folders_of(row, cards) == found


def test_rows_of_before_content_was_told_find_theirs():
    told = {"num_meta_steps": 9, "corpus": "a", "vocabulary": "v", "seed": 3}
    settings = {"distilled": told, "seeds": 2, "fit_batch": 8, "test_inits": 4}
    row = compare_row(config={"settings": settings})
    cards = [
        (
            Path(f"{corpus}{seed}"),
            {
                "corpus": {"name": corpus},
                "vocabulary": {"sha256": "v"},
                "config": {"num_meta_steps": 9, "seed": seed, "full_epochs": 7},
            },
        )
        for corpus in "ba"
        for seed in (3, 4)
    ]
    assert measured.folders_of(row, cards) == [Path("a3"), Path("a4")]
    assert measured.folders_of(row, cards[:3]) is None
    first = artifact.Artifact({}, cards[2][1])
    protocol = measured.Measured(row, (first,)).protocol
    expected = dj.Protocol(seed=3, batch=8, test_inits=4, full_epochs=7)
    assert protocol == expected


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


# The figures


def test_figure_4_has_distilled_sets_twice():
    asked = [
        active_row(method=method, num_labelled=n, seed=seed, accuracies=[a, a + 0.1])
        for method in ("random", "bald")
        for n, a in ((20, 0.5), (40, 0.6))
        for seed in (0, 1)
    ]

    def distilled(n, mean, training="native"):
        more = {"examples": n, "labels_read": 900, "accuracy_mean": mean}
        return compare_row(method="distilled", training=training, preset=None, **more)

    compared = [distilled(10, 0.7), distilled(40, 0.75), distilled(50, 0.8)]
    compared.append(distilled(10, 0.1, "standard"))
    found = figures.over_labels(asked, compared)
    stored, read = "distilled, stored", "distilled, labels read"
    assert list(found) == ["random", "bald", stored, read]
    assert [p[:2] for p in found["bald"]] == [(20, 0.55), (40, pytest.approx(0.65))]
    assert [p[:2] for p in found[stored]] == [(10, 0.7), (40, 0.75)]  # 50: beyond
    assert [p[:2] for p in found[read]] == [(900, 0.75)]
    with pytest.raises(ValueError, match="no rows of active learning"):
        figures.over_labels([], compared)


def test_figure_3_ends_where_the_rows_do(compared, tmp_path):
    """The last step of each curve is the network that was measured."""
    folder, corpus = compared
    there = tmp_path / "results"
    there.mkdir()
    shutil.copy(folder / "r.jsonl", there / "compare.jsonl")
    said = []
    values = {
        "dataset": "made_up",
        "model": "bag",
        "budget": 5,
        "inits": PROTOCOL.test_inits,
        "results": str(there),
        "runs": str(folder / "runs"),
        "out": str(tmp_path / "figures"),
        "place": str(corpus),
    }
    drawn = figures_experiment.run(values, say=said.append)
    assert said[0].startswith("No Figure 4") and len(drawn) == 2
    with open(drawn[0].with_suffix(".csv"), encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    last = {line["curve"]: line for line in lines}
    native = [line for line in lines if line["curve"] == "distilled, native"]
    assert [float(line["step"]) for line in native] == [1, 2, 4]
    assert float(native[0]["accuracy"]) < float(native[-1]["accuracy"])
    path = folder / "r.jsonl"
    for name, row in (
        ("distilled, standard", of_source(path, "distilled", 5, "soft")),
        ("distilled, native", of_source(path, "distilled", 5, "soft", "native")),
        ("kmeans_medoids", of_source(path, "kmeans_medoids", 5)),
    ):
        expected = pytest.approx(row["accuracy_mean"], abs=1e-6)
        assert float(last[name]["accuracy"]) == expected
    tuned = of_source(path, "distilled", 5, "soft")["config"]["tuned"]
    assert float(last["distilled, standard"]["step"]) == tuned["num_steps"]
    full = of_source(path, "full", 0)["accuracy_mean"]
    assert abs(float(last["full"]["accuracy"]) - full) < 0.15
    for figure in drawn:
        assert figure.read_text(encoding="utf-8").rstrip().endswith("</svg>")
    sizes = drawn[1].with_suffix(".csv").read_text().splitlines()
    assert sizes[0] == "inner step,step size" and len(sizes) == 1 + 4
    with pytest.raises(ValueError, match="--inits must be at least 2, got 1"):
        figures_experiment.run(values | {"inits": 1})
    rows = [r for r in results.read(path) if r["method"] != "random"]
    one = measured.measured(rows, folder / "runs", budgets=[5])[0][5]
    with pytest.raises(ValueError, match="no row of random beside 5 per class"):
        figures.beside(one.row, rows, "random")
