"""The forms that a distilled set can be stored in, and their names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_jax import compact
from distill_jax.types import Distilled

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
