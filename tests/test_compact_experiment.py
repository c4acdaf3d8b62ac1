"""What accuracy of a distilled set is left per byte, on a few hundred articles."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import artifact, schema
from distill_jax import forms as known
from distill_jax import results as result_rows
from distill_jax.report import compact_tables, plots
from distill_jax.report.pages import NotDrawn
from distill_jax.task import in_chunks
from distill_jax.types import Distilled
from experiments import compact, recipe, saved
from tests.test_experiments import Run, child, write_corpus
from tests.test_results import experiment_row

N, L, D, C, E = 4, 40, 50, 2, 10  # of the set that is distilled here
REST = N * C + E
FULL = 0.9
INITS = 3
RANKS = [f"low_rank:{r}" for r in (1, 2, 4, 8, 16)]
BASES = [f"shared_basis:{k}" for k in (2, 4, 8, 16, 32)]
FORMS = ["float32", "float16", "int8", *RANKS, *BASES]


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it, and as the process that is started here does."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "articles")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Run:
    """A distillation; its card tells an accuracy of full data that it never had."""
    run = Run(corpus, tmp_path_factory.mktemp("finished"), baselines=False)
    card = run.out / "artifact" / artifact.CARD
    known = json.loads(card.read_text())
    known["results"]["full"] = FULL
    card.write_text(json.dumps(known))
    return run


def weigh(finished, corpus, folder: Path, **changes):
    """Rows by form, and what was said."""
    given = {"artifact": str(finished.out / "artifact"), "dataset": str(corpus)}
    given |= {"test_inits": INITS, "validation_examples": 40}
    said = []
    rows = compact.run(
        compact.Config(**given | changes),
        out=folder / "out",
        results=folder / "c.jsonl",
        say=said.append,
    )
    return {row["config"]["form"]: row for row in rows}, said


@pytest.fixture(scope="module")
def weighed(finished, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighed")
    return *weigh(finished, corpus, folder), folder


# What it measures


def test_every_form_has_a_valid_row(weighed, finished):
    rows, _, folder = weighed
    assert list(rows) == FORMS
    assert len(result_rows.read(folder / "c.jsonl")) == len(FORMS)
    for row in rows.values():
        result_rows.check(row)
        assert row.keys() == schema.EXPERIMENT_FIELDS.keys()
        assert (row["experiment"], row["method"]) == ("compact", "distilled")
        assert (row["dataset"], row["model"]) == ("articles", "bag")
        assert (row["examples"], row["num_inits"]) == (N, INITS)
        assert (row["split"], row["training"]) == ("test", "native")
        assert (row["theta_0"], row["labels"]) == ("random", "soft")
        assert 0 <= row["config"]["validation_accuracy"] <= 1
        assert row["full_accuracy_mean"] == FULL
        assert row["config"]["artifact_model"]["name"] == "bag"


def test_float32_is_the_set_as_the_run_reported_it(weighed, finished):
    row, reported = weighed[0]["float32"], finished.by_method["distilled"]
    for field in ("accuracy_mean", "accuracy_sd", "bytes", "examples", "labels"):
        assert row[field] == reported[field]
    assert row["accuracy_mean"] > 0.75


def test_the_bytes_are_those_of_all_arrays(weighed):
    rows = weighed[0]
    expected = {
        "float32": 4 * (N * L * D + REST),
        "float16": 2 * (N * L * D + REST),
        "int8": N * L * D + 4 * N * L + 2 * REST,
    }
    expected |= {f"low_rank:{r}": 4 * (r * N * (L + D) + REST) for r in known.RANKS}
    expected |= {f"shared_basis:{k}": 4 * (k * (N * L + D) + REST) for k in known.SIZES}
    assert {form: row["bytes"] for form, row in rows.items()} == expected
    for forms in (["int8", "float16", "float32"], [*RANKS, "float32"], BASES):
        sizes = [rows[form]["bytes"] for form in forms]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_much_is_left_where_little_is_lost(weighed):
    rows = weighed[0]
    for field in ("accuracy_mean", "relative_accuracy"):
        assert rows["float16"][field] == pytest.approx(rows["float32"][field], abs=0.04)
    kept = [row["accuracy_mean"] for row in rows.values()]
    assert len(set(kept)) > 2  # what is trained on is not always the same set


def closest(x, rank):
    """The closest matrices of that rank, `[..., M, N]`, in numpy's own way."""
    u, s, v = np.linalg.svd(np.asarray(x, np.float64))
    s[..., rank:] = 0
    d = np.zeros(x.shape)
    i = np.arange(s.shape[-1])
    d[..., i, i] = s
    return u @ d @ v


def rounded(x):
    step = abs(x).max(-1, keepdims=True) / 127
    return np.round(x / step) * step


def tokens_of_rank(x, rank):
    return closest(x.reshape(-1, D), rank).reshape(x.shape)


@pytest.mark.parametrize(
    "form, approximate",
    [
        ("int8", rounded),
        ("low_rank:1", lambda x: closest(x, 1)),
        ("shared_basis:2", lambda x: tokens_of_rank(x, 2)),
    ],
)
def test_a_form_is_trained_on_as_what_it_stands_for(
    weighed, finished, corpus, form, approximate
):
    loaded = artifact.load(finished.out / "artifact")
    task = saved.task_of(loaded, dataset=str(corpus))
    x = jnp.asarray(approximate(loaded.arrays["x"]), jnp.float32)
    one = Distilled(x, loaded.arrays["y_logits"], loaded.arrays["raw_lr"])
    scorer = recipe.native_scorer(
        task, task.model.init, saved.inner_tx_of({"inner_optimizer": "adam"})
    )
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))[1]
    test = in_chunks(task, task.test)
    got = scorer(one.batches, one.lr, jax.random.split(key, INITS), test)
    mean = weighed[0][form]["accuracy_mean"]
    # One of 60 articles may fall on the other side.
    assert mean == pytest.approx(float(got.mean()), abs=1.1 / 60)


def test_nothing_is_chosen_on_test(weighed, finished, tmp_path):
    other = write_corpus(tmp_path / "articles", flipped_test=True)
    rows, said = weigh(finished, other, tmp_path)
    for form, row in rows.items():
        before = weighed[0][form]
        assert row["accuracy_mean"] == pytest.approx(1 - before["accuracy_mean"])
        for name in ("validation_accuracy", "validation_sd"):
            assert row["config"][name] == before["config"][name]
        # The card's accuracy of full data is of another corpus.
        assert row["full_accuracy_mean"] is row["relative_accuracy"] is None
    assert any("Warning: articles is not the corpus" in text for text in said)
    told = "Smallest within"
    smallest = [next(t for t in texts if told in t) for texts in (said, weighed[1])]
    assert smallest[0] == smallest[1]


# What it says and leaves


def test_it_says_what_it_does_and_where_it_wrote_what(weighed):
    rows, said, folder = weighed
    assert said[0].startswith("4 sentences of 40 x 50 numbers, learned from articles")
    assert "in 13 forms; 3 random theta_0 for each" in said[0]
    test = said.index("Reading the test split.")
    assert [text.split(":")[0] for text in said[1:test]] == [
        form.split(":")[0] for form in FORMS
    ]
    table = next(text for text in said[test:] if "of float32" in text)
    for form, row in rows.items():
        line = next(x for x in table.splitlines() if x.startswith(form + " "))
        assert f"{row['bytes']:,}" in line and f"{row['accuracy_mean']:.1%}" in line
    figure = folder / "out" / "compact.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    last = said[-1].splitlines()
    assert last[1:3] == [f"Rows: {folder / 'c.jsonl'}", f"Figure: {figure}"]
    assert last[3].startswith("Next: python -m experiments.")


def test_what_is_asked_for_joins_the_figure(
    weighed, finished, corpus, tmp_path, monkeypatch
):
    shutil.copy(weighed[2] / "c.jsonl", tmp_path)
    drawn = []

    def draw(path, curves, **how):
        drawn.append((curves, how))
        return path

    monkeypatch.setattr(plots, "plot_curves", draw)
    asked = ("low_rank:4:float16", "float32", "low_rank:08")
    rows, said = weigh(finished, corpus, tmp_path, forms=asked)
    assert list(rows) == ["float32", "low_rank:4:float16", "low_rank:8"]
    assert rows["low_rank:4:float16"]["bytes"] == 2 * (4 * N * (L + D) + REST)
    before = weighed[0]["low_rank:8"]
    assert rows["low_rank:8"]["accuracy_mean"] == before["accuracy_mean"]
    [(curves, how)] = drawn
    assert list(curves) == [
        "whole: float32, float16, int8",
        "low rank, float32: 1, 2, 4, 8, 16",
        "shared basis, float32: 2, 4, 8, 16, 32",
        "low rank, float16: 4",
    ]
    row = rows["float32"]
    mean, sd = row["accuracy_mean"], row["accuracy_sd"]
    point = (row["bytes"], mean, mean - sd, min(mean + sd, 1))
    assert curves["whole: float32, float16, int8"][0] == point
    assert (how["full"], how["log"], how["xlabel"]) == (FULL, True, "bytes")


def row_of(form, validation, size, *, sd=0.02, **more):
    config = {"form": form, "validation_accuracy": validation, "validation_sd": sd}
    config |= {"artifact_sha256": "a", "seed": 0, "test_inits": 20}
    return experiment_row(
        experiment="compact", bytes=size, config=config | more.pop("config", {}), **more
    )


def test_the_smallest_is_chosen_on_validation():
    rows = [
        row_of("float32", 0.8, 900),
        row_of("float16", 0.796, 450),  # the standard error is 0.0045
        row_of("int8", 0.795, 200, accuracy_mean=0.9, relative_accuracy=1.2),
    ]
    assert compact.smallest(rows)["config"]["form"] == "float16"
    rows[0]["config"]["validation_sd"] = None  # of one theta_0
    assert compact.smallest(rows)["config"]["form"] == "float32"


@pytest.mark.parametrize(
    "form, expected",
    [
        (
            "low_rank:2",
            "python -m experiments.compact --artifact=runs/a/artifact --seed=3 "
            "--download=True --out=x --results=r.jsonl --forms=low_rank:2:float16 "
            "--forms=low_rank:2:int8",
        ),
        ("int8", "python -m experiments.tables"),
        ("low_rank:2:int8", "python -m experiments.tables"),
    ],
)
def test_what_comes_next(form, expected):
    config = compact.Config(artifact="runs/a/artifact", seed=3, download=True)
    row = row_of(form, 0.8, 9)
    got = compact._next(config, row, Path("x"), "r.jsonl").split()
    assert sorted(got) == sorted(expected.split())


def test_the_rows_are_kept_where_the_figure_cannot_be(
    finished, corpus, tmp_path, monkeypatch
):
    def full_disk(*args, **how):
        raise OSError("no space left")

    monkeypatch.setattr(plots, "plot_curves", full_disk)
    with pytest.raises(NotDrawn, match="the rows are in .*c.jsonl"):
        weigh(finished, corpus, tmp_path, forms=("int8",))
    assert len(result_rows.read(tmp_path / "c.jsonl")) == 2


# What is refused, and when


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"artifact": None}, "--artifact must name the folder of an artefact"),
        ({"artifact": "none"}, "no artefact at none: there is no such folder"),
        ({"test_inits": 0}, "--test_inits must be at least 1, got 0"),
        ({"validation_examples": 0}, "--validation_examples must be at least 1"),
        ({"forms": ("int4",)}, "--forms=int4 is no form; known: float32, float16"),
        ({"forms": ("low_rank",)}, "--forms=low_rank is no form"),
        ({"forms": ("int8:4",)}, "--forms=int8:4 is no form"),
        ({"forms": ("low_rank:4:int4",)}, "--forms=low_rank:4:int4 is no form"),
        ({"forms": ("low_rank:x",)}, "--forms=low_rank:x: 'x' is no whole number"),
        ({"forms": ("low_rank:0",)}, "low_rank:0: the size must be at least 1, got 0"),
        (
            {"forms": ("shared_basis:-1",)},
            "shared_basis:-1: the size must be at least 1, got -1",
        ),
        (
            {"forms": ("low_rank:41",)},
            "--forms=low_rank:41: rank must be at most 40 for matrices of 40 x 50",
        ),
        (
            {"forms": ("shared_basis:51",)},
            "--forms=shared_basis:51: k must be at most 50 for matrices of 160 x 50",
        ),
    ],
)
def test_bad_input_is_refused_before_the_corpus_is_read(
    finished, corpus, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(compact, "task_of", None)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        weigh(finished, corpus, tmp_path, **changes)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


SHOWN = """
from absl import app
from experiments import compact
compact.define_flags()
compact.run = lambda config, **how: print(repr(config), how)
app.run(compact.main)
"""


def test_the_command_line(finished):
    folder = finished.out / "artifact"
    given = [f"--artifact={folder}", "--forms=low_rank:64"]
    refused = child("-m", "experiments.compact", *given)
    shown = child("-c", SHOWN, *given, "--forms=int8")
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 1 and err.count("\n") == 1
    assert err.startswith("error: --forms=low_rank:64: rank must be at most 40")
    said, err = shown.communicate(timeout=120)
    assert shown.returncode == 0, err
    config = compact.Config(artifact=str(folder), forms=("low_rank:64", "int8"))
    how = {"out": finished.out, "results": "results/compact.jsonl"}
    assert said == f"{config!r} {how}\n" and config.test_inits == 20


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ((1, 4, 40, 50), FORMS[3:]),
        ((1, 4, 3, 50), ["low_rank:1", "low_rank:2", *BASES[:3]]),  # 12 tokens
        ((1, 1, 1, 50), []),
    ],
)
def test_forms_are_tried_that_fit_and_are_smaller(shape, sizes):
    got = known.fitting(shape)
    assert [f"{form}" for form in got] == [*FORMS[:3], *sizes]
    assert [known.form_of(f"{form}") for form in got] == got


# The table


def test_the_table_takes_the_newest_row_of_each_form():
    def row(form, mean, size, **more):
        relative = mean / more.setdefault("full_accuracy_mean", 0.75)
        more |= {"accuracy_mean": mean, "relative_accuracy": relative}
        return row_of(form, 0.5, size, **more)

    other = {"artifact_sha256": "b"}
    rows = [
        row("float32", 0.2, 9000, dataset="sst5"),
        row("int8", 0.1, 2500),
        row("float32", 0.8, 8000),
        row("int8", 0.6, 2500),
        row("low_rank:1", 0.4, 100, accuracy_sd=None),
        row("float32", 0.5, 9000, examples=8),
        row("float32", 0.6, 8000, config=other),  # the same size of another set
        row("int8", 0.3, 2500, model="bag", num_inits=5),  # none of float32
    ]
    text = compact_tables.compact({"compact": rows})
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| corpus, network | examples | form | bytes | accuracy "
        "| % of float32's accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
        "| sst5, text_cnn | 20 | float32 | 9,000 | 20.0 ± 1.0 | 100.0 |",
        "| rotten_tomatoes, text_cnn | 8 | float32 | 9,000 | 50.0 ± 1.0 | 100.0 |",
        "| rotten_tomatoes, text_cnn | 20 | float32 | 8,000 | 60.0 ± 1.0 | 100.0 |",
        "| rotten_tomatoes, text_cnn | 20 | int8 | 2,500 | 60.0 ± 1.0 | 75.0 |",
        "| rotten_tomatoes, text_cnn | 20 | low_rank:1 | 100 | 40.0 | 50.0 |",
        "| rotten_tomatoes, bag | 20 | int8 | 2,500 | 30.0 ± 1.0 | - |",
    ]
    assert "over 5 to 20 random θ0" in text
    empty = compact_tables.compact({"compact": []})
    assert empty == "\nNo rows in `results/compact.jsonl` yet.\n\n"


def test_the_table_reads_what_a_run_wrote(weighed):
    rows = result_rows.read(weighed[2] / "c.jsonl")
    text = compact_tables.compact({"compact": rows})
    assert text.count("| articles, bag | 4 |") == len(FORMS)
    assert "| float32 | 32,072 |" in text and "| 100.0 |" in text
