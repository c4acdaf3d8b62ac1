"""Settings of papers by their flags, flaws included: `--preset`."""

from typing import Any

DISTILL: dict[str, dict[str, Any]] = {
    # Li & Li 2021 (arXiv:2104.08448), from the authors' code: 27 x 4 examples, 162
    # steps of fixed size from one fixed start, and the best epoch picked on test.
    "li2021": {
        "model": "text_cnn",
        "length": 80,
        "model_settings": ["filters=128", "widths=[2, 3]", "hidden=256"],
        "examples_per_class": 27,
        "num_minibatches": 27,
        "num_passes": 6,
        "start": "noise",
        "labels": "hard",
        "inner_optimizer": "sgd",
        "inner_lr": 0.01,
        "learn_lr": False,
        "theta_0": "fixed",
        "meta_lr": 0.01,
        "meta_decay": "none",
        "clip_norm": 0.0,
        "real_batch": 256,
        "select_on": "test",
    },
    # Sucholutsky & Schonlau 2019 (arXiv:1910.02551), text tasks, from the authors'
    # settings: learned labels and step sizes, meta-batches of 1,024, Adam with
    # b1 = 0.5. Add --dataset, --examples, --num_passes and --length of the task.
    "sucholutsky2019": {
        "model": "kim_cnn",
        "length": 400,
        "examples_per_class": 10,
        "num_minibatches": 1,
        "num_passes": 5,
        "start": "noise",
        "labels": "soft",
        "inner_optimizer": "sgd",
        "inner_lr": 0.01,
        "theta_0": "random",
        "meta_lr": 0.01,
        "meta_lr_labels": 0.01,
        "meta_lr_steps": 0.01,
        "meta_b1": 0.5,
        "clip_norm": 0.0,
        "real_batch": 1024,
        "select_on": "test",
    },
}

COMPARE: dict[str, dict[str, Any]] = {
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
