"""Some responses to one prompt, and a ranker's scores of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm_backend.data.rows import Content
from llm_backend.pairing.errors import PairingError

if TYPE_CHECKING:
    from llm_backend.generation import Response


@dataclass(frozen=True)
class Candidates:
    """N >= 2 responses to ``prompt`` and their scores (N,): higher is better, NaN where the ranker gave no verdict.

    ``key`` is the prompt's number, unique within what is paired together; rows are numbered by it.
    Raises: PairingError, naming the key, for fewer than two responses, another number of scores, or infinite ones.
    """

    prompt: Content
    key: int
    responses: tuple[Response, ...]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        object.__setattr__(self, "responses", tuple(self.responses))
        object.__setattr__(self, "scores", scores)
        if self.key < 0:
            raise PairingError(f"the key of a prompt must be a whole number >= 0, got {self.key}")
        if len(self.responses) < 2:
            raise PairingError(
                f"prompt {self.key} has {len(self.responses)} response(s); a pair needs at least 2 candidates"
            )
        if scores.shape != (len(self.responses),):
            raise PairingError(
                f"prompt {self.key} has {len(self.responses)} responses but scores of shape {scores.shape}; "
                "give one score for each response"
            )
        if np.isinf(scores).any():
            place = int(np.flatnonzero(np.isinf(scores))[0])
            raise PairingError(
                f"prompt {self.key}: the score of response {place} is {scores[place]}; scores are finite, or NaN where "
                "the ranker gave no verdict"
            )
