"""A run by several processes that a launcher started (torchrun, accelerate launch): one writes, the others follow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_backend.processes import count_and_rank
from prefgeo.language.folder import LanguageFolder
from prefgeo.run_folder import MANIFEST, RESULT

PAUSE = 0.2  # seconds between two looks at a folder
REFERENCE = "reference"


def join_launch(device: str) -> tuple[int, int]:
    """Meet the other processes of the launch, if there are any: how many there are, and which one this is."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # it knows launchers and devices

        PartialState(cpu=device == "cpu")
    return count_and_rank()


def leave_launch() -> int:
    """Part from the other processes, before this one ends; which one it was."""
    count, rank = count_and_rank()
    if count > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
    return rank


class FollowedFolder(LanguageFolder):
    """The folder of a run as further processes of a launch see it: it reads what the first writes.

    All must see one file system. Where the first process fails, the launcher ends the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def follows(self) -> bool:
        """Whether another process writes."""
        return True

    def release(self) -> None:
        """There is no lock."""

    def discard(self) -> None:
        """Nothing of it is this process's."""

    def write(self, name: str, content: bytes) -> None:
        """The first process does."""

    def append_metrics(self, lines: list[Mapping[str, Any]]) -> None:
        """The first process does."""

    def cut_metrics(self, size: int) -> None:
        """The first process does."""

    def write_model(self, stage: str, save: Callable[[Path], None]) -> None:
        """The first process does."""

    def finish(self, stage: str, record: dict[str, Any]) -> None:
        """Wait until the first process has finished the stage."""
        self._wait(lambda: stage in self.finished())

    def wait_for_reference(self) -> None:
        """Until the first process has stored the reference's log-probabilities."""
        self._wait(lambda: any(self.checkpoints(REFERENCE).glob("*.safetensors")))

    def result(self) -> dict[str, Any]:
        """What the first process made of it, when that is done."""
        self._wait(lambda: self.has(RESULT))
        return self.read_json(RESULT)

    def wait_for_manifest(self) -> None:
        """Until the first process has begun."""
        self._wait(lambda: self.has(MANIFEST))

    def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            time.sleep(PAUSE)
