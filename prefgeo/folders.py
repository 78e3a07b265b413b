"""Folders that one process writes at a time, never over what was there, and that survive being killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

from geometry.safe_write import write_safely
from prefgeo.errors import UsageError


class Folder:
    """Files that are written completely or not at all. The lock goes when the process ends, however it ends."""

    what: ClassVar[str]  # "run"
    files: ClassVar[tuple[str, ...]]  # all names that may be in it

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path, *, resume: bool) -> Self:
        """A new folder, or with ``resume`` one left unfinished. Raises ``UsageError``; leaves other files alone."""
        if path.exists():
            if not resume:
                raise UsageError(f"{path} exists and is left as it is; choose another --out, or continue it: --resume")
            if not path.is_dir():
                raise UsageError(f"{path} is a file; --out needs a folder")
            foreign = sorted(entry.name for entry in path.iterdir() if not cls._ours(entry.name))
            if foreign:
                raise UsageError(
                    f"{path} is not the folder of a {cls.what}: it holds {foreign[0]}; choose another --out"
                )
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)  # the folder itself is what is locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise UsageError(f"another process is writing to {path}; wait for it, or choose another --out") from None
        for entry in list(path.rglob(".*.part")):  # of a process that was killed while it wrote
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)  # it may have been in such a folder
        return cls(path, lock)

    @classmethod
    def _ours(cls, name: str) -> bool:
        return name in cls.files or (name.startswith(".") and name.endswith(".part"))

    def release(self) -> None:
        """Let others write."""
        os.close(self._lock)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """A whole file, over an older one of this folder."""

        def write(stream: BinaryIO) -> None:
            stream.write(content)

        write_safely(self.path / name, write, overwrite=True)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """A JSON file, with floats that read back exactly."""
        self.write(name, (json.dumps(values, indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file. Raises ``UsageError`` for one that is damaged."""
        try:
            values = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path / name} cannot be read ({error}); start again with another --out") from None
        if not isinstance(values, dict):
            raise UsageError(f"{self.path / name} is not what a {self.what} wrote; start again with another --out")
        return values
