"""Merging language models: weighted sums of model folders, streamed, and what a merged model says of preferences."""

from __future__ import annotations

from llm_backend.merging.errors import MergeError
from llm_backend.merging.margins import MergedMargins, merged_margins
from llm_backend.merging.merge import merge_folders
from llm_backend.merging.report import MergeReport

__all__ = ["MergeError", "MergeReport", "MergedMargins", "merge_folders", "merged_margins"]
