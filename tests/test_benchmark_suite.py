"""The suite of all corpora: jobs, claims, two processes side by side, and tables."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax import results as result_rows
from distill_jax.loop import Interrupted
from distill_jax.report import suite_tables
from experiments import benchmark_suite as suite
from experiments import compare, running
from experiments.scoring import Cell, cell_of
from tests.test_compare import TINY, facts, scored, write_corpus

ROOT = Path(__file__).parents[1]
METHODS = "full,majority,random,kmeans_medoids,query:margin,distilled"
SETTINGS = {
    name: value
    for name, value in TINY.items()
    if name not in ("model", "budgets", "methods", "many_at")
} | {"num_meta_steps": 10, "full_epochs": 20}
DISTILLED = [
    Cell("distilled", 1, "soft", "standard"),
    Cell("distilled", 1, "hard", "standard"),
    Cell("distilled", 1, "soft", "native"),
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
    return suite.configs(
        corpora,
        budgets=budgets,
        methods=methods,
        data_root=str(root),
        **SETTINGS | changes,
    )


def place_in(folder: Path) -> suite.Place:
    return suite.Place(folder / "runs", folder / "compare.jsonl")


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """One corpus, by one process: its place, its rows and what it said."""
    place, said = place_in(tmp_path_factory.mktemp("whole")), []
    rows = suite.run(wanted(root), place, say=said.append)
    return place, rows, said


def test_jobs_come_after_those_that_they_need(root):
    ((_, config),) = wanted(root)
    needs = suite.jobs_of(config)
    order = list(needs)
    assert all(order.index(n) < order.index(job) for job in needs for n in needs[job])
    full, random = suite.Job(Cell("full", 0)), suite.Job(Cell("random", 1))
    seeds = [suite.Job(Cell("distilled", 1), seed) for seed in (0, 1)]
    assert [job for job in order if job.seed is not None] == seeds
    assert all(needs[one] == () for one in (*seeds, full))
    for cell in DISTILLED:
        assert needs[suite.Job(cell)] == (full, *seeds)
    assert needs[random] == (full,)
    assert needs[suite.Job(Cell("query:margin", 1))] == (full, random)
    soft = [suite.Job(Cell(m, 1, "soft")) for m in ("random", "kmeans_medoids")]
    assert [needs[job] for job in soft] == [(full,), (full, soft[0])]


def test_its_rows_are_those_of_a_comparison(whole, root, tmp_path):
    place, rows, said = whole
    ((_, config),) = wanted(root)
    assert {cell_of(row) for row in rows} == set(compare.plan(config))
    assert len(rows) == len(result_rows.read(place.results))
    theirs = compare.run(
        config, out=tmp_path / "run", results=tmp_path / "r.jsonl", say=lambda _: None
    )
    ours = {cell_of(row): row for row in rows}
    for row in theirs:
        assert facts(ours[cell_of(row)]) == facts(row)
    numbered = [line for line in said if line.startswith("[")]
    assert len(numbered) == len(rows) + 2
    assert numbered[-1].startswith(f"[{len(rows) + 2}/{len(rows) + 2}] one, bag: ")
    assert any("seed 1, about " in line for line in numbered)


def never(*_, **__):
    raise AssertionError("a job was done again")


def test_what_is_done_is_not_done_again(whole, root, monkeypatch):
    place, rows, _ = whole
    monkeypatch.setattr(suite, "_do", never)
    said = []
    assert suite.run(wanted(root), place, say=said.append) == rows
    assert any(line.endswith("0 to do.") for line in said)
    options = {"dry_run": True, "estimates": False, "say": said.append}
    suite.run(wanted(root, num_meta_steps=11), place, **options)
    begun = [suite.Job(Cell("distilled", 1), seed) for seed in (0, 1)]
    assert said[-5:] == [f"  {job}" for job in (*begun, *DISTILLED)]


def test_what_is_missing_is_done_from_the_distillations_there(
    whole, root, tmp_path, monkeypatch
):
    place, rows, _ = whole
    lost = DISTILLED[1]
    result_rows.append(
        tmp_path / "compare.jsonl", [row for row in rows if cell_of(row) != lost]
    )
    (tmp_path / "runs").symlink_to(place.out)
    monkeypatch.setattr(running, "distill", never)
    said = []
    again = suite.run(wanted(root), place_in(tmp_path), say=said.append)
    assert [line for line in said if line.endswith(", 1 to do.")]
    by_cell = {cell_of(row): row for row in rows}
    assert len(again) == len(rows)
    assert facts(again[-1]) == facts(by_cell[lost])


def test_a_dry_run_tells_each_job_and_writes_nothing(whole, root, tmp_path):
    said = []
    corpora = wanted(root, "one,two", methods="random,distilled")
    got = suite.run(corpora, place_in(tmp_path), dry_run=True, say=said.append)
    assert got == [] and not list(tmp_path.iterdir())
    listed = [line for line in said if line.startswith("  ") and line.endswith(" s")]
    assert len(listed) == 2 * (1 + 2 + 3 + 1)
    assert any("  distillation at 1 per class, seed 0, " in line for line in listed)
    assert said[-1].startswith("Estimate: ") and "hours on cpu" in said[-1]
    place, said = whole[0], []
    suite.run(wanted(root), place, dry_run=True, estimates=False, say=said.append)
    assert not any(line.startswith(("  d", "  r", "Estimate")) for line in said)


def test_a_job_that_fails_does_not_stop_the_others(root, tmp_path, monkeypatch):
    real = suite.Bench.run

    def run(self, cell):
        if cell == Cell("random", 1) and self.task.dataset.name == "one":
            raise ArithmeticError("it diverged")
        return real(self, cell)

    monkeypatch.setattr(suite.Bench, "run", run)
    corpora = wanted(
        root, "one,two", "random,kmeans_medoids,query:margin", soft_labels=False
    )
    place = place_in(tmp_path)
    message = "1 jobs failed.*one, bag, random at 1 per class.*it diverged"
    with pytest.raises(suite.Failed, match=message):
        suite.run(corpora, place, estimates=False, say=lambda _: None)
    found = {(row["dataset"], row["method"]) for row in place.rows()}
    both = {("two", "random"), ("two", "query:margin"), ("two", "kmeans_medoids")}
    assert found == {("one", "kmeans_medoids"), *both}


def test_a_stop_frees_the_job_and_it_goes_on(root, tmp_path, monkeypatch):
    place, real, resumed = place_in(tmp_path), running.distill, []
    corpora = wanted(root, methods="distilled", num_meta_steps=20)

    def stopped(step, state, next_batch, *args, **kwargs):
        def signalled(number):
            if number == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return next_batch(number)

        return real(step, state, signalled, *args, **kwargs)

    def watched(*args, **kwargs):
        result = real(*args, **kwargs)
        resumed.append(result.resumed_from)
        return result

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(running, "distill", stopped)
        suite.run(corpora, place, estimates=False, say=lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(running, "distill", watched)
        rows = suite.run(corpora, place, estimates=False, say=lambda _: None)
    assert resumed == [13, None] and [cell_of(row) for row in rows] == DISTILLED


def test_only_one_has_a_claim(tmp_path):
    place = place_in(tmp_path)
    with place.claimed("a") as first, place.claimed("a") as second:
        assert (first, second) == (True, False)
        assert place.holder("a").startswith(f"process {os.getpid()} of ")
        with place.claimed("b") as other:
            assert other
    with place.claimed("a") as again:
        assert again


def test_the_claim_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from experiments.benchmark_suite import Place\n"
        f"place = Place(Path({str(tmp_path / 'runs')!r}), Path('r'))\n"
        "with place.claimed('a') as mine:\n"
        "    print(mine, flush=True); time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    place = place_in(tmp_path)
    try:
        assert child.stdout and child.stdout.readline() == "True\n"
        with place.claimed("a") as mine:
            assert not mine
        assert place.holder("a").startswith(f"process {child.pid} of ")
    finally:
        child.kill()
        child.communicate(timeout=30)
    with place.claimed("a") as mine:
        assert mine


def flags_of(settings):
    for name, value in settings.items():
        if isinstance(value, tuple):
            yield from (f"--{name}={item}" for item in value)
        else:
            yield f"--{name}={value}"


def test_two_processes_share_the_work(whole, root, tmp_path):
    """Each job is done once, and each row is what one process gets."""
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
    _, alone, _ = whole
    assert sorted(map(cell_of, rows), key=str) == sorted(map(cell_of, alone), key=str)
    expected = {cell_of(row): facts(row) for row in alone}
    # Of other virtual devices, not of other numbers.
    skip = {"device"}
    for row in rows:
        got = {k: v for k, v in facts(row).items() if k not in skip}
        assert got == {k: v for k, v in expected[cell_of(row)].items() if k not in skip}
    begun = [
        line.split(": ", 1)[1]
        for out, _ in said
        for line in out.splitlines()
        if line.startswith("[")
    ]
    assert len(begun) == len(set(begun)) == len(rows) + 2
    assert all("\n[" in out for out, _ in said), "one process did all the work"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"corpora": "three"}, "corpus 'three' is not in --data_root"),
        ({"corpora": " ,"}, "--corpora must be names with commas"),
        ({"models": "bag,shiny"}, "unknown model 'shiny' in --models; known: bag"),
        ({"methods": "magic"}, "unknown method 'magic'"),
        ({"budgets": "0"}, "--budgets must be whole numbers"),
    ],
)
def test_bad_choices(root, choice, message):
    settings = {"corpora": "one", "data_root": str(root), "budgets": "1"} | choice
    with pytest.raises(ValueError, match=message):
        suite.configs(**settings)


def test_a_budget_that_does_not_fit_is_told_before_any_work(root, tmp_path):
    with pytest.raises(ValueError, match="has only 30 training examples"):
        suite.run(wanted(root, budgets="31"), place_in(tmp_path), say=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_the_budgets_of_the_groups(tmp_path):
    for name in set(suite.GROUPS["table"]) | set(suite.GROUPS["li2021"]):
        (tmp_path / name).mkdir()
    got = suite.configs("table,li2021", data_root=str(tmp_path))
    assert {name: config.budgets for name, config in got} == {
        "trec6": "1,20",
        "sst5": "1,2,20",
        "imdb": "1,10,12",
        "agnews_desc": "27,30",
        "dbpedia14": "40",
        "yahoo_titles": "140",
        "sst2": "3",
        "subj": "5",
    }
    for name, config in got:
        assert {config.num_distillations(size) for size in config.sizes} == {3}
        assert config.num_meta_steps == 1500
        assert config.inner_optimizer == ("adam" if name == "trec6" else "sgd")
    by_name = dict(got)
    assert (by_name["trec6"].length, by_name["imdb"].length) == (20, 200)
    (again,) = suite.configs("imdb", data_root=str(tmp_path), length=9)
    assert again[1].budgets == "1,10,12" and again[1].length == 9
    of_model = {"models": "bag,mean_cnn", "data_root": str(tmp_path)}
    bag, cnn = (config for _, config in suite.configs("imdb", **of_model))
    assert (bag.start, bag.length, bag.full_epochs) == ("real", 200, 4)
    assert (cnn.start, cnn.length, cnn.full_epochs) == ("keywords", 400, 2)
    assert cnn.inner_optimizer == "momentum" and cnn.inner_lr == 0.05
    (_, (_, cnn)) = suite.configs("imdb", **of_model, start="noise")
    assert (cnn.start, cnn.length) == ("noise", 400)
    both = suite.configs("trec6", models="bag,text_cnn", data_root=str(tmp_path))
    assert [config.model for _, config in both] == ["bag", "text_cnn"]
    assert both[1][1].inner_optimizer == "adam"


def test_a_corpus_of_no_group_gets_a_thousandth_of_its_train(root, tmp_path):
    ((_, config),) = suite.configs("one", data_root=str(root), **SETTINGS)
    bench = suite.load(config, tmp_path, place_in(tmp_path), lambda _: None)
    assert bench.config.budgets == "1" and bench.config.num_distillations(1) == 2


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
    return [row | {"config": row["config"] | {"inits": None}} for row in rows]


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


def test_the_command_says_errors_in_a_line(root, tmp_path):
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
