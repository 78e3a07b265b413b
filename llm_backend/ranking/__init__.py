"""Which of several responses is better: rankers behind one interface."""

from __future__ import annotations

from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.protocol import CountingRanker, Ranker, Scores, checked_scores

__all__ = ["Ranker", "CountingRanker", "Scores", "RankingError", "checked_scores"]
