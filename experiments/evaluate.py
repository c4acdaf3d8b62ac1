"""Trains fresh networks on a saved distilled set, and scores them on test.

    python -m experiments.evaluate --artifact=runs/NAME/artifact

In its own order and step sizes (native), and by ordinary training on shuffled
minibatches (standard), whose step size and length are chosen on validation. With
--model also on another network. The test split is read once, at the end.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import distill_jax as dj
from distill_jax import artifact, stored
from distill_jax.compare import compare, saved
from distill_jax.recipe import setting
from distill_jax.task import model_maker, with_model

from . import cli


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which set is evaluated, and on what."""

    artifact: str | None = setting(None, "Folder of the artefact.")
    dataset: str | None = setting(None, "The corpus, if not the artefact's own.")
    text_column: str | None = setting(None, "Column of the texts in your file.")
    label_column: str | None = setting(None, "Column of the labels in your file.")
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.")
    download: bool = setting(False, "Let TFDS download what is not on disk.")
    vectors: str | None = setting(None, "Where the artefact's word vectors are now.")
    model: str | None = setting(None, "Another network to train too.")
    model_settings: Any = setting(
        {}, "A setting of that network, NAME=JSON_VALUE; repeat for more."
    )
    full: bool = setting(False, "Train on all training data too.")

    def __post_init__(self):
        if self.model is not None:
            model_maker(self.model, self.model_settings)
        elif self.model_settings:
            raise ValueError("--model_settings needs --model")


def run(
    values: Mapping[str, Any],
    *,
    rows: Path,
    dry_run: bool = False,
    devices: Any = None,
    say: Callable[[str], None] = print,
) -> list[dj.Result]:
    """Trains on the artefact in each way, scores on test, and appends the rows.

    Args:
        values: settings by flag.
        rows: the file that rows are appended to as they are done.
        dry_run: stop when the artefact and its corpus are read.
        devices: that share the networks.
        say: where text goes.
    """
    wanted = cli.settings(Settings, values)
    if not wanted.artifact:
        raise ValueError("--artifact must name the folder of an artefact")
    protocol = cli.settings(dj.Protocol, values)
    found = artifact.load(wanted.artifact)
    where = (
        "dataset",
        "text_column",
        "label_column",
        "data_dir",
        "download",
        "vectors",
    )
    own = stored.task_of(
        found, say=say, **{name: getattr(wanted, name) for name in where}
    )
    S, B, L, D = found.arrays["x"].shape
    say(
        f"{S * B} sentences of {L} x {D} numbers, learned from "
        f"{found.card['corpus']['name']} with {found.card['model']['name']}; "
        f"{S} minibatches x {found.arrays['raw_lr'].shape[0]} passes."
    )
    if dry_run:
        return []
    tasks = [own]
    if wanted.model is not None:
        tasks.append(with_model(own, wanted.model, **wanted.model_settings))
    made = []
    for task in tasks:
        made += compare(
            task,
            {"distilled": saved(found, ways=("native", "soft"))},
            [S * B / task.num_classes],
            protocol=protocol,
            lines=("full", "majority", "tfidf") if wanted.full else ("majority",),
            rows=rows,
            experiment="evaluate",
            devices=devices,
            say=say,
        )
    say(f"\n{cli.table(made)}\n\nRows: {rows}")
    return made


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    rows = cli.rows_path("evaluate")
    with cli.told_in_a_line(argv, "evaluate", stopped=f"what is done is in {rows}"):
        devices, _ = cli.join()
        run(cli.given(), rows=rows, dry_run=flags.FLAGS.dry_run, devices=devices)


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(Settings, dj.Protocol)
    cli.define_run("evaluate")
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
