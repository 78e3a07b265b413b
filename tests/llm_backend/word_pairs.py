"""Rows of preference pairs in words that are one token each, for tests of tokenisation."""

from __future__ import annotations

from typing import Any

from llm_backend.data import PreferenceRow
from llm_backend.tokenization import TokenOptions, tokenize_preferences
from llm_backend.toy import make_tokenizer

WORDS = "one two three four five six seven eight nine ten"


def word_tokenizer() -> Any:
    """Every word of WORDS is one token, with its space; so is the first without one."""
    return make_tokenizer([WORDS] * 3 + ["one two"], 400)


def pair(prompt: Any = "one two", chosen: Any = " three four", rejected: Any = " five", row: int = 0) -> PreferenceRow:
    return PreferenceRow(row, prompt, chosen, rejected)


def says(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def only(tokenizer: Any, row: PreferenceRow, **options: Any) -> dict[str, Any]:
    """The one row that tokenisation gives."""
    dataset = tokenize_preferences([row], tokenizer, TokenOptions(**options)).dataset
    assert len(dataset) == 1
    found: dict[str, Any] = dataset[0]
    return found
