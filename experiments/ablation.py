"""What each part of the method is worth: distilled with all of them, and all but one.

    python -m experiments.ablation --dataset=trec6 --model=mean_cnn --dry_run
    python -m experiments.ablation --dataset=trec6 --model=mean_cnn

The flags are those of `experiments.distill` and say what "all on" is. A variant
differs from it in one lever: where the sentences start, soft labels, learned step
sizes, theta_0 in a meta-step, the window of inner steps, and the warm-up. Each is
distilled from --seeds seeds, the same for all. The best meta-step is chosen on
validation; then fresh networks are scored on test, once.

A variant becomes a row of results/ablation.jsonl when all its seeds are done; those
done before that are in --out. The same command goes on where it was stopped.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import evaluate
from distill_jax import results as result_rows
from distill_jax.loop import NonFiniteMetaGradient
from distill_jax.report import ablation_tables
from distill_jax.report.ablation_tables import ALL_ON
from distill_jax.task import Task, in_chunks
from experiments import config as flagged
from experiments import recipe
from experiments.config import setting
from experiments.running import estimate, learned, told_in_a_line

MANY = 4  # theta_0 in a meta-step, where all on has one


@dataclasses.dataclass(frozen=True)
class Config(recipe.Config):
    """Settings of an ablation: those of the distillation with all on, and these."""

    seeds: int = setting(3, "Distillations of each variant, from --seed on.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "num_meta_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        for name, needed in (("select_on", "validation"), ("theta_0", "random")):
            if getattr(self, name) != needed:
                raise ValueError(
                    f"an ablation needs --{name}={needed}, got {getattr(self, name)}"
                )

    @property
    def base(self) -> recipe.Config:
        """The settings with all on."""
        names = [field.name for field in dataclasses.fields(recipe.Config)]
        return recipe.Config(**{name: getattr(self, name) for name in names})


class Score(NamedTuple):
    """What one distillation gave.

    Attributes:
        validation: accuracy of the meta-step chosen, in [0, 1].
        best_step: that meta-step.
        accuracies: on test, one for each fresh theta_0.
        bytes: of the distilled data.
        seconds: to distil and to score.
    """

    validation: float
    best_step: int
    accuracies: list[float]
    bytes: int
    seconds: float


class Failed(ValueError):
    """Variants could not be distilled; the others are done."""


def levers(base: recipe.Config) -> dict[str, dict[str, Any]]:
    """The settings that switch each lever off, by the name of the variant.

    Args:
        base: the settings with all on.

    Returns:
        One or two settings each. Four theta_0 take a quarter of the meta-steps, so
        that as many networks are trained. What `base` has off already is absent.
    """
    T = base.num_minibatches * base.num_passes
    off: dict[str, dict[str, Any]] = {
        "noise start": {"start": "noise"},
        "hard labels": {"labels": "hard"},
        "step sizes not learned": {"learn_lr": False},
    }
    if base.num_inits > 1:
        off["1 theta_0"] = {"num_inits": 1}
    else:
        off[f"{MANY} theta_0, a quarter of the meta-steps"] = {
            "num_inits": MANY,
            "num_meta_steps": max(1, base.num_meta_steps // MANY),
        }
    if base.windows != "none":
        off["no windows"] = {"windows": "none"}
    elif base.objective == "unrolled" and T > 1:
        W = max(1, T // 3)
        off[f"random windows, {W} of {T} steps"] = {"windows": "random", "window": W}
    off["no warm-up"] = {"warm_steps": 0}
    return {
        name: changes
        for name, changes in off.items()
        if any(getattr(base, field) != value for field, value in changes.items())
    }


def run(
    config: Config,
    *,
    out: str | Path,
    results: str | Path,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Distils and scores all variants that have no row yet.

    Args:
        config: the settings.
        out: folder of the distillations at work, and of the scores of those done.
        results: the `.jsonl` file that a row is appended to after each variant.
        dry_run: stop after the plan and the estimate.
        say: where text goes.

    Returns:
        The rows appended.

    Raises:
        Failed: if variants met meta-gradients that are not finite, at the end.
        ValueError: for settings that do not go together, before anything is compiled;
            and as all that is called does.
    """
    out, base = Path(out), config.base
    task = recipe.load(config, say)
    all_on = _digest(_settings(base, task) | {"seeds": config.seeds})
    variants = {ALL_ON: base} | {
        name: dataclasses.replace(base, **changes)
        for name, changes in levers(base).items()
    }
    setups = {}
    for name, variant in variants.items():  # raises where one does not fit
        setups[name] = recipe.build(variant, task, recipe.start_of(variant, task))

    def rows_of_all() -> list[result_rows.Row]:
        return [
            row
            for row in result_rows.read(results)
            if (row["experiment"], row["dataset"], row["model"])
            == ("ablation", task.dataset.name, config.model)
            and row["config"]["all_on"] == all_on
        ]

    done = {row["config"]["variant"] for row in rows_of_all()}
    left = 0
    for name, variant in variants.items():
        seeds = [
            _known(folder) for _, folder in _each(config, name, variant, task, out)
        ]
        to_do = 0 if name in done else seeds.count(None)
        left += to_do
        changes = levers(base).get(name, {})
        how = "".join(f" --{field}={value}" for field, value in changes.items())
        say(f"  {name}:{how} ({config.seeds - to_do} of {config.seeds} seeds done)")
    if left:
        told = estimate(base, setups[ALL_ON])
        say(told.replace("then the baselines", f"for each of {left} distillations"))
    del setups  # they hold what is compiled
    if dry_run:
        return []
    added, failed = [], []
    for name, variant in variants.items():
        if name in done:
            continue
        began = _each(config, name, variant, task, out)
        try:
            scores = [_scored(c, task, folder, name, say) for c, folder in began]
        except NonFiniteMetaGradient as error:
            say(f"{name}: {error}")
            failed.append(name)
            continue
        facts = {"variant": name, "all_on": all_on, "seeds": config.seeds}
        added.append(_row(variant, task, scores, facts))
        result_rows.append(results, added[-1:])
    say(ablation_tables.ablation({"ablation": rows_of_all()}) + f"Rows: {results}")
    if failed:
        raise Failed(f"not finite, so without a row: {'; '.join(failed)}")
    return added


def _settings(config: recipe.Config, task: Task) -> dict[str, Any]:
    """All that the scores of a distillation depend on."""
    facts = {"network": config.network, "test_inits": config.test_inits}
    return recipe.fingerprint(config, task) | facts


def _each(
    config: Config, name: str, variant: recipe.Config, task: Task, out: Path
) -> list[tuple[recipe.Config, Path]]:
    """The settings and the folder of each distillation of a variant."""
    found = []
    for k in range(config.seeds):
        seeded = dataclasses.replace(variant, seed=config.seed + k)
        what = re.sub(r"\W+", "-", name)
        digest = _digest(_settings(seeded, task))
        found.append((seeded, out / f"{what}-seed{seeded.seed}-{digest}"))
    return found


def _known(folder: Path) -> Score | None:
    """The score of a distillation that is done."""
    try:
        return Score(**json.loads((folder / "score.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _scored(config: recipe.Config, task: Task, folder: Path, name: str, say) -> Score:
    """Distils, chooses on validation, and reads test; from disk if that was done."""
    if (known := _known(folder)) is not None:
        return known
    start = recipe.start_of(config, task)
    setup = recipe.build(config, task, start)
    saved, key = folder / "checkpoints", jax.random.key(config.seed)
    result, seconds = learned(config, task, start, setup, saved)
    best = jax.tree.map(jnp.asarray, result.best)
    # The keys of `experiments.distill`, so that it gives the same numbers.
    test_key = jax.random.split(jax.random.fold_in(key, 2))[1]
    keys = jax.random.split(test_key, config.test_inits)
    test = in_chunks(task, task.test)
    accuracies = np.asarray(setup.native(best.batches, best.lr, keys, test), float)
    score = Score(
        result.best_accuracy,
        result.best_step,
        accuracies.tolist(),
        sum(a.nbytes for a in (best.x, best.y_logits, best.raw_lr)),
        seconds,
    )
    new = folder / f"score.{os.getpid()}.json"
    new.write_text(json.dumps(score._asdict()), encoding="utf-8")
    os.replace(new, folder / "score.json")
    shutil.rmtree(saved)
    say(
        f"{name}, seed {config.seed}: {score.validation:.1%} on validation at "
        f"meta-step {score.best_step:,}, {accuracies.mean():.1%} on test; "
        f"{score.seconds:.0f} s."
    )
    return score


def _row(
    config: recipe.Config, task: Task, scores: Sequence[Score], facts: dict[str, Any]
) -> result_rows.Row:
    C, N = task.num_classes, len(task.dataset.train)
    n = config.examples or config.examples_per_class * C
    accuracies = np.array([score.accuracies for score in scores])
    return {
        "experiment": "ablation",
        "preset": None,
        "dataset": task.dataset.name,
        "model": config.model,
        "method": "distilled",
        "examples": n,
        "examples_per_class": n / C,
        "fraction_of_train": n / N,
        "bytes": scores[0].bytes,
        "labels": "hard" if config.labels == "hard" else "soft",
        "theta_0": config.theta_0,
        "training": "native",
        "selected_on": config.select_on,
        "split": "test",
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_sd": float(accuracies.std(ddof=1)) if accuracies.size > 1 else None,
        "num_inits": accuracies.shape[1],
        "num_seeds": accuracies.shape[0],
        "full_accuracy_mean": None,
        "relative_accuracy": None,
        "majority_accuracy": evaluate.majority_accuracy(
            task.dataset.test.labels, task.dataset.validation.labels, C
        ),
        "seconds": sum(score.seconds for score in scores),
        "device": result_rows.device(),
        "commit": result_rows.commit(),
        "command": result_rows.command(),
        "config": dataclasses.asdict(config)
        | facts
        | {
            "validation_accuracy": float(np.mean([s.validation for s in scores])),
            "seed_means": accuracies.mean(1).tolist(),
        },
    }


def _digest(value: Any) -> str:
    text = json.dumps(result_rows.portable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.ablation",
        stopped="the variants that are done are kept; the same command goes on",
    ):
        config = flagged.from_flags(Config, {}, recipe.BEST_RECIPES)
        corpus = Path(config.dataset).name.replace(":", "-")
        size = config.examples or f"{config.examples_per_class}pc"
        name = f"ablation-{corpus}-{config.model}-{size}"
        out = Path(f.out or Path("runs") / name)
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            # Seeds share programs, and what goes on later compiles them again.
            jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
        run(config, out=out, results=f.results, dry_run=f.dry_run)


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, {})
    flags.DEFINE_string("out", None, "The run's folder; runs/ablation-NAME by default.")
    flags.DEFINE_string("results", "results/ablation.jsonl", "Where rows are appended.")
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
