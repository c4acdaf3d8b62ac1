"""The best settings of a distillation, or of training on real sentences, by validation.

    python -m experiments.tune --dataset=trec6 --model=bag --examples_per_class=1

A trial is a whole distillation with settings that Optuna proposes, the first one with
the settings as they are; it is judged on validation with theta_0 that did not choose
its meta-step. With `--baseline=kmeans_medoids`, say, as many trials tune the training
on real sentences. Test is never read.

The study is in --out. The same command goes on where it was stopped, and more --trials
prolong it. It ends with the command that distils with the best settings.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.recipe import setting
from distill_jax.selection import SELECTIONS
from distill_jax.tune import BASELINE_SPACE, MORE, SPACE, Space, Tuning, plan, tune

from . import cli, presets

# What flags call a setting that `Recipe.replace` knows as inner__lr, say.
FLAGS = {
    f"{part.__name__.lower()}__{field.name}": cli.flag_of(field)
    for part in cli.RECIPE
    for field in dataclasses.fields(part)
    if "help" in field.metadata
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How many sentences, and how their settings are searched."""

    examples_per_class: int = setting(10, "Distilled sentences of each class.")
    examples: int = setting(0, "Distilled sentences in all; 0: examples_per_class.")
    trials: int = setting(30, "Trials in all, those done before included.")
    search: str = setting(
        "", "Settings that are searched, with commas; the others stay as they are."
    )
    baseline: str | None = setting(
        None, "Tune training on real sentences instead.", choices=tuple(SELECTIONS)
    )
    selection_seeds: int = setting(5, "Draws of these.")
    startup_trials: int = setting(8, "Random ones before any is modelled or stopped.")
    prune: bool = setting(True, "Stop trials that are below the median.")
    max_minutes: float = setting(0.0, "Start no trial after so long; 0: any.")


def run(
    values: Mapping[str, Any],
    *,
    out: Path,
    rows: Path,
    dry_run: bool = False,
    say: Callable[[str], None] = cli.say,
) -> Tuning | None:
    """Goes on with a study, and says how to distil with the best settings.

    Args:
        values: settings by flag.
        out: folder of the study.
        rows: the file that a row is appended to after each trial.
        dry_run: stop after the plan.
        say: where text goes.

    Raises:
        ValueError: in the words of flags; as `distill_jax.tune`.
    """
    corpus, wanted = cli.settings(cli.Corpus, values), cli.settings(Settings, values)
    recipe = cli.recipe_of(values, corpus.model)
    how = dataclasses.asdict(wanted) | {"seed": corpus.seed}
    space = space_of(how.pop("search"), real=wanted.baseline is not None)
    how |= {"draws": how.pop("selection_seeds"), "say": lambda t: say(in_flags(t))}
    of_study = ("trials", "startup_trials", "prune", "max_minutes")
    more = {name: how.pop(name) for name in of_study}
    task = corpus.task(say)
    try:
        if dry_run:
            plan(task, recipe, space, **how)
            return None
        found = tune(task, recipe, space, folder=out, rows=rows, **how, **more)
    except ValueError as error:
        raise ValueError(in_flags(str(error), "--")) from error
    say(f"Rows: {rows}")
    if wanted.baseline is None:
        size = Settings(wanted.examples_per_class, wanted.examples)
        flags = cli.changed(corpus, cli.Corpus()) + cli.changed(size, Settings())
        flags += cli.flags_of(found.recipe, corpus.model)
        say(f"Next: {cli.RUN}distill {shlex.join(flags)}")
    return found


def space_of(search: str, *, real: bool) -> dict[str, Space] | None:
    """What `--search` names; None for all that matters."""
    usual = BASELINE_SPACE if real else SPACE | MORE
    known = {FLAGS[name]: name for name in usual}
    wanted = cli.words("search", search) if search else []
    for flag in wanted:
        if flag not in known:
            raise ValueError(
                f"--search does not know {flag!r}; known: {', '.join(known)}"
            )
    return {known[f]: usual[known[f]] for f in known if f in wanted} or None


def in_flags(text: str, dashes: str = "") -> str:
    """The text with settings as flags call them."""
    pattern = r"\b(?:inner|start|meta)__\w+"
    return re.sub(pattern, lambda m: dashes + FLAGS.get(m[0], m[0]), text)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with cli.told_in_a_line(
        argv,
        "tune",
        stopped="the trials that are done are kept; the same command goes on",
    ):
        values = cli.given(presets.DISTILL)
        wanted = cli.settings(Settings, values)
        size = wanted.examples or f"{wanted.examples_per_class}pc"
        corpus = Path(f.dataset).name.replace(":", "-")
        parts = ["tune", corpus, values.get("model", f.model), size, wanted.baseline]
        out = Path(f.out or Path("runs") / "-".join(str(p) for p in parts if p))
        cli.compile_cache(out)
        run(values, out=out, rows=cli.rows_path("tune"), dry_run=f.dry_run)


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(cli.Corpus, Settings, *cli.RECIPE, presets=presets.DISTILL)
    cli.define_run("tune")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
