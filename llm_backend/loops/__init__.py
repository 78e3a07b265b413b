"""Loops on language models: a store of policies, the data of a round, and the backend that the algorithms run on."""

from __future__ import annotations

from llm_backend.loops.backend import LanguageBackend
from llm_backend.loops.candidate_source import CandidateSource, model_generator, vllm_generator
from llm_backend.loops.errors import LoopError, StoreError
from llm_backend.loops.evaluator import LoopEvaluator
from llm_backend.loops.fusion_source import FusionSource
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import LoopRows, RoundText
from llm_backend.loops.sources import Draw, FixedSource, RoundSource, SourcesByKind
from llm_backend.loops.store import PolicyStore
from llm_backend.loops.training import LoopTraining

__all__ = [
    "LanguageBackend", "LoopTraining", "PolicyStore", "StoredPolicy", "LoopRows", "RoundText",
    "Draw", "RoundSource", "CandidateSource", "FixedSource", "FusionSource", "SourcesByKind", "model_generator",
    "vllm_generator",     "LoopEvaluator", "LoopError", "StoreError",
]  # fmt: skip
