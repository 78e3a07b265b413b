"""Where prompts come from: a list, or instructions that a model writes from seed tasks (self-instruct)."""

from __future__ import annotations

from llm_backend.prompts.errors import PromptError
from llm_backend.prompts.fixed import FixedPrompts
from llm_backend.prompts.source import PromptBatch, PromptSource

__all__ = ["PromptSource", "PromptBatch", "FixedPrompts", "PromptError"]
