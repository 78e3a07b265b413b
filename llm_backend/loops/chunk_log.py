"""Work that is done chunk by chunk and written down after each: a process that is killed repeats one chunk at most."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_backend.loops.errors import StoreError

HEADER, CHUNK = "header", "chunk"


class ChunkLog:
    """A JSONL file: a header that says what the work depends on, then one line for each finished chunk, in order.

    A last line that a kill left incomplete is cut off. Raises: StoreError for a file of other work, or a damaged one.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, json.loads(json.dumps(dict(header)))
        self.chunks: list[Any] = []
        if path.is_file():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)

    def chunk(self, number: int, work: Callable[[], Any]) -> Any:
        """The outcome of a chunk, as JSON: what is written, or else what ``work`` gives."""
        if number > len(self.chunks):
            raise StoreError(f"chunk {number} is asked for before chunk {len(self.chunks)}; do the chunks in order")
        if number == len(self.chunks):
            self._append({CHUNK: number, "content": work()})
        return self.chunks[number]

    def _append(self, line: dict[str, Any]) -> None:
        lines = [line] if self.path.is_file() else [{HEADER: self.header}, line]
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(each) + "\n" for each in lines))
            stream.flush()
            os.fsync(stream.fileno())
        self.chunks.append(json.loads(json.dumps(line["content"])))

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, end, rest = content.rpartition(b"\n")
        if rest:  # a kill came in between
            os.truncate(self.path, len(whole) + len(end))
        lines = whole.split(b"\n") if whole else []
        if not lines:
            self.path.unlink()
            return
        try:
            parsed = [json.loads(line) for line in lines]
            header, self.chunks = parsed[0][HEADER], [line["content"] for line in parsed[1:]]
            numbers = [line[CHUNK] for line in parsed[1:]]
        except (ValueError, KeyError, TypeError) as problem:
            raise StoreError(f"{self.path} is damaged ({problem!r:.60}); delete it, and it is made again") from None
        if header != self.header or numbers != list(range(len(numbers))):
            raise StoreError(f"{self.path} belongs to other work; delete it, and it is made again")
