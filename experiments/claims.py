"""Tests the claims of the comparison paper (Anonymous 2022) from rows.

    python -m experiments.claims
    python -m experiments.claims --transfer=text_cnn,bilstm

--transfer trains the networks it names on the sets that experiments.compare left below
--runs, by ordinary training alone: order and step sizes were learned for another
network. Their rows have the preset `transfer`, which tables of one network do not see.
Rows of real sentences that are there, whatever their preset, are not made again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import distill_jax as dj
from distill_jax.recipe import setting
from distill_jax.report import claims, verdict
from distill_jax.results import read
from distill_jax.transfer import moves, transfer

from . import cli

PUBLISHED = Path("results/compare.jsonl")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which networks are trained on which sets."""

    transfer: str = setting("", "Networks to train on the distilled sets.")
    runs: str = setting("runs", "Folder of the folders of experiments.compare.")
    corpora: str = setting("", "Of these corpora, as rows name them; or of all.")
    sources: str = setting("", "Distilled with these networks; or with any.")
    budgets: str = setting("", "At these examples per class; or at all.")
    methods: str = setting("selections", "Real examples to stand beside them.")
    full: bool = setting(False, "Train these networks on all training data too.")
    dataset: str | None = setting(None, "Where the corpus is now, if there is one.")
    vectors: str | None = setting(None, "Where the word vectors are now.")


def run(
    values: Mapping[str, Any],
    *,
    rows: str | Path,
    known: Sequence[str | Path] = (),
    dry_run: bool = False,
    devices: Any = None,
    say: Callable[[str], None] = cli.say,
) -> list[claims.Claim]:
    """Trains what transfer needs, if asked to, and answers the claims.

    Args:
        values: settings by flag.
        rows: the file of the rows; new ones are appended to it.
        known: files of rows that are read before it.
        dry_run: stop after the plan of the transfer.
        devices: that share the networks.
        say: where text goes.

    Returns:
        The claims; none of a dry run.

    Raises:
        FileNotFoundError: if there are no rows, or no distilled set.
        ValueError: for what there is not, or where the rows tell of no claim.
    """
    wanted = cli.settings(Settings, values)
    files = list(dict.fromkeys(map(Path, (*known, rows))))
    if not any(file.is_file() for file in files):
        raise FileNotFoundError(
            f"no {rows}: run experiments.compare first, or name a file with --results"
        )

    def there() -> list[dj.Result]:
        return [row for file in files for row in read(file)]

    def names(flag: str) -> list[str]:
        text = getattr(wanted, flag)
        return cli.words(flag, text) if text else []

    planned, lines = [], ["full"] if wanted.full else []
    if wanted.transfer:
        planned = moves(
            there(),
            names("transfer"),
            wanted.runs,
            names=names("methods"),
            lines=lines,
            dataset=wanted.dataset,
            vectors=wanted.vectors,
            say=say,
            corpora=names("corpora"),
            models=names("sources"),
            budgets=cli.numbers("budgets", wanted.budgets) if wanted.budgets else [],
        )
    for move in planned:
        say(f"{move}")
        for group, _ in move.todo if dry_run else []:
            say(f"  {group}")
    if dry_run:
        return []
    for move in planned:
        transfer(move, rows, lines=lines, devices=devices, say=say)
    found = claims.answers(verdict.of_best_recipe(there()))
    if not found:
        raise ValueError(
            f"{rows} has no budget with distilled and real examples: run "
            "experiments.compare first"
        )
    say(claims.report(found))
    return found


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f, rows = flags.FLAGS, cli.rows_path("compare")
    kept = f"what is done is in {rows}; the same command goes on"
    with cli.told_in_a_line(argv, "claims", stopped=kept):
        if f.transfer:
            cli.compile_cache(Path(f.runs) / "transfer")
        known, devices = () if f.results else (PUBLISHED,), cli.join()[0]
        values, how = cli.given(), {"dry_run": f.dry_run, "devices": devices}
        run(values, rows=rows, known=known, **how)


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(Settings)
    cli.define_run("compare")
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
