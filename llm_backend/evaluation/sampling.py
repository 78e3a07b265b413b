"""Responses that a model writes, greedy or sampled: a row's tokens depend on its seed, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_backend.evaluation.encoding import TokenSet
from llm_backend.evaluation.errors import EvaluationError
from llm_backend.generation import GenerationError
from llm_backend.generation import Sampling as Drawing
from llm_backend.generation.writing import write_tokens


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """``temperature`` 0 is greedy. Sampling is from the whole vocabulary: no top-p or top-k, so that KL has a meaning.

    A response ends with EOS, or without one after ``max_new_tokens``.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.temperature < float("inf"):
            raise EvaluationError(f"temperature must be 0 (greedy) or more, got {self.temperature}")


def sample_responses(
    model: Any,
    sets: Sequence[TokenSet],
    decoding: Decoding,
    *,
    samples: int = 1,
    eos_id: int | None,
    pad_id: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[list[list[int]]]:
    """``samples`` responses to the prompt of each set, EOS included where one was written.

    The tokens of sample s to row r are drawn as ``write_tokens`` says for key r, and so do not depend on the batch.
    Raises: EvaluationError where prompt and response would not fit into the model's context.
    """
    try:
        drawing = Drawing(
            candidates=samples,
            temperature=decoding.temperature,
            max_new_tokens=decoding.max_new_tokens,
            batch_size=decoding.batch_size,
        )
        return write_tokens(
            model,
            [each.prompt for each in sets],
            [each.row for each in sets],
            drawing,
            seed=decoding.seed,
            ends=frozenset() if eos_id is None else frozenset([eos_id]),
            pad_id=pad_id,
            progress=progress,
        )
    except GenerationError as problem:
        raise EvaluationError(str(problem)) from None
