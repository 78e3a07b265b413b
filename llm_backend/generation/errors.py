"""The error of generating responses."""

from __future__ import annotations

from llm_backend.errors import BackendError


class GenerationError(BackendError):
    """Prompts, a model or settings from which no responses can be generated; one sentence that says why."""
