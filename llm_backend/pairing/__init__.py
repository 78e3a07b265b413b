"""From ranked candidates to preference rows: which two responses are paired, and what is left out, by name."""

from __future__ import annotations

from llm_backend.pairing.candidates import Candidates
from llm_backend.pairing.errors import PairingError
from llm_backend.pairing.making import make_pairs, require_pairs
from llm_backend.pairing.response_sources import (
    GeneratedResponses,
    JoinedResponses,
    LabelRanker,
    RecordedResponses,
    ResponseSource,
    ranked,
    scored,
)
from llm_backend.pairing.rule import FILTERS, WEB_ADDRESS, PairRule

__all__ = [
    "Candidates", "PairRule", "make_pairs", "require_pairs", "FILTERS", "WEB_ADDRESS", "PairingError",
    "ResponseSource", "GeneratedResponses", "RecordedResponses", "JoinedResponses", "LabelRanker", "ranked",
    "scored",
]  # fmt: skip
