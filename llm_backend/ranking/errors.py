"""The error of ranking responses."""

from __future__ import annotations

from llm_backend.errors import BackendError


class RankingError(BackendError):
    """A ranker, or the scores it gave, that cannot be used; one sentence that names the ranker and says why."""
