"""What a ranker is: asked for scores of several responses to each prompt; and the check of what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llm_backend.data.rows import Content
from llm_backend.ranking.errors import RankingError

Scores = NDArray[np.float64]


class Ranker(Protocol):
    """Says how good responses are."""

    @property
    def name(self) -> str:
        """What messages and manifests call it."""
        ...

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N), higher is better, for n prompts with N candidates each; NaN only where there is no verdict."""
        ...


@runtime_checkable
class CountingRanker(Ranker, Protocol):
    """A ranker that may abstain, and counts by name what it was asked and what came of it."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each thing happened since the ranker was made."""
        ...


def candidate_count(name: str, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> int:
    """N. Raises RankingError where prompts and rows of candidates differ in number, or rows are not of one length."""
    if len(prompts) != len(candidates):
        raise RankingError(
            f"{name} was given {len(prompts)} prompts but {len(candidates)} rows of candidates; give one row each"
        )
    width = len(candidates[0]) if candidates else 0
    for row, each in enumerate(candidates):
        if len(each) != width:
            raise RankingError(
                f"{name}: row 0 has {width} candidates but row {row} has {len(each)}; rank rows of one length together"
            )
    return width


def checked_scores(ranker: Ranker, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
    """The ranker's scores (n, N) as float64.

    NaN stands only where a ranker that counts (``CountingRanker``) gave no verdict.
    Raises: RankingError naming the ranker, and the row and candidate, for scores of another shape, scores that are no
    numbers, infinite ones, or NaN of a ranker that does not count.
    """
    width = candidate_count(ranker.name, prompts, candidates)
    returned = ranker.scores(prompts, candidates)
    try:
        scores = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError):
        raise RankingError(f"{ranker.name} returned scores that are no array of numbers: {returned!r:.60}") from None
    if scores.shape != (len(prompts), width):
        raise RankingError(
            f"{ranker.name} returned scores of shape {scores.shape} for {len(prompts)} prompts with {width} candidates "
            f"each; a ranker returns one score for each candidate, shape ({len(prompts)}, {width})"
        )
    bad = np.isinf(scores) if isinstance(ranker, CountingRanker) else ~np.isfinite(scores)
    if bad.any():
        row, candidate = (int(place) for place in np.argwhere(bad)[0])
        raise RankingError(
            f"{ranker.name} gave candidate {candidate} of row {row} the score {scores[row, candidate]}; "
            f"{int(bad.sum())} of {scores.size} scores are not finite, and only a ranker with counts may abstain"
        )
    return scores
