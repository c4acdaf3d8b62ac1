"""Distilled sentences beside chosen ones, at equal budgets and by one protocol.

    python -m experiments.compare --dataset=rotten_tomatoes --model=bag --budgets=1,10

A method at a budget is one or several rows, written when it is done; the same command
goes on where it was stopped. Every set is trained on by Adam over shuffled minibatches,
with the best of the same 12 recipes on validation, from theta_0 that all methods share;
distilled sets also in their own order and step sizes. Queries see no label that they
did not ask for; selections and distillation see all. Test is read once for each row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import distill_jax as dj
from distill_jax.compare import check_budgets, compare, line, plan, rows_of
from distill_jax.data.resplit import pooled
from distill_jax.estimate import told as estimate
from distill_jax.methods import GROUPS, named_methods
from distill_jax.recipe import setting
from distill_jax.report import page, pages, verdict
from distill_jax.results import read
from distill_jax.train import Judge

from . import cli, presets


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which methods at which budgets."""

    budgets: str = setting("1,2,5,10,20,50", "Examples of each class, with commas.")
    methods: str = setting(
        "all", "With commas: all, " + ", ".join(GROUPS) + ", or names of methods."
    )
    soft_labels: bool = setting(
        True, "Also real examples with soft labels of a teacher."
    )
    distill_seeds: int = setting(3, "Distillations at the budgets of --many_at.")
    many_at: str = setting("1,5,20", "Budgets of several distillations; one elsewhere.")
    passes: int = setting(10, "Sampled networks that queries score by, F.")
    dropout: float = setting(0.2, "Rate of the networks that queries read.")
    query_rounds: int = setting(4, "Rounds of queries after the random start.")
    pool_size: int = setting(5000, "Random part of train that queries see; 0: all.")
    percent: float = setting(
        0.0, "One budget of so many % of train, rounded to whole classes; 0: --budgets."
    )
    pooled: bool = setting(
        False, "Pool all splits and cut them 8 : 1 anew, as the comparison paper."
    )

    def __post_init__(self):
        for name in "distill_seeds passes query_rounds".split():
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("pool_size", "percent"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, got {getattr(self, name)}"
                )
        cli.numbers("budgets", self.budgets)
        if self.many_at:
            cli.numbers("many_at", self.many_at)


def run(
    values: Mapping[str, Any],
    *,
    out: Path,
    rows: Path,
    preset: str | None = None,
    dry_run: bool = False,
    show: bool = False,
    devices: Any = None,
    how: str | None = None,
    say: Callable[[str], None] = print,
) -> list[dj.Result]:
    """Makes the rows that are not there yet, and compares.

    Args:
        values: settings by flag.
        out: folder of distillations, their checkpoints, the teacher and the page.
        rows: the file that rows are appended to as they are done.
        preset: a name for the rows.
        dry_run, show: the flags of these names (show: open).
        devices, how: as for `distill`.
        say: where text goes.

    Returns:
        The rows of the plan, old and new; none of a dry run.

    Raises:
        ValueError: before any work, for what does not fit together.
        loop.Interrupted: after Ctrl-C in a distillation.
        pages.NotDrawn: if the page cannot be written; the rows are.
    """
    corpus, wanted = cli.settings(cli.Corpus, values), cli.settings(Settings, values)
    protocol = cli.settings(dj.Protocol, values)
    recipe = cli.recipe_of(values, corpus.model)
    _check(recipe, protocol)
    names = cli.words("methods", wanted.methods)
    methods, lines = named_methods(
        names,
        recipe=recipe,
        protocol=protocol,
        folder=out,
        seeds=wanted.distill_seeds,
        taught=wanted.soft_labels,
        passes=wanted.passes,
        dropout=wanted.dropout,
        rounds=wanted.query_rounds,
        pool=wanted.pool_size,
        devices=devices,
        how=how,
    )
    task = corpus.task(say, prepare=pooled if wanted.pooled else lambda d: d)
    budgets = cli.numbers("budgets", wanted.budgets)
    if wanted.percent:
        N, C = len(task.labels), task.num_classes
        budgets = [max(1, round(wanted.percent / 100 * N / C))]
        n = budgets[0] * C
        say(f"{wanted.percent:g}% of {N:,} is {budgets[0]} a class, {n / N:.3%}.")
    check_budgets(task, budgets)
    if wanted.pool_size and wanted.pool_size < max(budgets) * task.num_classes:
        raise ValueError(
            f"--pool_size={wanted.pool_size} is less than the "
            f"{max(budgets) * task.num_classes} examples of the largest budget"
        )
    many = cli.numbers("many_at", wanted.many_at) if wanted.many_at else []
    shared = {"protocol": protocol, "lines": lines, "many_at": {"distilled": many}}
    groups = plan(task, methods, budgets, **shared)
    facts = {"experiment": "compare", "preset": preset, "model": task.model_name}
    known = read(rows)
    todo = [group for group in groups if not rows_of(known, task, group, facts)]
    say(
        f"{len(groups)} methods at budgets {', '.join(map(str, budgets))} a class; "
        f"{len(groups) - len(todo)} are in {rows}, {len(todo)} to do."
    )
    if todo:
        judge = Judge(task, protocol, devices=devices)
        say(estimate(judge, todo, methods))
    if dry_run:
        for group in todo:
            say(f"  {group}")
        return []
    found = compare(
        task,
        methods,
        budgets,
        **shared,
        rows=rows,
        preset=preset,
        devices=devices,
        say=say,
    )
    last = "\n" + summary(found)
    if preset == "anonymous2022":
        say(last)
        last = "\n" + errata()
    try:
        with pages.after_rows(rows, "the same command"):
            path = page.write(out / pages.NAME, pages.of_comparison(found))
        last += f"\n\nPage: {path}"
    finally:
        say(f"{last}\n\nRows: {rows}\nNext: {cli.RUN}pages --results={rows}")
    if show:
        pages.open_in_browser(path, say)
    return found


def _check(recipe: dj.Recipe, protocol: dj.Protocol) -> None:
    """Refuses what would not compare like with like."""
    usual = dj.Recipe()
    for flag, value, needed in (
        ("select_on", recipe.meta.select_on, usual.meta.select_on),
        ("labels", recipe.start.labels, usual.start.labels),
        ("words_kept", recipe.start.words_kept, usual.start.words_kept),
    ):
        if value != needed:
            raise ValueError(
                f"--{flag} is not for comparisons: budgets are --budgets, methods "
                "--methods, sentences of one length, and all is chosen on validation"
            )
    if recipe.meta.theta_0 != "random":
        raise ValueError("--theta_0 must be random: all methods share theta_0")
    for name in ("test_inits", "selection_seeds"):
        if getattr(protocol, name) < 2:
            raise ValueError(f"--{name} must be at least 2, to tell methods apart")


def summary(rows: list[dj.Result]) -> str:
    """The accuracies, and who wins at each budget."""
    lines = [
        f"{row['examples_per_class']:>8g}  {verdict.name_of(row):36} {line(row)}"
        for row in sorted(rows, key=lambda r: r["examples_per_class"])
    ]
    for question, title in verdict.TITLES.items():
        found = verdict.verdicts(rows, question)
        if found:
            lines += ["", f"{title[0].upper()}{title[1:]}?"]
        lines += [
            f"{v.examples_per_class:>8g}  {v}; {verdict.name_of(v.distilled)} against "
            f"{verdict.name_of(v.real)}"
            for v in found
        ]
    return "\n".join(lines)


def errata() -> str:
    """What the comparison paper has wrong, beside which its table is to be read."""
    return "Errata of the comparison paper (printed; problem; what is done here):" + (
        "".join(f"\n  {i}. " + "; ".join(e) for i, e in enumerate(page.ERRATA, 1))
    )


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    rows = cli.rows_path("compare")
    with cli.told_in_a_line(
        argv,
        "compare",
        stopped=f"what is done is in {rows}; the same command goes on",
    ):
        values = cli.given(presets.COMPARE)
        name = Path(f.dataset).name.replace(":", "-")
        model = values.get("model", "bag")
        out = Path(f.out or Path("runs") / f"compare-{name}-{model}")
        cli.compile_cache(out)
        devices, how = cli.join()
        run(
            values,
            out=out,
            rows=rows,
            preset=cli.preset(),
            dry_run=f.dry_run,
            show=f.open,
            devices=devices,
            how=how,
        )


def define_flags() -> None:
    """The flags of this experiment."""
    cli.define(cli.Corpus, Settings, dj.Protocol, *cli.RECIPE, presets=presets.COMPARE)
    cli.define_run("compare", page=True)
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
