"""What all labels are worth without a network of ours: TF-IDF + logistic regression."""

from typing import Any, NamedTuple

import numpy as np

from distill_jax.data import Dataset, tokenize

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # C, the inverse of the L2 penalty


class Baseline(NamedTuple):
    """Accuracies in [0, 1], and what was chosen on validation."""

    accuracy: float
    validation: float
    tuned: dict[str, Any]


def tfidf(dataset: Dataset) -> Baseline:
    """Logistic regression on TF-IDF of words and pairs of words, on all of train.

    The penalty is the best on validation; test is read once.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    weigh = TfidfVectorizer(
        tokenizer=tokenize, token_pattern=None, lowercase=False, ngram_range=(1, 2)
    )
    train = weigh.fit_transform(dataset.train.texts)
    validation = weigh.transform(dataset.validation.texts)
    best: tuple[float, Any] | None = None
    # One thread: sums over several are not the same from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=300)
            model.fit(train, dataset.train.labels)
            score = float(
                (model.predict(validation) == dataset.validation.labels).mean()
            )
            if best is None or score > best[0]:
                best = (score, model)
    assert best is not None
    predicted = best[1].predict(weigh.transform(dataset.test.texts))
    accuracy = float(np.mean(predicted == dataset.test.labels))
    tuned = {"features": "TF-IDF of words and pairs", "C": best[1].C}
    return Baseline(accuracy, best[0], tuned)
