"""Measures what accuracy of a saved distilled set is left per byte.

    python -m experiments.compact --artifact=runs/NAME/artifact

The set as it is, in smaller numbers, and in fewer (see `distill_jax.compact`): each
form is expanded again and trained on in its own order and step sizes. Nothing is
learned again. The test split is read once, at the end, for all forms. With the seed of
the run and its number of theta_0, `float32` comes to the accuracy that it reported.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_jax import artifact, forms, results, stored
from distill_jax.progress import Bars
from distill_jax.recipe import setting
from distill_jax.report import compact_tables, figures, pages
from distill_jax.train import Judge, Protocol

from . import cli


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which set is trained on, in which forms."""

    artifact: str = setting("", "Folder of the artefact.")
    dataset: str | None = setting(None, "The corpus, if not the artefact's own.")
    text_column: str | None = setting(None, "Column of the texts in your file.")
    label_column: str | None = setting(None, "Column of the labels in your file.")
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.")
    download: bool = setting(False, "Let TFDS download what is not on disk.")
    vectors: str | None = setting(None, "Where the artefact's word vectors are now.")
    forms: tuple[str, ...] = setting(
        (),
        "A form beside float32: float16, int8, low_rank:RANK or shared_basis:SIZE, "
        "the last two also as low_rank:RANK:float16; repeat for more. All that are "
        "smaller unless given.",
    )

    def __post_init__(self):
        if not self.artifact:
            raise ValueError("--artifact must name the folder of an artefact")
        for name in self.forms:
            forms.form_of(name)


def run(
    values: Mapping[str, Any],
    *,
    rows: str | Path,
    out: str | Path | None = None,
    devices: Any = None,
    say: Callable[[str], None] = cli.say,
) -> list[results.Result]:
    """Trains on each form, scores it on validation and test, and appends the rows.

    Args:
        values: settings by flag.
        rows: the file that rows are appended to.
        out: folder of the figure; that of the run unless given.
        devices: that share the networks.
        say: where text goes.

    Returns:
        The rows appended, in the order of the forms, float32 first.

    Raises:
        ValueError: for a form that does not fit the set, before the corpus is read;
            and as all that is called does.
        pages.NotDrawn: if the figure cannot be written; the rows are.
    """
    c, protocol = (cli.settings(group, values) for group in (Settings, Protocol))
    protocol = dataclasses.replace(protocol, tuning_inits=protocol.test_inits)
    saved = artifact.load(c.artifact)
    tx, distilled = stored.inner_tx_of(saved.card), artifact.to_distilled(saved)
    sets = forms.stored_in(distilled, c.forms)
    earlier, where = results.read(rows), dataclasses.asdict(c)
    del where["artifact"], where["forms"]
    task = stored.task_of(saved, **where, say=say)
    S, B, L, D = distilled.x.shape
    say(
        f"{S * B} sentences of {L} x {D} numbers, learned from "
        f"{saved.card['corpus']['name']} with {saved.card['model']['name']}, in "
        f"{len(sets)} forms; {protocol.test_inits} random theta_0 for each."
    )
    judge = Judge(task, protocol, devices=devices, report=Bars())
    scores = forms.scores(judge, sets, tx, say)
    told = dataclasses.asdict(c) | dataclasses.asdict(protocol)
    made = [forms.row(judge, saved, f, sets[f], scores[f], told) for f in sets]
    results.append(rows, made)
    best = compact_tables.smallest(made)
    say(f"\n{compact_tables.printed(made)}")
    say(
        "\nSmallest within one standard error of float32 on validation: "
        f"{best['config']['form']}, {best['bytes']:,} bytes."
    )
    out = Path(out or Path(c.artifact).parent)
    with pages.after_rows(rows, "the same command with another --out"):
        figure = figures.plot_forms(out / "compact.png", [*earlier, *made], made[0])
    say(f"\nRows: {rows}\nFigure: {figure}\nNext: {following(values, best)}")
    return made


def following(values: Mapping[str, Any], best: results.Row) -> str:
    """Factors in smaller numbers too, where float32 ones do; else the tables."""
    form = forms.form_of(best["config"]["form"])
    if not form.factors or form.kind != "float32":
        return f"{cli.RUN}tables"
    given = [f"--{name}={value}" for name, value in values.items() if name != "forms"]
    more = [f"--forms={form._replace(kind=kind)}" for kind in ("float16", "int8")]
    return f"{cli.RUN}compact {shlex.join([*given, *more])}"


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    rows = cli.rows_path("compact")
    with cli.told_in_a_line(argv, "compact"):
        devices, _ = cli.join()
        run(cli.given(), rows=rows, out=flags.FLAGS.out, devices=devices)


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(Settings, Protocol)
    cli.define_run("compact")
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
