"""A checkpoint is whole or not there, and only its own run reads it."""

import shutil
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from distill_jax import checkpoints
from distill_jax.core import meta_init

SETTINGS = {"seed": 1, "widths": (2, 3)}


def tree(scale=1.0):
    distilled = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3) * scale / 7,
        "half": np.asarray([0.1, 0.2], ml_dtypes.bfloat16),
        "none": None,
        "flag": np.asarray(True),
        "empty": np.zeros((0, 3)),
    }
    return {"state": meta_init(optax.sgd(0.1, momentum=0.9), distilled)}


def test_arrays_and_facts_come_back_as_they_were(tmp_path):
    facts = {"history": [{"loss": 0.1 + 0.2, "bad": float("inf"), "none": None}]}
    checkpoints.save(tmp_path / "a" / "b", 3, tree(2.0), facts, SETTINGS)
    arrays, told = checkpoints.restore(tmp_path / "a" / "b", tree(), SETTINGS)
    assert told == facts
    assert jax.tree.structure(arrays) == jax.tree.structure(tree())
    for got, put in zip(
        jax.tree.leaves(arrays), jax.tree.leaves(tree(2.0)), strict=True
    ):
        assert isinstance(got, np.ndarray) and got.dtype == put.dtype
        assert got.tobytes() == np.asarray(put).tobytes()


def test_the_latest_two_stay(tmp_path):
    assert checkpoints.latest_step(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert checkpoints.latest_step(tmp_path) is None
    for step in (0, 4, 11, 100):
        checkpoints.save(tmp_path, step, tree(), {"at": step}, SETTINGS)
    assert checkpoints.latest_step(tmp_path) == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_100", "step_11"]
    shutil.rmtree(tmp_path / "step_100")
    assert checkpoints.restore(tmp_path, tree(), SETTINGS)[1] == {"at": 11}


def test_a_save_cut_short_is_never_read_and_is_swept_up(tmp_path):
    checkpoints.save(tmp_path, 1, tree(), {}, SETTINGS)
    checkpoints.save(tmp_path, 2, tree(), {}, SETTINGS)
    half = tmp_path / "step_7.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "step_2", half)
    shutil.rmtree(half / "arrays")
    assert checkpoints.latest_step(tmp_path) == 2
    checkpoints.save(tmp_path, 3, tree(), {"whole": True}, SETTINGS)
    assert checkpoints.restore(tmp_path, tree(), SETTINGS)[1] == {"whole": True}
    assert not half.exists()


def test_what_else_is_in_the_folder_is_left_alone(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(4):
        checkpoints.save(tmp_path, step, tree(), {}, SETTINGS)
    assert checkpoints.latest_step(tmp_path) == 3
    assert (tmp_path / "7").is_dir() and (tmp_path / "notes.txt").is_file()


@pytest.mark.parametrize(
    "settings, message",
    [
        (SETTINGS | {"seed": 2}, "seed was 1, now 2"),
        (SETTINGS | {"widths": (2, 4)}, r"widths was \[2, 3\], now \[2, 4\]"),
        (SETTINGS | {"new": None}, "new was absent, now None"),
        ({"seed": 1}, r"widths was \[2, 3\], now absent"),
    ],
)
def test_another_run_is_refused(tmp_path, settings, message):
    checkpoints.save(tmp_path, 1, tree(), {}, SETTINGS)
    with pytest.raises(ValueError, match=f"of another run: {message}"):
        checkpoints.restore(tmp_path, tree(), settings)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((2, 4), np.float32)}, r"x was float32 \[2, 3\], now float32"),
        ({"x": np.zeros((2, 3))}, r"x was float32 \[2, 3\], now float64 \[2, 3\]"),
        ({"more": np.zeros(2)}, r"more was absent, now float64 \[2\]"),
    ],
)
def test_another_shape_is_refused(tmp_path, change, message):
    checkpoints.save(tmp_path, 1, {"d": tree()["state"].distilled}, {}, SETTINGS)
    like = {"d": tree()["state"].distilled | change}
    with pytest.raises(ValueError, match=f"has another shape: d.{message}"):
        checkpoints.restore(tmp_path, like, SETTINGS)


def test_nothing_to_restore(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore(tmp_path, tree(), SETTINGS)


def test_a_damaged_checkpoint_says_so(tmp_path):
    checkpoints.save(tmp_path, 1, tree(), {}, SETTINGS)
    checkpoints.save(tmp_path, 2, tree(), {"at": 2}, SETTINGS)
    for file in (tmp_path / "step_2" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot read the checkpoint of step 2 .*dele"):
        checkpoints.restore(tmp_path, tree(), SETTINGS)
    shutil.rmtree(tmp_path / "step_2")
    checkpoints.restore(tmp_path, tree(), SETTINGS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(checkpoints.CheckpointNotSaved, match="there is no earlier one"):
        checkpoints.save(tmp_path / "file" / "run", 0, tree(), {}, SETTINGS)


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_thread_prints_in_a_failed_save(fails, tmp_path, monkeypatch, capsys):
    """Our error says it in one line; after a good save nothing is kept back."""
    import orbax.checkpoint as ocp

    def save(self, *args, **kwargs):
        thread = threading.Thread(target=lambda: print("Traceback", file=sys.stderr))
        thread.start()
        thread.join()
        if fails:
            raise OSError("no space left")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    try:
        checkpoints.save(tmp_path, 0, {"a": np.ones(2)}, {}, {})
        raised = False
    except checkpoints.CheckpointNotSaved:
        raised = True
    assert raised == fails
    assert ("Traceback" in capsys.readouterr().err) == (not fails)
