"""ROUGE-L between short texts, exactly, and a pool that is searched for texts like a new one.

    ROUGE-L(a, b) = 2 LCS(a, b) / (|a| + |b|)                 (the F measure with equal weights; 1 for equal texts)

LCS is the length of the longest common subsequence of words. Words are runs of letters and digits, in lower case.
Source: Lin 2004 (ROUGE), Sec. 3.1, with beta = 1; as a filter of instructions: Wang et al. 2023 (arXiv:2212.10560).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_backend.prompts.errors import PromptError

_ROUNDING = 1e-9  # of 0.7 * 30 and the like, so that equality with the threshold counts
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case.

    >>> words("What's 2+2?")
    ['what', 's', '2', '2']
    """
    return _WORD.findall(text.lower())


def lcs_length(one: Sequence[str], two: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bits: one addition of |one|-bit numbers for each word of two.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".

    >>> lcs_length("a b c d".split(), "b x d a".split())
    2
    """
    full = (1 << len(one)) - 1
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | (1 << place)
    column = full  # a zero at place i says that the LCS grows there
    for word in two:
        match = column & places.get(word, 0)
        column = ((column + match) | (column - match)) & full
    return len(one) - column.bit_count()


def rouge_l(one: str, two: str) -> float:
    """ROUGE-L of two texts, in [0, 1]; 0 where one of them has no words.

    >>> rouge_l("name three rivers", "name two rivers")
    0.6666666666666666
    """
    a, b = words(one), words(two)
    return 2.0 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class TextPool:
    """Texts, searched for one with ROUGE-L at or above a threshold.

    LCS is at most the number of words that two texts share, so an index from words to texts rules most of them out; the
    others are compared exactly. Raises: PromptError for a threshold outside (0, 1].
    """

    def __init__(self, threshold: float, texts: Sequence[str] = ()) -> None:
        if not 0.0 < threshold <= 1.0:
            raise PromptError(f"the similarity threshold must be in (0, 1], got {threshold}")
        self.threshold = threshold
        self._words: list[list[str]] = []
        self._postings: dict[tuple[str, int], list[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, text: str) -> None:
        """Put one text into the pool."""
        place, found = len(self._words), words(text)
        self._words.append(found)
        for entry in _numbered(found):
            self._postings.setdefault(entry, []).append(place)

    def similar(self, text: str) -> int | None:
        """The place of the first text that is as like as the threshold says, or None."""
        query = words(text)
        for place in self._possible(query):
            other = self._words[place]
            if 2.0 * lcs_length(query, other) >= self.threshold * (len(query) + len(other)) - _ROUNDING:
                return int(place)
        return None

    def _possible(self, query: list[str]) -> NDArray[np.int64]:
        """Places of the texts that share enough words with the query."""
        hits = [self._postings[entry] for entry in _numbered(query) if entry in self._postings]
        if not hits:
            return np.zeros(0, dtype=np.int64)
        shared = np.bincount(np.concatenate([np.asarray(each) for each in hits]))
        places = np.flatnonzero(shared)
        lengths = np.array([len(self._words[place]) for place in places])
        return places[2.0 * shared[places] >= self.threshold * (len(query) + lengths) - _ROUNDING]


def _numbered(found: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with how often it came before, so that sets of these intersect as multisets of words do."""
    seen: dict[str, int] = {}
    result = []
    for word in found:
        seen[word] = seen.get(word, 0) + 1
        result.append((word, seen[word]))
    return result
