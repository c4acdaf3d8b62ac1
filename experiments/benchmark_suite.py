"""All corpora at all budgets by all methods: the table of published targets, and more.

    python -m experiments.benchmark_suite --data_root=FOLDER --dry_run
    python -m experiments.benchmark_suite --data_root=FOLDER

Each corpus and network is a comparison, with the same rows that experiments.compare
makes, so what either has done is not done again. Start the command as often as there
are machines or free cores: processes that share --out and --results share the work.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import distill_jax as dj
from distill_jax import data, estimate, results
from distill_jax.compare import Group, check_budgets, compare, plan, rows_of
from distill_jax.methods import (
    Settings,
    check_fair,
    named_methods,
    percent_of_train,
)
from distill_jax.models import MODELS
from distill_jax.progress import duration
from distill_jax.report import suite_tables, tables
from distill_jax.report.suite_tables import GROUPS
from distill_jax.train import Judge

from . import cli

METHODS = "full,majority,selections,distilled"
# What a corpus needs that is not the default. Explicit flags win.
SETTINGS: dict[str, dict[str, Any]] = {
    "trec6": {"length": 20},
    "yahoo_titles": {"length": 20},
    "dbpedia14": {"length": 60},
    "imdb": {"length": 200, "full_epochs": 4, "validation_examples": 500},
}
# The same for one network.
SETTINGS_OF_MODEL: dict[tuple[str, str], dict[str, Any]] = {
    ("sst5", "mean_cnn"): {"model_settings": ["widths=[1]", "filters=384"]},
    # The best of 24 trials, or as good: rows of trec6 in results/tune.jsonl.
    ("trec6", "bag"): {"inner_optimizer": "adam", "inner_lr": 0.02, "num_passes": 40},
    ("imdb", "fourier_bag"): {
        "length": 400,
        "model_settings": ["kernel_scale=2.0"],
        "start": "keywords",
        "distilled_length": 50,
        "num_meta_steps": 600,
        "full_epochs": 24,
        "validation_examples": 1000,
    },
    ("trec6", "fourier_bag"): {
        "model_settings": ["widths=[1, 2]", "hidden=1024"],
        "start": "keywords",
        "num_meta_steps": 600,
        "full_epochs": 24,
    },
    ("sst5", "fourier_bag"): {
        "start": "keywords",
        "distilled_length": 20,
        "num_meta_steps": 400,
    },
    ("imdb", "mean_cnn"): {
        "length": 400,
        "model_settings": [
            "widths=[1]",
            "filters=256",
            'activation="tanh"',
            "orthogonal=true",
            "references=512",
        ],
        "start": "keywords",
        "distilled_length": 50,
        "num_passes": 50,
        "inner_lr": 0.05,
        "warm_steps": 500,
        "warm_lr": 0.1,
        "num_meta_steps": 400,
        "meta_lr": 0.02,
        "meta_lr_labels": 0.02,
        "real_chunk": 8,
        "full_epochs": 2,
        "validation_examples": 1000,
    },
}


class Part(NamedTuple):
    """One corpus and network.

    Attributes:
        name: of both.
        values: the settings by flag.
        budgets: examples of each class; none: 0.1 % of train.
    """

    name: str
    values: dict[str, Any]
    budgets: tuple[int, ...]


class Failed(ValueError):
    """Some methods raised; the rest is done."""


class Work(NamedTuple):
    """A part that is in memory: the arguments of `compare`, and its groups."""

    task: dj.Task
    methods: dict[str, Any]
    budgets: list[int]
    settings: dict[str, Any]
    groups: list[Group]

    def left(self, rows: Path) -> list[Group]:
        """The groups that have no rows yet."""
        facts = {"experiment": "compare", "preset": None}
        facts["model"] = self.task.model_name
        known = results.read(rows)
        return [g for g in self.groups if not rows_of(known, self.task, g, facts)]

    def costs(self, left: list[Group]) -> dict[str, float]:
        """Seconds of each of them, by its text."""
        protocol, devices = self.settings["protocol"], self.settings["devices"]
        judge = Judge(self.task, protocol, devices=devices)
        return estimate.seconds(judge, left, self.methods)


def parts(
    corpora: str,
    *,
    models: str = "bag",
    budgets: str = "",
    data_root: str | None = None,
    given: Mapping[str, Any],
) -> list[Part]:
    """What is to be compared on.

    Args:
        corpora: with commas, groups of `GROUPS` or names of corpora.
        models: with commas.
        budgets: examples of each class for all of them, with commas; those of the group
            unless given, or 0.1 % of train for a corpus of no group.
        data_root: a folder with a folder or file for each corpus.
        given: other settings, by flag.

    Raises:
        ValueError: for what is not known.
    """
    chosen: dict[str, set[int]] = {}
    for word in cli.words("corpora", corpora):
        of_any = [one[word] for one in GROUPS.values() if word in one]
        alone = {word: tuple(size for sizes in of_any for size in sizes)}
        for name, sizes in GROUPS.get(word, alone).items():
            chosen.setdefault(name, set()).update(sizes)
    found = []
    for name, sizes in chosen.items():
        where = source(name, data_root)
        for model in cli.words("models", models):
            if model not in MODELS:
                known = ", ".join(sorted(MODELS))
                raise ValueError(f"unknown model {model!r} in --models; known: {known}")
            values = SETTINGS.get(name, {}) | SETTINGS_OF_MODEL.get((name, model), {})
            values |= {**given, "dataset": where, "model": model}
            wanted = cli.numbers("budgets", budgets) if budgets else sorted(sizes)
            found.append(Part(f"{name}, {model}", values, tuple(wanted)))
    return found


def source(name: str, data_root: str | None) -> str:
    """Where a corpus is: below `data_root`, built in, `tfds:NAME`, or a path.

    Raises:
        ValueError: if it is nowhere.
    """
    if data_root and (Path(data_root) / name).exists():
        return str(Path(data_root) / name)
    if name in data.DATASETS or name.startswith("tfds:") or Path(name).exists():
        return name
    where = f"in --data_root={data_root}" if data_root else "found: give --data_root"
    known = ", ".join(sorted(data.DATASETS))
    raise ValueError(
        f"corpus {name!r} is not {where}; built in: {known}; or name it tfds:NAME or "
        "a path"
    )


def load(part: Part, out: Path, devices, how, say: Callable[[str], None]) -> Work:
    """Reads a corpus and makes its methods; budgets are checked."""
    values = part.values
    corpus, protocol = (cli.settings(s, values) for s in (cli.Corpus, dj.Protocol))
    recipe = cli.recipe_of(values, corpus.model)
    check_fair(recipe, protocol)
    methods, lines = named_methods(
        cli.words("methods", values.get("methods", METHODS)),
        recipe=recipe,
        protocol=protocol,
        folder=out / f"compare-{corpus.name}-{corpus.model}",
        devices=devices,
        how=how,
        **vars(cli.settings(Settings, values)),
    )
    task = corpus.task(say)
    budgets = list(part.budgets) or [percent_of_train(task, 0.1)]
    check_budgets(task, budgets, methods)
    settings = {"protocol": protocol, "lines": lines}
    groups = plan(task, methods, budgets, **settings)
    settings["devices"] = devices
    return Work(task, methods, budgets, settings, groups)


def run(
    wanted: Sequence[Part],
    *,
    out: Path,
    rows: Path,
    dry_run: bool = False,
    estimates: bool = True,
    devices: Any = None,
    how: str | None = None,
    say: Callable[[str], None] = cli.say,
) -> list[dj.Result]:
    """Makes the rows that nobody has made or is making, until none is left.

    Args:
        wanted: from `parts`.
        out: folder of distilled sets, their checkpoints and the locks.
        rows: the file that rows are appended to.
        dry_run: stop after what is left and its estimate.
        estimates: time a few networks and meta-steps of each corpus beforehand.
        devices, how: as for `distill`.
        say: where text goes.

    Returns:
        The rows of all parts, old and new; none of a dry run.

    Raises:
        ValueError: before any work, if a corpus or budget does not fit.
        Failed: after all others, if methods raised.
        distill_jax.loop.Interrupted: after Ctrl-C in a distillation.
    """
    total, work = 0.0, None
    for part in wanted:
        work = None  # its memory is free before the next is read
        work = load(part, out, devices, how, say)
        left = work.left(rows)
        say(f"{part.name}: {len(work.groups)} groups, {len(left)} to do.")
        if dry_run:
            costs = work.costs(left) if estimates else {}
            total += sum(costs.values())
            for group in left:
                took = f", {duration(costs[str(group)])}" if estimates else ""
                say(f"  {group}{took}")
    if dry_run:
        if estimates:
            say(
                f"Estimate: {duration(total)} for one process, and the time to "
                f"compile; {total / 3600:.2f} hours on {results.device()}."
            )
        return []
    found: dict[str, list[dj.Result]] = {}
    failed: dict[str, str] = {}
    for wait in (False, True):  # what others have is looked at again in the end
        for part in wanted:
            if part.name in found:
                continue
            if work is None or len(wanted) > 1:
                work = None
                work = load(part, out, devices, how, lambda text: None)
            if estimates and not wait and (left := work.left(rows)):
                seconds = sum(work.costs(left).values())
                say(f"{part.name}: about {duration(seconds)} for what is left")
            before = set(failed)
            made = compare(
                work.task,
                work.methods,
                work.budgets,
                **work.settings,
                folder=out,
                rows=rows,
                share=True,
                wait=wait,
                failed=lambda group, error, name=part.name: failed.update(
                    {f"{name}, {group}": str(error)}
                ),
                say=lambda text, name=part.name: say(f"{name}: {text}"),
            )
            errors = [name for name in failed if name not in before]
            if wait or errors or not work.left(rows):
                found[part.name] = made
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise Failed(f"{len(failed)} failed, all that could be done is: {told}")
    return [row for made in found.values() for row in made]


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    out, rows = Path(f.out or "runs"), cli.rows_path("compare")
    with cli.told_in_a_line(
        argv,
        "benchmark_suite",
        stopped=f"what is done is in {rows} and {out}; the same command goes on",
    ):
        wanted = parts(
            f.corpora,
            models=f.models,
            budgets=f.budgets,
            data_root=f.data_root,
            given=cli.given(),
        )
        cli.compile_cache(out)
        devices, how = cli.join()
        made = run(
            wanted,
            out=out,
            rows=rows,
            dry_run=f.dry_run,
            estimates=f.estimates,
            devices=devices,
            how=how,
        )
        if f.dry_run:
            return
        print(suite_tables.suite({"compare": [*made]}))
        print(suite_tables.label_robust({"compare": [*made]}))
        if f.readme:
            tables.write([f.readme], rows.parent)


def define_flags() -> None:
    """The flags of the suite."""
    from absl import flags

    cli.define(cli.Corpus, Settings, dj.Protocol, *cli.RECIPE)
    for name in ("dataset", "model"):  # they are --corpora and --models here
        delattr(flags.FLAGS, name)
    groups = ", ".join(GROUPS)
    flags.DEFINE_string(
        "corpora", groups.replace(" ", ""), f"With commas: {groups}, or corpora."
    )
    flags.DEFINE_string("models", "bag", "The networks, with commas.")
    flags.DEFINE_string(
        "budgets", "", "Examples of each class, with commas; those of the groups."
    )
    flags.DEFINE_string("methods", METHODS, "As for experiments.compare.")
    flags.DEFINE_string("data_root", None, "A folder with a folder for each corpus.")
    flags.DEFINE_string("readme", None, "A file whose tables are written anew at last.")
    flags.DEFINE_bool("estimates", True, "Time a few steps of each corpus beforehand.")
    cli.define_run("compare")
    cli.define_devices()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
