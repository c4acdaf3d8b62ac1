"""Figures 3 and 4 of the comparison paper (Anonymous 2022), made anew.

    python -m experiments.figures --dataset=sst2 --model=bag --budget=1

Figure 3 there is called a learning rate and speaks of accuracy, so it is two here: test
accuracy over the steps of training, and the learned step sizes. Its networks are
trained anew, by the recipes that rows of experiments.compare say were chosen on
validation, on the distilled sets of `--runs`; nothing is chosen by what is drawn.
Figure 4, accuracy against labels for each query, is made from rows alone, with
distilled sets at the sentences they store and again at the labels they read. Beside
each figure are its numbers, as CSV.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import artifact, evaluate, statistics
from distill_jax import results as result_rows
from distill_jax.report import curves, plots
from distill_jax.results import Row
from experiments import fitting, recipe, transfer
from experiments.running import told_in_a_line
from experiments.saved import inner_tx_of
from experiments.scoring import Cell

Points = list[tuple[float, float, float, float]]  # (x, mean, low, high)
BRIGHT = ("random", "variation_ratio", "predictive_entropy", "bald", "margin")
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
FULL_BATCH = 64  # as baselines.tuned_full


def figure4(asked: Sequence[Row], compared: Sequence[Row]) -> dict[str, Points]:
    """Accuracy against labels for each query, and where distilled sets stand.

    Args:
        asked: rows of experiments.active_learning, of one corpus, network and setting.
        compared: rows of experiments.compare of that corpus and network; of these the
            distilled sets, in native training, that store as many sentences as the
            curves have labels or fewer.

    Returns:
        For each curve `(labels, mean, low, high)`. Distilled sets have two: at the
        sentences they store, and at the labels they read, where only the largest is.

    Raises:
        ValueError: for no rows of active learning.
    """
    if not asked:
        raise ValueError("no rows of active learning: run experiments.active_learning")
    found = {
        name: [_point(x, values) for x, values in points.items()]
        for name, points in curves.curves(asked).items()
    }
    last = max(x for points in found.values() for x, *_ in points)
    native = [
        row
        for row in compared
        if row["method"] == "distilled"
        and row["training"] == "native"
        and row["preset"] is None
        and row["examples"] <= last
    ]
    by_size = {row["examples"]: row for row in native}
    for name, field in (("stored", "examples"), ("labels read", "labels_read")):
        points = [
            (row[field], row["accuracy_mean"], *row["interval"])
            for row in sorted(by_size.values(), key=lambda row: row["examples"])
        ]
        if field == "labels_read":
            points = points[-1:]  # all stand at one place: that of most sentences
        if points:
            found[f"distilled, {name}"] = points
    return found


def over_steps(
    bench: transfer.Target, budget: int, known: Sequence[Row], num_inits: int
) -> dict[str, Points]:
    """Test accuracy over the steps of training, for each set of a budget.

    Args:
        bench: of the network that has distilled.
        budget: examples per class.
        known: rows of the comparison.
        num_inits: theta_0 that each set is trained from, the first of the test's.

    Returns:
        `(step, mean, low, high)` of distilled, random and k-means sets, and of all
        training data.

    Raises:
        ValueError: if the recipe of one is not among the rows.
    """
    task, keys = bench.task, bench.test_keys[:num_inits]
    source = bench.sources[budget]

    @jax.jit
    def trained(data, key, order, lr, stops):
        theta_0 = task.model.init(jax.random.split(key)[0])
        thetas = fitting.fit(task.loss_fn, data, order, theta_0, lr, stops)
        score = lambda theta: evaluate.accuracy(task.model, theta, bench.test)  # noqa: E731
        return jax.lax.map(score, thetas)

    found: dict[str, Points] = {}
    own = source.row
    for name, cell, row in (
        ("distilled, standard", Cell("distilled", budget, "soft"), own),
        ("random", Cell("random", budget), None),
        ("kmeans_medoids", Cell("kmeans_medoids", budget), None),
        ("full", Cell("full", 0), None),
    ):
        row = row or bench.row_of(cell, known)
        if row is None:
            raise ValueError(
                f"no row of {cell} on {task.dataset.name} with {bench.config.model}, "
                "which would say how it trains best: run experiments.compare first"
            )
        tuned = row["config"]["tuned"]
        if cell.method == "full":
            n, batch = len(task.train.y), min(FULL_BATCH, len(task.train.y))
            total, data = tuned["num_epochs"] * (n // batch), [task.train]
        else:
            sets = bench.sets(cell).batches
            n = len(sets[0].y)
            batch = min(bench.config.fit_batch, n)
            total, data = tuned["num_steps"], [fitting.examples(task, s) for s in sets]
        stops = jnp.asarray([*(s for s in STEPS if s < total), total])
        values = np.array(
            [
                [
                    trained(
                        one,
                        key,
                        jnp.asarray(
                            fitting.minibatch_order(
                                n,
                                batch,
                                total,
                                np.random.default_rng([bench.config.seed, 1, r]),
                            )
                        ),
                        tuned["lr"],
                        stops,
                    )
                    for r, key in enumerate(keys)
                ]
                for one in data
            ]
        )
        found[name] = [_point(s, values[..., k]) for k, s in enumerate(stops.tolist())]
    found["distilled, native"] = _native(bench, source, keys)
    return found


def _native(bench: transfer.Target, source: transfer.Source, keys) -> Points:
    """Over the steps of distillation: later ones have the step size 0."""
    tx = inner_tx_of(source.sets[0].card)
    scorer = recipe.native_scorer(bench.task, bench.task.model.init, tx)
    total = source.sets[0].arrays["lr"].size
    stops = [*(s for s in STEPS if s < total), total]
    points = []
    for stop in stops:
        values = []
        for one in source.sets:
            distilled = artifact.to_distilled(one)
            taken = jnp.arange(total).reshape(distilled.lr.shape) < stop
            lr = jnp.where(taken, distilled.lr, 0)
            values.append(scorer(distilled.batches, lr, keys, bench.test))
        points.append(_point(stop, np.stack(values)))
    return points


def _newest_run(rows: Sequence[Row]) -> list[Row]:
    """The rows with the settings of the last; the queries may be others."""

    def settings(row: Row) -> dict:
        free = ("query", "seeds", "seed")
        return {k: v for k, v in row["config"].items() if k not in free}

    return [row for row in rows if settings(row) == settings(rows[-1])]


def _point(x: float, values) -> tuple[float, float, float, float]:
    found = statistics.summary(np.asarray(values, float))
    # The bootstrap's ends and the mean are rounded differently.
    low, high = min(found.low, found.mean), max(found.high, found.mean)
    return float(x), found.mean, low, high


def write(path: Path, figure, head: Sequence[str], lines: Sequence[Sequence]) -> None:
    """A figure as SVG, and its numbers beside it as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plots.svg(figure), encoding="utf-8")
    with open(path.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *lines])


def run(
    *,
    dataset: str,
    model: str,
    budget: int,
    num_inits: int = 10,
    results: str | Path = "results",
    runs: str | Path = "runs",
    out: str | Path = "figures",
    place: str | None = None,
    vectors: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draws what the rows and runs allow.

    Args:
        dataset, model: of which corpus and network.
        budget: examples per class of Figure 3.
        num_inits: theta_0 of each set there.
        results: folder of the rows.
        runs: folder of the folders of experiments.compare.
        out: where figures are written.
        place, vectors: where the corpus and word vectors are now.
        say: where text goes.

    Returns:
        The figures; Figure 4 is not among them without rows of active learning.

    Raises:
        ValueError, FileNotFoundError: as `transfer.groups_of` and `over_steps`.
    """
    if num_inits < 2:
        raise ValueError(f"--inits must be at least 2, got {num_inits}")
    results, name = Path(results), f"{dataset}-{model}"
    known = result_rows.read(results / "compare.jsonl")
    here = [r for r in known if (r["dataset"], r["model"]) == (dataset, model)]
    drawn = []
    asked = _newest_run(
        [
            row
            for row in result_rows.read(results / "active_learning.jsonl")
            if (row["dataset"], row["model"], row["preset"]) == (dataset, model, None)
        ]
    )
    levels = {row["method"]: row["accuracy_mean"] for row in here}
    full = levels.get("full")
    majority = here[-1]["majority_accuracy"] if here else None
    if asked:
        table = figure4(asked, here)
        path = Path(out) / f"figure4-{name}.svg"
        # As in the paper's figure; the other queries are grey.
        faint = [c for c in table if c not in BRIGHT and "distilled" not in c]
        shown = plots.draw_curves(
            table,
            xlabel="labels",
            full=full,
            majority=majority,
            log=True,
            faint=faint,
        )
        head = ["curve", "labels", "accuracy", "low", "high"]
        lines = [(curve, *point) for curve, p in table.items() for point in p]
        write(path, shown, head, lines)
        drawn.append(path)
    else:
        say(f"No Figure 4: no rows of active learning on {dataset} with {model}.")
    groups = transfer.groups_of(known, Path(runs), [dataset], [model], [budget], say)
    ((_, found),) = groups.items()
    bench = transfer.bench_of_source(found, place, vectors, runs, results, say)
    table = over_steps(bench, budget, known, num_inits)
    path = Path(out) / f"figure3-{name}-{budget}.svg"
    shown = plots.draw_curves(
        table, xlabel="training step", majority=majority, log=True
    )
    head = ["curve", "step", "accuracy", "low", "high"]
    write(path, shown, head, [(c, *point) for c, p in table.items() for point in p])
    lr = found[budget].sets[0].arrays["lr"]
    steps = Path(out) / f"figure3-{name}-{budget}-step-sizes.svg"
    lines = [(number, float(size)) for number, size in enumerate(lr.ravel())]
    write(steps, plots.draw_step_sizes(lr), ["inner step", "step size"], lines)
    drawn += [path, steps]
    for path in drawn:
        say(f"Figure: {path}")
    return drawn


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    from absl import flags

    f = flags.FLAGS
    with told_in_a_line(argv, "experiments.figures", stopped="not all was drawn"):
        run(
            dataset=f.dataset,
            model=f.model,
            budget=f.budget,
            num_inits=f.inits,
            results=f.results,
            runs=f.runs,
            out=f.out,
            place=f.place,
            vectors=f.vectors,
        )


def define_flags() -> None:
    """The flags of this program."""
    from absl import flags

    flags.DEFINE_string("dataset", None, "The corpus, as rows name it.", required=True)
    flags.DEFINE_string("model", "bag", "The network that has distilled.")
    flags.DEFINE_integer("budget", 1, "Examples per class of Figure 3.")
    flags.DEFINE_integer("inits", 10, "Theta_0 of each set in Figure 3.")
    flags.DEFINE_string("results", "results", "The folder of the rows.")
    flags.DEFINE_string("runs", "runs", "Folder of the folders of experiments.compare.")
    flags.DEFINE_string("out", "figures", "Where figures are written.")
    flags.DEFINE_string("place", None, "Where the corpus is now.")
    flags.DEFINE_string("vectors", None, "Where the word vectors are now.")


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
