"""What accuracy of a saved distilled set is left per byte.

    python -m experiments.compact --artifact=runs/NAME/artifact

The set as it is, in smaller numbers, and in fewer (see `distill_jax.compact`): each
form is expanded again and trained on in its own order and step sizes, from the same
fresh theta_0. Nothing is learned again. The test split is read once, at the end, for
all forms. Thirteen forms of 4 sentences, with a bag network, take 13 s of one CPU core.
`float32` comes to the test accuracy that the run reported, with the run's seed and
number of theta_0.
"""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from distill_jax import artifact, compact, evaluate
from distill_jax import results as result_rows
from distill_jax.forms import Form, fitting, form_of
from distill_jax.report import compact_tables
from distill_jax.task import Task, in_chunks
from experiments import config as flagged
from experiments import pages
from experiments.baselines import validation_chunks
from experiments.config import setting
from experiments.recipe import native_scorer
from experiments.running import told_in_a_line
from experiments.saved import inner_tx_of, task_of

FIGURE = "compact.png"
RESULTS = "results/compact.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment; every one is a flag."""

    artifact: str | None = setting(None, "Folder of the artefact.")
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
    validation_examples: int = setting(1000, "Validation examples used, at most.")
    test_inits: int = setting(
        20, "Fresh random theta_0 for each form on test, and as many on validation."
    )
    seed: int = setting(0, "Of theta_0; that of the run repeats its own test.")

    def __post_init__(self):
        for name in ("validation_examples", "test_inits"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.artifact:
            raise ValueError("--artifact must name the folder of an artefact")
        for name in self.forms:
            form_of(name)


def run(
    config: Config,
    *,
    out: str | Path,
    results: str | Path,
    say: Callable[[str], None] = print,
) -> list[result_rows.Row]:
    """Trains on each form, scores it on validation and test, and appends the rows.

    Args:
        config: the settings.
        out: folder of the figure.
        results: the `.jsonl` file that rows are appended to.
        say: where text goes.

    Returns:
        The rows appended, in the order of the forms, float32 first.

    Raises:
        ValueError: for a form that does not fit the set, before the corpus is read;
            and as all that is called does.
        pages.NotDrawn: if the figure cannot be written; the rows are.
    """
    assert config.artifact is not None  # Config has seen to it
    saved = artifact.load(config.artifact)
    tx = inner_tx_of(saved.card)
    distilled = artifact.to_distilled(saved)
    forms = [form_of(name) for name in config.forms] or fitting(
        distilled.x.shape, ragged=distilled.ragged
    )
    forms = list(dict.fromkeys([Form(compact_tables.REFERENCE), *forms]))
    stored = {form: form.stored(distilled) for form in forms}
    earlier, out = result_rows.read(results), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    task = task_of(
        saved,
        dataset=config.dataset,
        text_column=config.text_column,
        label_column=config.label_column,
        data_dir=config.data_dir,
        download=config.download,
        vectors=config.vectors,
        say=say,
    )
    S, B, L, D = distilled.x.shape
    say(
        f"{S * B} sentences of {L} x {D} numbers, learned from "
        f"{saved.card['corpus']['name']} with {saved.card['model']['name']}, in "
        f"{len(forms)} forms; {config.test_inits} random theta_0 for each."
    )
    rows = _rows(config, saved, task, stored, _scored(config, task, stored, tx, say))
    result_rows.append(results, rows)
    say("\n" + _table(rows))
    best = smallest(rows)
    say(
        "\nSmallest within one standard error of float32 on validation: "
        f"{best['config']['form']}, {best['bytes']:,} bytes."
    )
    with pages.after_rows(results, "the same command with another --out"):
        figure = _drawn(out / FIGURE, [*earlier, *rows], rows[0])
    say(
        f"\nRows: {results}\nFigure: {figure}"
        f"\nNext: {_next(config, best, out, results)}"
    )
    return rows


class Scores(NamedTuple):
    """Of one form: `validation` and `test` `[N]`, and the `seconds` that both took."""

    validation: np.ndarray
    test: np.ndarray
    seconds: float


def _scored(config, task: Task, stored, tx, say) -> dict[Form, Scores]:
    """Scores all forms on validation, then reads the test split, once."""
    native = native_scorer(task, task.model.init, tx)
    # As in experiments.distill: with the seed of the run, the same theta_0 on test.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))
    validation_keys, test_keys = (jax.random.split(k, config.test_inits) for k in keys)
    sets = {form: compact.restore(arrays) for form, arrays in stored.items()}

    def score(form: Form, keys, chunks) -> tuple[np.ndarray, float]:
        began, one = time.perf_counter(), sets[form]
        accuracies = np.asarray(native(one.batches, one.lr, keys, chunks))
        return accuracies, time.perf_counter() - began

    validation = validation_chunks(
        task, task.validation, seed=config.seed, num_examples=config.validation_examples
    )
    seen = {}
    for form in sets:
        seen[form] = score(form, validation_keys, validation)
        say(f"{form}: {seen[form][0].mean():.1%} on validation.")
    say("Reading the test split.")
    test = in_chunks(task, task.test)
    scores = {}
    for form, (accuracies, seconds) in seen.items():
        tested, more = score(form, test_keys, test)
        scores[form] = Scores(accuracies, tested, seconds + more)
    return scores


def _rows(config, saved, task: Task, stored, scores) -> list[result_rows.Row]:
    C, N = task.num_classes, len(task.dataset.train)
    n = saved.arrays["y"].shape[0] * saved.arrays["y"].shape[1]
    majority = evaluate.majority_accuracy(
        task.dataset.test.labels, task.dataset.validation.labels, C
    )
    own = dict(task.dataset.sha256) == saved.card["corpus"]["sha256"]
    full = saved.card["results"].get("full") if own else None
    hard = saved.arrays["y"].max(-1).min() > 1 - 1e-6
    ragged = "mask" in saved.arrays
    facts = dataclasses.asdict(config) | {
        "artifact_sha256": saved.card["tensors"]["sha256"],
        "artifact_model": saved.card["model"],
    }
    rows = []
    for form, (validation, test, seconds) in scores.items():
        mean = float(test.mean())
        facts_of_form = {
            "form": str(form),
            "words": int(np.prod(stored[form]["x"].shape[:-1])) if ragged else None,
            "validation_accuracy": float(validation.mean()),
            "validation_sd": _sd(validation),
        }
        rows.append(
            {
                "experiment": "compact",
                "preset": None,
                "dataset": task.dataset.name,
                "model": saved.card["model"]["name"],
                "method": "distilled",
                "examples": n,
                "examples_per_class": n / C,
                "fraction_of_train": n / N,
                "bytes": compact.num_bytes(stored[form]),
                "labels": "hard" if hard else "soft",
                "theta_0": "random",
                "training": "native",
                "selected_on": saved.card.get("config", {}).get(
                    "select_on", "validation"
                ),
                "split": "test",
                "accuracy_mean": mean,
                "accuracy_sd": _sd(test),
                "num_inits": test.size,
                "num_seeds": 1,
                "full_accuracy_mean": full or None,
                "relative_accuracy": mean / full if full else None,
                "majority_accuracy": majority,
                "seconds": seconds,
                "device": result_rows.device(),
                "commit": result_rows.commit(),
                "command": result_rows.command(),
                "config": facts | facts_of_form,
            }
        )
    return rows


def _sd(accuracies: np.ndarray) -> float | None:
    return float(accuracies.std(ddof=1)) if accuracies.size > 1 else None


def smallest(rows: Sequence[result_rows.Row]) -> result_rows.Row:
    """The fewest bytes within one standard error of float32's validation accuracy.

    The rule of Breiman et al. (1984, Sec. 3.4.3) for trees.

    Args:
        rows: of one run, float32 first.
    """
    whole, n = rows[0]["config"], rows[0]["num_inits"]
    least = whole["validation_accuracy"] - (whole["validation_sd"] or 0.0) / n**0.5
    enough = [r for r in rows if r["config"]["validation_accuracy"] >= least]
    return min(enough, key=lambda row: row["bytes"])


def curves(
    rows: Sequence[result_rows.Row],
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Bytes and accuracy of the forms, a line for each way to store sentences.

    Args:
        rows: one for each form, of one set.

    Returns:
        By name `(bytes, mean, mean - sd, mean + sd)`, for `plots.plot_curves`.
    """
    groups: dict[tuple[str, str], list[tuple[Form, result_rows.Row]]] = {}
    for row in rows:
        form = form_of(row["config"]["form"])
        way = (form.factors, form.kind if form.factors else "")
        groups.setdefault(way, []).append((form, row))
    found = {}
    for (factors, kind), members in groups.items():
        members.sort(key=lambda member: member[0].size)
        if factors:
            name = f"{factors.replace('_', ' ')}, {kind}: "
            name += ", ".join(f"{form.size}" for form, _ in members)
        else:
            name = "whole: " + ", ".join(form.kind for form, _ in members)
        found[name] = []
        for _, row in members:
            mean, sd = row["accuracy_mean"], row["accuracy_sd"] or 0.0
            low, high = max(mean - sd, 0.0), min(mean + sd, 1.0)
            found[name].append((row["bytes"], mean, low, high))
    return found


def _drawn(path: Path, rows: Sequence[result_rows.Row], of: result_rows.Row) -> Path:
    """The forms of one set, also those of earlier runs on the same theta_0."""
    from distill_jax.report import plots

    same = [row for row in rows if compact_tables.comparable(row, of)]
    return plots.plot_curves(
        path,
        curves(compact_tables.newest(same)),
        xlabel="bytes",
        ylabel="test accuracy, %, mean ± sd",
        full=of["full_accuracy_mean"],
        majority=of["majority_accuracy"],
        log=True,
    )


def _table(rows: list[result_rows.Row]) -> str:
    lines = [
        f"{'form':20} {'bytes':>12} {'of float32':>11} {'validation':>11} "
        f"{'test':>15} {'of float32':>11} {'relative':>9}"
    ]
    whole = rows[0]
    for row in rows:
        sd, relative = row["accuracy_sd"], row["relative_accuracy"]
        test = f"{row['accuracy_mean']:.1%}" + ("" if sd is None else f" ± {sd:.1%}")
        kept = (
            f"{row['accuracy_mean'] / whole['accuracy_mean']:.1%}"
            if whole["accuracy_mean"]
            else ""
        )
        line = (
            f"{row['config']['form']:20} {row['bytes']:>12,} "
            f"{row['bytes'] / whole['bytes']:>11.1%} "
            f"{row['config']['validation_accuracy']:>11.1%} {test:>15} {kept:>11} "
            + ("" if relative is None else f"{relative:>9.1%}")
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def _next(config: Config, best: result_rows.Row, out: Path, results) -> str:
    """Factors in smaller numbers too, where float32 ones do; else the tables."""
    form = form_of(best["config"]["form"])
    if not form.factors or form.kind != "float32":
        return "python -m experiments.tables"
    words = ["python", "-m", "experiments.compact"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "forms" and value != field.default:
            words.append(f"--{field.name}={value}")
    if out != _folder(config):
        words.append(f"--out={out}")
    if str(results) != RESULTS:
        words.append(f"--results={results}")
    words += [f"--forms={form._replace(kind=kind)}" for kind in ("float16", "int8")]
    return shlex.join(words)


def _folder(config: Config) -> Path:
    """That of the run, where its other figures are."""
    assert config.artifact is not None  # Config has seen to it
    return Path(config.artifact).parent


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(argv, "experiments.compact"):
        config = flagged.from_flags(Config, {})
        run(config, out=f.out or _folder(config), results=f.results)


def define_flags() -> None:
    """The flags of this experiment."""
    from absl import flags

    flagged.define_flags(Config, {})
    flags.DEFINE_string(
        "out", None, "Folder of the figure; that of the run unless given."
    )
    flags.DEFINE_string("results", RESULTS, "Where rows are appended.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
