"""The tuner: from recipes and flags to a study and its rows, on made-up text."""

import dataclasses
import importlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("optuna", reason='pip install "distill_jax[tune]"')

import distill_jax as dj
from distill_jax import results, space, study
from distill_jax.distill import build, distill, start_of
from distill_jax.loop import NonFiniteMetaGradient
from distill_jax.schema import check
from distill_jax.tune import SPACE, OnReal, Outcome, Range
from experiments import cli, tune

ROOT = Path(__file__).parents[1]
library = importlib.import_module("distill_jax.tune")  # dj.tune is the function
RECIPE = dj.recipe(
    "bag",
    inner__lr=0.5,
    inner__passes=4,
    meta__lr=0.05,
    meta__lr_labels=0.05,
    meta__lr_steps=0.02,
    meta__steps=20,
    meta__validate_every=5,
    meta__checkpoint_every=10,
    meta__real_batch=32,
    meta__real_chunk=32,
    meta__validation_inits=2,
    meta__validation_examples=45,
)
SEARCH = {name: SPACE[name] for name in ("inner__lr", "meta__lr")}
TINY = {
    "model": "bag",
    "model_settings": ["hidden=8"],
    "vectors": "random",
    "length": 6,
    "examples_per_class": 1,
    "inner_lr": 0.5,
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
    """Three classes, each with words of its own among those of all."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for split, size in (("train", 90), ("validation", 45), ("test", 45)):
        lines = ["text\tlabel"]
        for i in range(size):
            words = [f"w{i % 3}{k}" for k in rng.integers(4, size=2)]
            words += [f"all{k}" for k in rng.integers(8, size=4)] + [f"n{split}{i}"]
            lines.append(" ".join(rng.permutation(words)) + f"\tclass{i % 3}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def blind(task: dj.Task) -> dj.Task:
    """Without its test split; vocabulary and digest have been made by then."""
    dataset = dataclasses.replace(task.dataset, test=None)
    without = dataclasses.replace(task, test=None, dataset=dataset)
    vars(without)["sha256"] = task.sha256
    return without


def made_of(folder: Path) -> dj.Task:
    settings = {"embedder": "random", "length": 6, "hidden": 8}
    return blind(dj.make_task(folder, "bag", **settings))


@pytest.fixture(scope="module")
def task(corpus) -> dj.Task:
    return made_of(corpus)


@pytest.fixture(scope="module", autouse=True)
def no_test_split():
    """The command is given none either."""
    load = cli.Corpus.task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Corpus, "task", lambda self, say: blind(load(self, say)))
        yield


class Run:
    """A study by the command, in this process, and what it said."""

    def __init__(self, corpus, folder: Path, dry_run=False, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.found = tune.run(
            TINY | {"dataset": str(corpus)} | changes,
            out=self.out,
            rows=self.results,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def rows(self):
        return results.read(self.results)


def tuned(task, folder=None, recipe: Any = RECIPE, **changes: Any):
    """A study by the library."""
    how: dict[str, Any] = {
        "space": SEARCH,
        "trials": 3,
        "startup_trials": 2,
        "examples_per_class": 1,
    }
    return dj.tune(task, recipe, folder=folder, **how | changes)


def facts(rows):
    """What a repeated trial must give again."""
    clock = {"seconds", "command", "commit", "study", "config", "device"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


class Made:
    """In place of a distillation: it is the better the closer meta__lr is to 0.05."""

    num_seeds = 1

    def __init__(self, task, recipe, n, seed):
        pass

    def __call__(self, recipe, report):
        meta = recipe.meta
        accuracy = round(1 / (1 + abs(meta.lr - 0.05) * 10), 6)
        for step in range(0, meta.steps + 1, meta.validate_every):
            report(step, accuracy)
        return Outcome(accuracy, meta.steps)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(library, "Distilling", Made)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory, no_test_split) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("whole"), prune=False)


def test_every_trial_is_a_row(whole, task):
    rows = whole.rows
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert rows == json.loads(json.dumps(whole.found.rows))
    assert rows[0]["params"] == {"inner__lr": 0.5, "meta__lr": 0.05}
    assert len({row["params"]["meta__lr"] for row in rows}) == 3
    for row in rows:
        assert row["state"] == "complete" and row["split"] == "validation"
        assert (row["method"], row["examples"]) == ("distilled", 3)
        assert row["data"] == task.sha256
        assert [when for when, _ in row["reports"]] == [0, 5, 10, 15, 20]
        assert 0.01 <= row["params"]["inner__lr"] <= 3
        assert 0.002 <= row["params"]["meta__lr"] <= 0.3
    best = max(rows, key=lambda row: row["accuracy_mean"])
    assert whole.found.accuracy == best["accuracy_mean"]
    assert whole.found.recipe.meta.lr == best["params"]["meta__lr"]
    assert whole.found.recipe.inner.passes == 4
    (line,) = [text for text in whole.said if text.startswith("trial 0: ")]
    assert " left: inner_lr=0.5 meta_lr=0.05" in line


def test_a_window_is_cut_to_the_steps_of_its_trial():
    optuna = pytest.importorskip("optuna")
    wanted = {"inner__windows": ("none", "random"), "inner__passes": (10, 40)}
    searched = space.space_of(RECIPE, wanted)
    for kind, passes, window in (
        ("none", 10, {}),
        ("random", 10, {"inner__window": 10}),
        ("random", 40, {}),
    ):
        given = {"inner__windows": kind, "inner__passes": passes}
        trial = optuna.trial.FixedTrial(given)
        found = space.suggested(trial, RECIPE, searched, 3)
        assert found == given | window
        space.with_params(RECIPE, searched, found)


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
    check(row)
    with pytest.raises(ValueError, match=message):
        check(row | change)
    del row["reports"]
    with pytest.raises(ValueError, match="missing fields: reports"):
        check(row)


def test_a_trial_is_the_distillation_that_its_settings_make(whole, task):
    """Also the last, which used the program of the first; and its accuracy is of
    theta_0 that did not choose its meta-step."""
    row = whole.rows[-1]
    recipe = RECIPE.replace(**row["params"])
    assert recipe.meta.lr != RECIPE.meta.lr
    setup = build(task, recipe, start_of(task, recipe, 3, 0), 0)
    found = distill(task, recipe, examples=3, setup=setup, progress=False)
    seen = [[r["step"], r["accuracy"]] for r in found.history]
    assert row["reports"] == seen and row["best_step"] == found.best_step
    key = jax.random.fold_in(jax.random.key(0), 30)
    assert row["accuracy_mean"] == setup.validate(found.best, key)


def test_trials_share_a_program(task):
    def steps(**changes):
        recipe = RECIPE.replace(**changes)
        start = start_of(task, recipe, 3, 0)
        return build(task, recipe, start, 0, traced=True).steps

    names = "inner__lr start__label_logit meta__lr meta__lr_labels meta__lr_steps"
    first = steps()
    for name in [*names.split(), "meta__clip_norm"]:
        assert steps(**{name: 0.123}) is first, name
    for change in ({"meta__clip_norm": 0.0}, {"meta__b1": 0.5}, {"inner__passes": 3}):
        assert steps(**change) is not first


def test_the_command_at_the_end_has_the_best_settings(whole, corpus):
    (line,) = [text for text in whole.said if text.startswith("Next: ")]
    words = shlex.split(line.removeprefix("Next: "))
    assert words[:3] == ["python", "-m", "experiments.distill"]
    code = (
        "import sys, json; from absl import flags\n"
        "from experiments import cli, distill\n"
        "distill.define_flags(); flags.FLAGS(sys.argv); values = cli.given()\n"
        "corpus = cli.settings(cli.Corpus, values)\n"
        "recipe = cli.recipe_of(values, corpus.model)\n"
        "print(json.dumps([corpus.dataset, corpus.length, corpus.model_settings,\n"
        "    values['examples_per_class'], recipe.described]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words[3:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    best = whole.found.recipe.described
    assert json.loads(done.stdout) == [str(corpus), 6, {"hidden": 8}, 1, best]


def test_a_command_turns_flags_off_and_repeats_them():
    changed = dj.recipe("bag", inner__learn_lr=False, meta__lr=0.3)
    assert cli.flags_of(changed, "bag") == ["--nolearn_lr", "--meta_lr=0.3"]
    assert cli.flags_of(dj.recipe("bag"), "bag") == []
    settings = {"filters": 8, "widths": [2, 3]}
    corpus = cli.Corpus(model="text_cnn", model_settings=settings)
    assert cli.changed(corpus, cli.Corpus(model="text_cnn")) == [
        "--model_settings=filters=8",
        "--model_settings=widths=[2, 3]",
    ]


def test_killed_it_goes_on_as_if_it_never_stopped(whole, corpus, tmp_path):
    flags = []
    for name, value in (TINY | {"dataset": corpus, "prune": False}).items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}={one}" for one in values]
    rows = tmp_path / "r.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.tune", *flags),
            *(f"--out={tmp_path / 'run'}", f"--results={rows}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": _cache()},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while not (rows.exists() and rows.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1 <= len(results.read(rows)) < 3
    resumed = Run(corpus, tmp_path, prune=False)
    assert any("were done before" in line for line in resumed.said)
    assert facts(resumed.rows) == facts(whole.rows)
    assert len({row["study"] for row in resumed.rows}) == 1


def _cache() -> str:
    return str(jax.config.values["jax_compilation_cache_dir"])


def test_a_row_that_was_not_written_is_written_later(made_up, task, tmp_path):
    first = tuned(task, tmp_path)
    file = tmp_path / "rows.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    again = tuned(task, tmp_path)
    assert file.read_text().splitlines(keepends=True) == lines
    assert again == first
    tuned(task, tmp_path)
    assert len(results.read(file)) == 3


def test_more_trials_prolong_it(made_up, task, tmp_path):
    for count in (1, 3, 6):
        parts = tuned(task, tmp_path, trials=count, startup_trials=4).rows
    at_once = tuned(task, trials=6, startup_trials=4).rows  # kept nowhere
    assert facts(parts) == facts(at_once) and len(parts) == 6
    assert len({row["params"]["meta__lr"] for row in at_once}) == 6
    other = tuned(task, trials=6, startup_trials=4, seed=1).rows
    assert facts(other)[1:] != facts(at_once)[1:]


def test_a_trial_at_a_stop_is_made_again(monkeypatch, task, tmp_path):
    """Also the first, which is proposed by hand."""

    class Stopped(Made):
        stop_at = 0

        def __call__(self, recipe, report):
            if Stopped.stop_at == 0:
                raise KeyboardInterrupt
            Stopped.stop_at -= 1
            return super().__call__(recipe, report)

    monkeypatch.setattr(library, "Distilling", Stopped)
    for completed in (0, 0, 2):
        Stopped.stop_at = completed
        with pytest.raises(KeyboardInterrupt):
            tuned(task, tmp_path)
    Stopped.stop_at = 99
    got = tuned(task, tmp_path).rows
    monkeypatch.setattr(library, "Distilling", Made)
    assert facts(got) == facts(tuned(task).rows)


def test_bad_trials_end_early_and_others_win(monkeypatch, task):
    class Staged(Made):
        count = 0

        def __call__(self, recipe, report):
            number, Staged.count = Staged.count, Staged.count + 1
            for step in (0, 5, 10, 15, 20):
                if number == 4 and step == 10:
                    raise NonFiniteMetaGradient("inf")
                report(step, 0.2 if number == 3 else 0.5 + step / 100)
            return Outcome(0.6 + number / 100, 20)

    monkeypatch.setattr(library, "Distilling", Staged)
    found = tuned(task, trials=6)
    states = [row["state"] for row in found.rows]
    assert states == ["complete"] * 3 + ["pruned", "not_finite", "complete"]
    pruned, broken = found.rows[3:5]
    assert pruned["reports"] == [[0, 0.2], [5, 0.2]]  # a fifth of 20 is 4
    assert (pruned["accuracy_mean"], pruned["best_step"]) == (0.2, 0)
    assert (broken["accuracy_mean"], broken["best_step"]) == (0.55, 5)
    assert found.accuracy == pytest.approx(0.65)
    Staged.count = 0
    kept = tuned(task, trials=4, prune=False)
    assert [row["state"] for row in kept.rows] == ["complete"] * 4


def test_no_trial_was_completed(monkeypatch, corpus, tmp_path):
    class Broken(Made):
        def __call__(self, recipe, report):
            report(0, 0.5)
            raise NonFiniteMetaGradient("inf")

    monkeypatch.setattr(library, "Distilling", Broken)
    with pytest.raises(ValueError, match="no trial was completed.* Lower --inner_lr"):
        Run(corpus, tmp_path)


def test_the_model_of_the_trials_finds_what_is_good(made_up, task):
    rows = tuned(
        task,
        recipe=RECIPE.replace(meta__lr=0.3),
        space={"meta__lr": SPACE["meta__lr"]},
        trials=25,
        startup_trials=5,
        prune=False,
    ).rows
    tried = [row["params"]["meta__lr"] for row in rows]
    far = [abs(value - 0.05) for value in tried]
    assert min(far[:5]) > min(far[5:]) < 0.01
    assert sum(far[15:]) < sum(far[:5]) * 2


def test_real_sentences_are_tuned_by_as_many_trials(corpus, task, tmp_path):
    changes = {"baseline": "random", "search": "", "num_passes": 10}
    run = Run(corpus, tmp_path, selection_seeds=3, **changes)
    assert [row["method"] for row in run.rows] == ["random"] * 3
    first = {"inner__optimizer": "sgd", "inner__lr": 0.5, "inner__passes": 10}
    assert run.rows[0]["params"] == first
    for row in run.rows:
        assert row["best_step"] is None and row["num_seeds"] == 3
        assert set(row["params"]) == set(library.BASELINE_SPACE)
    assert [len(row["reports"]) for row in run.rows[:2]] == [3, 3]
    assert not any(line.startswith("Next") for line in run.said)
    # The same by hand: three draws, each from the theta_0 that judge all trials.
    recipe = RECIPE.replace(inner__passes=10)
    trial = OnReal(task, recipe, 3, 0, "random", 3)
    assert len({np.asarray(one.x).tobytes() for one in trial.sets}) == 3
    got = trial(recipe, lambda when, accuracy: None)
    assert got.accuracy == run.rows[0]["accuracy_mean"]
    slow = recipe.replace(inner__lr=1e-6)
    assert trial(slow, lambda when, accuracy: None).accuracy < got.accuracy


def test_a_choice_without_chance_is_one_set(task):
    only = {"inner__lr": SPACE["inner__lr"]}
    (row,) = tuned(task, space=only, baseline="herding", trials=1).rows
    assert row["num_seeds"] == 1 and row["params"] == {"inner__lr": 0.5}


def test_what_is_the_users_own_is_searched_under_its_name(task, tmp_path):
    """An optimizer, a selection, and a whole number."""

    def first_ones(features, labels, n, key):
        return np.arange(n)

    mine = dj.named("sign", optax.scale_by_sign())
    recipe = RECIPE.replace(inner__optimizer=mine, inner__lr=0.1)
    wanted = {
        "inner__optimizer": ("sgd",),
        "inner__lr": SPACE["inner__lr"],
        "inner__passes": Range(2, 9),
    }
    how: dict[str, Any] = {
        "space": wanted,
        "baseline": first_ones,
        "trials": 5,
        "startup_trials": 5,
    }
    found = tuned(task, tmp_path, recipe, **how)
    first, *others = [row["params"] for row in found.rows]
    assert first == {"inner__optimizer": "sign", "inner__lr": 0.1, "inner__passes": 4}
    assert {params["inner__optimizer"] for params in others} == {"sign", "sgd"}
    assert all(type(params["inner__passes"]) is int for params in others)
    assert found.rows[0]["method"] == "first_ones"
    best = max(found.rows, key=lambda row: row["accuracy_mean"])["params"]
    assert found.recipe.inner.optimizer in (mine, "sgd")
    assert space.label(found.recipe.inner.optimizer) == best["inner__optimizer"]
    # Another optimizer under the same name is another study.
    other = recipe.replace(inner__optimizer=dj.named("sign", optax.scale_by_rms()))
    with pytest.raises(ValueError, match="another inner.optimizer"):
        tuned(task, tmp_path, other, **how)


def test_a_dry_run_makes_nothing(corpus, tmp_path):
    run = Run(corpus, tmp_path, dry_run=True)
    assert run.found is None and not run.out.exists() and not run.results.exists()
    assert "  meta_lr: 0.002 to 0.3; first 0.05" in run.said


def test_time_is_up(made_up, task):
    said = []
    rows = tuned(task, max_minutes=1e-9, say=said.append).rows
    assert len(rows) == 1 and any("goes on" in line for line in said)


def test_the_present_settings_are_within_what_is_searched():
    recipe = dj.recipe(
        inner__optimizer="momentum", inner__lr=0.9, inner__passes=15, meta__lr=0.5
    )
    searched = space.space_of(recipe)
    assert searched["inner__passes"] == (10, 15, 20, 40)
    assert searched["meta__lr"] == Range(0.002, 0.5)
    assert searched["inner__lr"] == {
        "sgd": Range(0.01, 3.0),
        "momentum": Range(0.002, 0.9),
        "adam": Range(0.001, 0.3),
    }
    assert space.as_it_is(recipe, searched)["inner__lr.momentum"] == 0.9
    frozen = recipe.replace(inner__learn_lr=False, start__labels="hard")
    left = set(SPACE) - set(space.space_of(frozen))
    assert left == {"meta__lr_labels", "meta__lr_steps"}
    asked = tune.space_of("start, inner_lr", real=False)
    assert asked is not None and list(asked) == ["inner__lr", "start__kind"]
    assert set(space.space_of(recipe, asked)["inner__lr"]) == {"momentum"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"startup_trials": 0}, "startup_trials must be at least 1"),
        ({"max_minutes": -1.0}, "max_minutes must be at least 0"),
        ({"search": "meta_lr,sped"}, "does not know 'sped'; known: inner_opt"),
        ({"search": "meta_lr", "baseline": "random"}, "does not know 'meta_lr'"),
        (
            {"search": "meta_lr_steps", "learn_lr": False},
            "--meta_lr_steps has no effect with --learn_lr=False",
        ),
        ({"search": "meta_lr_labels", "labels": "frozen"}, "with --labels=frozen"),
        ({"search": "meta_lr", "meta_lr": 0.0}, "--meta_lr=0.0 cannot be searched"),
        ({"select_on": "test"}, "--select_on=test .* never reads test"),
        ({"baseline": "kmeans"}, "unknown selection 'kmeans'; known: "),
        ({"num_meta_steps": 0}, "--num_meta_steps must be at least 1"),
        # What the corpus cannot give.
        ({"real_batch": 96, "real_chunk": 96}, "real_batch=96 is more than the 90"),
        ({"examples_per_class": 31}, "asked for 93 examples of 90"),
        ({"num_minibatches": 2}, "num_minibatches=2 must divide the 3"),
        ({"num_minibatches": 2, "baseline": "random"}, "divide the 3"),
    ],
)
def test_what_cannot_be_is_told_before_any_trial(corpus, tmp_path, changes, message):
    if changes.get("baseline") and "search" not in changes:
        changes = changes | {"search": ""}
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wanted, more, message",
    [
        ({"inner__sped": (1, 2)}, {}, "'inner__sped' in the space; known: inner__opt"),
        ({"meta__lr": 0.1}, {}, "space of meta__lr must be a Range, choices"),
        ({"meta__lr": Range(0, 1)}, {}, "meta__lr=0 cannot be searched"),
        (
            {"inner__optimizer": ("adam",), "inner__lr": {"sgd": Range(0.1, 1)}},
            {},
            "no range for the inner optimizer 'adam'; it has sgd",
        ),
        ({"meta__lr": (1, 2)}, {"baseline": "random"}, "no effect with real sent"),
        (SEARCH, {"baseline": "random", "draws": 0}, "no effect with real"),
        ({"inner__lr": (0.1,)}, {"baseline": "random", "draws": 0}, "draws must be"),
    ],
)
def test_a_space_that_cannot_be(task, wanted, more, message):
    with pytest.raises(ValueError, match=message):
        tuned(task, space=wanted, **more)


def test_a_study_of_other_settings(made_up, task, tmp_path):
    tuned(task, tmp_path)
    for changes, name in (
        ({"recipe": RECIPE.replace(inner__passes=5)}, "inner.passes, 4, now 5"),
        ({"recipe": RECIPE.replace(inner__passes=20)}, "inner.passes, 4, now absent"),
        ({"space": {"meta__lr": SPACE["meta__lr"]}}, "space.inner__lr"),
        ({"prune": False}, "prune"),
    ):
        with pytest.raises(ValueError, match=f"another {name}.* another folder"):
            tuned(task, tmp_path, **changes)


def test_a_study_is_told_by_what_the_corpus_holds(made_up, corpus, tmp_path):
    """Not by its name: a corrected label is another corpus, a moved one the same."""
    folders = tmp_path / "same" / corpus.name, tmp_path / "moved"
    for folder in folders:
        folder.mkdir(parents=True)
        for path in corpus.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    file = folders[0] / "train.tsv"
    file.write_text(file.read_text().replace("class0", "class1", 1))
    task, other, moved = map(made_of, (corpus, *folders))
    assert task.dataset.name == other.dataset.name != moved.dataset.name
    tuned(task, tmp_path / "study", trials=1)
    with pytest.raises(ValueError, match="another data"):
        tuned(other, tmp_path / "study", trials=2)
    assert len(tuned(moved, tmp_path / "study", trials=2).rows) == 2


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


def test_the_study_holds_text_and_numbers_only(made_up, task, tmp_path):
    tuned(task, tmp_path)
    file = sqlite3.connect(tmp_path / "study.db")
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


def test_without_optuna(monkeypatch, task):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "distill_jax\[tune\]"'):
        tuned(task)
