"""Rows keep to one schema, in memory and in every committed file of results."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill_jax import results, schema

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").glob("*.jsonl"))


def experiment_row(**changes):
    return {
        "experiment": "distill",
        "preset": None,
        "dataset": "rotten_tomatoes",
        "model": "text_cnn",
        "method": "distilled",
        "examples": 20,
        "examples_per_class": 10,
        "fraction_of_train": 0.0025,
        "bytes": 200_000,
        "labels": "soft",
        "theta_0": "random",
        "training": "native",
        "selected_on": "validation",
        "split": "test",
        "accuracy_mean": 0.7,
        "accuracy_sd": 0.01,
        "num_inits": 20,
        "num_seeds": 1,
        "full_accuracy_mean": 0.75,
        "relative_accuracy": 0.7 / 0.75,
        "majority_accuracy": 0.5,
        "seconds": 300.0,
        "device": "cpu:2 cores",
        "commit": "abc1234",
        "command": "python -m experiments.distill",
        "config": {"meta_lr": 0.01},
        **changes,
    }


def speed_row(**changes):
    return {
        "config": "sst5",
        "implementation": "distill_jax",
        "T": 50,
        "minibatch": 5,
        "tokens": 56,
        "real_batch": 1024,
        "num_theta_0": 1,
        "threads": 1,
        "backend": "cpu",
        "seconds_median": 0.3,
        "ratio_to_torch": 3.9,
        "flops": 1e9,
        "temp_bytes": 31_000_000,
        "compile_seconds": 8.0,
        "commit": "abc1234",
        "device": "cpu:1 cores",
        **changes,
    }


def compare_row(**changes):
    return (
        experiment_row(
            experiment="compare",
            accuracy_mean=0.7,
            num_seeds=2,
            num_inits=2,
            accuracies=[[0.6, 0.7], [0.7, 0.8]],
            interval=[0.65, 0.75],
            chance_corrected=0.8,
            labels_read=8530,
            compute_seconds=100.0,
        )
        | changes
    )


def active_row(**changes):
    return (
        experiment_row(
            experiment="active_learning",
            accuracy_mean=0.7,
            num_inits=2,
            round=0,
            seed=3,
            num_labelled=20,
            n_tied_at_cut=None,
            accuracies=[0.65, 0.75],
        )
        | changes
    )


@pytest.mark.parametrize("make", [compare_row, active_row])
def test_further_fields_come_after_the_others(tmp_path, make):
    row = make()
    results.append(tmp_path / "rows.jsonl", [row])
    (read,) = results.read(tmp_path / "rows.jsonl")
    assert read == row
    names = list(schema.EXPERIMENT_FIELDS)
    assert list(read)[: len(names)] == names and len(read) > len(names)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (compare_row(accuracies=[[0.6, 0.7]]), r"of the shape \[2, 2\]"),
        (compare_row(accuracies=[[0.6, 0.7], [0.8]]), r"of the shape \[2, 2\]"),
        (compare_row(accuracies=[[0.6, 0.7], [0.7, 1.8]]), r"in \[0, 1\]"),
        (compare_row(accuracies=[[0.1, 0.1], [0.1, 0.1]]), "is not that of the acc"),
        (compare_row(interval=[0.7]), r"interval must be \[low, high\]"),
        (compare_row(interval=[0.8, 0.7]), "interval must be ordered"),
        (compare_row(labels_read=-1), "labels_read must not be negative"),
        (compare_row(labels_read=None), "labels_read must be int"),
        (active_row(accuracies=[[0.65, 0.75]]), r"of the shape \[2\]"),
        (active_row(round=-1), "round must not be negative"),
        (active_row(extra=1), "unknown fields: extra"),
    ],
)
def test_bad_further_fields_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        results.check(row)


@pytest.mark.parametrize("make", [compare_row, active_row])
def test_missing_further_fields_are_named(make):
    for name in make().keys() - schema.EXPERIMENT_FIELDS.keys() - {"accuracies"}:
        row = make()
        del row[name]
        with pytest.raises(ValueError, match=f"missing fields: {name}"):
            results.check(row)


def test_reads_what_was_appended(tmp_path):
    path = tmp_path / "results" / "distill.jsonl"
    assert results.read(path) == []
    first, second = experiment_row(), experiment_row(method="random", preset="li2021")
    results.append(path, [first])
    one_line = path.read_bytes()
    results.append(path, [second, first])
    assert results.read(path) == [first, second, first]
    assert path.read_bytes().startswith(one_line)
    assert list(json.loads(one_line)) == list(schema.EXPERIMENT_FIELDS)
    results.append(tmp_path / "speed.jsonl", [speed_row()])
    assert results.read(tmp_path / "speed.jsonl") == [speed_row()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown fields: extra"),
        ({"accuracy_mean": 70.0}, r"accuracy_mean must be in \[0, 1\], got 70"),
        ({"accuracy_sd": -0.1}, "accuracy_sd"),
        ({"accuracy_mean": float("nan")}, "accuracy_mean must be finite"),
        ({"accuracy_mean": "0.7"}, "accuracy_mean must be int or float"),
        ({"accuracy_mean": None}, "accuracy_mean must be int or float, got None"),
        ({"num_inits": True}, "num_inits must be int"),
        ({"num_inits": 0}, "num_inits must be above 0"),
        ({"split": "train"}, "split must be one of"),
        ({"selected_on": "train"}, "selected_on must be one of"),
        ({"theta_0": "both"}, "theta_0 must be one of"),
        ({"relative_accuracy": 0.7}, "is not accuracy_mean / full_accuracy_mean"),
        ({"relative_accuracy": None}, "come together"),
        ({"config": {"x": float("inf")}}, "finite JSON values"),
        ({"config": {"x": {1}}}, "finite JSON values"),
        ({"examples": -1}, "examples must not be negative"),
        ({"data": "abc"}, "data must be a sha256, 64 hexadecimal digits, got 'abc'"),
        ({"data": None}, "data must be str, got None"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match=message):
        results.append(path, [experiment_row(), experiment_row(**change)])
    assert not path.exists()


def test_missing_fields_are_named(tmp_path):
    row = experiment_row()
    del row["split"], row["config"]
    with pytest.raises(ValueError, match="missing fields: split, config"):
        results.append(tmp_path / "rows.jsonl", [row])
    row = speed_row()
    del row["T"]
    with pytest.raises(ValueError, match="missing fields: T$"):
        results.append(tmp_path / "rows.jsonl", [row])


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, [experiment_row()])
    path.write_text(path.read_text() + '{"experiment": "dis')
    with pytest.raises(ValueError, match="rows.jsonl, line 2: "):
        results.read(path)


@pytest.mark.parametrize("kept", [0, 10])
def test_a_full_disk_adds_nothing(tmp_path, monkeypatch, kept):
    path = tmp_path / "rows.jsonl"
    results.append(path, [experiment_row()])
    real = os.write

    def full(descriptor, content):
        if not kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[:kept])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no rows were added"):
            results.append(path, [experiment_row(method="random")])
    assert results.read(path) == [experiment_row()]


def test_two_processes_append_to_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys\nfrom tests.test_results import *\n"
        "for k in range(100):\n"
        "    results.append(sys.argv[1], [compare_row(method=sys.argv[2], bytes=k)])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT)
        for name in ("random", "herding")
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    found = [(row["method"], row["bytes"]) for row in results.read(path)]
    for name in ("random", "herding"):
        assert [k for method, k in found if method == name] == list(range(100))


def test_machine_paths_are_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = ROOT / "experiments" / "distill.py"
    inside = tmp_path / "runs" / "one"
    argv = [
        str(script),
        "--dataset=/home/me/data/sst5",
        f"--output={inside}",
        "--x=a b",
    ]
    assert results.command(argv) == (
        "python -m experiments.distill --dataset=sst5 --output=runs/one '--x=a b'"
    )
    assert results.command(["/opt/bin/run.py"]) == "python run.py"
    program = str(ROOT / "distill_jax" / "__main__.py")
    assert results.command([program, "distill"]) == "python -m distill_jax distill"
    assert results.portable(
        {"a": ["~/data/x.csv", "../shared/data/sst5", "tfds:glue/sst2", 3]}
    ) == {"a": ["x.csv", "../shared/data/sst5", "tfds:glue/sst2", 3]}
    results.append("rows.jsonl", [experiment_row(config={"vectors": "/srv/glove.txt"})])
    assert results.read("rows.jsonl")[0]["config"] == {"vectors": "glove.txt"}


def test_device_says_what_ran():
    assert re.fullmatch(r"cpu:\d+ cores", results.device()) or " x " in results.device()


def test_commit_names_the_checkout(tmp_path):
    """In a repository of its own, with a copy of the module."""

    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    def commit():
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from distill_jax import results; print(results.commit())",
            ],
            cwd=tmp_path,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    (tmp_path / "distill_jax").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "distill.jsonl").touch()
    (tmp_path / "distill_jax" / "__init__.py").touch()
    for name in ("progress.py", "schema.py", "results.py"):
        copy = tmp_path / "distill_jax" / name
        copy.write_text((ROOT / "distill_jax" / name).read_text())
    assert commit() == "unknown"
    git("init", "-q")
    git("add", "results")
    git("commit", "-q", "-m", "not of this package")
    assert commit() == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert re.fullmatch("[0-9a-f]{7,}", commit())
    (tmp_path / "results" / "distill.jsonl").write_text("{}\n")
    assert "dirty" not in commit()
    copy.write_text(copy.read_text() + "\n")
    assert re.fullmatch(r"[0-9a-f]{7,}\+dirty", commit())


def built(accuracies, **changes):
    facts = {
        "experiment": "distill",
        "dataset": "sst2",
        "model": "bag",
        "method": "distilled",
        "examples": 4,
        "num_classes": 2,
        "num_train": 100,
        "labels": "soft",
        "training": "native",
        "full": 0.8,
        "majority": 0.5,
        "seconds": 1.0,
        "config": {"meta_lr": 0.01},
    }
    return results.build(accuracies=accuracies, **facts | changes)


FURTHER = {
    "interval": [0.5, 0.7],
    "chance_corrected": None,
    "labels_read": 100,
    "compute_seconds": 1.0,
}
ROUND = {"round": 1, "seed": 3, "num_labelled": 4, "n_tied_at_cut": None}


def test_a_row_is_built_from_its_accuracies(tmp_path):
    row = built([[0.5, 0.7], [0.6, 0.6]])
    assert row.accuracy_mean == pytest.approx(0.6)
    assert row.accuracy_sd == pytest.approx((0.02 / 3) ** 0.5)
    assert (row.num_seeds, row.num_inits) == (2, 2)
    assert (row.examples_per_class, row.fraction_of_train) == (2, 0.04)
    assert row.relative_accuracy == pytest.approx(0.75)
    assert list(row) == list(schema.EXPERIMENT_FIELDS)
    one = built([0.6], full=None)
    assert (one.num_seeds, one.num_inits, one.accuracy_sd) == (1, 1, None)
    assert one.full_accuracy_mean is one.relative_accuracy is None
    results.append(tmp_path / "rows.jsonl", [row])
    assert results.read(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize(
    ("accuracies", "more", "kept"),
    [
        ([[0.5, 0.7], [0.6, 0.6]], FURTHER, [[0.5, 0.7], [0.6, 0.6]]),
        ([0.5, 0.7], FURTHER, [[0.5, 0.7]]),
        ([0.5, 0.7], ROUND, [0.5, 0.7]),
    ],
)
def test_further_fields_bring_the_accuracies_along(accuracies, more, kept):
    row = built(accuracies, data="0" * 64, **more)
    assert row.accuracies == kept
    assert list(row)[-1] == "data"


@pytest.mark.parametrize("name", ["compare", "active_learning"])
def test_committed_rows_are_built_again_to_the_digit(name, monkeypatch):
    told = ("device", "commit", "command")
    for field in told:
        monkeypatch.setattr(results, field, lambda: "elsewhere")
    derived = "accuracy_mean accuracy_sd num_inits num_seeds relative_accuracy".split()
    derived += ["examples_per_class", "fraction_of_train", *told]
    rows = results.read(ROOT / "results" / f"{name}.jsonl")
    assert rows
    for row in rows:
        facts = {k: v for k, v in row.items() if k not in derived}
        full, majority = facts.pop("full_accuracy_mean"), facts.pop("majority_accuracy")
        n = row.examples  # none of the majority: any C and N give 0
        again = results.build(
            num_classes=round(n / row.examples_per_class) if n else 2,
            num_train=round(n / row.fraction_of_train) if n else 2,
            full=full,
            majority=majority,
            **facts,
        )
        assert list(again) == list(row)
        assert again == row | dict.fromkeys(told, "elsewhere")


def test_a_row_with_a_field_of_no_schema_is_not_built():
    with pytest.raises(ValueError, match="unknown fields: colour"):
        built([0.5], colour=1)
    with pytest.raises(AttributeError, match="no field 'accuracies' in this row"):
        _ = built([0.5]).accuracies


def test_the_newest_row_of_a_key_counts():
    rows = [
        experiment_row(method=method, examples=n, config={"lr": lr, "seed": 0})
        for method, n, lr in [("a", 1, 1), ("b", 1, 1), ("a", 1, 2), ("a", 2, 2)]
    ]
    assert results.newest(rows, "method", "examples") == [rows[2], rows[1], rows[3]]
    by_lr = results.newest(rows, "config", lambda row: row["method"])
    assert by_lr == [rows[0], rows[1], rows[3]]
    assert results.find(rows, method="a", examples=1) == rows[2]
    assert results.find(rows, method="a", config={"lr": 1}) == rows[0]
    assert results.find(rows, method="c") is None


def test_a_row_answers_only_for_the_data_it_was_made_of():
    one, other = "1" * 64, "2" * 64
    old, row = experiment_row(), experiment_row(data=one)
    wanted = {"method": "distilled", "config": {"meta_lr": 0.01}, "data": one}
    assert results.same(row, wanted)
    assert not results.same(row, wanted | {"data": other})
    assert not results.same(row, wanted | {"method": "random"})
    assert not results.same(row, wanted | {"config": {"meta_lr": 0.02}})
    assert not results.same(row, wanted | {"config": {"colour": None}})
    assert not results.same(old, wanted)
    assert results.find([old, row, old], **wanted) is row
    assert results.find([old], **wanted | {"data": None}) is None
    with pytest.raises(ValueError, match="must name its `data`"):
        results.same(old, {"method": "distilled"})


def test_rows_of_a_user_and_of_the_project_are_apart(tmp_path):
    assert results.place("distill") == Path("runs/distill.jsonl")
    assert results.place("distill", publish=True) == Path("results/distill.jsonl")
    given = tmp_path / "mine.jsonl"
    assert results.place("distill", publish=True, given=given) == given


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_keep_the_schema(path):
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    for row in results.read(path):
        timed = path.name in ("meta_step.jsonl", "acquisition.jsonl")
        assert ("implementation" in row) == timed
        compared = path.name in ("compare.jsonl", "distill.jsonl")  # some of the latter
        assert "interval" in row or path.name != "compare.jsonl"
        assert compared or "interval" not in row
        assert ("round" in row) == (path.name == "active_learning.jsonl")
        assert results.portable(row) == row
