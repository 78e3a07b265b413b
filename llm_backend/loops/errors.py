"""Errors of loops on language models: one sentence each, for the user."""

from __future__ import annotations

from llm_backend.errors import BackendError


class LoopError(BackendError):
    """A policy, a source of data, or a plan that a loop on language models cannot use."""


class StoreError(LoopError):
    """A policy store that lacks something, or holds something damaged."""
