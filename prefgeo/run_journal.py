"""The stages of a run's algorithm in its folder: each is written whole when it ends, and watched while it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prefgeo.algorithms.journal import Entry
from prefgeo.run_folder import CHECKPOINT, RunFolder, stage_file
from prefgeo.run_monitor import RunMonitor


class RunJournal:
    """``prefgeo.algorithms.journal.Journal`` on a run folder. Stages come in the same order each time."""

    def __init__(self, folder: RunFolder, seeds: list[int], *, reference: str, seconds: float, what: str) -> None:
        self.folder, self.seeds, self.reference, self.seconds, self.what = folder, seeds, reference, seconds, what
        self.logged = 0  # bytes of metrics.jsonl that finished stages wrote
        self.watching: RunMonitor | None = None

    def read(self, stage: str) -> Entry | None:
        """What a finished stage wrote."""
        name = stage_file(stage)
        if not self.folder.has(name):
            return None
        arrays, notes = self.folder.read_arrays(name)
        self.logged = max(self.logged, int(notes["metrics"]))
        return Entry(arrays, json.loads(notes["plain"]))

    def write(self, stage: str, entry: Entry) -> None:
        """The stage is finished: keep it, and forget the checkpoint within it."""
        self.close()
        self.logged = self.folder.metrics_size()
        notes: dict[str, Any] = {"plain": json.dumps(dict(entry.plain)), "metrics": str(self.logged)}
        self.folder.write_arrays(stage_file(stage), entry.arrays, notes | {"reference": self.reference})
        (self.folder.path / CHECKPOINT).unlink(missing_ok=True)

    def monitor(self, stage: str) -> RunMonitor:
        """A monitor that begins from the checkpoint, if there is one of this stage."""
        self.close()
        self.watching = RunMonitor(
            self.folder, self.seeds, reference=self.reference, seconds=self.seconds, what=f"{self.what} {stage}",
            stage=stage, logged=self.logged,
        )  # fmt: skip
        return self.watching

    def needs(self, policies: Sequence[Any]) -> None:
        """The entries of all stages stay: they are small."""

    def close(self) -> None:
        """Take the progress bar away."""
        if self.watching is not None:
            self.watching.bar.stop()
            self.watching = None
