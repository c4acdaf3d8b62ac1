"""Distilled sentences beside chosen ones, at equal budgets and by one way of training.

    python -m experiments.compare --dataset=trec6 --model=bag --budgets=1,10

Each cell (a method at a budget) is one row of results/compare.jsonl, written when it is
done; the same command goes on where it was stopped. Every set is trained on by Adam
over shuffled minibatches, with the best of the same 12 recipes on validation, from
theta_0 that all methods share; distilled sets also in their own order and step sizes.
Queries see no label that they did not ask for; selections and distillation see all.
Test is read once for each cell.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import active, queries
from distill_jax import results as result_rows
from distill_jax.data.resplit import pooled
from distill_jax.models import MODELS
from distill_jax.report import page
from distill_jax.report.verdict import TITLES, name_of, verdicts
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task, prepare
from experiments import config as flagged
from experiments import fitting, pages, recipe
from experiments.cells import QUERIES, WITH_TEACHER, Workbench
from experiments.config import setting
from experiments.running import duration, told_in_a_line
from experiments.scoring import QUERY, Cell

GROUPS: dict[str, list[str]] = {
    "full": ["full"],
    "majority": ["majority"],
    "distilled": ["distilled"],
    "selections": list(SELECTIONS),
    "queries": QUERIES,
}
NOT_HERE = (
    "examples_per_class",
    "examples",
    "baselines",
    "select_on",
    "labels",
    "words_kept",
)


@dataclasses.dataclass(frozen=True)
class Config(recipe.Config):
    """Settings of a comparison: those of a distillation, and these."""

    model: str = setting("bag", "The network.", choices=tuple(sorted(MODELS)))
    budgets: str = setting("1,2,5,10,20,50", "Examples of each class, with commas.")
    methods: str = setting(
        "all", "With commas: all, " + ", ".join(GROUPS) + ", or names of methods."
    )
    soft_labels: bool = setting(
        True, "Also real examples with soft labels of a teacher."
    )
    fit_batch: int = setting(32, "Examples in a minibatch of ordinary training.")
    tuning_inits: int = setting(3, "Theta_0 for each recipe tried on validation.")
    distill_seeds: int = setting(3, "Distillations at the budgets of --many_at.")
    many_at: str = setting("1,5,20", "Budgets of several distillations; one elsewhere.")
    distill_batch: int = setting(
        0, "Cut distilled sets into minibatches of at most so many; 0: as given."
    )
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
        super().__post_init__()
        for field in dataclasses.fields(recipe.Config):
            if field.name in NOT_HERE and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"--{field.name} is not for comparisons: budgets are --budgets, "
                    "methods --methods, sentences of one length, and all is chosen on "
                    "validation"
                )
        if self.theta_0 != "random":
            raise ValueError("--theta_0 must be random: all methods share theta_0")
        for name in "fit_batch tuning_inits distill_seeds passes query_rounds".split():
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("test_inits", "selection_seeds"):
            if getattr(self, name) < 2:
                raise ValueError(f"--{name} must be at least 2, to tell methods apart")
        for name in ("distill_batch", "pool_size", "percent"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name} must not be negative, got {getattr(self, name)}"
                )
        if not 0 < self.dropout < 1:
            raise ValueError(
                f"--dropout must be between 0 and 1, got {self.dropout}: queries need "
                "networks that differ"
            )
        self.num_distillations(max(self.sizes))  # raise where they cannot be read
        for name in self.names:
            if name.startswith(QUERY):
                query = queries.get(name.removeprefix(QUERY))
                active.check_passes(query, self.passes, name)

    @property
    def sizes(self) -> list[int]:
        """The budgets."""
        return _numbers("budgets", self.budgets)

    @property
    def names(self) -> list[str]:
        """The methods."""
        known = [name for group in GROUPS.values() for name in group]
        wanted: list[str] = []
        for word in (word.strip() for word in self.methods.split(",")):
            if word == "all":
                wanted += known
            elif word in GROUPS:
                wanted += GROUPS[word]
            elif word in known:
                wanted.append(word)
            else:
                raise ValueError(
                    f"unknown method {word!r}; known: all, {', '.join(GROUPS)}, "
                    + ", ".join(known)
                )
        return list(dict.fromkeys(wanted))

    def num_distillations(self, examples_per_class: int) -> int:
        """Seeds of distillation at a budget."""
        many = _numbers("many_at", self.many_at) if self.many_at else []
        return self.distill_seeds if examples_per_class in many else 1

    def distillation(
        self, examples_per_class: int, num_classes: int, seed: int = 0
    ) -> recipe.Config:
        """The settings of one distillation."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(recipe.Config)
        }
        values |= {"examples_per_class": examples_per_class, "seed": self.seed + seed}
        n = examples_per_class * num_classes
        if 0 < self.distill_batch < n:
            least = -(-n // self.distill_batch)
            S = next(S for S in range(least, n + 1) if n % S == 0)
            values["num_minibatches"] = S
            values["num_passes"] = max(1, round(self.num_passes / S))
        return recipe.Config(**values)


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(
            f"--{name} must be whole numbers from 1, with commas, got {text!r}"
        )
    return sorted(set(numbers))


def plan(config: Config) -> list[Cell]:
    """The cells of a comparison, in the order they are run."""
    names = config.names
    cells = [Cell("full", 0)] if "full" in names else []
    if "majority" in names:
        cells.append(Cell("majority", 0, None, None))
    for size in config.sizes:
        # Random first: its recipe is what networks of queries are trained by.
        cells += [Cell(name, size) for name in names if name in SELECTIONS]
        if "distilled" in names:
            cells += [
                Cell("distilled", size, "soft", "standard"),
                Cell("distilled", size, "hard", "standard"),
                Cell("distilled", size, "soft", "native"),
            ]
        cells += [Cell(name, size) for name in names if name.startswith(QUERY)]
        if config.soft_labels:
            cells += [
                Cell(name, size, "soft") for name in WITH_TEACHER if name in names
            ]
    return cells


def run(
    config: Config,
    *,
    out: str | Path,
    results: str | Path,
    preset: str | None = None,
    dry_run: bool = False,
    show: bool = False,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Runs the cells that the results do not have yet, and compares.

    Args:
        config: the settings.
        out: folder of distillations, their checkpoints, the teacher and the page.
        results: the `.jsonl` file that each row is appended to as it is done.
        preset: a name for the rows.
        dry_run: stop after the plan and the estimate.
        show: open the page in a browser.
        say: where text goes.

    Returns:
        The rows of all cells of the plan, old and new; none of a dry run.

    Raises:
        ValueError: if a class has too few examples for a budget, among others.
        distill_jax.loop.Interrupted: after Ctrl-C in a distillation.
        pages.NotDrawn: if the page cannot be written; the rows are.
    """
    config, task = _loaded(config, say)
    _check_budgets(config, task)
    bench = Workbench(config, task, Path(out), Path(results), preset)
    known = result_rows.read(results)
    cells = plan(config)
    rows = {cell: bench.row_of(cell, known) for cell in cells}
    todo = [cell for cell in cells if rows[cell] is None]
    say(
        f"{len(cells)} cells at {config.budgets} examples per class; "
        f"{len(cells) - len(todo)} are in {results}, {len(todo)} to do."
    )
    if todo:
        say(estimate(bench, todo))
    if dry_run:
        for cell in todo:
            say(f"  {cell}")
        return []
    for number, cell in enumerate(todo, 1):
        row = bench.run(cell)
        result_rows.append(results, [row])
        rows[cell] = row
        say(f"[{number}/{len(todo)}] {cell}: {_line(row)}")
    found = [row for row in rows.values() if row is not None]
    last = "\n" + summary(found)
    if preset == "anonymous2022":
        say(last)
        last = "\n" + errata()
    try:
        with pages.after_rows(results, "the same command"):
            path = page.write(Path(out) / pages.NAME, pages.of_comparison(found))
        last += f"\n\nPage: {path}"
    finally:
        say(last)
    if show:
        pages.open_in_browser(path, say)
    return found


def _loaded(config: Config, say: Callable[[str], None]) -> tuple[Config, Task]:
    """The task, and the budgets where they are told as a share of it."""
    task = recipe.load(config, say)
    if config.pooled:
        task = prepare(
            pooled(task.dataset),
            model=config.model,
            model_settings=config.network,
            vectors=config.vectors,
            length=config.length,
            seed=config.seed,
        )
        sizes = (f"{len(s):,} {name}" for name, s in task.dataset.splits.items())
        say(f"{task.dataset.name}: {', '.join(sizes)}.")
        say("\n".join(f"  {note}" for note in task.dataset.notes))
    if config.percent:
        N, C = len(task.dataset.train), task.num_classes
        size = max(1, round(config.percent / 100 * N / C))
        say(f"{config.percent:g}% of {N:,} is {size} a class, {size * C / N:.3%}.")
        config = dataclasses.replace(config, budgets=str(size))
    return config, task


def _check_budgets(config: Config, task: Task) -> None:
    labels = task.dataset.train.labels
    counts = np.bincount(labels, minlength=task.num_classes)
    if max(config.sizes) > counts.min():
        raise ValueError(
            f"--budgets={config.budgets}: class "
            f"{task.dataset.label_names[counts.argmin()]!r} has only {counts.min()} "
            "training examples"
        )
    if config.pool_size and config.pool_size < max(config.sizes) * task.num_classes:
        raise ValueError(
            f"--pool_size={config.pool_size} is less than the "
            f"{max(config.sizes) * task.num_classes} examples of the largest budget"
        )


def estimate(bench: Workbench, cells: list[Cell]) -> str:
    """Times one network and one meta-step at the largest budget, and adds up.

    Other budgets are taken to cost in proportion to their minibatch; compiling, and
    what selections compute, is not counted.
    """
    c, C = bench.config, bench.task.num_classes
    sizes = [cell.examples_per_class for cell in cells if cell.examples_per_class]
    if not sizes:
        return "Estimate: some minutes, for all of the data."
    largest, steps = max(sizes), max(fitting.NUM_STEPS)
    jobs = bench.probe_jobs(largest * C)

    def timed(call: Callable[[], Any]) -> float:
        call()  # compiles
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def trained(num_steps: int, chunks) -> float:
        stops = (num_steps, num_steps)
        return timed(lambda: bench.trainer.accuracies(jobs, stops, chunks)) / len(jobs)

    nothing = trained(0, bench.test)
    fit = max(trained(20, bench.test) - nothing, 0.0) / 20 * steps
    on_validation = trained(0, bench.validation)
    per_item = nothing / len(bench.task.test.y)
    meta = 0.0
    if any(cell.method == "distilled" for cell in cells):
        meta = _meta_seconds(bench, largest, timed)
    total = 0.0
    for cell in cells:
        if not cell.examples_per_class:
            continue
        n = cell.examples_per_class * C
        share = min(n, c.fit_batch) / min(largest * C, c.fit_batch)
        seeds = bench.num_seeds(cell)
        tests = seeds * len(bench.inits(cell, 0))
        if cell.training == "standard":
            tuned = len(fitting.STEP_SIZES) * c.tuning_inits
            total += tuned * (share * fit + 2 * on_validation)
        total += tests * (share * fit + nothing)
        if cell.method.startswith(QUERY):
            pool = min(c.pool_size or len(bench.labels), len(bench.labels))
            scoring = c.passes * pool * per_item
            total += seeds * c.query_rounds * (share * fit + scoring)
        # One distillation serves the three cells of its budget.
        if (cell.method, cell.labels, cell.training) == (
            "distilled",
            "soft",
            "standard",
        ):
            total += seeds * c.num_meta_steps * meta * n / (largest * C)
    return f"Estimate: {duration(total)} and a few minutes to compile."


def _meta_seconds(bench: Workbench, size: int, timed) -> float:
    config = bench.config.distillation(size, bench.task.num_classes)
    setup = recipe.build(config, bench.task, recipe.start_of(config, bench.task))
    keys = jax.random.split(jax.random.key(0), config.num_inits)
    batch = setup.next_batch(0)

    def one():
        copy = jax.tree.map(jnp.array, setup.state)  # the step donates it
        jax.block_until_ready(setup.step(copy, keys, batch))

    return timed(one)


def _line(row: result_rows.Row) -> str:
    low, high = row["interval"]
    text = f"{row['accuracy_mean']:.1%} [{low:.1%}, {high:.1%}]"
    if row["relative_accuracy"] is not None:
        text += f", {row['relative_accuracy']:.0%} of all data"
    return f"{text}; {duration(row['seconds'])}"


def summary(rows: list[result_rows.Row]) -> str:
    """The accuracies, and who wins at each budget."""
    lines = [
        f"{row['examples_per_class']:>8g}  {name_of(row):36} {_line(row)}"
        for row in sorted(rows, key=lambda r: r["examples_per_class"])
    ]
    for question, title in TITLES.items():
        found = verdicts(rows, question)
        if found:
            lines += ["", f"{title[0].upper()}{title[1:]}?"]
        lines += [
            f"{v.examples_per_class:>8g}  {v}; {name_of(v.distilled)} against "
            f"{name_of(v.real)}"
            for v in found
        ]
    return "\n".join(lines)


def errata() -> str:
    """What the comparison paper has wrong, beside which its table is to be read."""
    from distill_jax.report.page import ERRATA

    return "Errata of the comparison paper (printed; problem; what is done here):" + (
        "".join(f"\n  {i}. " + "; ".join(e) for i, e in enumerate(ERRATA, 1))
    )


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.compare",
        stopped=f"the cells that are done are in {f.results}; the same command goes on",
    ):
        cfg = flagged.from_flags(Config, PRESETS, recipe.BEST_RECIPES)
        corpus = Path(cfg.dataset).name.replace(":", "-")
        out = Path(f.out or Path("runs") / f"compare-{corpus}-{cfg.model}")
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            # Seeds of distillation, and what goes on later, compile the same programs.
            jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
        run(
            cfg,
            out=out,
            results=f.results,
            preset=flagged.chosen_preset(PRESETS),
            dry_run=f.dry_run,
            show=f.open,
        )


# Departures from the defaults above, for the table of a paper.
PRESETS: dict[str, dict[str, Any]] = {
    # The comparison paper (Anonymous, 2022), Table 2: Original, Distilled and Random at
    # 0.1 %. It names no network, splits or repeats: these are ours. Make it for SST-5
    # and SST-2, and with --pooled for its own split of SST.
    "anonymous2022": {
        "model": "text_cnn",
        "methods": "full,majority,random,random_balanced,kmeans_medoids,distilled",
        "percent": 0.1,
        "many_at": "1,2,3,4",
        "soft_labels": False,
    },
}


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, PRESETS)
    flags.DEFINE_string(
        "out", None, "Folder of the distillations; runs/compare-NAME unless given."
    )
    flags.DEFINE_string("results", "results/compare.jsonl", "Where rows are appended.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
    pages.define_open()


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
