"""What a run does at every step: log, checkpoint, and show how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from objectives.fitting import Snapshot
from prefgeo.progress import ProgressBar
from prefgeo.run_folder import CHECKPOINT, RunFolder


class RunMonitor:
    """Writes metrics.jsonl and, every ``seconds``, a checkpoint from which the run continues bit for bit."""

    def __init__(
        self,
        folder: RunFolder,
        seeds: list[int],
        *,
        reference: str,
        seconds: float,
        what: str,
        stage: str = "",
        logged: int = 0,
    ) -> None:
        """A ``stage`` of an algorithm has its own checkpoint, after ``logged`` bytes of metrics of earlier ones."""
        self.folder, self.seeds, self.reference, self.seconds = folder, seeds, reference, seconds
        self.stage, self.bar = stage, ProgressBar(what)
        self.resume = self._load() if folder.has(CHECKPOINT) else None
        if self.resume is None:
            folder.cut_metrics(logged)
        self.last = time.monotonic()

    def __enter__(self) -> RunMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """A line for each seed. Beside the bar, the mean loss."""
        if "loss" in values:
            self.bar.note = f"loss {float(np.mean(values['loss'])):.4g}"
        named = {"stage": self.stage} if self.stage else {}
        self.folder.append_metrics(
            [
                {
                    **named,
                    "step": step,
                    "seed": seed,
                    **{name: float(np.asarray(column)[i]) for name, column in values.items()},
                }
                for i, seed in enumerate(self.seeds)
            ]
        )

    def step(self, done: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Checkpoint when it is time; move the bar."""
        if time.monotonic() - self.last >= self.seconds:
            self._save(snapshot())
            self.last = time.monotonic()
        self.bar.show(done, total)

    def _save(self, taken: Snapshot) -> None:
        state = {"step": taken["step"], "objective": taken["objective"], "metrics": self.folder.metrics_size()}
        state |= {"stage": self.stage}
        notes = {"state": json.dumps(state), "reference": self.reference}
        self.folder.write_arrays(CHECKPOINT, taken["arrays"], notes)

    def _load(self) -> Snapshot | None:
        arrays, notes = self.folder.read_arrays(CHECKPOINT)
        state = json.loads(notes["state"])
        if state.get("stage", "") != self.stage:
            return None  # left by a stage that has finished since
        self.folder.cut_metrics(state["metrics"])
        return {"step": state["step"], "arrays": arrays, "objective": state["objective"]}
