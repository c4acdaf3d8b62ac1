"""Distilled sentences in words: what stands nearest to each row in embedding space.

A learned row is no word; the cosine says how near its nearest one is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_ROWS = 256  # rows compared with the whole vocabulary at once


class Nearest(NamedTuple):
    """What `nearest_words` finds; k words for each row, nearest first.

    Attributes:
        words: `[..., L, k]`, the words; "" for a row of zeros, which has no direction.
        cosines: float32 `[..., L, k]`, in [-1, 1]; 0 for a row of zeros.
        ids: int32 `[..., L, k]`, the words' rows in `vectors`; 0 for a row of zeros.
            `ids[..., 0]` is the sentence as tokens, to train on.
    """

    words: np.ndarray
    cosines: np.ndarray
    ids: np.ndarray


def nearest_words(
    x: ArrayLike, vectors: ArrayLike, words: Sequence[str], k: int = 5
) -> Nearest:
    """The k words of largest cosine with each row of distilled sentences.

    Words whose vector is zero (padding) are never given. Of equally near words the
    one with the smaller id comes first.

    Args:
        x: `[..., L, D]` sentences in embedding space.
        vectors: `[V, D]`, one row for each word, such as `Vectors.table`. Their
            scale does not matter.
        words: V words, such as `Vectors.vocabulary.words`.
        k: words wanted for each row.

    Returns:
        A `Nearest`.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or a k
            below 1 or above the number of words with a vector.
    """
    rows, table = np.asarray(x, np.float32), np.asarray(vectors, np.float32)
    if table.ndim != 2 or rows.ndim < 2 or rows.shape[-1] != table.shape[-1]:
        raise ValueError(
            "x must be [..., L, D] and vectors [V, D], got "
            f"{list(rows.shape)} and {list(table.shape)}"
        )
    if len(words) != len(table):
        raise ValueError(f"{len(words)} words do not fit {len(table)} vectors")
    for name, values in (("x", rows), ("vectors", table)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    named = np.flatnonzero(lengths[:, 0])
    if not 1 <= k <= len(named):
        raise ValueError(
            f"k must be from 1 to {len(named)}, the words with a vector; got {k}"
        )
    units = table[named] / lengths[named]

    flat = rows.reshape(-1, rows.shape[-1])
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.where(norms, norms, 1)
    cosines = np.empty((len(flat), k), np.float32)
    ids = np.empty((len(flat), k), np.int32)
    for start in range(0, len(flat), _ROWS):
        chunk = slice(start, start + _ROWS)
        near = flat[chunk] @ units.T
        # Only what reaches the k-th largest is sorted, ties with it included.
        least = np.partition(near, -k, axis=1)[:, -k]
        for row, (values, cut) in enumerate(zip(near, least, strict=True), start):
            reach = np.flatnonzero(values >= cut)
            best = reach[np.argsort(-values[reach], kind="stable")[:k]]
            cosines[row], ids[row] = values[best], named[best]
    found = np.asarray(words, object)[ids]
    zero = norms[:, 0] == 0
    found[zero], cosines[zero], ids[zero] = "", 0, 0
    shape = (*rows.shape[:-1], k)
    return Nearest(
        found.astype(str).reshape(shape),
        np.clip(cosines, -1, 1).reshape(shape),
        ids.reshape(shape),
    )
