"""ROUGE-L: the bit-parallel LCS against the usual table, and the pool against comparing with every text."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_backend.prompts import PromptError
from llm_backend.prompts.rouge import TextPool, lcs_length, rouge_l, words

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


def lcs_table(one: list[str], two: list[str]) -> int:
    """The textbook recursion, cell by cell."""
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_bits_and_table_agree(one: list[str], two: list[str]) -> None:
    assert lcs_length(one, two) == lcs_table(one, two) == lcs_length(two, one)


def test_long_texts_too() -> None:
    rng = np.random.default_rng(0)
    one, two = (list(rng.choice(list("abcdefgh"), 150)) for _ in range(2))
    assert lcs_length(one, two) == lcs_table(one, two)


@given(st.lists(WORDS.map(" ".join), max_size=8), WORDS.map(" ".join), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_the_index_loses_nothing(pool: list[str], text: str, threshold: float) -> None:
    alike = [place for place, other in enumerate(pool) if rouge_l(text, other) >= threshold - 1e-12]
    assert TextPool(threshold, pool).similar(text) == (alike[0] if alike else None)


def test_by_hand() -> None:
    # name three rivers in europe / name two rivers of europe: name, rivers, europe; 2 * 3 / 10
    assert rouge_l("Name three rivers in Europe.", "name two rivers of Europe") == pytest.approx(0.6)
    assert rouge_l("same words!", "Same  words") == 1.0
    assert rouge_l("", "a") == rouge_l("?", "!") == 0.0
    assert words("Don't count_under 3.5") == ["don", "t", "count", "under", "3", "5"]
    pool = TextPool(0.6, ["name two rivers of Europe"])
    assert pool.similar("Name three rivers in Europe.") == 0  # at the threshold counts
    assert TextPool(0.61, ["name two rivers of Europe"]).similar("Name three rivers in Europe.") is None


def test_a_pool_of_thousands_is_searched_quickly() -> None:
    """20,000 instructions a round must not take hours: here a search among 5,000 stays far below 20 ms."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{number}" for number in range(2000)])
    shares = 1.0 / np.arange(1, 2001)
    texts = [" ".join(rng.choice(vocabulary, 15, p=shares / shares.sum())) for _ in range(5000)]
    pool = TextPool(0.7, texts[:4900])
    begun = time.perf_counter()
    found = [pool.similar(text) for text in texts[4900:]]
    assert time.perf_counter() - begun < 2.0
    assert len(found) == 100 and len(pool) == 4900


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(PromptError, match=r"threshold must be in \(0, 1\], got 0"):
        TextPool(0.0)
