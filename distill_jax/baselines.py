"""What all labels are worth without a network of ours: TF-IDF + logistic regression."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data import Dataset, tokenize

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # C, the inverse of the L2 penalty


class Baseline(NamedTuple):
    """Accuracies in [0, 1], and what was chosen on validation."""

    accuracy: float
    validation: float
    tuned: dict[str, Any]


def tfidf(
    dataset: Dataset,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Baseline:
    """Logistic regression on TF-IDF of words and pairs of words, on all of train.

    The penalty is the best on validation; test is read once.

    Args:
        dataset: the corpus.
        report: told `(what, done, of how many)`.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    settings: Any = {"tokenizer": tokenize, "token_pattern": None, "lowercase": False}
    weigh = TfidfVectorizer(ngram_range=(1, 2), **settings)
    train = weigh.fit_transform(dataset.train.texts)
    validation = weigh.transform(dataset.validation.texts)
    best: tuple[float, Any] | None = None
    # One thread: sums over several are not the same from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for done, penalty in enumerate(PENALTIES):
            report("TF-IDF", done, len(PENALTIES))
            model = LogisticRegression(C=penalty, max_iter=300)
            model.fit(train, dataset.train.labels)
            found = np.asarray(model.predict(validation))
            score = float(np.mean(found == dataset.validation.labels))
            if best is None or score > best[0]:
                best = (score, model)
    report("TF-IDF", len(PENALTIES), len(PENALTIES))
    assert best is not None
    predicted = best[1].predict(weigh.transform(dataset.test.texts))
    accuracy = float(np.mean(predicted == dataset.test.labels))
    tuned = {"features": "TF-IDF of words and pairs", "C": best[1].C}
    return Baseline(accuracy, best[0], tuned)
