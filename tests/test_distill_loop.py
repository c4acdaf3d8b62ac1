"""The host loop: what is killed and resumed ends as if it had never stopped."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from distill_jax.checkpoints import latest_step
from distill_jax.core import meta_init
from distill_jax.loop import Interrupted, NonFiniteMetaGradient, Schedule, distill
from distill_jax.parallel import MetaSteps, jit_meta_step, meta_steps
from tests import tiny


@pytest.fixture(scope="module")
def unbroken():
    return tiny.run()


def start(folder, *flags) -> subprocess.Popen:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.tiny", str(folder), *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def batch_of(step):
    rows = tiny.next_rows(step)
    return jax.tree.map(lambda a: a[rows], tiny.TRAIN)


def send_at_step(process: subprocess.Popen, step: int, number: int) -> str:
    """Waits for a step to be reported, sends the signal, gives the rest of stdout."""
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.split() == ["step", str(step)]:
                process.send_signal(number)
                return process.communicate()[0]
    finally:
        timer.cancel()
    raise AssertionError(f"step {step} was never reported: {process.stderr.read()}")


def test_it_learns_and_keeps_the_best(unbroken):
    accuracy = [row["accuracy"] for row in unbroken.history]
    steps = [row["step"] for row in unbroken.history]
    assert steps == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert unbroken.best_accuracy == max(accuracy) > accuracy[0] + 0.1
    assert unbroken.best_step == steps[accuracy.index(max(accuracy))]
    key = jax.random.fold_in(jax.random.key(3), np.uint32(2**32 - 1))
    assert tiny.validate(unbroken.best, key) == unbroken.best_accuracy
    assert unbroken.history[-1]["meta_loss"] < unbroken.history[1]["meta_loss"] - 0.2
    assert unbroken.resumed_from is None
    assert int(unbroken.state.step) == 30


def test_what_comes_before_select_from_is_never_the_best():
    told, scores = [], iter([0.9, 0.8, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.1])
    result = tiny.run(
        schedule=dataclasses.replace(tiny.SCHEDULE, select_from=8),
        validate=lambda distilled, key: next(scores),
        report=told.append,
    )
    assert (result.best_accuracy, result.best_step) == (0.3, 16)
    assert [p.best_accuracy for p in told if p.step < 8] == [-1] * 4
    with pytest.raises(ValueError, match="at most the 3 meta-steps, got 4"):
        Schedule(3, 1, 1, select_from=4)


def test_a_row_holds_means_since_the_row_before_and_the_step_sizes(unbroken):
    state = tiny.problem()[0]
    one_step = jit_meta_step(tiny.OBJECTIVE, tiny.MODEL.init, tiny.TX)
    first, *rows = unbroken.history[:3]
    assert first["meta_loss"] is None and first["lr_mean"] == pytest.approx(np.log(2))
    for row, steps in zip(rows, (range(4), range(4, 8)), strict=True):
        losses, norms = [], []
        for k in steps:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(3), k), 2)
            state, info = one_step(state, keys, batch_of(k))
            losses.append(float(info.meta_loss))
            norms.append(float(info.grad_norm))
        lr = np.asarray(state.distilled.lr)
        assert row["meta_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-12)
        assert (row["lr_min"], row["lr_max"]) == (lr.min(), lr.max())
        assert row["skipped"] == 0


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(unbroken):
    assert tiny.digest(tiny.run()) == tiny.digest(unbroken)
    assert tiny.digest(tiny.run(key=jax.random.key(4))) != tiny.digest(unbroken)


def test_the_callers_state_is_not_donated(unbroken):
    state = jax.device_put(tiny.problem()[0])
    tiny.run(state=state, schedule=Schedule(1, 1, 1))
    np.testing.assert_array_equal(state.distilled.x, tiny.problem()[0].distilled.x)


def test_kill_9_resume_and_finish_is_an_unbroken_run(unbroken, tmp_path):
    process = start(tmp_path / "run", "--sleep=0.05")
    send_at_step(process, 16, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert latest_step(tmp_path / "run") == 12
    resumed = tiny.run(tmp_path / "run", resume=True)
    assert resumed.resumed_from == 12
    assert tiny.digest(resumed) == tiny.digest(unbroken)


def test_a_finished_run_resumes_to_its_own_result(unbroken, tmp_path):
    tiny.run(tmp_path)
    again = tiny.run(tmp_path, resume=True)
    assert again.resumed_from == 30
    assert tiny.digest(again) == tiny.digest(unbroken)
    with pytest.raises(ValueError, match="at step 30, beyond num_meta_steps 3"):
        tiny.run(tmp_path, resume=True, schedule=Schedule(3, 1, 1))


def test_ctrl_c_saves_and_says_how_to_go_on(unbroken, tmp_path):
    process = start(tmp_path / "run", "--sleep=0.05")
    out = send_at_step(process, 8, signal.SIGINT)
    assert process.returncode == 1
    said = out.splitlines()[-1]
    saved = latest_step(tmp_path / "run")
    assert said == (
        f"Interrupted: stopped by SIGINT after step {saved} of 30; saved in "
        f"{tmp_path / 'run'}: resume to go on"
    )
    assert 8 < saved < 30
    resumed = tiny.run(tmp_path / "run", resume=True)
    assert resumed.resumed_from == saved
    assert tiny.digest(resumed) == tiny.digest(unbroken)


def test_sigterm_in_mid_step_saves_too(unbroken, tmp_path):
    def next_rows(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny.next_rows(step)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="SIGTERM after step 10 of 30") as stopped:
        tiny.run(tmp_path, next_rows=next_rows)
    assert (stopped.value.signal, stopped.value.step) == (signal.SIGTERM, 10)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert latest_step(tmp_path) == 10
    assert tiny.digest(tiny.run(tmp_path, resume=True)) == tiny.digest(unbroken)


def test_a_second_signal_ends_the_run_at_once():
    steps = []

    def next_rows(step):
        steps.append(step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return tiny.next_rows(step)

    with pytest.raises(KeyboardInterrupt) as stopped:
        tiny.run(next_rows=next_rows)
    assert not isinstance(stopped.value, Interrupted)
    assert steps == [0]


def test_a_full_disk_leaves_the_last_good_checkpoint(unbroken, tmp_path):
    process = start(tmp_path / "run", "--file_limit=200")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    said = out.splitlines()[-1]
    assert said.startswith(
        f"CheckpointNotSaved: cannot save the checkpoint of step 12 in "
        f"{tmp_path / 'run'}; the one of step 6 is intact: make room, then resume."
    )
    assert "File too large" in said
    assert "ERROR:absl" not in err
    assert latest_step(tmp_path / "run") == 6
    resumed = tiny.run(tmp_path / "run", resume=True)
    assert resumed.resumed_from == 6
    assert tiny.digest(resumed) == tiny.digest(unbroken)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    tiny.run(tmp_path, schedule=Schedule(2, 2, 2))
    with pytest.raises(ValueError, match="another run: corpus was 'made up', now 'x'"):
        tiny.run(tmp_path, resume=True, fingerprint=tiny.SETTINGS | {"corpus": "x"})
    with pytest.raises(ValueError, match="num_inits was 2, now 3"):
        tiny.run(tmp_path, resume=True, num_inits=3)
    with pytest.raises(ValueError, match="key was .*, now"):
        tiny.run(tmp_path, resume=True, key=jax.random.key(9))
    distilled = tiny.problem()[0].distilled
    wider = meta_init(tiny.TX, distilled.replace(raw_lr=np.zeros((5, tiny.S))))
    with pytest.raises(
        ValueError,
        match=r"another shape: best.raw_lr was float64 \[2, 2\], now "
        r"float64 \[5, 2\]",
    ):
        tiny.run(tmp_path, resume=True, state=wider)
    with pytest.raises(ValueError, match="already has a run, at step 2: resume it"):
        tiny.run(tmp_path)


def test_resume_without_a_checkpoint_starts_a_run(tmp_path):
    result = tiny.run(tmp_path / "new", resume=True, schedule=Schedule(1, 1, 1))
    assert result.resumed_from is None
    assert latest_step(tmp_path / "new") == 1
    with pytest.raises(ValueError, match="resume needs the folder"):
        tiny.run(resume=True)


def blown_up(at):
    """Rows, and a corpus whose last row makes the loss of some steps not a number."""
    x = np.concatenate([tiny.TRAIN.x, np.full_like(tiny.TRAIN.x[:1], np.nan)])
    train = tiny.TRAIN.replace(
        x=x,
        mask=np.concatenate([tiny.TRAIN.mask, tiny.TRAIN.mask[:1]]),
        y=np.concatenate([tiny.TRAIN.y, tiny.TRAIN.y[:1]]),
    )

    def next_rows(step):
        rows = tiny.next_rows(step)
        return np.full_like(rows, len(x) - 1) if at(step) else rows

    return {"next_rows": next_rows, "train": train}


def reporting(info):
    """Meta-steps that all report `info`."""

    def run(state, key, rows, n, train, num_inits):
        infos = jax.tree.map(lambda a: np.stack([a] * len(rows)), info)
        return dataclasses.replace(state, step=state.step + n), infos

    return MetaSteps(lambda train: train, run)


def an_info():
    state, key = tiny.problem()[0], jax.random.key(0)
    rows = tiny.next_rows(0)[None]
    infos = tiny.steps().run(state, key, rows, 1, tiny.TRAIN, 2)[1]
    return jax.tree.map(lambda a: np.asarray(a[0]), infos)


def test_several_bad_gradients_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteMetaGradient) as stopped:
        tiny.run(tmp_path, **blown_up(lambda step: step >= 7))
    said = str(stopped.value)
    assert "not finite for 5 meta-steps in a row (to step 12)" in said
    assert "of x, y_logits, raw_lr; meta_loss nan, largest inner step size 0." in said
    assert "Lower the first inner step size, clip" in said
    assert f"The checkpoint of step 6 is in {tmp_path}" in said
    assert latest_step(tmp_path) == 6


def test_only_the_leaf_that_blew_up_is_named():
    info = an_info()
    bad = info.replace(finite=info.finite.replace(raw_lr=np.asarray(False)))
    with pytest.raises(NonFiniteMetaGradient, match=r"to step 2\): of raw_lr; meta_lo"):
        tiny.run(
            steps=reporting(bad), schedule=Schedule(9, 9, 9, max_skipped_in_a_row=2)
        )


def test_a_few_bad_gradients_are_skipped_and_counted():
    told = []
    result = tiny.run(
        **blown_up(lambda step: step in (4, 5, 6, 7, 9)), report=told.append
    )
    rows = {row["step"]: row for row in result.history}
    assert rows[8]["meta_loss"] is None and rows[8]["skipped"] == 4
    assert np.isfinite(rows[12]["meta_loss"]) and rows[12]["skipped"] == 5
    assert rows[8]["accuracy"] == rows[4]["accuracy"]
    by_step = {p.step: p for p in told}
    assert by_step[6].skipped_in_a_row == 2 and by_step[6].meta_loss is None
    assert by_step[12].skipped_in_a_row == 0


def test_bad_gradients_are_counted_across_a_resume(tmp_path):
    bad = blown_up(lambda step: step >= 4)

    def stopped_at_6(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return bad["next_rows"](step)

    with pytest.raises(Interrupted):
        tiny.run(tmp_path, **bad | {"next_rows": stopped_at_6})
    with pytest.raises(NonFiniteMetaGradient, match=r"5 meta-steps .*to step 9\)"):
        tiny.run(tmp_path, **bad, resume=True)


def test_progress_is_told_with_its_losses(unbroken):
    told = []
    tiny.run(report=told.append)
    assert [p.step for p in told] == [0, *range(2, 31, 2)]
    assert [p.row for p in told if p.row] == unbroken.history
    two = [p.meta_loss for p in told if p.step in (2, 4)]
    assert np.mean(two) == pytest.approx(unbroken.history[1]["meta_loss"], rel=1e-12)
    assert told[-1].best_accuracy == unbroken.best_accuracy


def recorded(sizes, seconds=0.0):
    """The meta-steps of `tiny`, with the size of each dispatch noted, and slow."""
    place, run = tiny.steps()

    def noted(state, key, rows, n, train, num_inits):
        sizes.append(n)
        time.sleep(seconds * n)
        return run(state, key, rows, n, train, num_inits)

    return MetaSteps(place, noted)


def test_many_steps_are_one_dispatch(monkeypatch):
    from distill_jax import loop

    sizes: list[int] = []
    monkeypatch.setattr(loop, "_SECONDS", 60.0)  # for a machine of any speed
    schedule = Schedule(30, 20, 20, report_every=8)
    result = tiny.run(steps=recorded(sizes), schedule=schedule)
    assert sizes == [1, 7, 8, 4, 4, 6]  # the first measures; 20 validates
    one_by_one: list[int] = []
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    again = tiny.run(steps=recorded(one_by_one), schedule=schedule)
    assert one_by_one == [1] * 30
    assert tiny.digest(again) == tiny.digest(result)


def test_slow_steps_are_few_in_a_dispatch(monkeypatch):
    from distill_jax import loop

    sizes: list[int] = []
    monkeypatch.setattr(loop, "_SECONDS", 0.5)
    tiny.run(steps=recorded(sizes, 0.2), schedule=Schedule(8, 8, 8))
    assert max(sizes) == 2


def test_it_runs_on_four_devices(unbroken):
    spread = meta_steps(tiny.OBJECTIVE, tiny.MODEL.init, tiny.TX, devices="all")
    schedule = dataclasses.replace(tiny.SCHEDULE, num_meta_steps=4)
    one = tiny.run(num_inits=4, schedule=schedule)
    four = tiny.run(num_inits=4, schedule=schedule, steps=spread)
    np.testing.assert_allclose(four.best.x, one.best.x, rtol=1e-9)
    with pytest.raises(ValueError, match="6 theta_0 cannot be .* over 4 devices"):
        tiny.run(num_inits=6, schedule=schedule, steps=spread)


def test_any_tree_can_be_distilled():
    result = distill(
        reporting(an_info()),
        meta_init(optax.sgd(1.0), {"prompt": np.zeros(3)}),
        tiny.next_rows,
        tiny.TRAIN,
        lambda distilled, key: 0.5,
        Schedule(2, 1, 1),
        key=jax.random.PRNGKey(0),
        num_inits=1,
    )
    assert result.history[-1]["lr_mean"] is None
    assert result.best_step == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_inits": 0}, "num_inits must be at least 1, got 0"),
        ({"fingerprint": {"f": len}}, r"fingerprint\['f'\] must be what JSON"),
        ({"next_rows": lambda k: np.array([3, 64])}, r"rows in 0 .. 63, got 3 .. 64 f"),
        ({"next_rows": lambda k: np.array([-1, 2])}, r"rows in 0 .. 63, got -1 .. 2 f"),
        ({"next_rows": lambda k: np.ones(3)}, r"integers \[R\], got float64 \[3\]"),
        ({"validate": lambda d, k: 87.5}, r"a number in \[0, 1\], got 87.5"),
        ({"validate": lambda d, k: float("nan")}, r"a number in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(**change)


@pytest.mark.parametrize(
    "field", ["validate_every", "checkpoint_every", "report_every"]
)
def test_a_schedule_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Schedule(
            **{"num_meta_steps": 3, "validate_every": 1, "checkpoint_every": 1}
            | {field: 0}
        )
