"""Answers of a judge that were paid for, kept in a file of JSON lines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from llm_backend.data.json_lines import append_line, cut_unfinished, whole_lines
from llm_backend.ranking.errors import RankingError


class AnswerCache:
    """Answers by key, in memory and, with a path, in a file to which each is appended as it comes.

    An answer of None is one without text. A last line that a killed process left unfinished is cut off.
    Raises: RankingError, naming the line, for a file with other content.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._answers, self._lock = path, dict[str, str | None](), threading.Lock()
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> str | None:
        return self._answers[key]

    def add(self, key: str, answer: str | None) -> None:
        """Keep an answer. May be called from several threads."""
        with self._lock:
            self._answers[key] = answer
            if self.path is not None:
                append_line(self.path, {"key": key, "answer": answer})

    def _read(self, path: Path) -> None:
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
            except (ValueError, KeyError, TypeError):
                raise RankingError(
                    f"line {number} of {path} is no answer of a judge; name another file for the answers"
                ) from None
            self._answers[key] = answer
        cut_unfinished(path)
