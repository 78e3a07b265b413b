"""Files of JSON lines that gain a line at a time, and are read again after a kill in the middle of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[bytes]:
    """The lines that were finished, without their ends; none for a file that is not there."""
    content = path.read_bytes() if path.exists() else b""
    return content.split(b"\n")[:-1]


def cut_unfinished(path: Path) -> None:
    """Take away what follows the last whole line."""
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(path, end)


def append_line(path: Path, record: Any) -> None:
    """Write a record behind the last line; on disk when this returns. The folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
