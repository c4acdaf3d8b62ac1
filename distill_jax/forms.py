"""The forms that a distilled set can be stored in, and what accuracy each leaves."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from distill_jax import artifact, compact, results
from distill_jax.fit import in_turns
from distill_jax.sources import saved as saved_sets
from distill_jax.train import Judge
from distill_jax.types import Batch, Distilled

FACTORS = {"low_rank": compact.low_rank, "shared_basis": compact.shared_basis}
RANKS = (1, 2, 4, 8, 16)
SIZES = (2, 4, 8, 16, 32)  # of a shared basis


class Form(NamedTuple):
    """One way to store a set.

    Attributes:
        kind: of `compact.KINDS`.
        factors: of `FACTORS`, or empty where sentences are stored whole.
        size: rank, or vectors of the basis; 0 where whole.
    """

    kind: str
    factors: str = ""
    size: int = 0

    def __str__(self) -> str:
        """Its name: KIND, FACTORS:SIZE of float32, or FACTORS:SIZE:KIND."""
        if not self.factors:
            return self.kind
        kind = "" if self.kind == "float32" else f":{self.kind}"
        return f"{self.factors}:{self.size}{kind}"

    def stored(self, distilled: Distilled) -> dict[str, np.ndarray]:
        """The arrays of the set in this form.

        Raises:
            ValueError: naming the form, where it does not fit.
        """
        try:
            if self.factors:
                parametrisation = FACTORS[self.factors](self.size)
                distilled = compact.compress(distilled, parametrisation)
            return compact.quantise(distilled, self.kind)
        except ValueError as error:
            raise ValueError(f"--forms={self}: {error}") from error


def form_of(name: str) -> Form:
    """The form of a name, see `Form`.

    Raises:
        ValueError: for a name of none, or a size below 1.
    """
    head, *rest = name.split(":")
    if head in compact.KINDS and not rest:
        return Form(head)
    known = head in FACTORS and len(rest) in (1, 2)
    if not known or rest[1:] and rest[1] not in compact.KINDS:
        raise ValueError(
            f"--forms={name} is no form; known: {', '.join(compact.KINDS)}, "
            f"{', '.join(f'{f}:SIZE' for f in FACTORS)}, with :KIND after it or not"
        )
    try:
        size = int(rest[0])
    except ValueError:
        raise ValueError(f"--forms={name}: {rest[0]!r} is no whole number") from None
    if size < 1:
        raise ValueError(f"--forms={name}: the size must be at least 1, got {size}")
    return Form(rest[1] if rest[1:] else "float32", head, size)


def fitting(shape: Sequence[int], *, ragged: bool = False) -> list[Form]:
    """The forms tried unless told otherwise: those that take fewer numbers.

    Args:
        shape: `[S, B, L, D]` of the sentences.
        ragged: they have their own lengths, and are stored whole.
    """
    S, B, L, D = shape
    whole = [Form(kind) for kind in compact.KINDS]
    if ragged:
        return whole
    ranks = [r for r in RANKS if r <= min(L, D) and r * (L + D) < L * D]
    tokens = S * B * L
    sizes = [k for k in SIZES if k <= min(tokens, D) and k * (tokens + D) < tokens * D]
    return [
        *whole,
        *(Form("float32", "low_rank", r) for r in ranks),
        *(Form("float32", "shared_basis", k) for k in sizes),
    ]


def stored_in(
    distilled: Distilled, names: Sequence[str] = ()
) -> dict[Form, dict[str, np.ndarray]]:
    """The arrays of a set as it is, and in each form.

    Args:
        distilled: the set.
        names: of the forms; those that are `fitting` unless given.

    Raises:
        ValueError: naming a form that is none, or does not fit.
    """
    forms = [form_of(name) for name in names]
    forms = forms or fitting(distilled.x.shape, ragged=distilled.ragged)
    return {form: form.stored(distilled) for form in [Form("float32"), *forms]}


class Scores(NamedTuple):
    """Of one form: `validation` and `test` `[N]`, and the `seconds` that both took."""

    validation: np.ndarray
    test: np.ndarray
    seconds: float


def scores(
    judge: Judge,
    stored: Mapping[Form, dict[str, np.ndarray]],
    inner_tx: optax.GradientTransformation,
    say: Callable[[str], None] = lambda text: None,
) -> dict[Form, Scores]:
    """Trains on forms in their own order; scores all on validation, then reads test.

    Args:
        judge: of the task; as many theta_0 on validation as it tunes with.
        stored: the arrays of each form.
        inner_tx: the direction of an inner step.
        say: told of each form.
    """
    native, at_once = judge.native(inner_tx), len(judge.trainer.devices)
    sets = {form: compact.restore(arrays) for form, arrays in stored.items()}

    def score(form: Form, keys: jax.Array, chunks: Batch) -> tuple[np.ndarray, float]:
        began, one = time.perf_counter(), sets[form]

        def told(done: int) -> None:
            judge.report(str(form), done, len(keys))

        found = in_turns(
            native, keys, one.batches, one.lr, chunks, at_once=at_once, report=told
        )
        return found.astype(float), time.perf_counter() - began

    seen = {}
    for form in sets:
        seen[form] = score(form, judge.tuning_keys, judge.validation)
        say(f"{form}: {seen[form][0].mean():.1%} on validation.")
    say("Reading the test split.")
    found = {}
    for form, (accuracies, seconds) in seen.items():
        tested, more = score(form, judge.test_keys, judge.test)
        found[form] = Scores(accuracies, tested, seconds + more)
    return found


def row(
    judge: Judge,
    saved: artifact.Artifact,
    form: Form,
    stored: dict[str, np.ndarray],
    found: Scores,
    config: Mapping[str, Any],
) -> results.Result:
    """The row of a form.

    Args:
        judge: of the task.
        saved: the set as it is.
        form, stored: the form, and the arrays of the set in it.
        found: its scores.
        config: settings of the run.
    """
    task, card, y = judge.task, saved.card, saved.arrays["y"]
    own = dict(task.dataset.sha256) == card["corpus"]["sha256"]
    validation = found.validation
    return results.build(
        experiment="compact",
        dataset=task.dataset.name,
        model=card["model"]["name"],
        method="distilled",
        examples=y.shape[0] * y.shape[1],
        num_classes=task.num_classes,
        num_train=len(task.labels),
        accuracies=found.test,
        labels="hard" if y.max(-1).min() > 1 - 1e-6 else "soft",
        training="native",
        bytes=compact.num_bytes(stored),
        selected_on=saved_sets(saved).selected_on,
        full=card["results"].get("full") if own else None,
        majority=judge.majority,
        seconds=found.seconds,
        data=task.sha256,
        config={
            **config,
            "artifact_sha256": card["tensors"]["sha256"],
            "artifact_model": card["model"],
            "form": str(form),
            # Of sentences that have learned their lengths.
            "words": int(np.prod(stored["x"].shape[:-1]))
            if "mask" in saved.arrays
            else None,
            "validation_accuracy": float(validation.mean()),
            "validation_sd": float(validation.std(ddof=1))
            if validation.size > 1
            else None,
        },
    )
