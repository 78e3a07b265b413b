"""AuxDPO's auxiliary variables for any torch policy: delta, its weights, its constraint, and what they can identify."""

from __future__ import annotations

from llm_backend.auxiliary.batch import AuxiliaryRows, rows_of
from llm_backend.auxiliary.curvature import largest_curvature
from llm_backend.auxiliary.dimensions import DimensionReport, dimensions, estimate_dimensions
from llm_backend.auxiliary.errors import AuxiliaryError
from llm_backend.auxiliary.options import AuxiliaryOptions
from llm_backend.auxiliary.sampled import sampled_dimensions
from llm_backend.auxiliary.scores import ReferenceScores
from llm_backend.auxiliary.slots import Slots, response_key
from llm_backend.auxiliary.variables import Auxiliary
from llm_backend.auxiliary.weighting import plain_weights, reference_weights, set_log_probs

__all__ = [
    "Auxiliary",
    "AuxiliaryError",
    "AuxiliaryOptions",
    "AuxiliaryRows",
    "DimensionReport",
    "ReferenceScores",
    "Slots",
    "dimensions",
    "estimate_dimensions",
    "largest_curvature",
    "plain_weights",
    "reference_weights",
    "response_key",
    "rows_of",
    "sampled_dimensions",
    "set_log_probs",
]
