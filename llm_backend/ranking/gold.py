"""A reward that is a function: the rule of a world, right answers, a check that a program makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llm_backend.data.rows import Content
from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.protocol import Scores, candidate_count


class GoldRanker:
    """Scores by ``function(prompt, response)``, a number for each response by itself.

    Raises (on ranking): RankingError, naming row and candidate, where the function returns no number.
    """

    def __init__(self, function: Callable[[Content, str], float], *, name: str = "gold") -> None:
        self.function, self._name = function, name

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N)."""
        found = np.zeros((len(prompts), candidate_count(self.name, prompts, candidates)))
        for row, (prompt, several) in enumerate(zip(prompts, candidates, strict=True)):
            for place, response in enumerate(several):
                value = self.function(prompt, response)
                try:
                    found[row, place] = float(value)
                except (TypeError, ValueError):
                    raise RankingError(
                        f"{self.name} returned {value!r:.40} for candidate {place} of row {row}; a reward is a number"
                    ) from None
        return found
