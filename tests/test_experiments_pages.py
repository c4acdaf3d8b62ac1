"""Each experiment leaves its page behind, and rows alone give it again."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distill_jax import artifact
from distill_jax import results as result_rows
from distill_jax.report import pages, verdict
from experiments import active_learning, compare, distill, recipe
from experiments.acquisition import Config as ActiveConfig
from tests.test_compare import write_corpus
from tests.test_page import Parsed

ROOT = Path(__file__).parents[1]
NETWORK = {
    "model": "bag",
    "model_settings": ("hidden=8",),
    "vectors": "random",
    "length": 6,
    "validation_examples": 30,
}
SHORT = NETWORK | {
    "num_passes": 2,
    "num_meta_steps": 4,
    "validate_every": 2,
    "checkpoint_every": 4,
    "real_batch": 16,
    "real_chunk": 16,
    "validation_inits": 2,
    "test_inits": 3,
    "selection_seeds": 2,
    "full_epochs": 4,
}
SETTINGS = {
    "run": SHORT | {"examples_per_class": 2, "baselines": False},
    "comparison": SHORT
    | {
        "budgets": "1,2",
        "methods": "full,majority,random,distilled",
        "distill_seeds": 1,
        "tuning_inits": 2,
        "fit_batch": 6,
    },
    "active": NETWORK
    | {
        "model_settings": ("hidden=8", "dropout=0.3"),
        "query": "random,bald",
        "start_size": "6",
        "query_size": "4",
        "rounds": 2,
        "passes": 3,
        "epochs": 2,
        "min_steps": 10,
        "num_inits": 2,
        "seeds": 2,
    },
}
EXPERIMENTS = {
    "run": (distill, distill.Config),
    "comparison": (compare, compare.Config),
    "active": (active_learning, ActiveConfig),
}
KINDS = tuple(EXPERIMENTS)
AGAIN = {"run": {"resume": True}, "comparison": {}, "active": {"resume": True}}


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


class Run:
    """A run whose page cannot be written at first, and is by the same run again."""

    def __init__(self, kind: str, corpus: Path, folder: Path):
        self.kind, self.said = kind, []
        self.out, self.results = folder / "run", folder / "r.jsonl"
        self.path = self.out / "report.html"
        experiment, make = EXPERIMENTS[kind]
        self.config = make(**SETTINGS[kind], dataset=str(corpus))
        (self.path / "in the way").mkdir(parents=True)
        with pytest.raises(pages.NotDrawn) as failed:
            self.go()
        self.failure = str(failed.value)
        self.said_at_first, self.said = self.said, []
        self.rows_at_first = result_rows.read(self.results)
        (self.path / "in the way").rmdir()
        self.path.rmdir()
        self.opened = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("webbrowser.open", lambda url: not self.opened.append(url))
            self.rows = self.go(show=True, **AGAIN[kind])
        self.page = Parsed(self.path.read_text(encoding="utf-8"))

    def go(self, **options):
        experiment, _ = EXPERIMENTS[self.kind]
        places = {"out": self.out, "results": self.results}
        return experiment.run(self.config, **places, say=self.said.append, **options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made_up")


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    made: dict[str, Run] = {}

    def run(kind: str) -> Run:
        if kind not in made:
            made[kind] = Run(kind, corpus, tmp_path_factory.mktemp(kind))
        return made[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_comes_after_the_rows(runs, kind):
    run = runs(kind)
    assert run.failure.startswith(f"the rows are in {run.results}, but not all was")
    assert "report.html" in run.failure and "To draw it again: the same" in run.failure
    # Nothing measured is lost, and the numbers are shown though the page is not.
    assert len(run.rows_at_first) == len(run.rows)
    at_first = "\n".join(run.said_at_first)
    accuracy = f"{run.rows[-1]['accuracy_mean']:.1%}"
    last = {"run": "Next: ", "comparison": "Distilled beats", "active": "area under"}
    assert accuracy in at_first and last[kind] in at_first
    assert "Page: " not in at_first
    assert f"Page: {run.path}" in "\n".join(run.said)
    assert run.opened == [run.path.resolve().as_uri()]
    if kind != "run":  # which scores anew when it is resumed after its end
        assert result_rows.read(run.results) == run.rows_at_first


@pytest.mark.parametrize("kind", KINDS)
def test_pages_name_no_folder_of_this_machine(runs, corpus, kind):
    text = runs(kind).path.read_text(encoding="utf-8")
    assert "made_up" in text and str(corpus.parent) not in text


def rows_of(shown: Parsed) -> list[list[str]]:
    """The cells of every row of every table, without the headers."""
    return [text.split("|")[:-1] for text in shown.texts("tr") if "|" in text]


def test_the_page_of_a_run_has_what_it_learned(runs):
    run = runs("run")
    shown, row = run.page, run.rows[0]
    assert f"{100 * row['accuracy_mean']:.1f}\u00a0%" in shown.texts("dd")
    loaded = artifact.load(run.out / "artifact")
    distilled = artifact.to_distilled(loaded)
    titles = [text for text in shown.texts("h3") if text.startswith("Sentence ")]
    assert len(titles) == row["examples"] == 6
    rows = rows_of(shown)
    steps = [cells for cells in rows if len(cells) == 4 and cells[0].isdecimal()]
    assert [float(cells[3]) for cells in steps] == pytest.approx(
        np.asarray(distilled.lr).ravel(), rel=1e-3
    )
    validated = [c[1] for c in rows if c[0] == "distilled" and len(c) == 4]
    assert validated == ["0", "2", "4"]
    shares = [float(meter["value"]) for meter in shown.attributes("meter")]
    expected = -np.sort(-np.asarray(distilled.y).reshape(6, 3))
    assert shares == pytest.approx(expected.ravel(), abs=1e-4)
    titled = [a for a in shown.attributes("span") if "title" in a]
    assert len(titled) == 6 * 6 and len(shown.texts("b")) == 6 * 6


def test_sentences_of_real_words_are_read_back(runs, corpus):
    """Their rows are scaled as the network sees them; the vocabulary's are not."""
    run = runs("run")
    task = recipe.load(run.config, lambda _: None)
    assert abs(task.scale - 1) > 0.1
    tokens = np.array([[[2, 3, 4], [7, 6, 5]]])
    distilled = SimpleNamespace(
        x=task.model.embed(None, tokens),
        y=np.full((1, 2, 3), 1 / 3),
        lr=np.ones((1, 1)),
    )
    history = [{"step": 0, "accuracy": 0.5}]
    made = pages.of_run(task, distilled, history, run.rows)  # type: ignore[arg-type]
    (section,) = (s for s in made.sections if s.title == "Distilled sentences")
    found = [b.words for b in section.blocks if b.kind == "sentence"]
    words = task.vectors.vocabulary.words
    assert [[w for w, *_ in s] for s in found] == [
        [words[i] for i in sentence] for sentence in tokens[0]
    ]
    assert all(
        cosine == pytest.approx(1, abs=1e-5) for s in found for _, cosine, _ in s
    )
    assert all(others.count(",") == 3 for s in found for *_, others in s)


def test_the_page_of_a_comparison_has_the_verdicts(runs):
    run = runs("comparison")
    tables = [a["aria-label"] for a in run.page.attributes("table")]
    assert tables[0] == "Distilled beats the best real method?"
    assert "The same, with hard labels on both sides?" in tables
    (first, second) = verdict.verdicts(run.rows)
    rows = rows_of(run.page)
    shown = [cells for cells in rows if cells[0] == "made_up"][:2]
    for cells, found in zip(shown, (first, second), strict=True):
        d = found.found
        assert cells == [
            "made_up",
            f"{found.examples_per_class:g}",
            found.answer,
            f"{100 * d.difference:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            f"{found.p_value:.2g}",
            verdict.name_of(found.distilled),
            verdict.name_of(found.real),
            "bag",
        ]
    assert f"{100 * first.found.difference:+.1f} points" in run.page.texts("dd")


def test_the_page_of_active_learning_has_what_was_asked(runs):
    run = runs("active")
    folded = [t for t in run.page.texts("summary") if "sentences" in t]
    names = [f"{q}, seed {s}" for s in "01" for q in ("random", "bald")]
    assert folded == [f"{name}: 14 sentences" for name in names]
    with open(run.out / "bald-1" / "asked.csv", encoding="utf-8") as file:
        asked = list(csv.DictReader(file))
    rows = rows_of(run.page)
    shown = [cells for cells in rows if len(cells) == 6 and cells[0].isdecimal()]
    for number, item in enumerate(asked, 1):
        score = f"{float(item['score']):.4g}" if item["score"] else "–"
        line = [str(number), item["round"], item["text"], item["label"], score]
        assert [*line, item["id"]] == shown[3 * 14 + number - 1]
    assert (run.out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_of_very_many_asked_the_first_seed_is_shown(runs, monkeypatch):
    run = runs("active")
    monkeypatch.setattr(pages, "_MOST_ASKED", 4 * 14 - 1)
    (section,) = (
        s
        for s in pages.of_active(run.rows, run.out).sections
        if s.title == "Queried sentences"
    )
    shown = [block.title for block in section.blocks]
    assert shown == [f"{name}, seed 0: 14 sentences" for name in ("random", "bald")]


def test_a_page_from_rows_alone_is_the_same(runs, tmp_path):
    """As a user makes it, in a process of its own, with a browser to show it."""
    run = runs("comparison")
    out, seen = tmp_path / "new" / "page.html", tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.pages", f"--results={run.results}"]
        + [f"--out={out}", "--dataset=made_up", "--model=bag", "--open"],
        cwd=ROOT,
        env=os.environ | {"BROWSER": f"{browser} %s"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, f"Page: {out}\n"), done.stderr
    assert out.read_bytes() == run.path.read_bytes()
    assert seen.read_text() == out.resolve().as_uri()


def test_active_learning_from_rows_alone(runs, tmp_path):
    run = runs("active")
    said: list[str] = []
    rows = result_rows.read(run.results)
    whole = pages.of_results(rows, run=run.out, say=said.append)
    written = pages.page.write(tmp_path / "a.html", whole)
    assert written.read_bytes() == run.path.read_bytes()
    titles = [s.title for s in pages.of_results(rows, say=said.append).sections]
    assert "Queried sentences" not in titles and not said


def test_of_active_learning_the_newest_settings_count(runs):
    run, said = runs("active"), []
    rows = result_rows.read(run.results)
    older = [r | {"config": r["config"] | {"epochs": 9}, "round": 9} for r in rows[:3]]
    later = [r | {"config": r["config"] | {"seed": 7}, "seed": 7} for r in rows[:3]]
    mixed = pages.of_results([*older, *rows, *later], say=said.append)
    assert mixed == pages.of_active([*rows, *later])
    assert said == ["3 rows are of older runs with other settings."]
    assert "with 3 seeds" in mixed.summary
    other = [row | {"dataset": "other"} for row in rows]
    with pytest.raises(ValueError, match="rows are of 2: give --dataset and --model"):
        pages.of_results([*rows, *other], run=run.out)


def test_of_a_comparison_the_newest_row_of_a_cell_counts(runs):
    run = runs("comparison")
    old = []
    for row in run.rows:  # the best of their side, if they were to count
        config = row["config"] | {"validation_accuracy": 1.0}
        low = np.zeros_like(row["accuracies"]).tolist()
        old.append(row | {"config": config, "accuracies": low, "accuracy_mean": 0.0})
    assert pages.of_results([*old, *run.rows]) == pages.of_comparison(run.rows)


def test_rows_of_a_preset_are_not_mixed_with_others(runs):
    rows = runs("comparison").rows
    paper = [row | {"preset": "anonymous2022", "dataset": "sst5"} for row in rows]
    mixed = [*rows, *paper]
    assert pages.of_results(mixed) == pages.of_comparison(rows)
    assert pages.of_results(mixed, preset="anonymous2022") == pages.of_comparison(paper)
    with pytest.raises(
        ValueError, match=r"preset \(none\); set --preset; there are: a"
    ):
        pages.of_results(paper)
    with pytest.raises(
        ValueError, match="dataset sst5; set --dataset; there are: made"
    ):
        pages.of_results(mixed, dataset="sst5")
    with pytest.raises(ValueError, match="model cnn; set --model; there are: bag"):
        pages.of_results(mixed, model="cnn")


def test_two_corpora_have_their_own_verdicts(runs):
    rows = runs("comparison").rows
    other = [row | {"dataset": "other"} for row in rows]
    shown = pages.of_results([*rows, *other])
    questions = [b.caption for b in shown.sections[0].blocks if b.kind == "table"]
    titles = [verdict.TITLES[name] for name in ("own", "soft", "hard")]
    assert questions == [f"{title[:1].upper()}{title[1:]}?" for title in titles]
    for table in shown.sections[0].blocks[1:]:
        assert [row[0] for row in table.rows] == ["made_up"] * 2 + ["other"] * 2
    alone = pages.of_results([*rows, *other], dataset="other")
    assert alone == pages.of_comparison(other)


def test_rows_that_make_no_page(runs):
    distilled = runs("run").rows
    with pytest.raises(ValueError, match="these are of: distill$"):
        pages.of_results(distilled)
    with pytest.raises(ValueError, match="these are of: nothing"):
        pages.of_results([])
    with pytest.raises(ValueError, match="these are of: a timing"):
        pages.of_results([{"implementation": "torch"}])
    both = [*runs("comparison").rows, *runs("active").rows]
    with pytest.raises(ValueError, match="these are of: compare, active_learning"):
        pages.of_results(both)
    with pytest.raises(ValueError, match="row 1 is of experiments.distill, not of"):
        pages.of_comparison(distilled)
    with pytest.raises(ValueError, match="--run is for active learning"):
        pages.of_results(runs("comparison").rows, run="runs/x")


@pytest.mark.parametrize("module", ["active_learning", "pages"])
def test_help_lists_open(module):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("--[no]open: Show the page in a browser") == 1


def test_no_file_of_rows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.pages", f"--results={tmp_path}/none.jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = f"error: no {tmp_path}/none.jsonl; name a file with --results\n"
    assert done.stderr == said


ASKED = "round,id,score,label,text\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no .*asked\.csv: give the --out of the run that has it"),
        ("id,text\n1,a\n", "must have the columns round, id, score, label, text"),
        (ASKED + "0,one,,sport,a\n", "line 2: round, id and score must be numbers"),
        (ASKED + "0,1,,sport,a\n1,2,high,sport,b\n", "line 3: round, id and score"),
        (ASKED + "0\n", "line 2: round, id and score must be numbers"),
    ],
)
def test_an_asked_csv_that_is_not_as_it_was_written(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bald-0").mkdir()
        (tmp_path / "bald-0" / "asked.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pages.queried([{"method": "bald", "seed": 0}], tmp_path)


def test_long_texts_are_cut(tmp_path):
    (tmp_path / "bald-0").mkdir()
    with open(tmp_path / "bald-0" / "asked.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("round", "id", "score", "label", "text"))
        table.writerow((0, 4, "", "sport", "x" * 400))
        table.writerow((1, 2, 0.25, "sport", "y" * 200_000))
    limit = csv.field_size_limit()
    first, second = pages.queried([{"method": "bald", "seed": 0}] * 2, tmp_path)
    assert (first.round, first.id, first.score, first.text) == (0, 4, None, "x" * 400)
    assert (second.score, second.text) == (0.25, "y" * 400 + " …")
    assert csv.field_size_limit() == limit


def test_no_browser_is_said(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    pages.open_in_browser(tmp_path / "report.html", said.append)
    assert said == [f"There is no browser here: open {tmp_path}/report.html in one."]
