"""Pieces of the tables in README.md and docs/."""

from collections.abc import Sequence

from distill_jax import statistics
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


def interval(row: Row | None) -> str:
    """Mean in % with the 95 % interval of the row; a constant has none."""
    if row is None:
        return "-"
    mean = f"{100 * row['accuracy_mean']:.1f}"
    low, high = (100 * value for value in row["interval"])
    return mean if row["method"] == "majority" else f"{mean} [{low:.1f}, {high:.1f}]"


def bounds(values) -> str:
    """Mean of accuracies `[seeds, inits]` in %, with its 95 % interval."""
    found = statistics.summary(values)
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def points(difference: float, low: float, high: float) -> str:
    """A difference of accuracies in points, with its interval."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def span(rows: Sequence[Row], name: str) -> str:
    """The values of a field, from the least to the greatest."""
    values = sorted({row[name] for row in rows})
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"
