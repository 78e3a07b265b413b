"""Which new instructions are kept: named filters, asked in a fixed order, each instruction counted once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_backend.prompts.errors import PromptError

FILTERS = (
    "unparseable", "cut_off", "too_short", "too_long", "banned_words", "banned_start", "language", "repeats",
    "near_duplicates", "surplus",
)  # fmt: skip
"""What can become of an item of a model's list that is not kept. ``unparseable`` counts answers without any item."""

BANNED_WORDS = (
    "image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "diagram", "diagrams", "chart",
    "charts", "file", "files", "map", "maps", "draw", "plot", "video", "videos", "audio", "go to",
)  # fmt: skip
"""Words of tasks that need more than text."""

_ANSWER = re.compile(r"\b(?:answer|output|solution|a)\s*:", re.IGNORECASE)
_EXAMPLE = re.compile(r"\bexamples?\s*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionFilters:
    """Filters of single instructions; ``similarity`` is that of ROUGE-L against the pool, or None for no such filter.

        too_short, too_long  fewer than ``shortest``, more than ``longest`` words
        banned_words         one of ``banned_words`` occurs, as a whole word
        banned_start         it begins with one of ``banned_starts`` or with a punctuation mark
        language             it begins outside ASCII, or more than ``other_letters`` of its letters are outside ASCII
        repeats              it equals one in the pool up to case and white space
        near_duplicates      its ROUGE-L with one in the pool is at least ``similarity``

    Sources: Self-Instruct (arXiv:2212.10560), Sec. 2.2, for all but ``other_letters``, which is ours; AIPO's code has
    the same ones without the last. The words in ``BANNED_WORDS`` are theirs and some more of the kind.
    Raises: PromptError for a value outside its range.
    """

    shortest: int = 4
    longest: int = 150
    banned_words: tuple[str, ...] = BANNED_WORDS
    banned_starts: tuple[str, ...] = ("write a program",)
    other_letters: float = 0.1
    similarity: float | None = 0.7

    def __post_init__(self) -> None:
        if self.shortest < 1 or self.longest < self.shortest:
            raise PromptError(
                "an instruction has at least 1 word, and longest must not be below shortest, got "
                f"shortest {self.shortest} and longest {self.longest}"
            )
        if not 0.0 <= self.other_letters <= 1.0:
            raise PromptError(f"other_letters is a share in [0, 1], got {self.other_letters}")
        if self.similarity is not None and not 0.0 < self.similarity <= 1.0:
            raise PromptError(f"similarity must be in (0, 1] or None, got {self.similarity}")

    def verdict(self, text: str) -> str | None:
        """The first filter that takes the instruction by itself, or None."""
        count, plain = len(text.split()), text.lower()
        if count < self.shortest:
            return "too_short"
        if count > self.longest:
            return "too_long"
        if any(re.search(rf"\b{re.escape(word.lower())}\b", plain) for word in self.banned_words):
            return "banned_words"
        if plain.startswith(tuple(start.lower() for start in self.banned_starts)) or _is_mark(plain[0]):
            return "banned_start"
        letters = [letter for letter in text if letter.isalpha()]
        foreign = sum(not letter.isascii() for letter in letters)
        if not text[0].isascii() or foreign > self.other_letters * len(letters):
            return "language"
        return None


def without_answer(text: str) -> str:
    """The text before "Answer:", "Output:", "Solution:" or "A:", unless it gives examples; white space made single.

    Source: AIPO's code (arXiv:2409.08845). A model that goes on to answer its own task has written more than the task.

    >>> without_answer("Name a river. Answer: the Rhine")
    'Name a river.'
    """
    text = " ".join(text.split())
    if _EXAMPLE.search(text):
        return text
    found = _ANSWER.search(text)
    return text[: found.start()].strip() if found else text


def _is_mark(letter: str) -> bool:
    return letter.isascii() and not letter.isalnum()
