"""Work that is done chunk by chunk and written down after each: a process that is killed repeats one chunk at most."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_backend.data.json_lines import append_line, cut_unfinished, whole_lines
from llm_backend.loops.errors import StoreError

HEADER, CHUNK = "header", "chunk"


class ChunkLog:
    """A JSONL file: a header that says what the work depends on, then one line for each finished chunk, in order.

    A last line that a kill left incomplete is cut off. Raises: StoreError for a file of other work, or a damaged one.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, json.loads(json.dumps(dict(header)))
        self.chunks: list[Any] = []
        lines = whole_lines(path)
        self.begun = bool(lines)
        if self.begun:
            self._read(lines)
        cut_unfinished(path)

    def chunk(self, number: int, work: Callable[[], Any]) -> Any:
        """The outcome of a chunk, as JSON: what is written, or else what ``work`` gives."""
        if number > len(self.chunks):
            raise StoreError(f"chunk {number} is asked for before chunk {len(self.chunks)}; do the chunks in order")
        if number == len(self.chunks):
            self._append({CHUNK: number, "content": work()})
        return self.chunks[number]

    def _append(self, line: dict[str, Any]) -> None:
        for each in [line] if self.begun else [{HEADER: self.header}, line]:
            append_line(self.path, each)
        self.begun = True
        self.chunks.append(json.loads(json.dumps(line["content"])))

    def _read(self, lines: list[bytes]) -> None:
        try:
            parsed = [json.loads(line) for line in lines]
            header, self.chunks = parsed[0][HEADER], [line["content"] for line in parsed[1:]]
            numbers = [line[CHUNK] for line in parsed[1:]]
        except (ValueError, KeyError, TypeError) as problem:
            raise StoreError(f"{self.path} is damaged ({problem!r:.60}); delete it, and it is made again") from None
        if header != self.header or numbers != list(range(len(numbers))):
            raise StoreError(f"{self.path} belongs to other work; delete it, and it is made again")
