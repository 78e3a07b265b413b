"""What a stage of training does beside training: metrics, checkpoints when it is time, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from llm_backend.processes import from_first
from prefgeo.language.folder import LanguageFolder
from prefgeo.progress import ProgressBar


class StageMonitor(TrainerCallback):
    """Writes metrics.jsonl; asks for a checkpoint every ``seconds``, always where numbers were just logged, so that a
    run that continues from it logs the same means."""

    def __init__(self, folder: LanguageFolder, stage: str, seed: int, *, seconds: float, what: str) -> None:
        self.folder, self.stage, self.seed, self.seconds = folder, stage, seed, seconds
        self.bar = ProgressBar(what)
        self.bar.enabled = self.bar.enabled and not folder.follows
        self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Write again what the checkpoint knows to have been logged, and nothing after it."""
        self.folder.cut_metrics(self.folder.earlier_metrics())
        self.folder.append_metrics([self._line(entry) for entry in state.log_history if "loss" in entry])

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """One line for what was logged of training; not what depends on the clock."""
        if "loss" in state.log_history[-1]:
            self.bar.note = f"loss {state.log_history[-1]['loss']:.4g}"
            self.folder.append_metrics([self._line(state.log_history[-1])])

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Have the last step logged whatever its number; checkpoint when it is time; move the bar."""
        control.should_log = control.should_log or state.global_step >= state.max_steps
        if control.should_log and state.global_step < state.max_steps:
            due = torch.tensor(int(time.monotonic() - self.last >= self.seconds))
            if from_first(due):  # all processes of a launch save together
                control.should_save = True
                self.last = time.monotonic()
        self.bar.show(state.global_step, state.max_steps)

    def _line(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {"stage": self.stage, "step": entry["step"], "seed": self.seed} | {
            name: entry[name] for name in sorted(entry) if name != "step"
        }
