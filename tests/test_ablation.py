"""Ablations: from flags to a row of each variant, on a few articles of bbc_news."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax import results as result_rows
from distill_jax import schema
from distill_jax.loop import DistillResult, NonFiniteMetaGradient
from distill_jax.report import ablation_tables
from experiments import ablation, distill, recipe, running
from tests.test_experiments import TINY, as_flags, child, write_corpus
from tests.test_results import experiment_row

SHORT = TINY | {
    "examples_per_class": 1,
    "num_passes": 6,
    "inner_optimizer": "sgd",  # as it compiles in a moment
    "inner_lr": 0.1,
    "inner_grad": "plain",
    "num_meta_steps": 8,
    "validate_every": 2,
    "checkpoint_every": 4,
    "warm_steps": 4,
    "validation_inits": 3,
    "seeds": 2,
}
FOUR = "4 theta_0, a quarter of the meta-steps"
OFF = {
    "noise start": {"start": "noise"},
    "hard labels": {"labels": "hard"},
    "step sizes not learned": {"learn_lr": False},
    FOUR: {"num_inits": 4, "num_meta_steps": 2},
    "random windows, 2 of 6 steps": {"windows": "random", "window": 2},
    "no warm-up": {"warm_steps": 0},
}

FIELDS = dataclasses.fields(recipe.Config)


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "articles")


class Run:
    """A run in this process, and what it left behind."""

    def __init__(self, corpus: Path, folder: Path, dry_run: bool = False, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.config = ablation.Config(**SHORT | {"dataset": str(corpus)} | changes)
        self.added = ablation.run(
            self.config,
            out=self.out,
            results=self.results,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def rows(self):
        return {r["config"]["variant"]: r for r in result_rows.read(self.results)}


FEW = ("noise start", "no warm-up")


def only(patch, *names: str) -> None:
    """Leaves these variants beside all on."""
    levers = ablation.levers
    patch.setattr(ablation, "levers", lambda base: {k: levers(base)[k] for k in names})


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    """A run with nothing in place of anything; more variants compile for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        only(patch, FOUR)
        return Run(corpus, tmp_path_factory.mktemp("whole"))


def quickened(patch) -> list:
    """Distillations end at once. `(settings, first sentences)` of those begun."""
    begun = []

    def ends(step, state, *args, fingerprint, checkpoints, **options):
        begun.append((fingerprint, jax.tree.map(np.array, state.distilled)))
        checkpoints.mkdir(parents=True)
        accuracy = 0.5 + fingerprint["seed"] / 100
        return DistillResult(state.distilled, accuracy, 0, [], state, None)

    def native(batches, lr, keys, chunks):
        return np.full(len(keys), 0.75)

    def warmed(config, task, start, shown):
        return start.replace(x=start.x + 1)

    patch.setattr(running, "distill", ends)
    patch.setattr(ablation, "estimate", lambda *_: "")
    patch.setattr(running, "warmed", warmed)
    patch.setattr(recipe, "native_scorer", lambda *_: native)
    return begun


@pytest.fixture
def quick(monkeypatch) -> list:
    """For a run of few variants, quickened."""
    only(monkeypatch, *FEW)
    return quickened(monkeypatch)


@pytest.fixture(scope="module")
def every(corpus, tmp_path_factory):
    """A run of all variants, quickened, and what was begun."""
    with pytest.MonkeyPatch.context() as patch:
        begun = quickened(patch)
        return Run(corpus, tmp_path_factory.mktemp("every")), begun


# The variants


def test_every_variant_has_a_valid_row(every, whole):
    rows = result_rows.read(every[0].results)
    assert [row["config"]["variant"] for row in rows] == ["all on", *OFF]
    assert json.loads(json.dumps(result_rows.portable(every[0].added))) == rows
    assert list(whole.rows) == ["all on", FOUR]
    for row in (*rows, *whole.rows.values()):
        assert set(row) == set(schema.EXPERIMENT_FIELDS)
        assert (row["experiment"], row["method"]) == ("ablation", "distilled")
        assert (row["dataset"], row["model"]) == ("articles", "bag")
        assert (row["num_seeds"], row["num_inits"], row["examples"]) == (2, 3, 2)
        assert (row["selected_on"], row["split"]) == ("validation", "test")
        assert row["full_accuracy_mean"] is row["relative_accuracy"] is None
        assert row["majority_accuracy"] == 0.5
        means = row["config"]["seed_means"]
        assert len(means) == 2 and np.mean(means) == pytest.approx(row["accuracy_mean"])
        assert 0 < row["config"]["validation_accuracy"] <= 1
    hard = [row["labels"] == "hard" for row in rows]
    assert hard == [row["config"]["variant"] == "hard labels" for row in rows]
    assert len({row["config"]["all_on"] for row in (*rows, *whole.added)}) == 1


@pytest.mark.parametrize("name", OFF)
def test_a_variant_differs_in_its_lever_alone(every, name):
    run, _ = every
    on, off = run.rows["all on"]["config"], run.rows[name]["config"]
    results = ("variant", "validation_accuracy", "seed_means")
    changed = {k: v for k, v in off.items() if k not in results and v != on[k]}
    assert changed == OFF[name]
    given = {f.name: getattr(run.config, f.name) for f in FIELDS}
    given = json.loads(json.dumps(result_rows.portable(given)))
    assert {k: on[k] for k in given} == given


def test_what_is_distilled_is_what_the_row_says(every):
    """By the settings given to the loop, and by where it starts."""
    run, begun = every
    assert len(begun) == 2 * len(run.rows)
    starts = {}
    for k, (name, row) in enumerate(run.rows.items()):
        for seed in (0, 1):
            settings, starts[name, seed] = begun[2 * k + seed]
            assert settings["seed"] == seed
            for field in ("start", "labels", "learn_lr", "num_inits", "num_meta_steps"):
                assert settings[field] == row["config"][field]
            assert settings.get("windows", "none") == row["config"]["windows"]
    on = starts["all on", 0], starts["all on", 1]
    assert np.abs(on[0].x - on[1].x).max() > 0.1
    for (name, seed), start in starts.items():
        np.testing.assert_array_equal(start.raw_lr, on[seed].raw_lr)
        least = -recipe.HARD if name == "hard labels" else -2.0
        assert start.y_logits.min() == least
        if name == "noise start":
            assert np.abs(start.x - on[seed].x).max() > 0.1
        else:
            cold = 1 if name == "no warm-up" else 0
            np.testing.assert_allclose(start.x + cold, on[seed].x, atol=1e-5)


def test_its_numbers_are_those_of_the_distillation(
    whole, corpus, tmp_path, monkeypatch
):
    """`experiments.distill` with the settings of the second seed gives the same."""
    settings = {k: v for k, v in SHORT.items() if k != "seeds"}
    said = []
    monkeypatch.setattr(distill, "_figures", lambda *_: [])
    monkeypatch.setattr(distill.pages, "of_run", lambda *_: "")
    monkeypatch.setattr(distill.page, "write", lambda path, made: path)
    rows = distill.run(
        distill.Config(**settings, dataset=str(corpus), seed=1, baselines=False),
        out=tmp_path / "run",
        results=tmp_path / "d.jsonl",
        say=said.append,
    )
    on = whole.rows["all on"]
    assert rows[0]["accuracy_mean"] == pytest.approx(on["config"]["seed_means"][1])
    assert rows[0]["bytes"] == on["bytes"]
    best = next(line for line in said if line.startswith("Best on validation"))
    ours = next(line for line in whole.said if line.startswith("all on, seed 1"))
    assert ours.split(": ")[1].split()[0] in best


def test_it_says_its_plan_and_what_it_found(whole):
    said = "\n".join(whole.said)
    assert "  all on: (0 of 2 seeds done)" in said
    assert f"  {FOUR}: --num_inits=4 --num_meta_steps=2 (0 of" in said
    assert "), for each of 4 distillations; memory" in said
    assert "baselines" not in said
    assert "| articles, bag | 2 | 4 θ0, a quarter of the meta-steps |" in said


@pytest.mark.parametrize(
    "changes, added, absent",
    [
        ({"num_inits": 2}, {"1 theta_0": {"num_inits": 1}}, FOUR),
        (
            {"windows": "last", "window": 4},
            {"no windows": {"windows": "none"}},
            "random windows, 2 of 6 steps",
        ),
        (
            {"num_passes": 2},
            {"random windows, 1 of 2 steps": {"windows": "random", "window": 1}},
            "random windows, 2 of 6 steps",
        ),
        ({"num_passes": 1}, {}, "random windows, 2 of 6 steps"),
        ({"objective": "feature_regression"}, {}, "random windows, 2 of 6 steps"),
        ({"warm_steps": 0}, {}, "no warm-up"),
        ({"labels": "hard"}, {}, "hard labels"),
    ],
)
def test_levers_follow_what_is_on(changes, added, absent):
    base = ablation.Config(**SHORT | changes).base
    off = ablation.levers(base)
    assert off == {k: v for k, v in OFF.items() if k != absent} | added
    for settings in off.values():
        dataclasses.replace(base, **settings)


# Stopped, and gone on with


def test_the_same_command_again_does_nothing_twice(every, corpus, monkeypatch):
    run, _ = every
    before = run.results.read_bytes()
    monkeypatch.setattr(running, "distill", None)
    monkeypatch.setattr(ablation, "estimate", None)
    again = Run(corpus, run.results.parent)
    assert again.added == [] and run.results.read_bytes() == before
    assert "  all on: (2 of 2 seeds done)" in again.said
    assert "| articles, bag | 2 | no warm-up |" in again.said[-1]
    assert not list(run.out.glob("*/checkpoints"))


def test_it_goes_on_with_the_seed_it_was_stopped_at(
    corpus, tmp_path, quick, monkeypatch
):
    really = running.distill

    def stopped(*args, **options):
        if len(quick) == 3:
            raise KeyboardInterrupt
        return really(*args, **options)

    monkeypatch.setattr(running, "distill", stopped)
    with pytest.raises(KeyboardInterrupt):
        Run(corpus, tmp_path)
    rows = result_rows.read(tmp_path / "r.jsonl")
    assert [row["config"]["variant"] for row in rows] == ["all on"]
    assert rows[0]["config"]["validation_accuracy"] == pytest.approx(0.505)
    monkeypatch.setattr(running, "distill", really)
    again = Run(corpus, tmp_path)
    assert "  noise start: --start=noise (1 of 2 seeds done)" in again.said
    whole = [json.dumps(settings, sort_keys=True) for settings, _ in quick]
    assert len(whole) == len(set(whole)) == 6
    assert list(again.rows) == ["all on", *FEW]


def test_rows_of_other_settings_are_not_taken_for_these(corpus, tmp_path, quick):
    Run(corpus, tmp_path, seeds=1)
    assert len(quick) == 3
    Run(corpus, tmp_path, seeds=2)  # the first seed is on disk
    assert len(quick) == 6
    Run(corpus, tmp_path, seeds=1, meta_lr=0.1)
    assert len(quick) == 9
    assert len(result_rows.read(tmp_path / "r.jsonl")) == 9


def test_numbers_that_are_not_finite_spare_the_other_variants(
    corpus, tmp_path, quick, monkeypatch
):
    really = running.distill

    def breaks(*args, fingerprint, **options):
        if fingerprint["start"] == "noise":
            raise NonFiniteMetaGradient("5 meta-gradients in a row")
        return really(*args, fingerprint=fingerprint, **options)

    monkeypatch.setattr(running, "distill", breaks)
    with pytest.raises(ablation.Failed, match="without a row: noise start$"):
        Run(corpus, tmp_path, seeds=1)
    rows = result_rows.read(tmp_path / "r.jsonl")
    names = [row["config"]["variant"] for row in rows]
    assert names == ["all on", "no warm-up"]


def test_a_dry_run_distils_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "distill", None)
    monkeypatch.setattr(ablation, "estimate", lambda *_: "Estimate: 3 s")
    run = Run(corpus, tmp_path, dry_run=True)
    assert run.added == [] and not list(tmp_path.iterdir())
    assert run.said[-1] == "Estimate: 3 s"


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"num_meta_steps": 0}, "--num_meta_steps must be at least 1, got 0"),
        ({"select_on": "test"}, "needs --select_on=validation, got test"),
        ({"theta_0": "fixed"}, "needs --theta_0=random, got fixed"),
        ({"num_passes": 0}, "--num_passes must be at least 1, got 0"),
        ({"real_batch": 1024}, "--real_batch=1024 is more than the 180"),
        ({"examples": 500}, "asked for 500 examples of 180"),
        ({"window_earliest": 5}, "a window of 2 after the first 5 does not fit"),
    ],
)
def test_bad_settings_are_refused_before_long_work(
    corpus, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(running, "distill", None)
    monkeypatch.setattr(ablation, "estimate", None)
    with pytest.raises(ValueError, match=message) as raised:
        Run(corpus, tmp_path, **changes)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_flags_give_the_settings_and_errors_are_one_line(corpus, tmp_path):
    given = as_flags(SHORT | {"dataset": corpus})
    where = [f"--out={tmp_path / 'run'}", f"--results={tmp_path / 'r.jsonl'}"]
    bad = child("-m", "experiments.ablation", *given, *where, "--examples=500")
    err = bad.communicate(timeout=120)[1]
    assert bad.returncode == 1
    assert err.startswith("error: asked for 500 examples of 180")
    assert err.count("\n") == 1 and not (tmp_path / "r.jsonl").exists()


# The table


def row_of(variant, mean, all_on="a", **changes):
    config = {"variant": variant, "all_on": all_on, "validation_accuracy": 0.6}
    full = {"full_accuracy_mean": None, "relative_accuracy": None}
    return experiment_row(
        experiment="ablation", accuracy_mean=mean, config=config, **full | changes
    )


def table_of(*rows) -> list[str]:
    for row in rows:
        result_rows.check(row)
    text = ablation_tables.ablation({"ablation": list(rows)})
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_the_table_tells_the_change_to_all_on():
    assert table_of(
        row_of("all on", 0.5),
        row_of("hard labels", 0.45),
        row_of("hard labels", 0.65, examples=2),
        row_of("all on", 0.7, accuracy_sd=None, examples=2),
        row_of(FOUR, 0.625),
        row_of("all on", 0.6),
    ) == [
        "| rotten_tomatoes, text_cnn | 20 | all on | 60.0 | 60.0 ± 1.0 | - |",
        "| rotten_tomatoes, text_cnn | 20 | hard labels | 60.0 | 45.0 ± 1.0 | -15.0 |",
        "| rotten_tomatoes, text_cnn | 20 | 4 θ0, a quarter of the meta-steps "
        "| 60.0 | 62.5 ± 1.0 | +2.5 |",
        "| rotten_tomatoes, text_cnn | 2 | hard labels | 60.0 | 65.0 ± 1.0 | -5.0 |",
        "| rotten_tomatoes, text_cnn | 2 | all on | 60.0 | 70.0 | - |",
    ]


def test_the_table_compares_nothing_of_other_settings():
    rows = [row_of("all on", 0.5), row_of("hard labels", 0.4)]
    newer = [row_of("all on", 0.7, "b"), row_of("no warm-up", 0.6, "b")]
    assert table_of(*rows, *newer) == table_of(*newer)
    assert "hard labels" not in "".join(table_of(*rows, *newer))
    assert "No rows in `results/ablation.jsonl`" in ablation_tables.ablation(
        {"ablation": rows[1:]}
    )
