"""Distilled beside chosen sentences: from flags to rows, on made-up text."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax import active, data, queries
from distill_jax import results as result_rows
from distill_jax.data import resplit
from distill_jax.loop import Interrupted
from distill_jax.report import comparison_tables, verdict
from experiments import cells, compare, fitting, recipe, running
from experiments.scoring import Cell, cell_of
from tests.test_results import compare_row

ROOT = Path(__file__).parents[1]
TINY = {
    "model": "bag",
    "model_settings": ("hidden=8",),
    "vectors": "random",
    "length": 6,
    "budgets": "1,5",
    "methods": "full,majority,random,kmeans_medoids,query:bald,distilled",
    "num_passes": 4,
    "num_meta_steps": 30,
    "validate_every": 10,
    "checkpoint_every": 10,
    "real_batch": 32,
    "real_chunk": 32,
    "validation_inits": 2,
    "validation_examples": 40,
    "test_inits": 4,
    "selection_seeds": 2,
    "distill_seeds": 2,
    "many_at": "5",
    "full_epochs": 60,
    "tuning_inits": 2,
    "fit_batch": 8,
    "passes": 3,
    "pool_size": 60,
}
NUM_CELLS = 2 + 2 * (2 + 3 + 1 + 2)


def write_corpus(folder: Path, seed: int = 0) -> Path:
    """Three classes, each with words of its own among those of all."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, size in (("train", 90), ("validation", 45), ("test", 45)):
        lines = ["text\tlabel"]
        for i in range(size):
            own = [f"w{i % 3}{rng.integers(4)}" for _ in range(2)]
            words = (
                own + [f"all{k}" for k in rng.integers(8, size=4)] + [f"n{split}{i}"]
            )
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
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made_up")


class Run:
    """A comparison in this process, and what it said."""

    def __init__(self, corpus, folder: Path, dry_run=False, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.config = compare.Config(**TINY | {"dataset": str(corpus)} | changes)
        self.rows = compare.run(
            self.config,
            out=self.out,
            results=self.results,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def lines(self):
        return self.results.read_text().splitlines()


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("whole"))


def cell_rows(rows):
    return {cell_of(row): row for row in rows}


def facts(row):
    """What a repeated cell must give again."""
    clock = {"seconds", "compute_seconds", "command", "commit"}
    return {name: value for name, value in row.items() if name not in clock}


def test_every_cell_is_a_row(whole):
    rows = cell_rows(result_rows.read(whole.results))
    assert list(rows) == compare.plan(whole.config) and len(rows) == NUM_CELLS
    N, n = 90, 15
    random = rows[Cell("random", 5)]
    assert (random["num_seeds"], random["num_inits"]) == (4, 2)
    assert random["config"]["inits"] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert random["labels_read"] == n
    assert rows[Cell("kmeans_medoids", 5)]["labels_read"] == N
    assert rows[Cell("random", 5, "soft")]["labels_read"] == N
    asked = rows[Cell("query:bald", 5)]
    assert (asked["num_seeds"], asked["num_inits"]) == (2, 4)
    assert asked["labels_read"] == n and asked["examples"] == n
    native = rows[Cell("distilled", 5, "soft", "native")]
    plain = rows[Cell("distilled", 5, "soft", "standard")]
    hard = rows[Cell("distilled", 5, "hard", "standard")]
    assert native["num_seeds"] == plain["num_seeds"] == 2
    assert rows[Cell("distilled", 1, "soft", "native")]["num_seeds"] == 1
    sentences = 4 * n * 6 * 50
    assert plain["bytes"] == sentences + 4 * n * 3
    assert native["bytes"] == plain["bytes"] + 4 * 4
    assert hard["bytes"] == sentences + 4 * n
    full = rows[Cell("full", 0)]
    assert full["relative_accuracy"] == 1 and full["examples"] == N
    majority = rows[Cell("majority", 0, None, None)]
    assert majority["accuracy_mean"] == pytest.approx(1 / 3)
    for row in rows.values():
        low, high = row["interval"]
        assert low <= row["accuracy_mean"] <= high + 1e-9
        if row["method"] != "full":
            assert row["full_accuracy_mean"] == full["accuracy_mean"]


def test_it_learns(whole):
    """Fifteen examples say more than three, and all of them the most."""
    rows = cell_rows(whole.rows)
    few, more = (rows[Cell("kmeans_medoids", n)]["accuracy_mean"] for n in (1, 5))
    assert 1 / 3 < few < more < rows[Cell("full", 0)]["accuracy_mean"]
    hard = rows[Cell("distilled", 5, "hard", "standard")]["accuracy_mean"]
    soft = rows[Cell("distilled", 5, "soft", "standard")]["accuracy_mean"]
    assert min(hard, soft) > 0.5 and hard != soft
    assert "distilled beats the best real method" in whole.said[-1].lower()


def test_a_second_run_does_nothing(whole, corpus, monkeypatch):
    def never(*_):
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(cells.Workbench, "run", never)
    before = whole.results.read_bytes()
    again = Run(corpus, whole.results.parent)
    assert whole.results.read_bytes() == before
    assert again.rows == whole.rows
    assert f"{NUM_CELLS} are in" in again.said[-2]


def test_what_is_missing_is_done_again_and_the_same(
    whole, corpus, tmp_path, monkeypatch
):
    """A comparison that was stopped; its distillations are still there."""
    lost = (Cell("random", 5), Cell("query:bald", 1), Cell("distilled", 5, "hard"))
    kept = [row for row in whole.rows if cell_of(row) not in lost]
    (tmp_path / "run").symlink_to(whole.out)
    result_rows.append(tmp_path / "r.jsonl", kept)

    def never(*_, **__):
        raise AssertionError("a set was distilled again")

    monkeypatch.setattr(running, "distill", never)
    again = Run(corpus, tmp_path)
    assert len(again.lines) == NUM_CELLS
    rows, expected = cell_rows(again.rows), cell_rows(whole.rows)
    for cell in lost:
        assert facts(rows[cell]) == facts(expected[cell])


def test_other_settings_are_other_cells(whole, corpus):
    """Only cells that a setting concerns are to do again."""
    again = Run(corpus, whole.results.parent, dry_run=True, passes=4)
    assert [line.strip() for line in again.said[-2:]] == [
        str(Cell("query:bald", 1)),
        str(Cell("query:bald", 5)),
    ]
    again = Run(corpus, whole.results.parent, dry_run=True, num_meta_steps=31)
    assert sum("  distilled" in line for line in again.said) == 6
    assert not any("  random" in line for line in again.said)


def test_a_dry_run_writes_nothing(corpus, tmp_path):
    run = Run(corpus, tmp_path, dry_run=True, methods="random,distilled")
    assert run.rows == [] and not list(tmp_path.iterdir())
    assert any(line.startswith("Estimate: ") for line in run.said)
    assert f"  {Cell('random', 5)}" in run.said


def test_rows_survive_a_stop(corpus, tmp_path, monkeypatch):
    """Ctrl-C in a distillation: the rows before it are there, and it goes on."""
    choices = {"methods": "random,distilled", "budgets": "5", "soft_labels": False}
    settings = {"many_at": "", "num_meta_steps": 20, **choices}
    real = running.distill

    def stopped(step, state, next_batch, *args, **kwargs):
        def signalled(number):
            if number == 12:
                os.kill(os.getpid(), 2)
            return next_batch(number)

        return real(step, state, signalled, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(running, "distill", stopped)
        Run(corpus, tmp_path, **settings)
    assert len(result_rows.read(tmp_path / "r.jsonl")) == 1
    resumed = []

    def watched(*args, **kwargs):
        result = real(*args, **kwargs)
        resumed.append(result.resumed_from)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(running, "distill", watched)
        run = Run(corpus, tmp_path, **settings)
    assert resumed == [13] and len(run.lines) == 4


def test_a_query_sees_no_label_it_did_not_ask_for(whole, corpus, tmp_path):
    task = recipe.load(whole.config, lambda text: None)
    bench = cells.Workbench(whole.config, task, tmp_path, whole.results)
    best = fitting.Recipe(0.01, 50)
    for name in ("bald", "badge", "margin"):
        query = queries.get(name)
        asked = bench._acquired(query, 9, best, 0)
        assert len(set(asked)) == 9
        hidden = np.setdiff1d(np.arange(90), asked)
        wrong = np.array(bench.labels)
        wrong[hidden] = (wrong[hidden] + 1) % 3
        other = cells.Workbench(
            whole.config,
            dataclasses.replace(
                task, train=task.train.replace(y=jax.nn.one_hot(wrong, 3))
            ),
            tmp_path,
            whole.results,
        )
        np.testing.assert_array_equal(other._acquired(query, 9, best, 0), asked)
    # The labels it did ask for do matter.
    wrong = (np.array(bench.labels) + 1) % 3
    wrong[asked[::2]] = 0
    other.labels = wrong
    assert not np.array_equal(other._acquired(query, 9, best, 0), asked)


def test_a_start_and_four_rounds(whole, tmp_path, monkeypatch):
    task = recipe.load(whole.config, lambda text: None)
    bench = cells.Workbench(whole.config, task, tmp_path, whole.results)
    seen = []
    real = active.acquire

    def watched(query, pool, oracle, sizes, *args):
        seen.append((int((pool.acquired_round == 0).sum()), sizes))
        return real(query, pool, oracle, sizes, *args)

    monkeypatch.setattr(active, "acquire", watched)
    for n in (3, 15):
        bench._acquired(queries.get("k_center"), n, fitting.Recipe(0.01, 50), 0)
    assert seen == [(1, [1, 1]), (3, [3, 3, 3, 3])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "random,magic"}, "unknown method 'magic'; known: all, full"),
        ({"budgets": "1,two"}, "--budgets must be whole numbers from 1"),
        ({"budgets": "0"}, "--budgets must be whole numbers from 1"),
        ({"budgets": "31"}, "class 'class0' has only 30 training examples"),
        ({"pool_size": 14}, "--pool_size=14 is less than the 15 examples"),
        ({"examples_per_class": 3}, "--examples_per_class is not for comparisons"),
        ({"select_on": "test"}, "--select_on is not for comparisons"),
        ({"theta_0": "fixed"}, "--theta_0 must be random"),
        ({"dropout": 0.0}, "--dropout must be between 0 and 1"),
        ({"tuning_inits": 0}, "--tuning_inits must be at least 1"),
        ({"test_inits": 1}, "--test_inits must be at least 2"),
        ({"selection_seeds": 1}, "--selection_seeds must be at least 2"),
        ({"passes": 1}, "bald"),
        ({"many_at": "x"}, "--many_at must be whole numbers"),
    ],
)
def test_bad_settings_are_told_before_any_work(
    corpus, tmp_path, monkeypatch, change, message
):
    def never(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(cells.Workbench, "run", never)
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_distilled_sets_are_cut_into_minibatches():
    config = compare.Config(distill_batch=32, num_passes=20)
    cut = config.distillation(50, 6)
    assert (cut.num_minibatches, cut.num_passes) == (10, 2)
    whole = config.distillation(5, 6, seed=2)
    assert (whole.num_minibatches, whole.num_passes, whole.seed) == (1, 20, 2)


def test_the_command_says_errors_in_a_line(corpus, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", f"--dataset={corpus}"]
        + ["--methods=magic", f"--results={tmp_path / 'r.jsonl'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: unknown method 'magic'")


def test_all_splits_pooled_and_cut_anew(corpus):
    dataset = data.load(str(corpus))
    whole = resplit.pooled(dataset)
    sizes = {name: len(part) for name, part in whole.splits.items()}
    assert sizes == {"train": 144, "validation": 15, "test": 21}
    assert np.bincount(whole.test.labels).min() >= 6
    texts = [text for part in whole.splits.values() for text in part.texts]
    before = [text for part in dataset.splits.values() for text in part.texts]
    assert sorted(texts) == sorted(before) and len(set(texts)) == 180
    assert whole.name == f"{dataset.name}-pooled"
    again = resplit.pooled(data.load(str(corpus)))
    assert again.test.texts == whole.test.texts


def test_the_table_of_the_comparison_paper(corpus, tmp_path):
    """Original, distilled and random at a share of train, with the errata."""
    said: list[str] = []
    preset = compare.PRESETS["anonymous2022"] | {"percent": 5.0}
    changes = {"dataset": str(corpus), "pooled": True, "num_meta_steps": 10}
    methods = {"methods": "full,majority,random,distilled"}
    rows = compare.run(
        compare.Config(**TINY | preset | {"model": "bag"} | changes | methods),
        out=tmp_path / "run",
        results=tmp_path / "compare.jsonl",
        preset="anonymous2022",
        say=said.append,
    )
    assert "5% of 144 is 2 a class, 4.167%." in said
    assert {row["examples"] for row in rows if row["method"] == "random"} == {6}
    assert all(row["preset"] == "anonymous2022" for row in rows)
    assert "Errata of the comparison paper" in said[-1] and "\n  19. " in said[-1]
    table = comparison_tables.anonymous2022({"compare": rows})
    (line,) = (x for x in table.splitlines() if x.startswith("| made_up-pooled, bag"))
    assert "| 6 (4.17%) | " in line and "33.3" in line
    assert "No rows" in comparison_tables.compare({"compare": rows})


def scored(method, mean, budget, *, validation=None, labels="hard", spread=0.01):
    """A row of two sets with six theta_0, which move all methods alike."""
    shared = spread * np.linspace(-1, 1, 6)
    values = mean + np.stack([shared, shared + 0.001])
    return compare_row(
        method=method,
        examples=2 * budget,
        examples_per_class=float(budget),
        labels=labels,
        training="standard",
        num_inits=6,
        accuracy_mean=float(values.mean()),
        relative_accuracy=float(values.mean()) / 0.75,
        accuracies=values.tolist(),
        interval=[float(values.min()), float(values.max())],
        config={
            "validation_accuracy": mean if validation is None else validation,
            "inits": [list(range(6))] * 2,
            "tuned": {},
            "settings": {},
        },
    )


@pytest.fixture
def rows():
    return [
        scored("distilled", 0.7, 1, labels="soft"),
        scored("distilled", 0.6, 1),
        scored("random", 0.5, 1),
        scored("kmeans_medoids", 0.8, 1, validation=0.4),  # lucky on test alone
        scored("kmeans_medoids", 0.72, 1, labels="soft"),
        scored("distilled", 0.6, 2, labels="soft"),
        scored("random", 0.65, 2),
        scored("distilled", 0.65, 5, labels="soft"),
        scored("random", 0.65, 5),
    ]


def test_the_best_of_validation_are_compared(rows):
    first, second, third = verdict.verdicts(rows)
    assert (first.real["method"], first.distilled["labels"]) == ("random", "soft")
    assert first.found.difference == pytest.approx(0.2)
    assert [v.answer for v in (first, second, third)] == [
        "not told apart",  # six signs give p = 2 / 64, times three budgets
        "not told apart",
        "not told apart",
    ]
    assert first.p_value == pytest.approx(3 * 2 / 64)
    alone = verdict.verdicts(rows[:5])
    assert alone[0].answer == "yes" and alone[0].p_value == pytest.approx(2 / 64)
    assert str(alone[0]).startswith("yes: +20.0 points [")
    assert verdict.verdicts(rows[5:7])[0].answer == "no"
    (soft,) = verdict.verdicts(rows[:5], "soft")
    assert soft.real["labels"] == "soft" and soft.answer == "no"
    (hard,) = verdict.verdicts(rows[:5], "hard")
    assert hard.distilled["labels"] == "hard" and hard.answer == "yes"


def test_the_interval_has_its_say():
    """All theta_0 agree, and the sets of one method do not."""
    ours, real = scored("distilled", 0.52, 1), scored("random", 0.5, 1)
    values = np.array([[0.3] * 6, [0.7] * 6])
    real |= {"accuracies": values.tolist(), "interval": [0.3, 0.7]}
    (got,) = verdict.verdicts([ours, real])
    assert got.p_value < 0.05 and got.found.low < 0 < got.found.high
    assert got.answer == "not told apart"


def test_the_table(rows):
    text = comparison_tables.compare({"compare": rows})
    lines = text.splitlines()
    assert "| rotten_tomatoes, text_cnn | 1 a class | 2 a class | 5 a class |" in lines
    (random,) = (line for line in lines if line.startswith("| random |"))
    assert random == "| random | 50.0 [49.0, 51.1] | 65.0 [64.0, 66.1] " + (
        "| 65.0 [64.0, 66.1] |"
    )
    (answers,) = (line for line in lines if line.startswith("| distilled beats"))
    assert answers.count("not told apart") == 3
    (soft,) = (line for line in lines if "with soft labels on both sides" in line)
    assert soft.endswith("| - | - |")
    newer = scored("random", 0.4, 1)
    assert "| random | 40.0" in comparison_tables.compare({"compare": [*rows, newer]})
    assert json.dumps(rows)  # as the file has them
