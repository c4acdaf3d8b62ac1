"""What a run tells those who wait for it: its cost, its progress, and how it ended."""

import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp

from distill_jax import checkpoints as ckpt
from distill_jax.loop import DistillResult, Interrupted, Progress, Schedule, distill
from distill_jax.task import Task
from distill_jax.types import Distilled
from experiments.recipe import Config, Setup, fingerprint, warmed


@contextmanager
def told_in_a_line(
    argv: Sequence[str],
    module: str,
    *,
    again: Sequence[str] = (),
    not_again: Sequence[str] = (),
    stopped: str = "no rows were added",
) -> Iterator[None]:
    """Ends the process with one line on stderr where its main raises.

    An error of input, files or numbers is `error: ...` and exit status 1, with its
    traceback where DISTILL_JAX_TRACEBACK is set. Ctrl-C is status 130; if a run was
    saved, the command that goes on with it is shown.

    Args:
        argv: what absl passes to main; more than the program is refused.
        module: what `python -m` runs.
        again: flags that the command to go on has more.
        not_again: names of flags that it lacks.
        stopped: what is said of a run that was stopped and not saved.

    Raises:
        absl.app.UsageError: for arguments that are not flags.
        SystemExit: at the end of a run that failed.
    """
    from absl import app, logging

    if argv[1:]:
        raise app.UsageError(f"no arguments but flags, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    except Interrupted as stop:
        kept = [
            word
            for word in sys.argv[1:]
            if word.lstrip("-").partition("=")[0] not in not_again and word not in again
        ]
        command = shlex.join(["python", "-m", module, *kept, *again])
        print(f"\n{stop}\nTo go on: {command}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        if os.environ.get("DISTILL_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def estimate(config: Config, setup: Setup) -> str:
    """Compiles the meta-step, takes three on copies, and tells time and memory."""
    keys = jax.random.split(jax.random.key(0), config.num_inits)
    batch = setup.next_batch(0)

    def one() -> float:
        copy = jax.tree.map(jnp.array, setup.state)
        began = time.perf_counter()
        jax.block_until_ready(setup.step(copy, keys, batch))
        return time.perf_counter() - began

    compile_seconds = one()
    step_seconds = min(one(), one())
    began = time.perf_counter()
    setup.validate(setup.state.distilled, jax.random.key(0))
    setup.validate(setup.state.distilled, jax.random.key(0))
    validations = 1 + config.num_meta_steps // config.validate_every
    total = step_seconds * config.num_meta_steps
    total += validations * (time.perf_counter() - began) / 2
    return (
        f"Estimate: {duration(total)} ({step_seconds:.3g} s a meta-step, compiled in "
        f"{compile_seconds:.0f} s), then the baselines; memory so far {_memory()}."
    )


def duration(seconds: float) -> str:
    """Such as `90 s` or `12 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _memory() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GB at its peak"


def warm_bar(steps: Iterable[int]) -> Iterable[int]:
    """The steps of a warm-up, with a progress bar."""
    from tqdm import tqdm

    return tqdm(steps, desc="warm-up", unit="step", mininterval=1.0)


def learned(
    config: Config,
    task: Task,
    start: Distilled,
    setup: Setup,
    folder: Path,
    *,
    resume: bool = True,
    tensorboard: Path | None = None,
) -> tuple[DistillResult, float]:
    """Warms the start up and distils it, with progress bars and checkpoints.

    Args:
        config: the settings.
        task: from `recipe.load`.
        start: from `recipe.start_of`.
        setup: from `recipe.build`; its state is donated.
        folder: of the checkpoints.
        resume: go on from those in `folder`; a warm-up is over then.
        tensorboard: folder for event files, none if None.

    Returns:
        The result, and the seconds that all of its meta-steps take; of a run that was
        resumed they are reckoned from those it took here.
    """
    began, state = time.perf_counter(), setup.state
    if config.warm_steps and not (resume and ckpt.latest_step(folder) is not None):
        state = setup.begin(warmed(config, task, start, warm_bar))
    with Reporter(config.num_meta_steps, config.num_inits, tensorboard) as report:
        result = distill(
            setup.step,
            state,
            setup.next_batch,
            setup.validate,
            Schedule(
                config.num_meta_steps,
                config.validate_every,
                config.checkpoint_every,
                # Lengths are learned in the first half.
                select_from=config.num_meta_steps // 2 if config.words_kept < 1 else 0,
            ),
            key=jax.random.key(config.seed),
            num_inits=config.num_inits,
            checkpoints=folder,
            resume=resume,
            fingerprint=fingerprint(config, task),
            report=report,
        )
    seconds = time.perf_counter() - began
    taken = config.num_meta_steps - (result.resumed_from or 0)
    if result.resumed_from and taken:
        seconds *= config.num_meta_steps / taken
    return result, seconds


class Reporter:
    """The progress bar, and scalars for TensorBoard."""

    def __init__(
        self, num_meta_steps: int, num_inits: int, tensorboard: Path | None = None
    ):
        self.num_meta_steps, self.num_inits = num_meta_steps, num_inits
        self.tensorboard = tensorboard

    def __enter__(self):
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.num_meta_steps, unit="step", mininterval=1.0, initial=0
        )
        self.accuracy, self.done, self.began = None, None, time.perf_counter()
        self.writer = None
        if self.tensorboard is not None:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(self.tensorboard))
        return self

    def __call__(self, progress: Progress) -> None:
        if self.done is None:  # a resumed run begins where it was left
            self.done = self.bar.n = progress.step
            self.first = progress.step
        self.bar.update(progress.step - self.bar.n)
        rate = (progress.step - self.first) * self.num_inits
        shown = {"theta_0/s": f"{rate / (time.perf_counter() - self.began):.1f}"}
        if progress.meta_loss is not None:
            shown["loss"] = f"{progress.meta_loss:.4f}"
        if progress.row is not None:
            self.accuracy = progress.row["accuracy"]
        if self.accuracy is not None:
            shown["validation"] = f"{self.accuracy:.1%}"
        if progress.best_accuracy >= 0:
            shown["best"] = f"{progress.best_accuracy:.1%}"
        if progress.skipped_in_a_row:
            shown["skipped"] = str(progress.skipped_in_a_row)
        self.bar.set_postfix(shown)
        if self.writer is not None and progress.row is not None:
            for name, value in progress.row.items():
                if name != "step" and value is not None:
                    self.writer.add_scalar(name, value, progress.step)

    def __exit__(self, *error):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
