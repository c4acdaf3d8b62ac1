"""Rows and arrays for the pages under test, with hostile texts where one may come."""

import numpy as np

from distill_jax.decode import Nearest
from distill_jax.report import page

HOSTILE = "<script>window.hacked = 1</script>\"'&<img src=x onerror='hacked=1'> $x$ _é"
LABELS = ("negative", HOSTILE)


def row(method: str, **changes) -> dict:
    """A row with the fields of `results/distill.jsonl` that a page reads, and more."""
    return {
        "experiment": "distill",
        "preset": None,
        "dataset": f"corpus {HOSTILE}",
        "model": "bag",
        "method": method,
        "examples": 4,
        "examples_per_class": 2.0,
        "bytes": 1234,
        "labels": "hard",
        "theta_0": "random",
        "training": "standard",
        "split": "test",
        "accuracy_mean": 0.6,
        "accuracy_sd": 0.05,
        "num_inits": 3,
        "num_seeds": 2,
        "full_accuracy_mean": 0.8,
        "relative_accuracy": 0.75,
        "majority_accuracy": 0.5,
        "device": "cpu:2 cores",
        "commit": "abc1234",
        "command": f"python -m experiments.distill --dataset='{HOSTILE}'",
        "config": {"dataset": HOSTILE, "seed": 0},
    } | changes


def run_arguments() -> dict:
    """What `page_of_run` takes, of 2 minibatches of 2 sentences with 3 rows."""
    rng = np.random.default_rng(0)
    words = rng.choice(["good", "bad", "film", HOSTILE], (2, 2, 3, 2)).astype(str)
    cosines = -np.sort(-rng.uniform(-0.2, 1, (2, 2, 3, 2))).astype(np.float32)
    return {
        "rows": [
            row("distilled", accuracy_mean=0.7, labels="soft", relative_accuracy=0.875),
            row("random"),
            row(HOSTILE, accuracy_mean=0.65, relative_accuracy=0.8125),
            row("majority", accuracy_mean=0.5, labels=None, relative_accuracy=None),
        ],
        "steps": [0, 10, 20],
        "accuracies": [[0.5, 0.52], [0.6, 0.66], [0.7, 0.7]],
        "lr": [[0.1, 0.2], [0.3, 0.4]],
        "y": [[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.25, 0.75]]],
        "label_names": LABELS,
        "nearest": Nearest(words, cosines, np.zeros(words.shape, np.int32)),
    }


def compare_rows() -> list[dict]:
    """Nine methods at three budgets; distilled in two ways of training."""
    rows = []
    methods = ["distilled", "random", "herding", HOSTILE]
    methods += ["bald", "margin", "k_center", "el2n", "badge"]
    for budget in (1, 2, 10):
        for i, method in enumerate(methods):
            mean = 0.5 + 0.02 * budget - 0.01 * i
            accuracies = [[mean - 0.01, mean + 0.01], [mean, mean]]
            cell = row(
                method,
                experiment="compare",
                examples=2 * budget,
                examples_per_class=budget,
                accuracy_mean=mean,
                relative_accuracy=mean / 0.8,
                accuracies=accuracies,
                interval=[mean - 0.01, mean + 0.01],
                chance_corrected=None if i == 2 else (mean - 0.5) / 0.3,
                labels_read=100 if i in (0, 2) else 2 * budget,
                bytes=None if i == 3 else 100 * budget * (50 if i == 0 else 1),
                compute_seconds=1.5 * i,
                config={"method": method, "seed": 0},
            )
            rows.append(cell)
            if method == "distilled":
                rows.append(cell | {"training": "native", "labels": "soft"})
    return rows


def verdicts() -> list[page.Verdict]:
    """One won and one open budget, and another question."""
    own, other = ("sst2", "bag", 1), ("sst2", "bag", 10)
    ours = "distilled (soft labels)"
    return [
        page.Verdict(*own, ours, HOSTILE, 0.07, 0.03, 0.11, 0.004, "yes"),
        page.Verdict(*other, ours, "bald", -0.01, -0.03, 0.02, 0.4, "not told apart"),
        page.Verdict(*own, "distilled", "bald", 0.1, 0.05, 0.2, 0.001, "yes", "hard"),
    ]


def active_rows() -> list[dict]:
    """Two strategies, two seeds, three rounds."""
    return [
        row(
            method,
            experiment="active_learning",
            round=r,
            seed=seed,
            num_labelled=10 + 10 * r,
            n_tied_at_cut=None if method == "random" else 3 + seed,
            accuracies=[gain * r + 0.5 + 0.01 * seed] * 2,
            accuracy_mean=gain * r + 0.5 + 0.01 * seed,
        )
        for method, gain in (("random", 0.05), ("bald", 0.1))
        for seed in (0, 1)
        for r in (0, 1, 2)
    ]


def queried() -> list[page.Queried]:
    """Sentences of two rounds."""
    return [
        page.Queried("bald", 0, 0, 17, HOSTILE, "negative", 0.5),
        page.Queried("bald", 0, 1, 5, "A sentence. " * 20, None, 0.25),
        page.Queried("random", 1, 0, "t-3", "Another one.", LABELS[1]),
    ]


def pages() -> dict[str, page.Page]:
    """One page of each kind."""
    return {
        "run": page.page_of_run(**run_arguments()),
        "comparison": page.page_of_comparison(compare_rows(), verdicts()),
        "active": page.page_of_active(active_rows(), queried()),
    }
