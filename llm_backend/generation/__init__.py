"""Responses of language models to prompts: seeded, batched, behind one interface."""

from __future__ import annotations

from llm_backend.generation.errors import GenerationError
from llm_backend.generation.model import ModelGenerator
from llm_backend.generation.protocol import Generator, Response, Sampling
from llm_backend.generation.vllm import VLLMGenerator

__all__ = ["Generator", "Response", "Sampling", "ModelGenerator", "VLLMGenerator", "GenerationError"]
