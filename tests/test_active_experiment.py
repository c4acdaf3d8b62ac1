"""Active learning from flags to rows, on a few hundred articles of bbc_news."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import distill_jax as dj
from distill_jax import active
from distill_jax import checkpoints as ckpt
from distill_jax import results as result_rows
from distill_jax.active import annotation
from experiments import active_learning
from experiments.presets import ACTIVE
from tests.test_experiments import as_flags, child, measured, write_corpus

TINY = {
    "model_settings": ["hidden=16", "dropout=0.3"],
    "query": "random,bald",
    "start_size": "6",
    "query_size": "5%",
    "rounds": 3,
    "passes": 4,
    "epochs": 4,
    "min_steps": 120,
    "num_inits": 2,
    "seeds": 2,
    "validation_examples": 40,
}
ONE = TINY | {"query": "bald", "seeds": 1, "full": False}


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

    def __init__(self, corpus: Path, folder: Path, settings=TINY, **changes):
        self.out, self.results, self.said = folder / "run", folder / "r.jsonl", []
        self.values = settings | {"dataset": str(corpus)} | changes
        self.go()

    def go(self, **options) -> None:
        self.rows = active_learning.run(
            self.values,
            out=self.out,
            rows=self.results,
            say=self.said.append,
            **options,
        )

    def of(self, **wanted):
        return [r for r in self.rows if all(r[k] == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Run:
    return Run(corpus, tmp_path_factory.mktemp("finished"))


def final_bytes(out: Path) -> dict[str, bytes]:
    """Everything the last checkpoint of each run holds, and what was asked."""
    found = {}
    for folder in sorted(out.glob("*/checkpoints")):
        kinds = {"labelled": bool, "acquired_round": "i4", "labels": "i4"}
        like = {name: np.zeros(180, kind) for name, kind in kinds.items()}
        about = json.loads(
            next(
                (folder / f"step_{ckpt.latest_step(folder)}").glob("about/*")
            ).read_text()
        )
        arrays, facts = ckpt.restore(folder, like, about["fingerprint"])
        for found_round in facts["history"]:
            found_round.pop("seconds")
        name = folder.parent.name
        found[name] = b"".join(np.asarray(a).tobytes() for a in arrays.values())
        found[f"{name} facts"] = json.dumps(facts, sort_keys=True).encode()
        found[f"{name} asked"] = (folder.parent / "asked.csv").read_bytes()
    assert found
    return found


# A whole run


def test_every_round_of_every_query_and_seed_has_a_valid_row(finished):
    assert len(finished.rows) == 2 * 2 * 4
    assert result_rows.read(finished.results) == json.loads(
        json.dumps(result_rows.portable(finished.rows))
    )
    for name in ("random", "bald"):
        for seed in (0, 1):
            rows = finished.of(method=name, seed=seed)
            assert [row["round"] for row in rows] == [0, 1, 2, 3]
            assert [row["num_labelled"] for row in rows] == [6, 15, 24, 33]
    for row in finished.rows:
        assert row["experiment"] == "active_learning" and row["split"] == "test"
        assert row["examples"] == row["num_labelled"] and row["bytes"] > 0
        assert row["examples_per_class"] == row["examples"] / 2
        assert len(row["accuracies"]) == row["num_inits"] == 2
        assert row["full_accuracy_mean"] > 0.75 and row["majority_accuracy"] == 0.5
        assert row["config"]["query_size"] == "5%" and len(row["data"]) == 64
        ties = row["n_tied_at_cut"]
        assert (ties is None) == (row["method"] == "random" or row["round"] == 3)


def test_the_committed_curve_is_drawn_again(shared_data):
    """To the last digit: by a score, and with another seed by features too."""
    path = Path(__file__).parents[1] / "results" / "active_learning.jsonl"
    known = {
        (row["dataset"], row["method"], row["seed"], row["round"]): row
        for row in result_rows.read(path)
    }
    task = dj.make_task(shared_data / "trec6", "bag", length=20, dropout=0.2)
    rounds = active.Rounds(start_size=20, query_size=20, rounds=4)
    settings = {"rounds": rounds, "training": active.Training(num_inits=5)}
    full = active.all_labels(task, training=settings["training"]).mean()
    for query, seed in (("bald", 0), ("badge", 3)):
        found = dj.acquire(task, query, seed=seed, **settings)
        assert len(found.history) == 5
        for one in found.history:
            row = known["trec6", query, seed, one["round"]]
            assert one["accuracies"] == row["accuracies"]
            assert one["bytes"] == row["bytes"]
            assert row["full_accuracy_mean"] == full


def test_it_learns(finished):
    first = np.mean([r["accuracy_mean"] for r in finished.of(round=0)])
    last = np.mean([r["accuracy_mean"] for r in finished.of(round=3)])
    assert last > 0.7 and last > first


def test_queries_share_their_start_and_seeds_differ(finished):
    start = {(r["method"], r["seed"]): r["accuracies"] for r in finished.of(round=0)}
    assert start["random", 0] == start["bald", 0]
    assert start["random", 1] == start["bald", 1]
    asked = {
        path.parent.name: [
            (row["round"], row["id"])
            for row in csv.DictReader(path.read_text().splitlines())
        ]
        for path in finished.out.glob("*/asked.csv")
    }
    assert asked["random-0"][:6] == asked["bald-0"][:6]
    assert asked["random-0"][6:] != asked["bald-0"][6:]
    assert set(asked["random-0"][:6]) != set(asked["random-1"][:6])
    assert set(asked["random-0"][6:]) != set(asked["random-1"][6:])
    for rows in asked.values():
        assert len({i for _, i in rows}) == len(rows) == 33


def test_what_was_asked_is_written_with_its_answers(finished, corpus):
    with open(corpus / "train.tsv", encoding="utf-8") as file:
        train = [line.rstrip("\n").split("\t") for line in file][1:]
    with open(finished.out / "bald-0" / "asked.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [0] * 6 + [1] * 9 + [2] * 9 + [3] * 9
    for row in rows:
        assert [row["text"], row["label"]] == train[int(row["id"])]
    for number in "123":
        scores = [float(row["score"]) for row in rows if row["round"] == number]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]


def test_it_says_what_it_will_do_and_shows_a_table(finished):
    said = "\n".join(finished.said)
    assert "180 train, 60 validation, 60 test; 2 classes" in said
    assert "from 6 random sentences" in said and "3 rounds of 9" in said
    assert "to 33 labels (18.3% of 180)" in said
    assert "Estimate: " in said
    table = finished.said[-2]
    last = np.mean([r["accuracy_mean"] for r in finished.of(method="bald", round=3)])
    (line,) = [x for x in table.splitlines() if x.startswith("bald ")]
    assert f"{last:.1%} [" in line and line.count("[") == 3
    (line,) = [x for x in table.splitlines() if x.startswith("random ")]
    assert line.count("[") == 2
    assert (finished.out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_areas_are_those_of_the_curves(finished):
    curve = [
        np.mean([r["accuracy_mean"] for r in finished.of(method="bald", round=i)])
        for i in range(4)
    ]
    area = (curve[0] / 2 + curve[1] + curve[2] + curve[3] / 2) / 3  # equal steps
    assert f"{area:.1%} [" in finished.said[-2]


def test_a_finished_run_is_not_run_or_written_again(finished):
    before = finished.results.read_bytes()
    rows, seconds = finished.rows, [row["seconds"] for row in finished.rows]
    finished.go(resume=True)
    assert measured(finished.rows) == measured(rows)
    assert [row["seconds"] for row in finished.rows] == seconds
    assert finished.results.read_bytes() == before
    with pytest.raises(ValueError, match="already has a run: --resume it"):
        finished.go()
    with pytest.raises(ValueError, match="another run: passes was 4, now 5"):
        finished.values = finished.values | {"passes": 5}
        finished.go(resume=True)
    finished.values = finished.values | {"passes": 4}


def test_dry_run_only_talks(corpus, tmp_path):
    said = []
    rows = active_learning.run(
        ONE | {"dataset": str(corpus)},
        out=tmp_path / "run",
        rows=tmp_path / "r.jsonl",
        dry_run=True,
        say=said.append,
    )
    assert rows == [] and not list(tmp_path.iterdir())
    assert "Estimate: " in said[-1]


def test_the_trainer_and_the_scorers_are_compiled_once(corpus, tmp_path, monkeypatch):
    """For all queries, seeds and rounds, and the network of all labels."""
    learners = []
    original = active.Learner.__init__

    def noted(self, *arguments):
        original(self, *arguments)
        learners.append(self)

    monkeypatch.setattr(active.Learner, "__init__", noted)
    Run(corpus, tmp_path, rounds=2, query="bald,margin,random", epochs=3)
    (learner,) = learners
    for compiled in (learner.fit, learner.accuracies, learner.scorers.mc):
        assert compiled._cache_size() == 1


# Stops


def wait_for(path: Path, process, seconds=240) -> None:
    began = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < seconds, f"{path} did not appear"
        time.sleep(0.002)


@pytest.mark.parametrize("warm_start", ["none", "shrink_perturb"])
def test_killed_and_resumed_is_never_stopped(corpus, tmp_path, warm_start, finished):
    """kill -9 in the second round of the second query, and in the first round."""
    settings = TINY | {"warm_start": warm_start, "seeds": 1, "full": False}
    if warm_start == "none":
        unbroken = Run(corpus, tmp_path / "unbroken", settings)
    else:
        unbroken = Run(corpus, tmp_path / "unbroken", settings | {"query": "bald"})
        settings = settings | {"query": "bald"}
    name = "bald-0"
    out, results = tmp_path / "killed" / "run", tmp_path / "killed" / "r.jsonl"
    flags = as_flags(settings | {"dataset": str(corpus)})
    flags += [f"--out={out}", f"--results={results}"]
    for step in (1, 2):
        resume = ["--resume"] if step > 1 else []
        process = child("-m", "experiments.active_learning", *flags, *resume)
        wait_for(out / name / "checkpoints" / f"step_{step}", process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert ckpt.latest_step(out / name / "checkpoints") < 4
    process = child("-m", "experiments.active_learning", *flags, "--resume")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    ours = measured(result_rows.read(results))
    for row in (*ours, *unbroken.rows):
        row["device"] = None
    assert ours == measured(json.loads(json.dumps(result_rows.portable(unbroken.rows))))
    if warm_start == "none":
        assert final_bytes(out) == final_bytes(unbroken.out)


# A human


def fill(path: Path, answers, delimiter=",", encoding="utf-8") -> list[dict]:
    """Fills in the labels as somebody would; `answers(row)`."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, annotation.COLUMNS, delimiter=delimiter)
        table.writeheader()
        table.writerows(row | {"label": answers(row)} for row in rows)
    return rows


def test_a_human_labels_round_by_round(corpus, tmp_path, finished):
    """With the true labels, the run is that of the simulated oracle."""
    settings = TINY | {"query": "bald", "seeds": 1, "oracle": "human"}
    run = Run(corpus, tmp_path, settings)
    labels, numbers = {}, {"business": "0", "sport": " 1 "}
    for line in (corpus / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        text, label = line.split("\t")
        labels[text] = label
    for number in range(4):
        assert run.rows == [] and not run.results.exists()
        path = run.out / "bald-0" / f"queried-{number}.csv"
        assert (
            f"{6 if number == 0 else 9} sentences wait for a label in" in run.said[-1]
        )
        assert str(path) in run.said[-1] and "--resume" in run.said[-1]
        assert "0 or business, 1 or sport" in run.said[-1]
        with pytest.raises(ValueError, match=r"no label for id \d+ \(\d of \d are"):
            run.go(resume=True)
        rows = fill(
            path,
            lambda row, n=number: (
                labels[row["text"]] if n % 2 else numbers[labels[row["text"]]]
            ),
            delimiter=",;"[number % 2],
            encoding=("utf-8", "utf-8-sig")[number // 2],
        )
        assert all(row["label"] == "" for row in rows)
        run.go(resume=True)
    expected = finished.of(method="bald", seed=0)
    assert len(run.rows) == 4 and len(result_rows.read(run.results)) == 4
    for ours, theirs in zip(run.rows, expected, strict=True):
        assert ours["accuracies"] == theirs["accuracies"]
        assert ours["full_accuracy_mean"] is None  # it would read hidden labels
    ours, theirs = (r.out / "bald-0" / "asked.csv" for r in (run, finished))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_pool_without_labels(corpus, tmp_path):
    texts = tmp_path / "pool.txt"
    held_out = (corpus / "test.tsv").read_text(encoding="utf-8").splitlines()[1]
    lines = [f"the team won game {i}\n\nshares fell {i} points" for i in range(20)]
    texts.write_text("\n".join([*lines, held_out.split("\t")[0]]), encoding="utf-8")
    settings = ONE | {"oracle": "human", "query_size": "3", "rounds": 1}
    run = Run(corpus, tmp_path, settings, pool=str(texts))
    assert any("40 train, 60 validation" in line for line in run.said)
    for number in range(2):
        path = run.out / "bald-0" / f"queried-{number}.csv"
        fill(path, lambda row: "sport" if "team" in row["text"] else "business")
        run.go(resume=True)
    assert [row["num_labelled"] for row in run.rows] == [6, 9]
    assert run.rows[0]["fraction_of_train"] == 6 / 40


QUESTIONS = ((7, "a, b"), (3, 'the "end"\n?'))


def answers_of(path: Path, content: str | bytes):
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return annotation.read_answers(path, [7, 3], ("no", "yes"))


def test_answers_come_in_the_order_asked(tmp_path):
    path = tmp_path / "q.csv"
    annotation.write_questions(path, *zip(*QUESTIONS, strict=True))
    assert list(tmp_path.iterdir()) == [path]
    rows = fill(path, lambda row: {"7": "yes", "3": "0"}[row["id"]])
    assert [(int(row["id"]), row["text"]) for row in rows] == list(QUESTIONS)
    found = annotation.read_answers(path, [7, 3], ("no", "yes"))
    assert found.tolist() == [1, 0] and found.dtype == np.int32
    # A name wins over a number where names are numbers.
    path.write_text("id,text,label\n7,a,1\n3,b,0\n")
    assert annotation.read_answers(path, [7, 3], ("1", "0")).tolist() == [0, 1]


@pytest.mark.parametrize(
    "content, message",
    [
        ("id,text,label\n7,a,yes\n3,b,\n", r"no label for id 3 \(1 of 2 are missing"),
        (
            "id,text,label\n7,a,yes\n3,b,maybe\n",
            "unknown label 'maybe'; known: 0 or no",
        ),
        ("id,text,label\n7,a,yes\n3,b,2\n", "line 3: unknown label '2'"),
        ("id,text,label\n7,a,yes\n3,b,-1\n", "unknown label '-1'"),
        ("id,text,label\n7,a,yes\n4,b,no\n", "line 3: the id '4' was not asked"),
        ("id,text,label\n7,a,yes\nx,b,no\n", "the id 'x' was not asked"),
        ("id,text,label\n7,a,yes\n7,a,no\n", "the id 7 comes twice"),
        ("id,text,label\n7,a,yes\n", "rows of 1 ids are missing, the first is 3"),
        ("id,text\n7,a\n3,b\n", "has no column 'label'"),
        ("id,text,label\n7,a, b,yes\n3,b,no\n", "columns are not those of the header"),
        ("id,text,label\n7,a\n3,b,no\n", "columns are not those of the header"),
        (b"id,text,label\n7,\xff,yes\n3,b,no\n", "not UTF-8"),
        ("", "has no column 'id'"),
    ],
)
def test_answers_that_cannot_be_read(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        answers_of(tmp_path / "q.csv", content)


def test_texts_without_labels(tmp_path):
    for name, content in {
        "a.txt": "one\n\n two  words \n",
        "a.csv": "text,n\none,1\n two  words ,2\n,3\n",
        "a.tsv": "n\ttext\n1\tone\n2\ttwo words\n",
    }.items():
        path = tmp_path / name
        path.write_text(content)
        assert annotation.read_texts(path, "text") == ["one", "two words"]
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="has no text"):
        annotation.read_texts(tmp_path / "b.txt", "text")
    with pytest.raises(FileNotFoundError, match="no such file"):
        annotation.read_texts(tmp_path / "c.txt", "text")
    with pytest.raises(ValueError, match="must be a .txt, .csv or .tsv"):
        annotation.read_texts(tmp_path / "c.json", "text")


# Settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"query": "bold"}, "unknown query 'bold'; known: badge, bald"),
        ({"query": "bald,bald"}, "names one twice"),
        ({"passes": 1}, "passes must be at least 2, got 1: bald scores"),
        ({"passes": 0}, "--passes must be at least 1"),
        ({"rounds": -1}, "--rounds must not be negative"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"oracle_noise": 1.1}, "--oracle_noise must be in"),
        ({"model_settings": ["droput=0.1"]}, "no setting 'droput'"),
        ({"oracle": "human"}, "needs one --query, and --seeds=1"),
        (
            {"oracle": "human", "query": "bald", "seeds": 1, "start": "balanced"},
            "knows no label beforehand",
        ),
        ({"pool": "x.txt"}, "it needs --oracle=human"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        active_learning.settings(TINY | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"budget": 181, "rounds": 0},
            "a budget of 181 labels is larger than the pool",
        ),
        ({"rounds": 30}, "30 rounds of 9 are more than the pool of 180"),
        ({"query_size": "0"}, "query_size '0' is 0 items"),
        ({"query_size": "some"}, "must be a number of items or a share such as 1%"),
        ({"start_size": "200"}, "it must be from 1 to 180"),
        ({"start": "nowhere.txt"}, "nowhere.txt is not there"),
        ({"model_settings": ["dropout=0"]}, "passes of bag are all equal"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_training(
    corpus, tmp_path, changes, message, monkeypatch
):
    def never(*_):
        raise AssertionError("it trained")

    monkeypatch.setattr(active.Learner, "train", never)
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, **changes)


@pytest.mark.parametrize(
    "content, message",
    [
        ("1\n180\n", "from 0 to 179, one a line; got '180'"),
        ("1\n-2\n", "got '-2'"),
        ("", "got 'nothing'"),
        ("5 5", "has an id twice"),
    ],
)
def test_start_files_that_cannot_be_used(corpus, tmp_path, content, message):
    start = tmp_path / "start.txt"
    start.write_text(content)
    with pytest.raises(ValueError, match=message):
        Run(corpus, tmp_path, start=str(start))


def test_a_start_from_a_file_a_balanced_one_and_a_budget(corpus, tmp_path):
    start = tmp_path / "start.txt"
    start.write_text("170\n3\n90\n")
    settings = ONE | {"query": "random", "num_inits": 1, "rounds": 0}
    run = Run(corpus, tmp_path / "file", settings, start=str(start), budget=20)
    assert [row["num_labelled"] for row in run.rows] == [3, 12, 20]
    with open(run.out / "random-0" / "asked.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows[:3]] == [170, 3, 90]
    assert len(rows) == 20

    run = Run(corpus, tmp_path / "balanced", settings, start="balanced", budget=7)
    with open(run.out / "random-0" / "asked.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["label"] for row in rows[:6]) == ["business"] * 3 + ["sport"] * 3


def test_a_noisy_oracle_is_written_down(corpus, tmp_path, finished):
    settings = ONE | {"oracle_noise": 0.5, "rounds": 1, "query_size": "60%"}
    run = Run(corpus, tmp_path, settings)
    with open(corpus / "train.tsv", encoding="utf-8") as file:
        train = [line.rstrip("\n").split("\t") for line in file][1:]
    with open(run.out / "bald-0" / "asked.csv", encoding="utf-8") as file:
        wrong = [
            row["label"] != train[int(row["id"])][1] for row in csv.DictReader(file)
        ]
    assert 0.3 < np.mean(wrong) < 0.7


def test_the_preset_is_the_protocol_of_the_paper(corpus, tmp_path):
    corpus_, asking, rounds, training = active_learning.settings(ACTIVE["jacobs2021"])
    sizes = (rounds.start_size, rounds.query_size, rounds.passes)
    assert sizes == ("593", "85", 10)
    assert (training.epochs, training.batch_size, asking.seeds) == (15, 128, 3)
    assert corpus_.model_settings == {"dropout": 0.2} and training.select == "loss"
    settings = ACTIVE["jacobs2021"] | {
        "dataset": str(corpus),
        "model_settings": ["filters=4", "dropout=0.2"],
        "start_size": "10",
        "query_size": "40",
        "budget": 50,
        "query": "random",
        "full": False,
    }
    said = []
    rows = active_learning.run(
        settings,
        preset="jacobs2021",
        out=tmp_path / "run",
        rows=tmp_path / "r.jsonl",
        say=said.append,
    )
    assert any("with these faults of its code mended" in line for line in said)
    assert {row["preset"] for row in rows} == {"jacobs2021"} and len(rows) == 6
    asked = [
        frozenset(path.read_text(encoding="utf-8").splitlines()[11:])
        for path in (tmp_path / "run").glob("*/asked.csv")
    ]
    assert len(set(asked)) == 3  # repeats that really differ


def test_errors_are_one_line_and_status_1(corpus, tmp_path):
    process = child(
        "-m", "experiments.active_learning", f"--dataset={corpus}", "--query=bold"
    )
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and stdout == ""
    assert stderr.startswith("error: unknown query 'bold'") and stderr.count("\n") == 1
