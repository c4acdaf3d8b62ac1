"""A linear softmax model on made-up sentences: the smallest whole run there is.

`python -m tests.tiny FOLDER [--resume] [--sleep S] [--file_limit BYTES]` runs it, so
that tests can kill it, interrupt it and fill its disk.
"""

import argparse
import hashlib
import resource
import signal
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import losses
from distill_jax.core import meta_init, unroll, unrolled
from distill_jax.loop import DistillResult, Interrupted, Schedule, distill
from distill_jax.parallel import MetaSteps, meta_steps
from distill_jax.types import Batch, Distilled, Model

S, E, B, L, D, C = 2, 2, 2, 3, 4, 3
TX = optax.adam(0.1)
SCHEDULE = Schedule(
    num_meta_steps=30, validate_every=4, checkpoint_every=6, report_every=2
)
SETTINGS = {"corpus": "made up", "seed": 3}


def linear_softmax() -> Model:
    """Mean over tokens, then softmax regression. Its zero biases do not depend on
    the key, so on many devices they are replicated."""

    def init(key):
        return {"w": jax.random.normal(key, (D, C)), "b": jnp.zeros(C)}

    def apply(params, x, mask, *, key=None):
        mean = (x * mask[..., None]).sum(-2) / mask.sum(-1, keepdims=True)
        return mean @ params["w"] + jnp.broadcast_to(params["b"], (x.shape[0], C))

    return Model(init, lambda params, tokens: jax.nn.one_hot(tokens, D), apply)


MODEL = linear_softmax()
LOSS = losses.cross_entropy(MODEL)
OBJECTIVE = unrolled(LOSS)


def real_batch(seed: int, size: int = 8) -> Batch:
    """Sentences whose class is told by their mean."""
    r = np.random.default_rng([5, seed])
    labels = r.integers(C, size=size)
    x = r.normal(size=(size, L, D)) + 2 * np.eye(D)[labels][:, None, :]
    return Batch(x, np.ones((size, L)), np.eye(C)[labels])


def problem():
    """A fresh state in numpy (steps donate theirs), and a real batch."""
    r = np.random.default_rng(0)
    distilled = Distilled(
        r.normal(size=(S, B, L, D)), r.normal(size=(S, B, C)), np.zeros((E, S))
    )
    return jax.device_get(meta_init(TX, distilled)), real_batch(0)


TRAIN = real_batch(1, 64)


def next_rows(step: int) -> np.ndarray:
    """Which of `TRAIN` are the real batch of a meta-step."""
    return np.random.default_rng([5, step]).choice(len(TRAIN.y), 8, replace=False)


@cache
def steps() -> MetaSteps:
    return meta_steps(OBJECTIVE, MODEL.init, TX)


@cache
def _accuracy():
    held_out = real_batch(10**6, 64)
    correct = losses.num_correct(MODEL)

    def accuracy(distilled, key):
        theta, _ = unroll(LOSS, MODEL.init(key), distilled.batches, distilled.lr)
        return correct(theta, held_out) / 64

    return jax.jit(accuracy)


def validate(distilled, key) -> float:
    return float(_accuracy()(distilled, key))


def run(folder=None, *, next_rows=next_rows, train=TRAIN, **options) -> DistillResult:
    """A run of 30 meta-steps, unless `options` say otherwise."""
    options = {"steps": steps(), "schedule": SCHEDULE} | options
    options = {"state": problem()[0], "validate": validate, "num_inits": 2} | options
    options = {"key": jax.random.key(3), "fingerprint": SETTINGS} | options
    return distill(next_rows=next_rows, train=train, checkpoints=folder, **options)


def digest(result: DistillResult) -> str:
    """Of every byte that a run gives."""
    h = hashlib.sha256()
    facts = (result.history, result.best_step, result.best_accuracy)
    h.update(repr(facts).encode())
    for leaf in jax.tree.leaves((result.state, result.best)):
        h.update(str(leaf.dtype).encode() + leaf.tobytes())
    return h.hexdigest()


def main() -> None:
    import tests.conftest  # noqa: F401  the same precision, devices and cache

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--file_limit", type=int)
    args = parser.parse_args()

    def slow(step):
        time.sleep(args.sleep)
        return next_rows(step)

    def report(progress):
        print("step", progress.step, flush=True)
        if args.file_limit and progress.step >= 8:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (args.file_limit,) * 2)

    try:
        result = run(args.folder, next_rows=slow, resume=args.resume, report=report)
    except (Interrupted, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise SystemExit(1) from None
    print(digest(result))


if __name__ == "__main__":
    main()
