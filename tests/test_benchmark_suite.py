"""The suite of all corpora: what is shared, what fails, two processes, and tables."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import results as result_rows
from distill_jax import sources
from distill_jax.locks import Locks
from distill_jax.loop import Interrupted
from distill_jax.report import suite_tables
from experiments import benchmark_suite as suite
from experiments import cli, compare
from tests.test_compare import (
    LIBRARY,
    TINY,
    cell_of,
    facts,
    never,
    scored,
    write_corpus,
)

ROOT = Path(__file__).parents[1]
METHODS = "full,majority,random,kmeans_medoids,query:margin,distilled"
SETTINGS = {
    name: value
    for name, value in TINY.items()
    if name not in ("model", "budgets", "methods", "many_at")
} | {"num_meta_steps": 10, "full_epochs": 20}
GROUPS = ["full", "majority"] + [
    f"{name} at 1 per class"
    for name in ("random", "kmeans_medoids", "query:margin", "distilled")
]


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "one")
    write_corpus(folder / "two", seed=1)
    return folder


def wanted(root, corpora="one", methods=METHODS, budgets="1", **changes):
    given = SETTINGS | {"methods": methods} | changes
    return suite.parts(corpora, budgets=budgets, data_root=str(root), given=given)


class Run:
    """A run in this process: its rows, and what it said."""

    def __init__(self, parts, folder: Path, **options):
        self.said, self.file = [], folder / "compare.jsonl"
        self.rows = suite.run(
            parts,
            out=folder / "runs",
            rows=self.file,
            say=self.said.append,
            **options,
        )

    @property
    def numbered(self):
        return [line for line in self.said if ": [" in line]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """One corpus, by one process, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return Run(wanted(root), folder), folder


def test_its_rows_are_those_of_a_comparison(whole, root, tmp_path):
    run, _ = whole
    assert len(run.rows) == len(result_rows.read(run.file)) == 10
    theirs = compare.run(
        wanted(root)[0].values | {"budgets": "1", "many_at": "1"},
        out=tmp_path / "run",
        rows=tmp_path / "r.jsonl",
        say=lambda _: None,
    )
    ours = {cell_of(row): row for row in run.rows}
    assert set(ours) == {cell_of(row) for row in theirs}
    for row in theirs:
        assert facts(ours[cell_of(row)]) == facts(row)
    assert "one, bag: 6 groups, 6 to do." in run.said
    assert any(line.endswith(" for what is left") for line in run.said)
    assert run.numbered[0].startswith("one, bag: [1/6] full, ")
    assert run.numbered[-1].startswith("one, bag: [6/6] distilled at 1 per class, ")


def test_what_is_done_is_not_done_again(whole, root, monkeypatch):
    run, folder = whole
    monkeypatch.setattr(LIBRARY, "made_rows", never)
    again = Run(wanted(root), folder)
    assert again.rows == run.rows
    assert any(line.endswith("0 to do.") for line in again.said)
    changed = wanted(root, num_meta_steps=11)
    told = Run(changed, folder, dry_run=True, estimates=False)
    assert told.rows == [] and told.said[-1] == "  distilled at 1 per class"
    assert told.said[-2].endswith("6 groups, 1 to do.")


def test_what_is_missing_is_done_from_the_distillations_there(
    whole, root, tmp_path, monkeypatch
):
    run, folder = whole
    kept = [row for row in run.rows if row["method"] != "distilled"]
    result_rows.append(tmp_path / "compare.jsonl", kept)
    (tmp_path / "runs").symlink_to(folder / "runs")
    monkeypatch.setattr(sources, "distill", never)
    again = Run(wanted(root), tmp_path)
    assert any(line.endswith(", 1 to do.") for line in again.said)
    assert [facts(row) for row in again.rows] == [facts(row) for row in run.rows]


def test_a_dry_run_tells_each_group_and_writes_nothing(root, tmp_path):
    run = Run(wanted(root, "one,two"), tmp_path, dry_run=True)
    assert run.rows == [] and not list(tmp_path.iterdir())
    listed = [line for line in run.said if line.startswith("  ")]
    assert [line.split(", ")[0].strip() for line in listed] == 2 * GROUPS
    assert all(line.endswith(" s") for line in listed)
    assert run.said[-1].startswith("Estimate: ") and "hours on cpu" in run.said[-1]


def test_a_group_that_fails_does_not_stop_the_others(root, tmp_path, monkeypatch):
    real = LIBRARY.made_rows

    def made(judge, methods, group, *rest):
        if group.name == "random" and judge.task.dataset.name == "one":
            raise ArithmeticError("it diverged")
        return real(judge, methods, group, *rest)

    monkeypatch.setattr(LIBRARY, "made_rows", made)
    parts = wanted(root, "one,two", "random,kmeans_medoids", soft_labels=False)
    message = "1 failed.*one, bag, random at 1 per class: it diverged"
    with pytest.raises(suite.Failed, match=message):
        Run(parts, tmp_path, estimates=False)
    rows = result_rows.read(tmp_path / "compare.jsonl")
    found = {(row["dataset"], row["method"]) for row in rows}
    both = {("two", "random"), ("two", "kmeans_medoids")}
    assert found == {("one", "kmeans_medoids"), *both}


def test_a_stop_frees_the_group_and_it_goes_on(root, tmp_path, monkeypatch):
    parts = wanted(root, methods="distilled", num_meta_steps=20)
    real, begun = sources.distill, []

    def stopped(*args, seed, **kwargs):
        begun.append(seed)
        if seed == 1:
            raise Interrupted("stopped", signal.SIGINT, 3)
        return real(*args, seed=seed, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(sources, "distill", stopped)
        Run(parts, tmp_path, estimates=False)
    assert begun == [0, 1] and not (tmp_path / "compare.jsonl").exists()

    def watched(*args, seed, **kwargs):
        begun.append(seed)
        return real(*args, seed=seed, **kwargs)

    monkeypatch.setattr(sources, "distill", watched)
    run = Run(parts, tmp_path, estimates=False)
    assert begun == [0, 1, 1] and len(run.rows) == 3
    assert all(row["num_seeds"] == 2 for row in run.rows)


# Side by side


def test_only_one_has_a_lock(tmp_path):
    locks = Locks(tmp_path / "locks", "compare")
    with locks.of("a") as first, locks.of("a") as second:
        assert (first, second) == (True, False)
        with locks.of("b") as other:
            assert other
    with locks.of("a") as again:
        assert again


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import time; from pathlib import Path\n"
        "from distill_jax.locks import Locks\n"
        f"with Locks(Path({str(tmp_path)!r}), 'compare').of('a') as mine:\n"
        "    print(mine, flush=True); time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    locks = Locks(tmp_path, "compare")
    try:
        assert child.stdout and child.stdout.readline() == "True\n"
        with locks.of("a") as mine:
            assert not mine
    finally:
        child.kill()
        child.communicate(timeout=30)
    with locks.of("a") as mine:
        assert mine


@pytest.mark.parametrize("wait", [True, False])
def test_what_others_do_is_waited_for_at_last(root, tmp_path, monkeypatch, wait):
    """All data first, as rows are told relative to it; nothing is done twice."""
    (part,) = wanted(root, methods="full,random", soft_labels=False)
    work = suite.load(part, tmp_path / "runs", None, None, lambda text: None)
    arguments = (work.task, work.methods, work.budgets)
    rows = tmp_path / "compare.jsonl"
    settings = work.settings | {"rows": rows, "folder": tmp_path}
    (theirs,) = dj.compare(work.task, {}, [1], **work.settings)
    real, made = LIBRARY.made_rows, []

    def counted(judge, methods, group, *rest):
        made.append(group.name)
        return real(judge, methods, group, *rest)

    monkeypatch.setattr(LIBRARY, "made_rows", counted)
    facts_of_all = {"experiment": "compare", "preset": None, "model": "bag"}
    key = LIBRARY.digest([work.task.sha256, facts_of_all, *work.groups[0]])
    held = Locks(tmp_path / "locks", "compare").of(key)

    def other_ends(seconds):  # while this one waits
        result_rows.append(rows, [theirs])
        held.__exit__(None, None, None)

    monkeypatch.setattr(LIBRARY.time, "sleep", other_ends)
    assert held.__enter__()
    said = []
    found = dj.compare(*arguments, **settings, share=True, wait=wait, say=said.append)
    if not wait:
        held.__exit__(None, None, None)
        assert found == [] and made == []
        return
    assert made == ["random"] and said[0].startswith("waiting for what others do: full")
    assert [row.method for row in found] == ["full", "random"]
    assert found[1].full_accuracy_mean == found[0].accuracy_mean


def flags_of(settings):
    for name, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            yield f"--{name}={item}"


def test_two_processes_share_the_work(whole, root, tmp_path):
    """Each group is done once, and each row is what one process gets."""
    command = [sys.executable, "-m", "experiments.benchmark_suite", "--corpora=one"]
    command += [f"--data_root={root}", "--budgets=1", f"--methods={METHODS}"]
    command += ["--noestimates", *flags_of(SETTINGS)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    env["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir)
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    both = [
        subprocess.Popen(
            [*command, "--out=runs", "--results=compare.jsonl"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    rows = result_rows.read(tmp_path / "compare.jsonl")
    expected = {cell_of(row): facts(row) for row in whole[0].rows}
    assert sorted(map(cell_of, rows), key=str) == sorted(expected, key=str)
    for row in rows:  # of other virtual devices, not of other numbers
        assert facts(row) | {"device": ""} == expected[cell_of(row)] | {"device": ""}
    begun = [
        line.split("] ", 1)[1]
        for out, _ in said
        for line in out.splitlines()
        if ": [" in line
    ]
    assert len(begun) == len(set(begun)) == len(rows)
    assert all(": [1/" in out for out, _ in said), "one process did all the work"


# What is asked for


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"corpora": "three"}, "corpus 'three' is not in --data_root"),
        ({"corpora": " ,"}, "--corpora must be names with commas"),
        ({"models": "bag,shiny"}, "unknown model 'shiny' in --models; known: bag"),
        ({"budgets": "0"}, "--budgets must be whole numbers"),
    ],
)
def test_bad_choices(root, choice, message):
    settings = {"corpora": "one", "data_root": str(root), "budgets": "1", "given": {}}
    with pytest.raises(ValueError, match=message):
        suite.parts(**settings | choice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": "31"}, "has only 30 training examples"),
        ({"methods": "magic"}, "unknown method 'magic'"),
        ({"pool_size": 2}, "pool_size=2 is less than the 3 examples"),
        ({"theta_0": "fixed"}, "--theta_0 must be random"),
        ({"test_inits": 1}, "--test_inits must be at least 2"),
        ({"distill_seeds": 0}, "--distill_seeds must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(root, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Run(wanted(root, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def told(part):
    """The settings that a part comes to."""
    corpus = cli.settings(cli.Corpus, part.values)
    protocol = cli.settings(dj.Protocol, part.values)
    return corpus, protocol, cli.recipe_of(part.values, corpus.model)


def test_the_budgets_of_the_groups(tmp_path):
    for name in set(suite.GROUPS["table"]) | set(suite.GROUPS["li2021"]):
        (tmp_path / name).mkdir()
    folder = {"data_root": str(tmp_path)}
    got = suite.parts("table,li2021", given={}, **folder)
    assert {part.name: part.budgets for part in got} == {
        "trec6, bag": (1, 20),
        "sst5, bag": (1, 2, 20),
        "imdb, bag": (1, 10, 12),
        "agnews_desc, bag": (27, 30),
        "dbpedia14, bag": (40,),
        "yahoo_titles, bag": (140,),
        "sst2, bag": (3,),
        "subj, bag": (5,),
    }
    for part in got:
        _, _, recipe = told(part)
        assert recipe.meta.steps == 1500
        adam = part.name == "trec6, bag"
        assert recipe.inner.optimizer == ("adam" if adam else "sgd")
    by_name = {part.name: told(part)[0].length for part in got}
    assert (by_name["trec6, bag"], by_name["imdb, bag"]) == (20, 200)
    (again,) = suite.parts("imdb", given={"length": 9}, **folder)
    assert again.budgets == (1, 10, 12) and told(again)[0].length == 9
    both = suite.parts("imdb", models="bag,mean_cnn", given={}, **folder)
    (bag, bag_protocol, plain), (cnn, protocol, recipe) = map(told, both)
    assert (plain.start.kind, bag.length, bag_protocol.full_epochs) == ("real", 200, 4)
    assert (recipe.start.kind, cnn.length, protocol.full_epochs) == ("keywords", 400, 2)
    assert (recipe.inner.optimizer, recipe.inner.lr) == ("momentum", 0.05)
    _, noisy = suite.parts(
        "imdb", models="bag,mean_cnn", given={"start": "noise"}, **folder
    )
    assert told(noisy)[2].start.kind == "noise" and told(noisy)[0].length == 400
    both = suite.parts("trec6", models="bag,text_cnn", given={}, **folder)
    assert [told(part)[0].model for part in both] == ["bag", "text_cnn"]
    assert told(both[1])[2].inner.optimizer == "adam"


def test_a_corpus_of_no_group_gets_a_thousandth_of_its_train(root, tmp_path):
    (part,) = suite.parts("one", data_root=str(root), given=SETTINGS)
    work = suite.load(part, tmp_path, None, None, lambda _: None)
    assert work.budgets == [1]
    (ours,) = (group for group in work.groups if group.name == "distilled")
    assert ours.num_seeds == 2


def test_errors_are_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark_suite", "--corpora=three"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(
        "error: corpus 'three' is not found: give --data_root"
    )
    assert not list(tmp_path.iterdir())


# The tables


def goal_rows():
    rows = [
        scored("distilled", 0.7, 1, labels="soft", validation=0.8),
        scored("distilled", 0.66, 1, validation=0.7),
        scored("kmeans_medoids", 0.5, 1, validation=0.6),
        scored("random", 0.55, 1, validation=0.5),
        scored("random", 0.6, 1, labels="soft", validation=0.9),
    ]
    full = scored("full", 0.75, 1)
    full |= {"examples": 5452, "examples_per_class": 5452 / 6, "fraction_of_train": 1.0}
    rows = [row | {"dataset": "trec6", "model": "bag"} for row in [*rows, full]]
    return rows


def test_the_table_of_targets():
    rows = goal_rows()
    text = suite_tables.suite({"compare": rows})
    (line,) = (x for x in text.splitlines() if "62.0 ± 8.8" in x)
    cell = [part.strip() for part in line.strip("|").split("|")]
    assert cell[:5] == ["trec6, bag", f"{rows[0]['examples']}"] + [
        "62.0 ± 8.8",
        "66",
        "80",
    ]
    assert cell[5].startswith("**70.") and cell[6] == "yes"
    assert cell[7].startswith("50.") and "(kmeans_medoids)" in cell[7]
    assert "mean of 1, bag" in text and " hours on " in text
    better = [row | {"preset": "anonymous2022"} for row in rows]
    assert "No rows" in suite_tables.suite({"compare": better})
    assert "No rows" in suite_tables.suite({"compare": []})


def test_a_target_has_only_rows_of_one_network_beside_it():
    """All data may be trained on later; numbers of another network are not its own."""

    def cells(rows):
        text = suite_tables.suite({"compare": rows})
        line = next(x for x in text.splitlines() if "62.0 ± 8.8" in x)
        return [part.strip() for part in line.strip("|").split("|")][7:10]

    rows = goal_rows()
    alone = {"full_accuracy_mean": None, "relative_accuracy": None}
    real, full, relative = cells([row | alone for row in rows])
    assert real == cells(rows)[0] and full == f"{100 * rows[-1]['accuracy_mean']:.1f}"
    assert float(relative) == pytest.approx(
        100 * rows[0]["accuracy_mean"] / rows[-1]["accuracy_mean"], abs=0.1
    )
    for n, row in enumerate(rows):
        row["config"] |= {"settings": {"network": {"filters": n}}}
    assert cells([row | alone for row in rows]) == ["-", "-", "-"]


def test_whether_a_target_is_exceeded():
    target = suite_tables.TARGETS[0]
    got = [suite_tables._exceeds(value, target) for value in (65.9, 66, 66.1, 80)]
    assert got == ["no", "no", "yes", "aim"]


def test_the_label_robust_table():
    """Random examples are those with the same labels; HLR is of hard ones."""
    rows = goal_rows()
    soft, hard = suite_tables.scored(rows)
    assert soft.random["labels"] == "soft" and hard.random["labels"] == "hard"
    means = {
        name: np.mean(row["accuracies"])
        for name, row in zip("shkrtf", rows, strict=True)
    }
    for one in (soft, hard):
        assert one.found.recovery == pytest.approx(means["f"] - means["h"])
        assert one.recovery.difference == pytest.approx(one.found.recovery)
    assert soft.found.improvement == pytest.approx(means["s"] - means["t"])
    assert hard.found.improvement == pytest.approx(means["h"] - means["r"])
    assert soft.recovery.low <= soft.found.recovery <= soft.recovery.high
    text = suite_tables.label_robust({"compare": rows})
    lines = [x for x in text.splitlines() if x.startswith("| trec6, bag")]
    assert len(lines) == 2 and lines[1].count("[") == 2
    assert lines[1].endswith(f"| {100 * hard.found.score:.1f} |")
    alone = [row for row in rows if row["method"] != "full"]
    assert "No rows in `results" in suite_tables.label_robust({"compare": alone})


def test_hours_count_a_distillation_once():
    rows = [row for row in goal_rows() if row["method"] == "distilled"]
    first, second = (row | {"compute_seconds": 1000.0, "device": "d"} for row in rows)
    n = first["num_seeds"]
    first |= {"seconds": 1000.0 * n + 800}  # it made them
    second |= {"seconds": 600.0}
    text = suite_tables._hours([first, second])
    assert f"{(1000 * n + 1400) / 3600:.1f} hours on d" in text
