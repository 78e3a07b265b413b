"""What a generator is: asked for several responses to each prompt, it gives them, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_backend.data.rows import Content
from llm_backend.generation.errors import GenerationError


@dataclass(frozen=True, slots=True)
class Response:
    """One response. ``token_ids`` are what the model wrote, the end token included where it wrote one; ``text`` is
    without special tokens; ``finished`` says that it ended by itself and was not cut at the limit."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn: ``candidates`` to each prompt, each of at most ``max_new_tokens`` tokens.

    The next token is drawn from softmax(logits / temperature), cut to its ``top_k`` likeliest tokens (0: all) and then
    to the fewest of these, likeliest first, that hold ``top_p`` of their probability. Temperature 0 is greedy.
    Raises: GenerationError for a setting out of its range, or several candidates at temperature 0.
    """

    candidates: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("candidates", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise GenerationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"top_p must be in (0, 1], where 1 is no cut, got {self.top_p}")
        if self.top_k < 0:
            raise GenerationError(f"top_k must be 0 (no cut) or more, got {self.top_k}")
        if self.temperature == 0.0 and self.candidates > 1:
            raise GenerationError(
                f"at temperature 0 (greedy) all {self.candidates} candidates would be the same; raise the temperature, "
                "or ask for one"
            )
        if self.temperature == 0.0 and (self.top_p < 1.0 or self.top_k > 0):
            raise GenerationError("temperature 0 (greedy) would ignore top_p and top_k; leave them out")


class Generator(Protocol):
    """Writes responses to prompts."""

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        """``sampling.candidates`` responses to each prompt, in order.

        Sample s of the prompt with key k depends on (seed, k, s) and the prompt alone, not on what else is generated
        with it, up to rounding. Keys default to places in ``prompts``.
        Raises: GenerationError for a prompt that does not fit into the model's context, or keys that do not fit.
        """
        ...


def checked_keys(prompts: Sequence[Content], keys: Sequence[int] | None) -> list[int]:
    """The keys, or places where there are none. Raises GenerationError for another number of keys, or negative ones."""
    found = list(range(len(prompts))) if keys is None else [int(key) for key in keys]
    if len(found) != len(prompts):
        raise GenerationError(f"there are {len(prompts)} prompts but {len(found)} keys; give one key for each prompt")
    if any(key < 0 for key in found):
        raise GenerationError(f"a key must be a whole number >= 0, got {min(found)}")
    return found
