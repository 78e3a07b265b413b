"""The instructions of a round, batch by batch: kept in memory, or in a JSONL file that gains a line with each batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_backend.data.json_lines import append_line, cut_unfinished, whole_lines
from llm_backend.prompts.errors import PromptError


class RoundJournal:
    """What was asked for in a round, and the batches that came, in order; in a file where a path is given.

    The file's first line is the request. A last line that a kill cut off is taken away, so that its batch is written
    anew. Raises: PromptError for a file that is damaged elsewhere, or is no such file.
    """

    def __init__(self, path: Path | None, request: Mapping[str, Any]) -> None:
        self.path, self.request, self.batches = path, dict(request), list[dict[str, Any]]()
        if path is None:
            return
        lines = whole_lines(path)
        if lines:
            self.request, *self.batches = _records(path, lines)
        cut_unfinished(path)
        if not lines:
            append_line(path, self.request)

    def check(self, request: Mapping[str, Any]) -> RoundJournal:
        """The journal itself. Raises ``PromptError`` where it was begun for another request."""
        differing = [name for name in request if self.request.get(name) != request[name]]
        if not differing:
            return self
        raise PromptError(
            f"{self.path or 'this source'} was begun with another {' and another '.join(differing)}; use another "
            "folder, or delete its file and those of later rounds"
        )

    def add(self, batch: dict[str, Any]) -> None:
        """Append one batch; on disk when this returns."""
        if self.path is not None:
            append_line(self.path, batch)
        self.batches.append(batch)


def _records(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line.decode("utf-8")) for line in lines]
    except UnicodeDecodeError:
        raise PromptError(f"{path} is damaged: it is not UTF-8 text; delete it to write its round anew") from None
    except json.JSONDecodeError as error:
        raise PromptError(f"{path} is damaged ({error.msg}); delete it to write its round anew") from None
    first = records[0] if isinstance(records[0], dict) else {}
    if "round" not in first or not all(
        isinstance(each, dict) and {"accepted", "counts"} <= set(each) for each in records[1:]
    ):
        raise PromptError(f"{path} is no file of new instructions; use another folder")
    return records
