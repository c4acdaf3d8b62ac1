"""Ablations: from flags to a row of each variant, on a few articles of bbc_news."""

from pathlib import Path

import jax
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import artifact, schema, sources
from distill_jax import results as result_rows
from distill_jax.distill import Distillation, start_of
from distill_jax.loop import NonFiniteMetaGradient
from distill_jax.report import ablation_tables
from distill_jax.variants import changed, levers
from experiments import ablation, cli
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
    "noise start": {"start__kind": "noise"},
    "hard labels": {"start__labels": "hard"},
    "step sizes not learned": {"inner__learn_lr": False},
    FOUR: {"meta__inits": 4, "meta__steps": 2},
    "random windows, 2 of 6 steps": {"inner__windows": "random", "inner__window": 2},
    "no warm-up": {"start__warm_steps": 0},
}
BASE = cli.recipe_of(SHORT, "bag")


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
        self.found = ablation.run(
            SHORT | {"dataset": str(corpus)} | changes,
            out=self.out,
            rows=self.results,
            dry_run=dry_run,
            say=self.said.append,
        )

    @property
    def rows(self):
        return {r["config"]["variant"]: r for r in result_rows.read(self.results)}


FEW = ("noise start", "no warm-up")


def only(patch, *names: str) -> None:
    """Leaves these variants beside all on."""
    patch.setattr(ablation, "levers", lambda base: {k: levers(base)[k] for k in names})


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    """A run with nothing in place of anything; more variants compile for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        only(patch, FOUR)
        return Run(corpus, tmp_path_factory.mktemp("whole"))


def quickened(patch) -> list:
    """Distillations end at once, where they start. `(recipe, seed, start)` of each."""
    begun = []

    def ends(task, recipe, *, examples, seed, **options):
        start = start_of(task, recipe, examples, seed)
        begun.append((recipe, seed, start))
        return Distillation(task, recipe, seed, start, 0.5, 0, [], 1.0)

    def native(judge, inner_tx):
        return lambda keys, batches, lr, chunks: np.full(len(keys), 0.75)

    patch.setattr(sources, "distill", ends)
    patch.setattr(sources.Judge, "native", native)
    patch.setattr(
        ablation.estimate, "seconds", lambda _, groups, __: {str(groups[0]): 3}
    )
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
        change = ["inner__lr=0.3"]
        return Run(corpus, tmp_path_factory.mktemp("every"), change=change), begun


# The variants


def test_every_variant_has_a_valid_row(every, whole):
    rows = result_rows.read(every[0].results)
    variants = ["all on", *OFF, "inner__lr=0.3"]
    assert [row["config"]["variant"] for row in rows] == variants
    assert every[0].found == rows
    assert list(whole.rows) == ["all on", FOUR]
    for row in (*rows, *whole.rows.values()):
        fields = schema.EXPERIMENT_FIELDS | schema.COMPARE_FIELDS
        assert set(row) == {*fields, "data"}
        assert row["experiment"] == "ablation"
        assert (row["dataset"], row["model"]) == ("articles", "bag")
        assert (row["num_seeds"], row["num_inits"], row["examples"]) == (2, 3, 2)
        assert (row["selected_on"], row["split"]) == ("validation", "test")
        assert row["full_accuracy_mean"] is row["relative_accuracy"] is None
        assert (row["majority_accuracy"], row["training"]) == (0.5, "native")
        assert 0 < row["config"]["validation_accuracy"] <= 1
    hard = [row["labels"] == "hard" for row in rows]
    assert hard == [row["config"]["variant"] == "hard labels" for row in rows]
    assert len({row["config"]["all_on"] for row in (*rows, *whole.found)}) == 1


@pytest.mark.parametrize("name", OFF)
def test_a_variant_differs_in_its_lever_alone(every, name):
    """By the recipe that was distilled, and by what its row says."""
    run, begun = every
    k = list(run.rows).index(name)
    for seed in (0, 1):
        recipe, used, _ = begun[2 * k + seed]
        assert used == seed and recipe == BASE.replace(**OFF[name])
        told = run.rows[name]["config"]["settings"]["method"]
        assert told["recipe"] == recipe.described
        assert told["all_on"] == begun[0][0].described == BASE.described
    assert begun[-1][0] == BASE.replace(inner__lr=0.3)


def test_what_is_distilled_starts_as_the_row_says(every):
    run, begun = every
    assert len(begun) == 2 * len(run.rows)
    keys = [(name, seed) for name in run.rows for seed in (0, 1)]
    starts = dict(zip(keys, (start for _, _, start in begun), strict=True))
    on = starts["all on", 0], starts["all on", 1]
    assert np.abs(on[0].x - on[1].x).max() > 0.1
    for name in OFF:
        for seed in (0, 1):
            start = starts[name, seed]
            np.testing.assert_array_equal(start.raw_lr, on[seed].raw_lr)
            least = -1e4 if name == "hard labels" else -2.0
            assert start.y_logits.min() == least
            same = np.abs(start.x - on[seed].x).max() == 0
            assert same == (name != "noise start")


def test_its_numbers_are_those_of_a_comparison(whole, corpus):
    """And its sets are on disk, as `distill` makes them."""
    values = SHORT | {"dataset": str(corpus)}
    task = cli.settings(cli.Corpus, values).task(lambda text: None)
    protocol = cli.settings(dj.Protocol, values)
    method = dj.distilled(BASE, folder=whole.out, ways=["native"], seeds=2)
    (row,) = dj.compare(task, {"x": method}, [1], protocol=protocol, lines=())
    assert row["accuracies"] == whole.rows["all on"]["accuracies"]
    first = dj.distill(task, BASE, 1, seed=1, progress=False)
    kept = artifact.load(whole.out / method.name(task, 1, 1) / "artifact")
    np.testing.assert_array_equal(artifact.to_distilled(kept).x, first.best.x)


def test_it_says_its_plan_and_what_it_found(whole):
    said = "\n".join(whole.said)
    assert "  all on: (0 of 2 seeds done)" in said
    assert f"  {FOUR}: meta__inits=4 meta__steps=2 (0 of" in said
    assert " for 4 distillations, and the time to compile." in said
    assert "| articles, bag | 2 | 4 θ0, a quarter of the meta-steps |" in said


@pytest.mark.parametrize(
    "changes, added, absent",
    [
        ({"meta__inits": 2}, {"1 theta_0": {"meta__inits": 1}}, FOUR),
        (
            {"inner__windows": "random", "inner__window": 4},
            {"no windows": {"inner__windows": "none"}},
            "random windows, 2 of 6 steps",
        ),
        (
            {"inner__passes": 2},
            {
                "random windows, 1 of 2 steps": {
                    "inner__windows": "random",
                    "inner__window": 1,
                }
            },
            "random windows, 2 of 6 steps",
        ),
        ({"inner__passes": 1}, {}, "random windows, 2 of 6 steps"),
        (
            {"meta__objective": "feature_regression"},
            {},
            "random windows, 2 of 6 steps",
        ),
        ({"start__warm_steps": 0}, {}, "no warm-up"),
        ({"start__labels": "hard"}, {}, "hard labels"),
    ],
)
def test_levers_follow_what_is_on(changes, added, absent):
    base = BASE.replace(**changes)
    off = levers(base)
    assert off == {k: v for k, v in OFF.items() if k != absent} | added
    for settings in off.values():
        assert base.replace(**settings) != base


# Stopped, and gone on with


def test_the_same_command_again_does_nothing_twice(every, corpus, monkeypatch):
    run, _ = every
    before = run.results.read_bytes()
    monkeypatch.setattr(sources, "distill", None)
    monkeypatch.setattr(ablation.estimate, "seconds", None)
    again = Run(corpus, run.results.parent, change=["inner__lr=0.3"])
    assert again.found == run.found and run.results.read_bytes() == before
    assert "  all on: (2 of 2 seeds done)" in again.said
    assert "| articles, bag | 2 | no warm-up |" in again.said[-1]


def test_it_goes_on_with_the_seed_it_was_stopped_at(
    corpus, tmp_path, quick, monkeypatch
):
    really = sources.distill

    def stopped(*args, **options):
        if len(quick) == 3:
            raise KeyboardInterrupt
        return really(*args, **options)

    monkeypatch.setattr(sources, "distill", stopped)
    with pytest.raises(KeyboardInterrupt):
        Run(corpus, tmp_path)
    rows = result_rows.read(tmp_path / "r.jsonl")
    assert [row["config"]["variant"] for row in rows] == ["all on"]
    monkeypatch.setattr(sources, "distill", really)
    again = Run(corpus, tmp_path)
    assert "  noise start: start__kind=noise (1 of 2 seeds done)" in again.said
    whole = [(str(recipe.described), seed) for recipe, seed, _ in quick]
    assert len(whole) == len(set(whole)) == 6
    assert list(again.rows) == ["all on", *FEW]


def test_rows_of_other_settings_are_not_taken_for_these(corpus, tmp_path, quick):
    Run(corpus, tmp_path, seeds=1)
    assert len(quick) == 3
    Run(corpus, tmp_path, seeds=2)  # the first seed is on disk
    assert len(quick) == 6
    Run(corpus, tmp_path, seeds=1, meta_lr=0.1)
    assert len(quick) == 9
    # Without warm-up it is the same recipe, but another "all on" stands beside it.
    run = Run(corpus, tmp_path, seeds=1, warm_steps=8)
    assert len(quick) == 11
    rows = result_rows.read(tmp_path / "r.jsonl")
    assert len(rows) == 12 and len({row["config"]["all_on"] for row in rows}) == 4
    assert "| no warm-up |" in run.said[-1]


def test_numbers_that_are_not_finite_spare_the_other_variants(
    corpus, tmp_path, quick, monkeypatch
):
    really = sources.distill

    def breaks(task, recipe, **options):
        if recipe.start.kind == "noise":
            raise NonFiniteMetaGradient("5 meta-gradients in a row")
        return really(task, recipe, **options)

    monkeypatch.setattr(sources, "distill", breaks)
    with pytest.raises(ablation.Failed, match="without a row: noise start$"):
        Run(corpus, tmp_path, seeds=1)
    rows = result_rows.read(tmp_path / "r.jsonl")
    names = [row["config"]["variant"] for row in rows]
    assert names == ["all on", "no warm-up"]


def test_other_errors_end_it_at_once(corpus, tmp_path, quick, monkeypatch):
    def breaks(*args, **options):
        raise ValueError("a defect")

    monkeypatch.setattr(sources, "distill", breaks)
    with pytest.raises(ValueError, match="^a defect$"):
        Run(corpus, tmp_path)
    assert not (tmp_path / "r.jsonl").exists()


def test_a_dry_run_distils_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "distill", None)
    monkeypatch.setattr(
        ablation.estimate, "seconds", lambda _, groups, __: {str(groups[0]): 3.0}
    )
    run = Run(corpus, tmp_path, dry_run=True)
    assert run.found == [] and not list(tmp_path.iterdir())
    assert run.said[-1].startswith("Estimate: 21 s for 14 distillations")


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"num_meta_steps": 0}, "num_meta_steps must be at least 1, got 0"),
        ({"select_on": "test"}, "needs --select_on=validation, got test"),
        ({"theta_0": "fixed"}, "needs --theta_0=random, got fixed"),
        ({"num_passes": 0}, "--num_passes must be at least 1, got 0"),
        ({"real_batch": 1024}, "real_batch=1024 is more than the 180"),
        ({"examples": 500}, "asked for 500 examples of 180"),
        ({"window_earliest": 5}, "a window of 2 after the first 5 does not fit"),
        ({"change": ["inner__lr"]}, "a change is NAME=JSON_VALUE, such as inner__lr"),
        ({"change": ["inner__rate=1"]}, "unknown setting 'inner__rate'; known: inner"),
        ({"change": ['inner__lr="x"']}, "inner__lr=.x.: .* not supported"),
        ({"change": ["meta__steps=-1"]}, "steps must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused_before_long_work(
    corpus, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(sources, "distill", None)
    monkeypatch.setattr(ablation.estimate, "seconds", None)
    with pytest.raises(ValueError, match=message) as raised:
        Run(corpus, tmp_path, **changes)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_changes_are_json():
    assert changed(BASE, ["inner__learn_lr=false", 'start__kind="noise"']) == {
        "inner__learn_lr=false": {"inner__learn_lr": False},
        'start__kind="noise"': {"start__kind": "noise"},
    }


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
