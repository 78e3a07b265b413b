"""The error of finding prompts."""

from __future__ import annotations

from llm_backend.errors import BackendError


class PromptError(BackendError):
    """A source that cannot give the prompts it was asked for; one sentence that says why."""
