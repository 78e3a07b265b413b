"""The folder of one run: resolved recipe, manifest, metrics, checkpoint, theta and result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from prefgeo.folders import Folder
from prefgeo.tracking import FOLDERS, report

Arrays = Mapping[str, NDArray[Any]]
CONFIG, MANIFEST, METRICS, RESULT = "config.json", "manifest.json", "metrics.jsonl", "result.json"
CHECKPOINT, THETA = "checkpoint.safetensors", "theta.safetensors"
STAGE = "stage-"
NOTES = "prefgeo"  # the key of our metadata


class RunFolder(Folder):
    """Files of one run."""

    what = "run"
    files: ClassVar[tuple[str, ...]] = (CONFIG, MANIFEST, METRICS, RESULT, CHECKPOINT, THETA)

    @classmethod
    def _ours(cls, name: str) -> bool:
        tracked = name in FOLDERS.values()
        return tracked or super()._ours(name) or (name.startswith(STAGE) and name.endswith(".safetensors"))

    @property
    def has_progress(self) -> bool:
        """Whether a checkpoint or a finished stage would be lost with the folder."""
        return self.has(CHECKPOINT) or any(self.path.glob(f"{STAGE}*.safetensors"))

    def discard(self) -> None:
        """Remove what this run wrote, for a run that could not begin."""
        for name in self.files:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS.values():
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.path.rmdir()

    def write_arrays(self, name: str, arrays: Arrays, notes: Mapping[str, str]) -> None:
        """A safetensors file; ``notes`` are its metadata."""
        whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        # one key: safetensors writes several in no fixed order, and equal runs shall have equal bytes
        self.write(name, save(whole, metadata={NOTES: json.dumps(dict(notes), sort_keys=True)}))

    def read_arrays(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """Arrays and notes of a safetensors file."""
        with safe_open(self.path / name, framework="numpy") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}, json.loads(stored.metadata()[NOTES])  # noqa: SIM118

    def append_metrics(self, lines: list[Mapping[str, Any]]) -> None:
        """Add lines to metrics.jsonl, and tell the trackers."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines))
        report(lines)

    def metrics_size(self) -> int:
        """The bytes of metrics.jsonl so far, safely on disk."""
        path = self.path / METRICS
        if not path.exists():
            return 0
        with path.open("ab") as stream:
            os.fsync(stream.fileno())
            return stream.tell()

    def cut_metrics(self, size: int) -> None:
        """Forget what was logged after a checkpoint."""
        with (self.path / METRICS).open("ab") as stream:
            stream.truncate(size)


def stage_file(stage: str) -> str:
    """The file of a finished stage."""
    return f"{STAGE}{stage}.safetensors"


def arrays_digest(arrays: Arrays) -> str:
    """SHA-256 of named arrays: names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        found.update(value.tobytes())
    return found.hexdigest()
