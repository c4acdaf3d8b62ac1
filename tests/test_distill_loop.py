"""The host loop: what is killed and resumed ends as if it had never stopped."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from distill_jax.checkpoints import latest_step
from distill_jax.core import meta_init
from distill_jax.loop import Interrupted, NonFiniteMetaGradient, Schedule, distill
from distill_jax.parallel import pmap_meta_step
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
    first, *rows = unbroken.history[:3]
    assert first["meta_loss"] is None and first["lr_mean"] == pytest.approx(np.log(2))
    for row, steps in zip(rows, (range(4), range(4, 8)), strict=True):
        losses, norms = [], []
        for k in steps:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(3), k), 2)
            state, info = tiny.step_fn()(state, keys, tiny.real_batch(k))
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
    def next_batch(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny.real_batch(step)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="SIGTERM after step 10 of 30") as stopped:
        tiny.run(tmp_path, next_batch=next_batch)
    assert (stopped.value.signal, stopped.value.step) == (signal.SIGTERM, 10)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert latest_step(tmp_path) == 10
    assert tiny.digest(tiny.run(tmp_path, resume=True)) == tiny.digest(unbroken)


def test_a_second_signal_ends_the_run_at_once():
    steps = []

    def next_batch(step):
        steps.append(step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return tiny.real_batch(step)

    with pytest.raises(KeyboardInterrupt) as stopped:
        tiny.run(next_batch=next_batch)
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
    """A batch whose loss is not a number, at the given steps."""

    def next_batch(step):
        batch = tiny.real_batch(step)
        return batch.replace(x=batch.x * np.nan) if at(step) else batch

    return next_batch


def test_several_bad_gradients_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteMetaGradient) as stopped:
        tiny.run(tmp_path, next_batch=blown_up(lambda step: step >= 7))
    said = str(stopped.value)
    assert "not finite for 5 meta-steps in a row (to step 12)" in said
    assert "of x, y_logits, raw_lr; meta_loss nan, largest inner step size 0." in said
    assert "Lower the first inner step size, clip" in said
    assert f"The checkpoint of step 6 is in {tmp_path}" in said
    assert latest_step(tmp_path) == 6


def test_only_the_leaf_that_blew_up_is_named():
    info = tiny.step_fn()(
        tiny.problem()[0], jax.random.split(jax.random.key(0), 2), tiny.real_batch(0)
    )[1]
    bad = info.replace(finite=info.finite.replace(raw_lr=np.asarray(False)))

    def step(state, keys, batch):
        return dataclasses.replace(state, step=state.step + 1), bad

    with pytest.raises(NonFiniteMetaGradient, match=r"to step 2\): of raw_lr; meta_lo"):
        tiny.run(step_fn=step, schedule=Schedule(9, 9, 9, max_skipped_in_a_row=2))


def test_a_few_bad_gradients_are_skipped_and_counted():
    told = []
    result = tiny.run(
        next_batch=blown_up(lambda step: step in (4, 5, 6, 7, 9)), report=told.append
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
        return bad(step)

    with pytest.raises(Interrupted):
        tiny.run(tmp_path, next_batch=stopped_at_6)
    with pytest.raises(NonFiniteMetaGradient, match=r"5 meta-steps .*to step 9\)"):
        tiny.run(tmp_path, next_batch=bad, resume=True)


def test_progress_is_told_with_its_losses(unbroken):
    told = []
    tiny.run(report=told.append)
    assert [p.step for p in told] == [0, *range(2, 31, 2)]
    assert [p.row for p in told if p.row] == unbroken.history
    two = [p.meta_loss for p in told if p.step in (2, 4)]
    assert np.mean(two) == pytest.approx(unbroken.history[1]["meta_loss"], rel=1e-12)
    assert told[-1].best_accuracy == unbroken.best_accuracy


def test_the_device_is_asked_only_now_and_then(monkeypatch):
    from distill_jax import loop as loop

    asked = []
    real = loop._Record.fetch
    monkeypatch.setattr(
        loop._Record,
        "fetch",
        lambda self, pending, *a: asked.append(len(pending)) or real(self, pending, *a),
    )
    tiny.run(schedule=Schedule(20, 20, 20, report_every=8))
    assert asked == [8, 8, 4]


def test_it_runs_on_four_devices(unbroken):
    step = pmap_meta_step(tiny.OBJECTIVE, tiny.MODEL.init, tiny.TX)
    schedule = dataclasses.replace(tiny.SCHEDULE, num_meta_steps=4)
    one = tiny.run(num_inits=4, schedule=schedule)
    four = tiny.run(num_inits=4, schedule=schedule, step_fn=step)
    np.testing.assert_allclose(four.best.x, one.best.x, rtol=1e-9)


def test_any_tree_can_be_distilled():
    def step(state, keys, batch):
        return dataclasses.replace(state, step=state.step + 1), info

    info = tiny.step_fn()(
        tiny.problem()[0], jax.random.split(jax.random.key(0), 2), tiny.real_batch(0)
    )[1]
    result = distill(
        step,
        meta_init(optax.sgd(1.0), {"prompt": np.zeros(3)}),
        tiny.real_batch,
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
