"""Pieces of the README's tables."""

from collections.abc import Sequence

from distill_jax.results import Row


def table(head: Sequence[str] | str, lines: Sequence[Sequence[str]]) -> str:
    """A table; the names of its columns also as one string with " | " between."""
    names = head.split(" | ") if isinstance(head, str) else head
    grid = [names, ["---"] * len(names), *lines]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in grid) + "\n"


def accuracy(row: Row | None) -> str:
    """Mean and standard deviation in %."""
    if row is None:
        return "-"
    mean, sd = 100 * row["accuracy_mean"], row["accuracy_sd"]
    return f"{mean:.1f}" + (f" ± {100 * sd:.1f}" if sd else "")


def percent(value: float | None) -> str:
    """A fraction in %."""
    return "-" if value is None else f"{100 * value:.1f}"


def no_rows(name: str) -> str:
    """What stands where a table would."""
    return f"\nNo rows in `results/{name}.jsonl` yet.\n\n"
