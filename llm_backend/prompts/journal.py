"""The instructions of a round, batch by batch: kept in memory, or in a JSONL file that gains a line with each batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_backend.prompts.errors import PromptError


class RoundJournal:
    """What was asked for in a round, and the batches that came, in order; in a file where a path is given.

    The file's first line is the request. A last line that a kill cut off is taken away, so that its batch is written
    anew. Raises: PromptError for a file that is damaged elsewhere, or is no such file.
    """

    def __init__(self, path: Path | None, request: Mapping[str, Any]) -> None:
        self.path, self.request, self.batches = path, dict(request), list[dict[str, Any]]()
        lines = [] if path is None or not path.exists() else _whole_lines(path)
        if path is None:
            return
        if lines:
            self.request, *self.batches = _records(path, lines)
        if not lines or not path.read_bytes().endswith(b"\n"):
            _replace(path, lines or [json.dumps(self.request)])

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
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(batch) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.batches.append(batch)


def _whole_lines(path: Path) -> list[str]:
    content = path.read_bytes().rpartition(b"\n")[0]
    try:
        return content.decode("utf-8").split("\n") if content else []
    except UnicodeDecodeError:
        raise PromptError(f"{path} is damaged: it is not UTF-8 text; delete it to write its round anew") from None


def _records(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise PromptError(f"{path} is damaged ({error.msg}); delete it to write its round anew") from None
    first = records[0] if isinstance(records[0], dict) else {}
    if "round" not in first or not all(
        isinstance(each, dict) and {"accepted", "counts"} <= set(each) for each in records[1:]
    ):
        raise PromptError(f"{path} is no file of new instructions; use another folder")
    return records


def _replace(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(part, path)
