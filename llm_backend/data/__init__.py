"""Preference data for language models: one file a format, all of them read into ``Preferences``."""

from __future__ import annotations

from llm_backend.data.errors import DataError
from llm_backend.data.fusion import Candidate, FusionPrompt, Quadruples, best_source, fusion_rows, mmlu_fusion
from llm_backend.data.hh import hh_from_records
from llm_backend.data.load import FORMATS, load_preferences, load_records
from llm_backend.data.mmlu_pro import (
    Question,
    QuestionSplit,
    mmlu_pairs,
    mmlu_sets,
    questions_from_records,
    split_questions,
)
from llm_backend.data.noise import flip_labels
from llm_backend.data.pairs import pairs_from_records
from llm_backend.data.records import read_records
from llm_backend.data.rows import PreferenceRow, Preferences, ResponseSet, check_row

__all__ = [
    "PreferenceRow", "Preferences", "ResponseSet", "check_row", "DataError",
    "load_preferences", "load_records", "read_records", "FORMATS",
    "pairs_from_records", "hh_from_records",
    "Question", "QuestionSplit", "questions_from_records", "split_questions", "mmlu_pairs", "mmlu_sets",
    "Candidate", "FusionPrompt", "Quadruples", "best_source", "fusion_rows", "mmlu_fusion",
    "flip_labels",
]  # fmt: skip
