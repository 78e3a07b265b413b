"""What a run does at every step: log, checkpoint, and show how far it is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prefgeo.run_folder import CHECKPOINT, RunFolder

Snapshot = dict[str, Any]
PATIENCE = 1.0  # seconds without a progress bar
_HIDDEN: ContextVar[bool] = ContextVar("bars hidden", default=False)


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of runs inside, where there is one of a sweep around them."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


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
        """A line for each seed."""
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


class ProgressBar:
    """A bar on stderr, where that is a terminal, for what takes longer than a second."""

    def __init__(self, what: str, patience: float = PATIENCE) -> None:
        self.what, self.patience, self.begun = what, patience, time.monotonic()
        self.progress: Progress | None = None
        self.enabled = sys.stderr.isatty() and not _HIDDEN.get()

    def show(self, done: int, total: int) -> None:
        """So many of so many are done."""
        if not self.enabled or time.monotonic() - self.begun < self.patience:
            return
        if self.progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.progress = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
            )
            self.progress.start()
            self.progress.add_task(self.what, total=total)
        self.progress.update(self.progress.task_ids[0], completed=done, total=total)

    def stop(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
