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

import distill_jax as dj
from distill_jax import active, data, sources
from distill_jax import results as result_rows
from distill_jax.data import resplit
from distill_jax.distill import at_most
from distill_jax.loop import Interrupted
from distill_jax.methods import named_methods
from distill_jax.report import comparison_tables, verdict
from distill_jax.train import TrainingSet
from experiments import cli, compare, presets
from tests.test_results import compare_row

ROOT = Path(__file__).parents[1]
LIBRARY = sys.modules["distill_jax.compare"]
TINY = {
    "model": "bag",
    "model_settings": ["hidden=8"],
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
NUM_GROUPS, NUM_ROWS = 2 + 2 * 4, 2 + 2 * (2 + 2 + 1 + 3)


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

    def __init__(self, corpus, folder: Path, dry_run=False, preset=None, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.rows = compare.run(
            TINY | {"dataset": str(corpus)} | changes,
            out=self.out,
            rows=self.results,
            preset=preset,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def lines(self):
        return self.results.read_text().splitlines()


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("whole"))


def cell_of(row):
    per_class = 0 if row["method"] in LIBRARY.LINES else row["examples_per_class"]
    return row["method"], per_class, row["labels"], row["training"]


def cell_rows(rows):
    return {cell_of(row): row for row in rows}


def facts(row):
    """What a repeated cell must give again."""
    clock = {"seconds", "compute_seconds", "command", "commit"}
    return {name: value for name, value in row.items() if name not in clock}


def test_every_cell_is_a_row(whole):
    rows = cell_rows(result_rows.read(whole.results))
    assert len(rows) == len(whole.lines) == NUM_ROWS
    N, n = 90, 15
    random = rows["random", 5, "hard", "standard"]
    assert (random["num_seeds"], random["num_inits"]) == (4, 2)
    assert random["config"]["inits"] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert random["labels_read"] == n
    assert rows["kmeans_medoids", 5, "hard", "standard"]["labels_read"] == N
    assert rows["random", 5, "soft", "standard"]["labels_read"] == N
    asked = rows["query:bald", 5, "hard", "standard"]
    assert (asked["num_seeds"], asked["num_inits"]) == (2, 4)
    assert asked["labels_read"] == n and asked["examples"] == n
    native = rows["distilled", 5, "soft", "native"]
    plain = rows["distilled", 5, "soft", "standard"]
    hard = rows["distilled", 5, "hard", "standard"]
    assert native["num_seeds"] == plain["num_seeds"] == 2
    assert rows["distilled", 1, "soft", "native"]["num_seeds"] == 1
    sentences = 4 * n * 6 * 50
    assert plain["bytes"] == sentences + 4 * n * 3
    assert native["bytes"] == plain["bytes"] + 4 * 4
    assert hard["bytes"] == sentences + 4 * n
    full = rows["full", 0, "hard", "standard"]
    assert full["relative_accuracy"] == 1 and full["examples"] == N
    majority = rows["majority", 0, None, None]
    assert majority["accuracy_mean"] == pytest.approx(1 / 3)
    for row in rows.values():
        low, high = row["interval"]
        assert low <= row["accuracy_mean"] <= high + 1e-9
        assert row["full_accuracy_mean"] == full["accuracy_mean"]


def test_it_learns(whole):
    """Fifteen examples say more than three, and all of them the most."""
    rows = cell_rows(whole.rows)
    few, more = (
        rows["kmeans_medoids", n, "hard", "standard"]["accuracy_mean"] for n in (1, 5)
    )
    full = rows["full", 0, "hard", "standard"]["accuracy_mean"]
    assert 1 / 3 < few < more < full
    hard = rows["distilled", 5, "hard", "standard"]["accuracy_mean"]
    soft = rows["distilled", 5, "soft", "standard"]["accuracy_mean"]
    assert min(hard, soft) > 0.5 and hard != soft
    assert "distilled beats the best real method" in whole.said[-1].lower()


def never(*_, **__):
    raise AssertionError("work was begun")


def test_a_second_run_does_nothing(whole, corpus, monkeypatch):
    monkeypatch.setattr(LIBRARY, "made_rows", never)
    before = whole.results.read_bytes()
    again = Run(corpus, whole.results.parent)
    assert whole.results.read_bytes() == before
    assert again.rows == whole.rows
    assert f"{NUM_GROUPS} are in" in "\n".join(again.said)


def test_what_is_missing_is_done_again_and_the_same(
    whole, corpus, tmp_path, monkeypatch
):
    """A comparison that was stopped; its distillations are still there."""
    lost = (("random", 5), ("query:bald", 1), ("distilled", 5))
    kept = [row for row in whole.rows if cell_of(row)[:2] not in lost]
    (tmp_path / "run").symlink_to(whole.out)
    result_rows.append(tmp_path / "r.jsonl", kept)
    monkeypatch.setattr(sources, "distill", never)
    again = Run(corpus, tmp_path)
    assert len(again.lines) == NUM_ROWS
    rows, expected = cell_rows(again.rows), cell_rows(whole.rows)
    for cell in expected:
        assert facts(rows[cell]) == facts(expected[cell])


def test_other_settings_are_other_cells(whole, corpus):
    """Only what a setting concerns is to do again."""
    again = Run(corpus, whole.results.parent, dry_run=True, passes=4)
    assert [line.strip() for line in again.said[-2:]] == [
        "query:bald at 1 per class",
        "query:bald at 5 per class",
    ]
    again = Run(corpus, whole.results.parent, dry_run=True, num_meta_steps=31)
    assert sum("  distilled" in line for line in again.said) == 2
    assert not any("  random" in line for line in again.said)


def test_a_file_of_another_content_has_rows_of_its_own(whole, tmp_path):
    """Of the same name, size and settings: a name never decides."""
    other = write_corpus(tmp_path / "made_up", seed=1)
    again = Run(other, whole.results.parent, dry_run=True)
    assert f"0 are in {whole.results}, {NUM_GROUPS} to do" in "\n".join(again.said)


def test_a_renamed_file_is_the_same_data(whole, corpus, tmp_path):
    (tmp_path / "elsewhere").symlink_to(corpus)
    again = Run(tmp_path / "elsewhere", whole.results.parent, dry_run=True)
    assert f"{NUM_GROUPS} are in" in "\n".join(again.said)


def test_rows_of_before_the_digest_answer_no_run(whole, corpus, tmp_path):
    old = [{k: v for k, v in row.items() if k != "data"} for row in whole.rows]
    result_rows.append(tmp_path / "r.jsonl", old)
    again = Run(corpus, tmp_path, dry_run=True)
    assert f"0 are in {tmp_path / 'r.jsonl'}" in "\n".join(again.said)


def test_a_dry_run_writes_nothing(corpus, tmp_path):
    run = Run(corpus, tmp_path, dry_run=True, methods="random,distilled")
    assert run.rows == [] and not list(tmp_path.iterdir())
    assert any(line.startswith("Estimate: ") for line in run.said)
    assert "  random at 5 per class" in run.said


def test_rows_survive_a_stop(corpus, tmp_path, monkeypatch):
    """Ctrl-C in a distillation: the rows before it are there, and it goes on."""
    settings = {
        "methods": "random,distilled",
        "budgets": "5",
        "soft_labels": False,
        "many_at": "",
        "num_meta_steps": 400,
    }
    real, resumed = sources.distill, []

    def stopped(*args, **kwargs):
        def report(progress):
            if progress.step == 10:
                os.kill(os.getpid(), 2)

        return real(*args, report=report, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(sources, "distill", stopped)
        Run(corpus, tmp_path, **settings)
    assert 10 <= stop.value.step < 400
    assert len(result_rows.read(tmp_path / "r.jsonl")) == 1

    def watched(*args, **kwargs):
        return real(*args, report=lambda now: resumed.append(now.step), **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "distill", watched)
        run = Run(corpus, tmp_path, **settings)
    assert resumed[0] > stop.value.step and len(run.lines) == 4


@pytest.fixture(scope="module")
def task(corpus):
    values = TINY | {"dataset": str(corpus)}
    return cli.settings(cli.Corpus, values).task(lambda text: None)


PROTOCOL = dj.Protocol(test_inits=4, tuning_inits=2, batch=8, selection_seeds=2)


def relabelled(task, labels):
    train = task.train.replace(y=jax.nn.one_hot(labels, 3))
    return dataclasses.replace(task, train=train, memo={})


def test_a_query_sees_no_label_it_did_not_ask_for(task, monkeypatch):
    monkeypatch.setattr(
        sources, "_random_recipe", lambda *_: sources.Tuned(0.01, 50, 0.0)
    )

    def asked(task, name):
        method = dj.queried(name, passes=3, pool=60, protocol=PROTOCOL)
        return method(task, 3, 0).texts

    texts = task.dataset.train.texts
    for name in ("bald", "badge", "margin"):
        found = asked(task, name)
        assert len(set(found)) == 9
        seen = np.isin(np.array(texts), np.array(found))
        wrong = np.where(seen, task.labels, (task.labels + 1) % 3)
        assert asked(relabelled(task, wrong), name) == found
    # The labels it did ask for do matter.
    rows = np.flatnonzero(seen)
    wrong = (task.labels + 1) % 3
    wrong[rows[::2]] = 0
    assert asked(relabelled(task, wrong), name) != found


def test_a_start_and_four_rounds(task, monkeypatch):
    seen = []
    real = active.acquire

    def watched(query, pool, oracle, sizes, *args):
        seen.append((int((pool.acquired_round == 0).sum()), sizes))
        return real(query, pool, oracle, sizes, *args)

    monkeypatch.setattr(active, "acquire", watched)
    for per_class in (1, 5):
        dj.queried("k_center", pool=60, protocol=PROTOCOL)(task, per_class, 0)
    assert seen == [(1, [1, 1]), (3, [3, 3, 3, 3])]


def test_methods_of_ones_own(task):
    """A function goes wherever ours go, and is told by its code, not its name."""

    def first(task, examples_per_class, seed):
        rows = [i for i in range(90) if i // 3 < examples_per_class]
        return sources.real(task, np.array(rows), labels_read=None)

    def lists(task, examples_per_class, seed):
        split = task.dataset.train
        names = [task.dataset.label_names[k] for k in split.labels[:3]]
        return split.texts[:3], names

    def softened(task, examples_per_class, seed):
        one = first(task, examples_per_class, seed)
        soft = one.batch.replace(y=0.8 * one.batch.y + 0.2 / 3)
        return [one, TrainingSet(soft)]

    settings = {"protocol": PROTOCOL, "lines": ()}
    made = dj.compare(
        task, {"first": first, "lists": lists, "soft": softened}, [1], **settings
    )
    told = [(r.method, r.labels, r.num_seeds, r.examples) for r in made]
    assert told == [
        ("first", "hard", 2, 3),
        ("lists", "hard", 2, 3),
        ("soft", "hard", 2, 3),
        ("soft", "soft", 2, 3),
    ]
    assert made[0].accuracies == made[1].accuracies == made[2].accuracies
    (group,) = LIBRARY.plan(task, {"x": first}, [1], **settings)
    (other,) = LIBRARY.plan(task, {"x": softened}, [1], **settings)
    assert group.settings != other.settings


def test_several_processes_share_the_work(task, tmp_path, monkeypatch):
    """What another holds is not begun; what it has written is taken."""
    methods = {name: dj.selected(name) for name in ("herding", "k_center")}
    rows = tmp_path / "rows.jsonl"
    settings = {"protocol": PROTOCOL, "lines": (), "rows": rows, "share": True}
    facts = {"experiment": "compare", "preset": None, "model": "bag"}
    groups = LIBRARY.plan(task, methods, [1], protocol=PROTOCOL, lines=())
    real, made = LIBRARY.made_rows, []

    def counted(judge, methods, group, *rest):
        made.append(group.name)
        return real(judge, methods, group, *rest)

    monkeypatch.setattr(LIBRARY, "made_rows", counted)

    def other_ends(seconds):  # while the first waits
        judge = LIBRARY.Judge(task, PROTOCOL)
        result_rows.append(rows, real(judge, methods, groups[0], None, facts))
        held.__exit__(None, None, None)

    monkeypatch.setattr(LIBRARY.time, "sleep", other_ends)
    held = LIBRARY._claimed(rows, task, groups[0], facts)
    assert held.__enter__()
    found = dj.compare(task, methods, [1], **settings)
    assert made == ["k_center"]
    assert [row.method for row in found] == ["herding", "k_center"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "random,magic"}, "unknown method 'magic'; known: all, full"),
        ({"budgets": "1,two"}, "--budgets must be whole numbers from 1"),
        ({"budgets": "0"}, "--budgets must be whole numbers from 1"),
        ({"budgets": "31"}, "class 'class0' has only 30 training examples"),
        ({"pool_size": 14}, "--pool_size=14 is less than the 15 examples"),
        ({"select_on": "test"}, "--select_on is not for comparisons"),
        ({"theta_0": "fixed"}, "--theta_0 must be random"),
        ({"dropout": 0.0}, "dropout must be between 0 and 1"),
        ({"tuning_inits": 0}, "--tuning_inits must be at least 1"),
        ({"test_inits": 1}, "--test_inits must be at least 2"),
        ({"selection_seeds": 1}, "--selection_seeds must be at least 2"),
        ({"words_kept": 0.5}, "--words_kept is not for comparisons"),
        ({"passes": 1}, "bald"),
        ({"many_at": "x"}, "--many_at must be whole numbers"),
    ],
)
def test_bad_settings_are_told_before_any_work(
    corpus, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(LIBRARY, "made_rows", never)
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_distilled_sets_are_cut_into_minibatches():
    recipe = dj.recipe(inner__most=32, inner__passes=20)
    cut = at_most(recipe, 300)
    assert (cut.inner.minibatches, cut.inner.passes) == (10, 2)
    assert at_most(recipe, 30) == recipe


def test_names_are_those_of_rows():
    methods, lines = named_methods(["all"], taught=True)
    assert lines == list(LIBRARY.LINES) and "query:k_center" in methods
    assert methods["random"].taught and not methods["herding"].taught


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
    changes = presets.COMPARE["anonymous2022"] | {
        "percent": 5.0,
        "model": "bag",
        "pooled": True,
        "num_meta_steps": 10,
        "methods": "full,majority,random,distilled",
    }
    run = Run(corpus, tmp_path, preset="anonymous2022", **changes)
    rows, said = run.rows, run.said
    assert "5% of 144 is 2 a class, 4.167%." in said
    assert {row["examples"] for row in rows if row["method"] == "random"} == {6}
    assert all(row["preset"] == "anonymous2022" for row in rows)
    assert any("Errata of the comparison paper" in x and "\n  19. " in x for x in said)
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
