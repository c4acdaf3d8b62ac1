"""What the distilled sentences are before the first meta-step.

Each start is `(corpus, n, key) -> Started`: n sentences `[n, L, D]`, with the class
of each, equally many of each class and in rounds of one of each, so that minibatches
of C neighbours are balanced. Where C does not divide n, random classes give one more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax.names import resolve
from distill_jax.selection import SELECTIONS, Selection, random_balanced
from distill_jax.types import Batch


class Corpus(NamedTuple):
    """The training set, as starts see it.

    Attributes:
        features: `[N, H]`, for instance mean word vectors.
        labels: `[N]` integers.
        sentences: `rows [M] -> Batch` with the embedded `x [M, L, D]` of those rows.
        tokens: `[N, L]` rows of `table`, 0 is padding; None if `keywords` is not asked.
        table: `[V, D]`, the word vectors.
    """

    features: np.ndarray
    labels: np.ndarray
    sentences: Callable[[np.ndarray], Batch]
    tokens: np.ndarray | None = None
    table: np.ndarray | None = None


class Started(NamedTuple):
    """n sentences to begin with.

    Attributes:
        x: `[n, L, D]`, in the dtype of the corpus.
        labels: `[n]`, the class of each.
    """

    x: np.ndarray
    labels: np.ndarray


Start = Callable[[Corpus, int, jax.Array], Started]


def selected(select: Selection) -> Start:
    """Starts from the real sentences that a selection picks; padding is zero.

    Args:
        select: `(features, labels, n, key) -> indices [n]`, of `SELECTIONS` or yours.
    """

    def start(corpus: Corpus, n: int, key: jax.Array) -> Started:
        rows = select(corpus.features, corpus.labels, n, key)
        return Started(_masked(corpus.sentences(rows)), np.asarray(corpus.labels)[rows])

    return start


def noise(corpus: Corpus, n: int, key: jax.Array) -> Started:
    """Standard normal numbers, for word vectors of standard deviation 1.

    Args:
        corpus: its features are not read.
        n: how many sentences.
        key: random key.

    Returns:
        Sentences that know nothing of the corpus, and balanced classes.

    Raises:
        ValueError: if n is below 1, or more than there are of a class.
    """
    labels = np.asarray(corpus.labels)
    rows = random_balanced(np.zeros((len(labels), 1)), labels, n, key)
    like = corpus.sentences(rows[:1]).x
    x = jax.random.normal(key, (n, *like.shape[1:]), like.dtype)
    return Started(np.asarray(x), labels[rows])


def keywords(corpus: Corpus, n: int, key: jax.Array) -> Started:
    """The words that tell a class from the others, dealt out to its sentences.

    With p and q the shares of sentences with a word, in the class (n_1 sentences) and
    outside it (n_0), and r that in all,

        z = (p - q) / sqrt(r (1 - r) (1 / n_1 + 1 / n_0)),

    whose square is the chi-squared of feature selection (Yang & Pedersen 1997). Of m
    sentences of a class, the j-th has the words j, j + m, j + 2m, ... by falling z,
    down to 0. Words without a vector (all zeros) are left out.

    Args:
        corpus: its tokens, table and labels are read.
        n: how many sentences.
        key: which classes have one sentence more, where C does not divide n.

    Returns:
        Sentences, the strongest words first, then padding; balanced classes.

    Raises:
        ValueError: if n is below 1, or more than there are of a class; without tokens
            or table; if a class has no such words, or too few for its sentences.
    """
    if corpus.tokens is None or corpus.table is None:
        raise ValueError(
            "start keywords reads Corpus.tokens and Corpus.table: give both"
        )
    labels, table = np.asarray(corpus.labels), np.asarray(corpus.table)
    rows = random_balanced(np.zeros((len(labels), 1)), labels, n, key)
    V, L = len(table), corpus.tokens.shape[1]
    known = (table != 0).any(1)
    known[0] = False
    has = [np.unique(sentence) for sentence in np.asarray(corpus.tokens)]
    counts = {
        label: np.bincount(
            np.concatenate([has[i] for i in np.flatnonzero(labels == label)]),
            minlength=V,
        )
        for label in np.unique(labels)
    }
    everywhere = np.sum(list(counts.values()), 0)
    r = everywhere / len(labels)
    x = np.zeros((n, L, table.shape[1]), table.dtype)
    for label in np.unique(labels[rows]):
        inside = (labels == label).sum()
        outside = max(len(labels) - inside, 1)
        apart = counts[label] / inside - (everywhere - counts[label]) / outside
        z = apart / np.sqrt(np.maximum(r * (1 - r), 1e-12) * (1 / inside + 1 / outside))
        order = np.argsort(-z, kind="stable")
        order = order[(z[order] > 0) & known[order]]
        places = np.flatnonzero(labels[rows] == label)
        if len(order) < len(places):
            raise ValueError(
                f"class {label} has {len(order)} words that it has more often than the "
                f"others, too few for {len(places)} sentences: take another start"
            )
        for j, place in enumerate(places):
            words = order[j :: len(places)][:L]
            x[place, : len(words)] = table[words]
    return Started(x, labels[rows])


def with_length(x: np.ndarray, length: int) -> np.ndarray:
    """The sentences cut, or their words repeated in turn, to another length.

    Args:
        x: `[n, L, D]`; rows of zeros at the end of a sentence are padding.
        length: words of the new sentences.

    Returns:
        `[n, length, D]`; a sentence without words stays one of zeros.

    Raises:
        ValueError: if `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    used = np.asarray(x != 0).any(-1) * np.arange(1, x.shape[1] + 1)[None]
    words = np.maximum(used.max(-1), 1)
    rows = np.arange(length)[None] % words[:, None]
    return np.take_along_axis(np.asarray(x), rows[..., None], 1)


def _masked(batch: Batch) -> np.ndarray:
    return np.asarray(batch.x) * np.asarray(batch.mask, batch.x.dtype)[..., None]


STARTS: dict[str, Start] = {
    "noise": noise,
    "real": selected(random_balanced),
    "keywords": keywords,
}


def get(start: Any) -> Start:
    """The start of that name, or the user's own.

    Args:
        start: of `STARTS`, or of `SELECTIONS` for the sentences that it picks; or a
            `Start`, `named` or not.

    Raises:
        ValueError: for a name that is not known, listing those that are.
    """
    if isinstance(start, str) and start in SELECTIONS:
        return selected(SELECTIONS[start])
    known = STARTS | {name: noise for name in SELECTIONS}
    return resolve(start, known, "start")
