"""The error of making pairs out of ranked responses."""

from __future__ import annotations

from llm_backend.errors import BackendError


class PairingError(BackendError):
    """Candidates, scores or a rule from which no pairs can be made; one sentence that says why."""
