"""What a source of prompts is: asked for n prompts of a round, it gives them with keys and says what it dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llm_backend.data.rows import Content
from llm_backend.prompts.errors import PromptError

if TYPE_CHECKING:
    from llm_backend.generation import Generator

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one round, the number that each is known by (unique within the batch), and what filters dropped."""

    prompts: tuple[Content, ...]
    keys: tuple[int, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)


class PromptSource(Protocol):
    """Gives prompts. The same arguments give the same batch, whatever was asked before and however often."""

    def prompts(
        self, round_index: int, n: int, *, generator: Generator, seed: int, split: str = "train"
    ) -> PromptBatch:
        """n prompts of a round (counted from 1) and split: ``train``, or ``heldout``, which shares no prompt with it.

        ``generator`` writes new prompts where the source needs a model, as the newest policy does in AIPO.
        Raises: PromptError where fewer than n can be had, saying what took the others.
        """
        ...


def check_request(round_index: int, n: int, split: str) -> None:
    """Raises ``PromptError`` for a round before the first, no prompts, or an unknown split."""
    if round_index < 1:
        raise PromptError(f"rounds count from 1, got round {round_index}")
    if n < 1:
        raise PromptError(f"ask for at least 1 prompt, got {n}")
    if split not in SPLITS:
        raise PromptError(f"unknown split {split!r} of prompts; known: {', '.join(SPLITS)}")
