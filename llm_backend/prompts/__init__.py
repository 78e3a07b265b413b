"""Where prompts come from: a list, or instructions that a model writes from seed tasks (self-instruct)."""

from __future__ import annotations

from llm_backend.prompts.errors import PromptError
from llm_backend.prompts.fixed import FixedPrompts
from llm_backend.prompts.instruction_filters import InstructionFilters
from llm_backend.prompts.options import SelfInstructOptions
from llm_backend.prompts.seed_tasks import SeedTask, load_seed_tasks, seed_tasks_from_records
from llm_backend.prompts.self_instruct import SelfInstruct
from llm_backend.prompts.source import PromptBatch, PromptSource

__all__ = [
    "PromptSource", "PromptBatch", "FixedPrompts", "PromptError",
    "SelfInstruct", "SelfInstructOptions", "InstructionFilters",
    "SeedTask", "load_seed_tasks", "seed_tasks_from_records",
]  # fmt: skip
