"""The best settings of a distillation, or of training on real sentences, by validation.

    python -m experiments.tune --dataset=trec6 --model=bag --examples_per_class=1

A trial is a whole distillation with settings that Optuna proposes (by the
Tree-structured Parzen Estimator, Bergstra et al. 2011), the first one with the settings
as they are. One whose validation accuracy falls below the median of the others at the
same meta-step is stopped. A trial is judged on validation with theta_0 that did not
choose its meta-step. With `--baseline=kmeans_medoids`, say, as many trials tune the
training on real sentences. Test is never read.

The study is in --out, and a row of each trial in results/tune.jsonl. The same command
goes on where it was stopped, and more --trials prolong it. It ends with the command of
`experiments.distill` that has the best settings.
"""

import dataclasses
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from distill_jax import results as result_rows
from distill_jax import study as studies
from distill_jax.loop import NonFiniteMetaGradient
from distill_jax.selection import SELECTIONS
from distill_jax.task import Task
from experiments import config as flagged
from experiments import recipe
from experiments.config import setting
from experiments.running import duration, told_in_a_line
from experiments.trials import (
    Baseline,
    Distillation,
    Outcome,
    Pruned,
    Space,
    as_it_is,
    described,
    space_of,
    suggested,
)


@dataclasses.dataclass(frozen=True)
class Config(recipe.Config):
    """Settings of a study: those of a distillation, and these."""

    trials: int = setting(30, "Trials in all, those done before included.")
    search: str = setting(
        "", "Settings that are searched, with commas; the others stay as they are."
    )
    baseline: str | None = setting(
        None, "Tune training on real sentences, by: " + ", ".join(SELECTIONS) + "."
    )
    startup_trials: int = setting(
        8, "Random trials before any is modelled, or stopped early."
    )
    prune: bool = setting(True, "Stop trials that are below the median.")
    max_minutes: float = setting(0.0, "Start no trial after so long; 0: any.")

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("trials", 1), ("startup_trials", 1), ("max_minutes", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.select_on != "validation":
            raise ValueError(
                f"--select_on={self.select_on} is not for tuning, which never reads "
                "test: give --select_on=validation"
            )
        if self.baseline is not None and self.baseline not in SELECTIONS:
            raise ValueError(
                f"unknown --baseline={self.baseline}; known: {', '.join(SELECTIONS)}"
            )
        if self.baseline is None and self.num_meta_steps < 1:
            raise ValueError("--num_meta_steps must be at least 1, got 0")
        _ = self.space  # raises where it cannot be searched

    @property
    def space(self) -> dict[str, Space]:
        """What is searched."""
        return space_of(self, self.search, real=self.baseline is not None)

    @property
    def of_trial(self) -> recipe.Config:
        """The settings of the first trial; the others change some."""
        names = [field.name for field in dataclasses.fields(recipe.Config)]
        return recipe.Config(**{name: getattr(self, name) for name in names})


class Result(NamedTuple):
    """What a study gave.

    Attributes:
        best: the settings of the completed trial with the best accuracy.
        accuracy: that accuracy, on validation.
        rows: of all trials done, those of earlier calls too.
    """

    best: recipe.Config
    accuracy: float
    rows: list[result_rows.Row]


def run(
    config: Config,
    *,
    out: str | Path,
    results: str | Path,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> Result | None:
    """Goes on with a study until it has all its trials.

    Args:
        config: the settings.
        out: folder of the study.
        results: the `.jsonl` file that a row is appended to after each trial.
        dry_run: stop after the plan.
        say: where text goes.

    Returns:
        The best settings and the rows; None after a dry run.

    Raises:
        ModuleNotFoundError: if Optuna is not installed.
        ValueError: for a study of other settings in `out`, or if no trial could be
            completed; and as all that is called does.
    """
    studies.need_optuna()
    task = recipe.load(config, say)
    if config.baseline is None:
        trial = Distillation(config, task)
    else:
        trial = Baseline(config, task, config.baseline)
    first = as_it_is(config, config.space)
    for name, space in config.space.items():
        say(f"  {name}: {described(space)}; first {getattr(config, name)}")
    say(f"{config.trials} trials, the first with the settings as they are.")
    if dry_run:
        return None
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    startup = config.startup_trials
    # The first fifth of a distillation says little about its end.
    warmup = 0 if config.baseline else config.num_meta_steps // 5
    with studies.opened(
        out,
        _settings(config, task),
        warmup=warmup if config.prune else -1,
        startup_trials=startup,
    ) as study:
        rows = studies.rows_of(study)
        known = {
            (r["study"], r["trial"]) for r in result_rows.read(results) if "trial" in r
        }
        late = [row for row in rows if (row["study"], row["trial"]) not in known]
        if late:  # stopped between the end of a trial and its row
            result_rows.append(results, late)
        if rows:
            say(f"{len(rows)} of them were done before.")
        facts = _facts(config, task) | {"study": study.user_attrs["id"]}
        began, before = time.perf_counter(), len(rows)
        while len(rows) < config.trials:
            spent = time.perf_counter() - began
            if rows and 0 < 60 * config.max_minutes <= spent:
                say(f"Stopped after {duration(spent)}; the same command goes on.")
                break
            asked = studies.ask(
                study, len(rows), seed=config.seed, startup_trials=startup, first=first
            )
            row = _made(config, trial, asked, facts | {"trial": len(rows)})
            studies.tell(study, asked, row)
            result_rows.append(results, [row])
            rows.append(row)
            each = (time.perf_counter() - began) / (len(rows) - before)
            say(_line(rows, each * (config.trials - len(rows))))
    best = _best(rows)
    if best is None:
        raise ValueError(
            "no trial was completed: all met numbers that are not finite. Lower "
            "--inner_lr or --num_passes in another --out, or ask for more --trials"
        )
    chosen = dataclasses.replace(config.of_trial, **best["params"])
    say(_summary(config, chosen, best, rows, results))
    return Result(chosen, best["accuracy_mean"], rows)


def _made(config: Config, trial, asked, facts: dict[str, Any]) -> result_rows.Row:
    """Makes a trial; its row."""
    params = suggested(asked, config, config.space)
    reports: list[list[float]] = []

    def report(when: int, accuracy: float) -> None:
        reports.append([when, accuracy])
        asked.report(accuracy, when)
        if config.prune and asked.should_prune():
            raise Pruned

    began, state = time.perf_counter(), "complete"
    try:
        outcome = trial(dataclasses.replace(config.of_trial, **params), report)
    except (Pruned, NonFiniteMetaGradient) as stop:
        state = "pruned" if isinstance(stop, Pruned) else "not_finite"
        when, accuracy = max(reports, key=lambda report: report[1])
        outcome = Outcome(accuracy, None if config.baseline else int(when))
    row = facts | {
        "state": state,
        "params": params,
        "accuracy_mean": outcome.accuracy,
        "best_step": outcome.best_step,
        "reports": reports,
        "num_seeds": trial.num_seeds,
        "seconds": time.perf_counter() - began,
    }
    row = result_rows.portable(row)
    result_rows.check(row)
    return row


def _facts(config: Config, task: Task) -> dict[str, Any]:
    """What the rows of a study have in common."""
    return {
        "experiment": "tune",
        "dataset": task.dataset.name,
        "model": config.model,
        "method": config.baseline or "distilled",
        "examples": config.examples or config.examples_per_class * task.num_classes,
        "split": "validation",
        "num_inits": config.validation_inits,
        "device": result_rows.device(),
        "commit": result_rows.commit(),
        "command": result_rows.command(),
        "config": dataclasses.asdict(config),
    }


def _settings(config: Config, task: Task) -> dict[str, Any]:
    """What a study must agree on to be gone on with."""
    settings = recipe.fingerprint(config.of_trial, task)
    for name in ("startup_trials", "prune", "baseline", "selection_seeds"):
        settings[name] = getattr(config, name)
    settings["search"] = {name: described(s) for name, s in config.space.items()}
    return result_rows.portable(settings)


def _best(rows: list[result_rows.Row]) -> result_rows.Row | None:
    completed = [row for row in rows if row["state"] == "complete"]
    return max(completed, key=lambda row: row["accuracy_mean"], default=None)


def _line(rows: list[result_rows.Row], seconds_left: float) -> str:
    row, best = rows[-1], _best(rows)
    facts = [f"trial {row['trial']}: {row['accuracy_mean']:.1%}"]
    facts[0] += "" if row["state"] == "complete" else f" ({row['state']})"
    if best is not None:
        facts.append(f"best {best['accuracy_mean']:.1%} (trial {best['trial']})")
    facts += [f"{row['seconds']:.0f} s", f"{duration(seconds_left)} left"]
    return f"{', '.join(facts)}: {_shown(row['params'])}"


def _shown(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())


def _summary(config: Config, chosen, best, rows, results) -> str:
    lines = [
        f"\nBest of {len(rows)} trials: trial {best['trial']}, "
        f"{best['accuracy_mean']:.1%} on validation ({rows[0]['accuracy_mean']:.1%} "
        "with the settings as they were).",
        _shown(best["params"]),
        f"Rows: {results}",
    ]
    if config.baseline is None:
        lines.append(f"Next: {command_of(chosen)}")
    return "\n".join(lines)


def command_of(config: recipe.Config) -> str:
    """The command of `experiments.distill` with these settings."""
    usual = recipe.BEST_RECIPES.get(config.model, {})
    words = ["python", "-m", "experiments.distill"]
    for field in dataclasses.fields(recipe.Config):
        value = getattr(config, field.name)
        if value == usual.get(field.name, field.default):
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no{field.name}")
        elif isinstance(value, tuple):
            words += [f"--{field.name}={item}" for item in value]
        else:
            words.append(f"--{field.name}={value}")
    return shlex.join(words)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.tune",
        stopped="the trials that are done are kept; the same command goes on",
    ):
        cfg = flagged.from_flags(Config, recipe.PRESETS, recipe.BEST_RECIPES)
        corpus = Path(cfg.dataset).name.replace(":", "-")
        size = cfg.examples or f"{cfg.examples_per_class}pc"
        parts = ["tune", corpus, cfg.model, str(size), *filter(None, [cfg.baseline])]
        out = Path(f.out or Path("runs") / "-".join(parts))
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            # Trials share programs, and what goes on later compiles them again.
            jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
        run(cfg, out=out, results=f.results, dry_run=f.dry_run)


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, recipe.PRESETS)
    flags.DEFINE_string("out", None, "The study's folder; runs/tune-NAME unless given.")
    flags.DEFINE_string("results", "results/tune.jsonl", "Where rows are appended.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
