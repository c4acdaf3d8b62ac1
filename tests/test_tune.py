"""The tuner: from flags to a study and its rows, on made-up text."""

import dataclasses
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

pytest.importorskip("optuna", reason='pip install "distill_jax[tune]"')

from distill_jax import results as result_rows
from distill_jax import study
from distill_jax.loop import NonFiniteMetaGradient, Schedule, distill
from experiments import recipe, trials, tune
from experiments.trials import Outcome, Range, suggested
from tests.test_compare import write_corpus

ROOT = Path(__file__).parents[1]
TINY = {
    "model": "bag",
    "model_settings": ("hidden=8",),
    "vectors": "random",
    "length": 6,
    "examples_per_class": 1,
    "inner_optimizer": "sgd",
    "inner_lr": 0.5,
    "inner_grad": "plain",
    "num_passes": 4,
    "meta_lr": 0.05,
    "meta_lr_labels": 0.05,
    "meta_lr_steps": 0.02,
    "num_meta_steps": 20,
    "validate_every": 5,
    "checkpoint_every": 10,
    "real_batch": 32,
    "real_chunk": 32,
    "validation_inits": 2,
    "validation_examples": 45,
    "selection_seeds": 3,
    "startup_trials": 2,
    "search": "inner_lr,meta_lr",
    "trials": 3,
}


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made_up")


@pytest.fixture(scope="module", autouse=True)
def no_test_split():
    """The tuner is given none; the vocabulary has been built by then."""
    load = recipe.load

    def blind(config, say):
        task = load(config, say)
        dataset = dataclasses.replace(task.dataset, test=None)
        return dataclasses.replace(task, test=None, dataset=dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load", blind)
        yield


class Run:
    """A study in this process, and what it said."""

    def __init__(self, corpus, folder: Path, dry_run=False, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.config = tune.Config(**TINY | {"dataset": str(corpus)} | changes)
        self.result = tune.run(
            self.config,
            out=self.out,
            results=self.results,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def rows(self):
        return result_rows.read(self.results)


def facts(rows):
    """What a repeated trial must give again."""
    clock = {"seconds", "command", "commit", "study", "config", "device"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


class Made:
    """In place of a distillation: it is the better the closer meta_lr is to 0.05."""

    num_seeds = 1

    def __init__(self, config, task):
        pass

    def __call__(self, config, report):
        accuracy = round(1 / (1 + abs(config.meta_lr - 0.05) * 10), 6)
        for step in range(0, config.num_meta_steps + 1, config.validate_every):
            report(step, accuracy)
        return Outcome(accuracy, config.num_meta_steps)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory, no_test_split) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("whole"), prune=False)


def test_every_trial_is_a_row(whole):
    rows = whole.rows
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert rows == json.loads(json.dumps(whole.result.rows))
    assert rows[0]["params"] == {"inner_lr": 0.5, "meta_lr": 0.05}
    assert len({row["params"]["meta_lr"] for row in rows}) == 3
    for row in rows:
        assert row["state"] == "complete" and row["split"] == "validation"
        assert (row["method"], row["examples"]) == ("distilled", 3)
        assert [when for when, _ in row["reports"]] == [0, 5, 10, 15, 20]
        assert 0.01 <= row["params"]["inner_lr"] <= 3
        assert 0.002 <= row["params"]["meta_lr"] <= 0.3
    best = max(rows, key=lambda row: row["accuracy_mean"])
    assert whole.result.accuracy == best["accuracy_mean"]
    assert whole.result.best.meta_lr == best["params"]["meta_lr"]
    assert whole.result.best.num_passes == 4


def test_a_window_is_cut_to_the_steps_of_its_trial(corpus):
    optuna = pytest.importorskip("optuna")
    config = tune.Config(
        **TINY | {"dataset": str(corpus), "search": "windows,num_passes"}
    )
    assert config.num_minibatches == 1
    for kind, passes, window in (
        ("none", 10, {}),
        ("random", 10, {"window": 10}),
        ("last", 40, {"window": 20}),
    ):
        trial = optuna.trial.FixedTrial({"windows": kind, "num_passes": passes})
        found = suggested(trial, config, config.space)
        assert found == {"windows": kind, "num_passes": passes} | window
        dataclasses.replace(config.of_trial, **found)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"state": "stopped"}, "state must be one of"),
        ({"trial": -1}, "trial must not be negative"),
        ({"best_step": -5}, "best_step must not be negative"),
        ({"accuracy_mean": 51.6}, r"accuracy_mean must be in \[0, 1\]"),
        ({"params": None}, "params must be dict"),
        ({"sd": 0.1}, "unknown fields: sd"),
    ],
)
def test_a_row_keeps_to_its_schema(whole, change, message):
    row = whole.rows[0]
    result_rows.check(row)
    with pytest.raises(ValueError, match=message):
        result_rows.check(row | change)
    del row["reports"]
    with pytest.raises(ValueError, match="missing fields: reports"):
        result_rows.check(row)


def test_a_trial_is_the_distillation_that_its_settings_make(whole):
    """And its accuracy is of theta_0 that did not choose its meta-step."""
    config, task = whole.result.best, recipe.load(whole.config, print)
    setup = recipe.build(config, task, recipe.start_of(config, task))
    result = distill(
        setup.step,
        setup.state,
        setup.next_batch,
        setup.validate,
        Schedule(20, 5, 10),
        key=jax.random.key(config.seed),
        num_inits=config.num_inits,
    )
    row = max(whole.rows, key=lambda row: row["accuracy_mean"])
    seen = [[r["step"], r["accuracy"]] for r in result.history]
    assert row["reports"] == seen and row["best_step"] == result.best_step
    key = jax.random.fold_in(jax.random.key(config.seed), 30)
    assert row["accuracy_mean"] == setup.validate(result.best, key)


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_trials_share_a_program(corpus, clip_norm):
    """Whatever their step sizes and clipping, they lower to the same text."""
    task, texts = None, set()
    for factor in (1, 2):
        config = tune.Config(**TINY | {"dataset": str(corpus), "clip_norm": 0.5})
        task = task or recipe.load(config, print)
        changes = {
            name: getattr(config, name) * factor
            for name in ("meta_lr", "meta_lr_labels", "meta_lr_steps", "inner_lr")
        }
        config = dataclasses.replace(
            config.of_trial, clip_norm=clip_norm * factor, **changes
        )
        setup = recipe.build(config, task, recipe.start_of(config, task), traced=True)
        keys = jax.random.split(jax.random.key(0), 1)
        lowered = setup.step.lower(setup.state, keys, setup.next_batch(0))
        texts.add(lowered.as_text())
    assert len(texts) == 1


def test_the_command_at_the_end_has_the_best_settings(whole):
    (line,) = [li for li in whole.said[-1].splitlines() if li.startswith("Next: ")]
    words = shlex.split(line.removeprefix("Next: "))
    assert words[:3] == ["python", "-m", "experiments.distill"]
    code = (
        "import sys, json, dataclasses; from absl import flags\n"
        "from experiments import config, distill, recipe\n"
        "distill.define_flags(); flags.FLAGS(sys.argv)\n"
        "c = config.from_flags(recipe.Config, recipe.PRESETS, recipe.BEST_RECIPES)\n"
        "print(json.dumps(dataclasses.asdict(c)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words[3:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = dataclasses.asdict(whole.result.best)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))


def test_a_command_turns_flags_off_and_repeats_them():
    config = recipe.Config(
        learn_lr=False, model_settings=("filters=8", "widths=[2, 3]"), meta_lr=0.3
    )
    assert tune.command_of(config) == (
        "python -m experiments.distill --model_settings=filters=8 "
        "'--model_settings=widths=[2, 3]' --nolearn_lr --meta_lr=0.3"
    )
    bag = recipe.Config(model="bag", **recipe.BEST_RECIPES["bag"])
    assert tune.command_of(bag) == "python -m experiments.distill --model=bag"


def test_killed_it_goes_on_as_if_it_never_stopped(whole, corpus, tmp_path):
    given = TINY | {"dataset": corpus, "prune": False}
    flags = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name}={one}" for one in values]
    results = tmp_path / "r.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.tune", *flags),
            *(f"--out={tmp_path / 'run'}", f"--results={results}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": _cache()},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while not (results.exists() and results.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(result_rows.read(results))
    assert 1 <= done < 3
    resumed = Run(corpus, tmp_path, prune=False)
    assert any("were done before" in line for line in resumed.said)
    assert facts(resumed.rows) == facts(whole.rows)
    assert len({row["study"] for row in resumed.rows}) == 1


def _cache() -> str:
    return str(jax.config.jax_compilation_cache_dir)


def test_a_row_that_was_not_written_is_written_later(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    first = Run(corpus, tmp_path)
    lines = first.results.read_text().splitlines(keepends=True)
    first.results.write_text("".join(lines[:-1]))
    again = Run(corpus, tmp_path)
    assert again.results.read_text().splitlines(keepends=True) == lines
    assert again.result.best == first.result.best
    Run(corpus, tmp_path)
    assert len(first.rows) == 3


def test_more_trials_prolong_it(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    (tmp_path / "a").mkdir()
    for count in (1, 3, 6):
        parts = Run(corpus, tmp_path / "a", trials=count, startup_trials=4)
    at_once = Run(corpus, tmp_path / "b", trials=6, startup_trials=4)
    assert facts(parts.rows) == facts(at_once.rows) and len(parts.rows) == 6
    assert len({row["params"]["meta_lr"] for row in at_once.rows}) == 6
    other = Run(corpus, tmp_path / "c", trials=6, startup_trials=4, seed=1)
    assert facts(other.rows)[1:] != facts(at_once.rows)[1:]


def test_a_trial_at_a_stop_is_made_again(monkeypatch, corpus, tmp_path):
    """Also the first, which is proposed by hand."""

    class Stopped(Made):
        stop_at = 0

        def __call__(self, config, report):
            if Stopped.stop_at == 0:
                raise KeyboardInterrupt
            Stopped.stop_at -= 1
            return super().__call__(config, report)

    monkeypatch.setattr(tune, "Distillation", Stopped)
    for completed in (0, 0, 2):
        Stopped.stop_at = completed
        with pytest.raises(KeyboardInterrupt):
            Run(corpus, tmp_path / "a")
    Stopped.stop_at = 99
    got = Run(corpus, tmp_path / "a")
    monkeypatch.setattr(tune, "Distillation", Made)
    assert facts(got.rows) == facts(Run(corpus, tmp_path / "b").rows)


def test_bad_trials_end_early_and_others_win(monkeypatch, corpus, tmp_path):
    class Staged(Made):
        count = 0

        def __call__(self, config, report):
            number, Staged.count = Staged.count, Staged.count + 1
            for step in (0, 5, 10, 15, 20):
                if number == 4 and step == 10:
                    raise NonFiniteMetaGradient("inf")
                report(step, 0.2 if number == 3 else 0.5 + step / 100)
            return Outcome(0.6 + number / 100, 20)

    monkeypatch.setattr(tune, "Distillation", Staged)
    result = Run(corpus, tmp_path, trials=6).result
    states = [row["state"] for row in result.rows]
    assert states == ["complete"] * 3 + ["pruned", "not_finite", "complete"]
    pruned, broken = result.rows[3:5]
    assert pruned["reports"] == [[0, 0.2], [5, 0.2]]  # a fifth of 20 is 4
    assert (pruned["accuracy_mean"], pruned["best_step"]) == (0.2, 0)
    assert (broken["accuracy_mean"], broken["best_step"]) == (0.55, 5)
    assert result.accuracy == pytest.approx(0.65)
    Staged.count = 0
    kept = Run(corpus, tmp_path / "all", trials=4, prune=False).result
    assert [row["state"] for row in kept.rows] == ["complete"] * 4


def test_no_trial_was_completed(monkeypatch, corpus, tmp_path):
    class Broken(Made):
        def __call__(self, config, report):
            report(0, 0.5)
            raise NonFiniteMetaGradient("inf")

    monkeypatch.setattr(tune, "Distillation", Broken)
    with pytest.raises(ValueError, match="no trial was completed"):
        Run(corpus, tmp_path)


def test_the_model_of_the_trials_finds_what_is_good(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    changes = {"meta_lr": 0.3, "search": "meta_lr", "startup_trials": 5}
    rows = Run(corpus, tmp_path, trials=25, prune=False, **changes).rows
    tried = [row["params"]["meta_lr"] for row in rows]
    far = [abs(value - 0.05) for value in tried]
    assert min(far[:5]) > min(far[5:]) < 0.01
    assert sum(far[15:]) < sum(far[:5]) * 2


def test_real_sentences_are_tuned_by_as_many_trials(corpus, tmp_path):
    changes = {"baseline": "random", "search": "", "num_passes": 10}
    run = Run(corpus, tmp_path, **changes)
    assert [row["method"] for row in run.rows] == ["random"] * 3
    first = {"inner_optimizer": "sgd", "inner_lr": 0.5, "num_passes": 10}
    assert run.rows[0]["params"] == first
    for row in run.rows:
        assert row["best_step"] is None and row["num_seeds"] == 3
        assert set(row["params"]) == set(trials.BASELINE_SPACE)
    assert [len(row["reports"]) for row in run.rows[:2]] == [3, 3]
    assert "Next" not in run.said[-1]
    # The same by hand: three draws, each from the theta_0 that judge all trials.
    task = recipe.load(run.config, print)
    trial = trials.Baseline(run.config.of_trial, task, "random")
    assert len({batches.x.tobytes() for batches in trial.sets}) == 3
    got = trial(run.config.of_trial, lambda when, accuracy: None)
    assert got.accuracy == run.rows[0]["accuracy_mean"]
    slow = dataclasses.replace(run.config.of_trial, inner_lr=1e-6)
    assert trial(slow, lambda when, accuracy: None).accuracy < got.accuracy


def test_a_choice_without_chance_is_one_set(corpus, tmp_path):
    run = Run(corpus, tmp_path, baseline="herding", search="inner_lr", trials=1)
    assert run.rows[0]["num_seeds"] == 1
    assert run.rows[0]["params"] == {"inner_lr": 0.5}


def test_a_dry_run_makes_nothing(corpus, tmp_path):
    run = Run(corpus, tmp_path, dry_run=True)
    assert run.result is None and not run.out.exists() and not run.results.exists()
    assert "  meta_lr: 0.002 to 0.3; first 0.05" in run.said


def test_time_is_up(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    run = Run(corpus, tmp_path, max_minutes=1e-9)
    assert len(run.rows) == 1 and any("goes on" in line for line in run.said)


def test_the_present_settings_are_within_what_is_searched():
    config = recipe.Config(
        inner_optimizer="momentum", inner_lr=0.9, num_passes=15, meta_lr=0.5
    )
    space = trials.space_of(config, "", real=False)
    assert space["num_passes"] == (10, 15, 20, 40)
    assert space["meta_lr"] == Range(0.002, 0.5)
    assert space["inner_lr"] == {
        "sgd": Range(0.01, 3.0),
        "momentum": Range(0.002, 0.9),
        "adam": Range(0.001, 0.3),
    }
    assert trials.as_it_is(config, space)["inner_lr.momentum"] == 0.9
    frozen = dataclasses.replace(config, learn_lr=False, labels="hard")
    searched = trials.space_of(frozen, "", real=False)
    assert set(trials.SPACE) - set(searched) == {"meta_lr_labels", "meta_lr_steps"}
    asked = trials.space_of(config, "start, inner_lr", real=False)
    assert list(asked) == ["inner_lr", "start"] and set(asked["inner_lr"]) == {
        "momentum"
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"startup_trials": 0}, "--startup_trials must be at least 1"),
        ({"max_minutes": -1.0}, "--max_minutes must be at least 0"),
        ({"search": "meta_lr,sped"}, "does not know 'sped'; known: inner_opt"),
        ({"search": "meta_lr", "baseline": "random"}, "does not know 'meta_lr'"),
        ({"search": "meta_lr_steps", "learn_lr": False}, "no effect with --nolearn"),
        ({"search": "meta_lr_labels", "labels": "frozen"}, "with --labels=frozen"),
        ({"search": "meta_lr", "meta_lr": 0.0}, "--meta_lr=0.0 cannot be searched"),
        ({"select_on": "test"}, "never reads test"),
        ({"baseline": "kmeans"}, "unknown --baseline=kmeans; known: random"),
        ({"num_meta_steps": 0}, "--num_meta_steps must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tune.Config(**TINY | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"real_batch": 96, "real_chunk": 96}, "--real_batch=96 is more than the 90"),
        ({"examples_per_class": 31}, "asked for 93 examples of 90"),
        ({"num_minibatches": 2}, "--num_minibatches=2 must divide the 3"),
        ({"num_minibatches": 2, "baseline": "random", "search": ""}, "divide the 3"),
    ],
)
def test_what_the_corpus_cannot_give_is_told_before_any_trial(
    corpus, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_study_of_other_settings(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    Run(corpus, tmp_path)
    for changes, name in (
        ({"num_passes": 5}, "num_passes, 4, now 5"),
        ({"search": "meta_lr"}, "search"),
        ({"prune": False}, "prune"),
    ):
        with pytest.raises(ValueError, match=f"another {name}.* another --out"):
            Run(corpus, tmp_path, **changes)


def test_a_second_process_is_refused(corpus, tmp_path):
    settings = {"a": 1}
    with study.opened(tmp_path, settings, warmup=0, startup_trials=1):
        with pytest.raises(ValueError, match="another process is tuning"):
            with study.opened(tmp_path, settings, warmup=0, startup_trials=1):
                pass
    with study.opened(tmp_path, settings, warmup=0, startup_trials=1) as again:
        assert study.rows_of(again) == []


def test_the_first_settings_are_proposed_once(tmp_path):
    """Also if a process ended between their proposal and the trial."""
    how = {"seed": 0, "startup_trials": 5, "first": {"x": 0.5}}
    with study.opened(tmp_path, {}, warmup=0, startup_trials=1) as opened:
        opened.enqueue_trial({"x": 0.5})
    with study.opened(tmp_path, {}, warmup=0, startup_trials=1) as opened:
        tried = [study.ask(opened, n, **how).suggest_float("x", 0, 1) for n in (0, 1)]
    assert tried[0] == 0.5 != tried[1]


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough" * 9)
    with pytest.raises(OSError, match="study.db cannot be read as a study"):
        with study.opened(tmp_path, {}, warmup=0, startup_trials=1):
            pass


def test_a_study_of_another_optuna(tmp_path):
    with study.opened(tmp_path, {}, warmup=0, startup_trials=1):
        pass
    with sqlite3.connect(tmp_path / "study.db") as file:
        file.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
    file.close()
    with pytest.raises(ValueError, match="another version of Optuna"):
        with study.opened(tmp_path, {}, warmup=0, startup_trials=1):
            pass


def test_the_study_holds_text_and_numbers_only(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(tune, "Distillation", Made)
    run = Run(corpus, tmp_path)
    file = sqlite3.connect(run.out / "study.db")
    names = [n for (n,) in file.execute("SELECT name FROM sqlite_master").fetchall()]
    tables = [n for n in names if n == "studies" or n.startswith("trial")]
    kinds = {
        type(value)
        for table in tables
        for row in file.execute(f"SELECT * FROM {table}")
        for value in row
    }
    file.close()
    assert len(tables) > 4 and kinds <= {int, float, str, type(None)}


def test_without_optuna(monkeypatch, corpus, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "distill_jax\[tune\]"'):
        Run(corpus, tmp_path)
