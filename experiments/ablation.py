"""What each part of the method is worth: distilled with all of them, and all but one.

    python -m experiments.ablation --dataset=trec6 --model=mean_cnn --dry_run
    python -m experiments.ablation --dataset=trec6 --model=mean_cnn

The flags of the recipe say what "all on" is. A variant differs from it in one lever:
where the sentences start, soft labels, learned step sizes, theta_0 in a meta-step, the
window of inner steps, the warm-up, and what --change asks for. Each is distilled from
--seeds seeds and judged as in a comparison, by theta_0 that all share, in the order and
step sizes it learned. The same command goes on where it was stopped.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import distill_jax as dj
from distill_jax import estimate
from distill_jax.compare import compare, plan, rows_of
from distill_jax.distill import build, start_of
from distill_jax.loop import NonFiniteMetaGradient
from distill_jax.names import digest
from distill_jax.progress import duration
from distill_jax.recipe import setting
from distill_jax.report import ablation_tables
from distill_jax.report.ablation_tables import ALL_ON
from distill_jax.results import read
from distill_jax.train import Judge
from distill_jax.variants import Variant, changed, levers

from . import cli


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is distilled, and how often."""

    examples_per_class: int = setting(10, "Distilled sentences of each class.")
    examples: int = setting(0, "Distilled sentences in all, instead.")
    seeds: int = setting(3, "Distillations of each variant, from --seed on.")

    def __post_init__(self):
        for name, least in (("examples_per_class", 1), ("examples", 0), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )


class Failed(ValueError):
    """Variants could not be distilled; the others are done."""


def run(
    values: Mapping[str, Any],
    *,
    out: Path,
    rows: Path,
    dry_run: bool = False,
    devices: Any = None,
    how: str | None = None,
    say: Callable[[str], None] = cli.say,
) -> list[dj.Result]:
    """Distils and scores all variants that have no row yet.

    Args:
        values: settings by flag.
        out: folder of the distilled sets, and of their checkpoints.
        rows: the file that a row is appended to after each variant.
        dry_run: stop after the plan and the estimate.
        devices, how: as for `distill`.
        say: where text goes.

    Returns:
        The rows of all variants, old and new; none of a dry run.

    Raises:
        Failed: if variants met meta-gradients that are not finite, at the end.
        ValueError: for settings that do not go together, before anything is compiled.
    """
    corpus, wanted = cli.settings(cli.Corpus, values), cli.settings(Settings, values)
    protocol = cli.settings(dj.Protocol, values)
    base = cli.recipe_of(values, corpus.model)
    for name, needed in (("select_on", "validation"), ("theta_0", "random")):
        if (got := getattr(base.meta, name)) != needed:
            raise ValueError(f"an ablation needs --{name}={needed}, got {got}")
    off = {ALL_ON: {}, **levers(base), **changed(base, values.get("change", []))}
    recipes = {name: base.replace(**changes) for name, changes in off.items()}
    task = corpus.task(say)
    n = wanted.examples or wanted.examples_per_class * task.num_classes
    for recipe in recipes.values():  # raises where one does not fit
        build(task, recipe, start_of(task, recipe, n, corpus.seed), corpus.seed)
    shared = {"folder": out, "ways": ("native",), "seeds": wanted.seeds, "base": base}
    methods = {
        name: Variant(recipe, devices=devices, how=how, **shared)
        for name, recipe in recipes.items()
    }
    budget, settings = n / task.num_classes, {"protocol": protocol, "lines": ()}
    groups = plan(task, methods, [budget], **settings)
    identity = {"experiment": "ablation", "preset": None, "model": task.model_name}
    known, left = read(rows), 0
    seeds = range(protocol.seed, protocol.seed + wanted.seeds)
    for group in groups:
        method, done = methods[group.name], wanted.seeds
        if not rows_of(known, task, group, identity):
            done = sum(method.is_done(task, budget, seed) for seed in seeds)
        left += wanted.seeds - done
        told = "".join(f" {k}={v}" for k, v in off[group.name].items())
        say(f"  {group.name}:{told} ({done} of {wanted.seeds} seeds done)")
    if left:
        fresh = {ALL_ON: dataclasses.replace(methods[ALL_ON], folder=None)}
        judge = Judge(task, protocol, devices=devices)
        took = estimate.seconds(judge, groups[:1], fresh)[str(groups[0])]
        told = duration(took * left / wanted.seeds)
        say(f"Estimate: {told} for {left} distillations, and the time to compile.")
    if dry_run:
        return []
    failed: list[str] = []

    def spared(group, error: Exception) -> None:
        if not isinstance(error, NonFiniteMetaGradient):
            raise error
        failed.append(group.name)

    all_on = digest([task.sha256, groups[0].settings], 8)
    found = compare(
        task,
        methods,
        [budget],
        **settings,
        rows=rows,
        experiment="ablation",
        failed=spared,
        facts_of=lambda group: {"variant": group.name, "all_on": all_on},
        devices=devices,
        say=say,
    )
    say(ablation_tables.ablation({"ablation": [*found]}) + f"Rows: {rows}")
    if failed:
        raise Failed(f"not finite, so without a row: {'; '.join(failed)}")
    return found


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with cli.told_in_a_line(
        argv,
        "ablation",
        stopped="the variants that are done are kept; the same command goes on",
    ):
        values = cli.given()
        corpus = Path(f.dataset).name.replace(":", "-")
        size = f.examples or f"{f.examples_per_class}pc"
        out = Path(f.out or Path("runs") / f"ablation-{corpus}-{f.model}-{size}")
        cli.compile_cache(out)
        devices, how = cli.join()
        rows = cli.rows_path("ablation")
        run(values, out=out, rows=rows, dry_run=f.dry_run, devices=devices, how=how)


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    cli.define(cli.Corpus, Settings, dj.Protocol, *cli.RECIPE)
    flags.DEFINE_multi_string(
        "change", [], "A further variant, such as inner__lr=0.1; repeat for more."
    )
    cli.define_run("ablation")
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
