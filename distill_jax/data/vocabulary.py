"""Words and their ids; 0 is padding, 1 is the unknown word."""

import hashlib
import html
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PADDING, UNKNOWN = "<pad>", "<unk>"
# Curly quotes, also those of Windows-1252 that were read as Latin-1.
_STRAIGHT = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\x91\x92", "'"),
        **dict.fromkeys("\u201c\u201d\x93\x94", '"'),
        **dict.fromkeys("\x96\x97", "--"),
        "\u2026": "...",
    }
)
# AG News was published with its ampersands lost: "#39;s" for "'s".
_ESCAPE = re.compile(r"(?:&|(?<![\w&]))(#\d+|quot|amp|lt|gt|nbsp);")
_TAG = re.compile(r"</?(?:br|hr|p|b|i|u|em|strong|a|font)\b[^<>]*>")
_NOT = re.compile(r"(?<=\w)n't\b")
_TOKEN = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,]\d+)+|\w+|\.\.\.|--|``|''|[^\w\s]"
)


def tokenize(text: str) -> list[str]:
    """Lower-case words and punctuation, as in Kim (2014) and in GloVe's vocabulary.

    Contractions are split (`do n't`, `it 's`), numbers with points or commas stay
    whole, each punctuation mark is a token except `...`, `--`, the two double marks
    of the Penn Treebank, and HTML tags go.

    Args:
        text: any string.

    Returns:
        Tokens, possibly none.
    """
    text = text.lower().translate(_STRAIGHT)
    if ";" in text:
        text = _ESCAPE.sub(lambda m: html.unescape(f"&{m[1]};"), text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "n't" in text:
        text = _NOT.sub(" n't", text)
    return _TOKEN.findall(text)


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their ids.

    Attributes:
        words: V distinct words; the first two are the padding and the unknown word.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        if self.words[:2] != (PADDING, UNKNOWN):
            raise ValueError(
                f"a vocabulary begins with {PADDING!r}, {UNKNOWN!r}; "
                f"got {self.words[:2]}"
            )
        if len(set(self.words)) != len(self.words):
            twice = next(w for w, n in Counter(self.words).items() if n > 1)
            raise ValueError(f"a vocabulary lists each word once; {twice!r} is twice")

    @classmethod
    def build(
        cls, texts: Iterable[str], *, max_size: int | None = None, min_count: int = 1
    ) -> "Vocabulary":
        """The words of some texts, most frequent first, ties by spelling.

        Args:
            texts: normally those of the train split.
            max_size: largest V, the two special words included; None for no bound.
            min_count: rarer words are left out.

        Returns:
            The vocabulary.

        Raises:
            ValueError: no word is left.
        """
        counts = Counter(token for text in texts for token in tokenize(text))
        words = [word for word, count in counts.items() if count >= min_count]
        words.sort(key=lambda word: (-counts[word], word))
        if max_size is not None:
            words = words[: max(max_size - 2, 0)]
        if not words:
            raise ValueError(
                f"no words left of {len(counts)} with min_count={min_count}, "
                f"max_size={max_size}; lower the one or raise the other"
            )
        return cls((PADDING, UNKNOWN, *words))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @property
    def sha256(self) -> str:
        """Digest of the words, one a line."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.words)

    def restrict(self, known: Container[str]) -> "Vocabulary":
        """The same order without the words that are not in `known`."""
        return Vocabulary(
            self.words[:2] + tuple(word for word in self.words[2:] if word in known)
        )

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Token ids of texts, cut off or padded with 0 on the right.

        A text without a token becomes one unknown word, so no row is all padding.

        Args:
            texts: N strings.
            length: L, at least 1.

        Returns:
            int32 `[N, L]`.

        Raises:
            ValueError: `length` is less than 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}, expected at least 1")
        ids, unknown = self.ids, self.ids[UNKNOWN]
        tokens = np.zeros((len(texts), length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            found = [ids.get(t, unknown) for t in tokenize(text)[:length]] or [unknown]
            row[: len(found)] = found
        return tokens

    def unknown_shares(self, texts: Iterable[str]) -> dict[str, float]:
        """Share of the tokens and of the distinct words that are unknown, in [0, 1].

        Args:
            texts: whole texts, nothing is cut off.

        Returns:
            `{"tokens": share, "types": share}`.
        """
        counts = Counter(token for text in texts for token in tokenize(text))
        unknown = [n for word, n in counts.items() if word not in self.ids]
        return {
            "tokens": sum(unknown) / max(counts.total(), 1),
            "types": len(unknown) / max(len(counts), 1),
        }
