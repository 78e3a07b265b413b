"""The error of merging."""

from __future__ import annotations

from llm_backend.errors import BackendError


class MergeError(BackendError):
    """Models that cannot be merged, or a place that the merge cannot be written to; one sentence that says why."""
