"""All corpora at all budgets by all methods: the table of published targets, and more.

    python -m experiments.benchmark_suite --data_root=FOLDER --dry_run
    python -m experiments.benchmark_suite --data_root=FOLDER

Each job is a distillation of one seed or a row of results/compare.jsonl, the same row
that experiments.compare makes, so what either has done is not done again. Start the
command as often as there are machines or free cores: processes that share --out and
--results share the work. A job is claimed by a file that its process holds locked; the
system frees it when the process ends, however it ends, so a lock cannot go stale.
"""

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from distill_jax import artifact, data
from distill_jax import results as result_rows
from distill_jax.models import MODELS
from distill_jax.report import suite_tables
from distill_jax.report.suite_tables import GROUPS
from experiments import cells, compare, fitting, recipe
from experiments import config as flagged
from experiments.cells import WITH_TEACHER, Workbench
from experiments.running import duration, told_in_a_line
from experiments.scoring import QUERY, Cell, cell_of

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
    ("sst5", "mean_cnn"): {"model_settings": ("widths=[1]", "filters=384")},
    # The best of 24 trials, or as good: rows of trec6 in results/tune.jsonl.
    ("trec6", "bag"): {"inner_optimizer": "adam", "inner_lr": 0.02, "num_passes": 40},
    ("imdb", "fourier_bag"): {
        "length": 400,
        "model_settings": ("kernel_scale=2.0",),
        "start": "keywords",
        "distilled_length": 50,
        "num_meta_steps": 600,
        "full_epochs": 24,
        "validation_examples": 1000,
    },
    ("trec6", "fourier_bag"): {
        "model_settings": ("widths=[1, 2]", "hidden=1024"),
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
        "model_settings": (
            "widths=[1]",
            "filters=256",
            'activation="tanh"',
            "orthogonal=true",
            "references=512",
        ),
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
NOT_HERE = ("dataset", "model", "budgets", "methods", "many_at", "percent", "pooled")


class Job(NamedTuple):
    """One piece of work.

    Attributes:
        cell: the row, or of a distillation its budget as Cell("distilled", budget).
        seed: of the distillation; None for a row.
    """

    cell: Cell
    seed: int | None = None

    def __str__(self) -> str:
        if self.seed is None:
            return str(self.cell)
        return f"distillation at {self.cell.examples_per_class} per class, seed " + (
            f"{self.seed}"
        )


class Failed(ValueError):
    """Jobs raised; the rest is done."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The jobs of one corpus and network.

    Attributes:
        name: of both.
        config: its settings.
        out: folder of its distillations.
        jobs: each with what tells its row or folder, in the order they are begun.
        needs: what must be done before a job.
    """

    name: str
    config: compare.Config
    out: Path
    jobs: dict[Job, str]
    needs: dict[Job, tuple[Job, ...]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the work of all processes meets.

    Attributes:
        out: folder of distillations and locks.
        results: the file of the rows.
        preset: a name for the rows.
    """

    out: Path
    results: Path
    preset: str | None = None

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether this process has the job now; nobody else has, while it does."""
        from filelock import FileLock, Timeout

        folder = self.out / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            holder = f"process {os.getpid()} of {socket.gethostname()}\n"
            (folder / f"{key}.holder").write_text(holder, encoding="utf-8")
            yield True
        finally:
            (folder / f"{key}.holder").unlink(missing_ok=True)
            lock.release()

    def holder(self, key: str) -> str:
        """Who was last seen with a job."""
        path = self.out / "locks" / f"{key}.holder"
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:  # it has just ended
            return "another process"

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The results, not written to by others meanwhile."""
        from filelock import FileLock

        (self.out / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.out / "locks" / "results.lock"):
            yield self.results

    def rows(self) -> list[result_rows.Row]:
        """All rows there are now."""
        if not (self.out / "locks").exists():  # nobody has begun; a dry run writes none
            return result_rows.read(self.results)
        with self.file() as path:
            return result_rows.read(path)

    def append(self, row: result_rows.Row) -> None:
        """Adds a row."""
        with self.file() as path:
            result_rows.append(path, [row])


class Bench(Workbench):
    """A Workbench that reads rows while nobody writes them."""

    def __init__(self, config, task, out: Path, place: Place):
        super().__init__(config, task, out, place.results, place.preset)
        self.place = place

    def row_of(self, cell, rows=None):
        return super().row_of(cell, self.place.rows() if rows is None else rows)


def jobs_of(config: compare.Config) -> dict[Job, tuple[Job, ...]]:
    """The jobs of a comparison in order, each with those that it needs.

    Rows need that of all data, which they are told relative to. What several rows
    share is made by the first of them: a query needs the recipe of random examples,
    and soft labels of real ones a teacher.
    """
    rows = [Job(cell) for cell in compare.plan(config)]
    full = tuple(job for job in rows if job.cell.method == "full")
    needs: dict[Job, tuple[Job, ...]] = {}
    taught: tuple[Job, ...] = ()
    for job in rows:
        method, size = job.cell.method, job.cell.examples_per_class
        before = () if job in full else full
        if method == "distilled":
            seeds = range(config.num_distillations(size))
            made = [Job(Cell("distilled", size), seed) for seed in seeds]
            needs |= {one: () for one in made}
            before += tuple(made)
        elif method.startswith(QUERY):
            before += tuple(j for j in rows if j.cell == Cell("random", size))
        elif method in WITH_TEACHER and job.cell.labels == "soft":
            before += taught
            taught = taught or (job,)
        needs[job] = before
    return needs


def key_of_row(row: result_rows.Row) -> str:
    """What tells the row of a job: corpus, network, cell and settings."""
    facts = (row["preset"], row["dataset"], row["model"], cell_of(row))
    return _digest([*facts, row["config"]["settings"]])


def part_of(bench: Bench, name: str) -> Part:
    """The jobs of a corpus that is loaded."""
    needs, keys = jobs_of(bench.config), {}
    facts = (bench.preset, bench.task.dataset.name, bench.config.model)
    for job in needs:
        if job.seed is None:
            keys[job] = _digest([*facts, job.cell, bench.settings(job.cell)])
        else:
            keys[job] = _folder_of(bench, job)
    return Part(name, bench.config, bench.out, keys, needs)


def _folder_of(bench: Bench, job: Job) -> str:
    """As `Workbench.distill` names it."""
    size = job.cell.examples_per_class
    config = bench.config.distillation(size, bench.task.num_classes, job.seed or 0)
    digest = cells._digest(recipe.fingerprint(config, bench.task))
    return f"{size}pc-seed{job.seed}-{digest}"


def done_of(part: Part, rows: Sequence[result_rows.Row]) -> set[Job]:
    """The jobs whose row or distillation is there, and distillations nobody needs."""
    known = {key_of_row(row) for row in rows}
    found = set()
    for job, key in part.jobs.items():
        card = part.out / key / "artifact" / artifact.CARD
        if key in known if job.seed is None else card.exists():
            found.add(job)
    wanted = {need for job in part.jobs if job not in found for need in part.needs[job]}
    return found | {
        job for job in part.jobs if job.seed is not None and job not in wanted
    }


def load(config: compare.Config, out: Path, place: Place, say) -> Bench:
    """A corpus with its network, budgets checked."""
    config, task = compare._loaded(config, say)
    if config.percent:  # its budget is known by now
        config = dataclasses.replace(config, many_at=config.budgets)
    compare._check_budgets(config, task)
    return Bench(config, task, out, place)


def costs(bench: Bench, jobs: Sequence[Job]) -> dict[Job, float]:
    """Seconds that each job will take, from a few networks and meta-steps timed here.

    Timed at the largest budget and taken in proportion to the minibatch, as
    `compare.estimate` does; compiling, and what selections compute, is not counted.
    """
    c, C = bench.config, bench.task.num_classes
    sizes = [job.cell.examples_per_class for job in jobs if job.cell.examples_per_class]
    if not sizes:
        return dict.fromkeys(jobs, 0.0)
    largest, steps = max(sizes), max(fitting.NUM_STEPS)
    networks = bench.probe_jobs(largest * C)

    def timed(call: Callable[[], Any]) -> float:
        call()  # compiles
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def trained(num_steps: int, chunks) -> float:
        stops = (num_steps, num_steps)
        return timed(lambda: bench.trainer.accuracies(networks, stops, chunks)) / len(
            networks
        )

    on_test = trained(0, bench.test)
    on_validation = trained(0, bench.validation)
    fit = max(trained(20, bench.test) - on_test, 0.0) / 20 * steps
    meta = 0.0
    if any(job.seed is not None for job in jobs):
        meta = compare._meta_seconds(bench, largest, timed)
    pool = min(c.pool_size or len(bench.labels), len(bench.labels))
    scoring = c.passes * pool * on_test / len(bench.task.test.y)

    def seconds(job: Job) -> float:
        cell, n = job.cell, job.cell.examples_per_class * C
        if not n:
            return 0.0
        if job.seed is not None:
            validations = 1 + c.num_meta_steps // c.validate_every
            each = on_validation * c.validation_inits
            return c.num_meta_steps * meta * n / (largest * C) + validations * each
        share = min(n, c.fit_batch) / min(largest * C, c.fit_batch)
        tests = sum(len(bench.inits(cell, s)) for s in range(bench.num_seeds(cell)))
        total = tests * (share * fit + on_test)
        if cell.training == "standard":
            tuned = len(fitting.STEP_SIZES) * c.tuning_inits
            total += tuned * (share * fit + 2 * on_validation)
        if cell.method.startswith(QUERY):
            total += c.selection_seeds * c.query_rounds * (share * fit + scoring)
        return total

    return {job: seconds(job) for job in jobs}


def run(
    wanted: Sequence[tuple[str, compare.Config]],
    place: Place,
    *,
    dry_run: bool = False,
    estimates: bool = True,
    poll: float = 2.0,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Does the jobs that nobody has done or is doing, until none is left.

    Args:
        wanted: corpus and settings, of `configs`.
        place: shared by the processes that share the work.
        dry_run: stop after the jobs and their estimates.
        estimates: time a few networks and meta-steps of each corpus beforehand.
        poll: seconds between looks at what others have done.
        say: where text goes.

    Returns:
        The rows of these jobs, old and new; none of a dry run.

    Raises:
        ValueError: before any work, if a corpus or budget does not fit.
        Failed: after all other jobs, if some raised.
        distill_jax.loop.Interrupted: after Ctrl-C in a distillation.
    """
    parts, bench, total = [], None, 0.0
    for name, config in wanted:
        bench = None  # its memory is free before the next is read
        title = f"{name}, {config.model}"
        bench = load(config, place.out / _folder(name, config.model), place, say)
        part = part_of(bench, title)
        parts.append(part)
        left = _left(part, place.rows())
        say(f"{title}: {len(part.jobs)} jobs, {len(left)} to do.")
        if dry_run:
            found = costs(bench, left) if estimates else {}
            total += sum(found.values())
            for job in left:
                say(f"  {job}" + (f", {duration(found[job])}" if found else ""))
    if dry_run:
        if estimates:
            say(
                f"Estimate: {duration(total)} for one process, and the time to compile "
                f"and for all of the data; {total / 3600:.2f} hours on "
                f"{result_rows.device()}."
            )
        return []
    held = (parts[0], bench) if len(parts) == 1 else None
    del bench
    _work(parts, held, place, estimates, poll, say)
    keys = {key for part in parts for key in part.jobs.values()}
    return [row for row in place.rows() if key_of_row(row) in keys]


def _left(part: Part, rows: Sequence[result_rows.Row]) -> list[Job]:
    done = done_of(part, rows)
    return [job for job in part.jobs if job not in done]


def _work(parts, held, place: Place, estimates: bool, poll: float, say) -> None:
    bench: Bench | None = None
    failed: dict[tuple[str, Job], str] = {}
    expected: dict[tuple[str, Job], float] = {}
    waiting = ""
    while True:
        rows = place.rows()
        left = [(part, job) for part in parts for job in _left(part, rows)]
        open_ = {(part.name, job) for part, job in left}
        ready = [
            (part, job)
            for part, job in left
            if (part.name, job) not in failed  # nor what needs it: it stays open
            and not any((part.name, need) in open_ for need in part.needs[job])
        ]
        if not ready:
            break
        # The corpus that is in memory first.
        ready.sort(key=lambda pair: held is None or pair[0] is not held[0])
        for part, job in ready:
            with place.claimed(_lock(part, job)) as mine:
                if not mine or job not in _left(part, place.rows()):
                    continue
                if held is None or held[0] is not part:
                    held = bench = None  # as above
                    held = (part, load(part.config, part.out, place, say))
                bench = held[1]
                if estimates and (part.name, job) not in expected:
                    todo = [j for p, j in left if p is part]
                    found = costs(bench, todo)
                    expected |= {(part.name, j): s for j, s in found.items()}
                    say(
                        f"{part.name}: {duration(sum(found.values()))} for what is left"
                    )
                about = expected.get((part.name, job))
                say(
                    f"[{_count(parts) - len(left) + 1}/{_count(parts)}] {part.name}: "
                    f"{job}" + (f", about {duration(about)}" if about else "")
                )
                try:
                    say(f"  {_do(bench, job, place)}")
                except (ValueError, ArithmeticError) as error:
                    failed[part.name, job] = str(error)
                    say(f"  failed: {error}")
                waiting = ""
                break
        else:
            held_by = sorted({place.holder(_lock(part, job)) for part, job in ready})
            told = f"waiting for {len(ready)} jobs of {', '.join(held_by)}"
            if told != waiting:
                say(told)
            waiting = told
            time.sleep(poll)
    if failed:
        told = "; ".join(f"{name}, {job}: {e}" for (name, job), e in failed.items())
        raise Failed(f"{len(failed)} jobs failed, all that could be done is: {told}")


def _do(bench: Bench, job: Job, place: Place) -> str:
    if job.seed is not None:
        _, seconds = bench.distill(job.cell.examples_per_class, job.seed)
        return f"distilled in {duration(seconds)}"
    row = bench.run(job.cell)
    place.append(row)
    return compare._line(row)


def _count(parts: Sequence[Part]) -> int:
    return sum(len(part.jobs) for part in parts)


def _lock(part: Part, job: Job) -> str:
    return f"{part.out.name}-{part.jobs[job]}"


def _folder(name: str, model: str) -> str:
    """As `experiments.compare` calls it below runs."""
    return f"compare-{Path(name).name.replace(':', '-')}-{model}"


def _digest(value: Any) -> str:
    text = json.dumps(result_rows.portable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def configs(
    corpora: str,
    *,
    models: str = "bag",
    budgets: str = "",
    methods: str = METHODS,
    data_root: str | None = None,
    **given: Any,
) -> list[tuple[str, compare.Config]]:
    """The settings of each corpus and network.

    Args:
        corpora: with commas, groups of `GROUPS` or names of corpora.
        models: with commas.
        budgets: examples of each class for all of them, with commas; unless given, the
            budgets of the group, or 0.1 % of train for a corpus of no group.
        methods: as for `compare.Config`.
        data_root: a folder with a folder or file for each corpus.
        given: other settings of `compare.Config`.

    Raises:
        ValueError: for what is not known.
    """
    chosen: dict[str, set[int]] = {}
    for word in _words("corpora", corpora):
        group = GROUPS.get(word)
        if group is None:
            of_any = [one[word] for one in GROUPS.values() if word in one]
            group = {word: tuple(size for sizes in of_any for size in sizes)}
        for name, sizes in group.items():
            chosen.setdefault(name, set()).update(sizes)
    found = []
    for name, sizes in chosen.items():
        where = source(name, data_root)
        for model in _words("models", models):
            if model not in MODELS:
                known = ", ".join(sorted(MODELS))
                raise ValueError(f"unknown model {model!r} in --models; known: {known}")
            values = recipe.BEST_RECIPES.get(model, {}) | SETTINGS.get(name, {})
            values |= SETTINGS_OF_MODEL.get((name, model), {}) | given
            text = budgets or ",".join(map(str, sorted(sizes)))
            if text:
                values |= {"budgets": text, "many_at": text}
            else:
                values |= {"percent": 0.1, "many_at": ""}
            values |= {"dataset": where, "model": model, "methods": methods}
            found.append((name, compare.Config(**values)))
    return found


def _words(flag: str, text: str) -> list[str]:
    words = list(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    if not words:
        raise ValueError(f"--{flag} must be names with commas, got {text!r}")
    return words


def _settings() -> type:
    """The settings of a comparison that are flags here too."""
    fields = [
        (f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata))
        for f in dataclasses.fields(compare.Config)
        if f.name not in (*NOT_HERE, *compare.NOT_HERE)
    ]
    return dataclasses.make_dataclass("Settings", fields)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.benchmark_suite",
        stopped=f"what is done is in {f.results} and {f.out}; the same command goes on",
    ):
        given = {
            field.name: tuple(v) if isinstance(v := f[field.name].value, list) else v
            for field in dataclasses.fields(_settings())
            if f[field.name].present
        }
        wanted = configs(
            f.corpora,
            models=f.models,
            budgets=f.budgets,
            methods=f.methods,
            data_root=f.data_root,
            **given,
        )
        place = Place(Path(f.out), Path(f.results))
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            # Processes side by side, and what goes on later, compile the same programs.
            jax.config.update("jax_compilation_cache_dir", str(place.out / "compiled"))
        rows = run(wanted, place, dry_run=f.dry_run, estimates=f.estimates)
        if f.dry_run:
            return
        print(suite_tables.suite({"compare": rows}))
        print(suite_tables.label_robust({"compare": rows}))
        if f.readme:
            # Its flags are others, so it is a process of its own.
            command = [sys.executable, "-m", "experiments.tables"]
            command += [f"--pages={f.readme}", f"--results={place.results.parent}"]
            if subprocess.run(command).returncode:
                raise ValueError(f"the tables of {f.readme} were not written; rows are")


def define_flags() -> None:
    """The flags of the suite."""
    from absl import flags

    flagged.define_flags(_settings(), {})
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
    flags.DEFINE_string("out", "runs", "Folder of distillations and locks.")
    flags.DEFINE_string("results", "results/compare.jsonl", "Where rows are appended.")
    flags.DEFINE_string("readme", None, "A file whose tables are written anew at last.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
    flags.DEFINE_bool("estimates", True, "Time a few steps of each corpus beforehand.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
