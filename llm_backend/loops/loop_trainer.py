"""The trainers inside a loop: the plan's schedule, and a monitor that logs, checkpoints and resumes."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from llm_backend.checkpoints import check_resume
from llm_backend.evaluation.loading import without_bars
from llm_backend.loops.errors import StoreError
from llm_backend.loops.training import Steps
from llm_backend.response_trainer import ResponseTrainer
from llm_backend.state_files import MANIFEST, file_hash
from llm_backend.supervised import SupervisedTrainer
from llm_backend.trainer import PreferenceTrainer
from objectives.fitting import Monitor, Snapshot

Line = dict[str, float]
UNLOGGED = ("step", "epoch", "total_flos")


class LoopTrainer(ResponseTrainer):
    """To be mixed into a trainer. ``fit_key`` names the fit, whose checkpoints are in ``args.output_dir``.

    The monitor is told of a step after its numbers were logged. A snapshot is a whole checkpoint folder; what the
    monitor gets is a pointer to it, so it can keep it like that of a small policy. Sums between two logs are in the
    checkpoint, so that lines after it are those of a run that was never broken off.
    """

    steps: Steps
    monitor: Monitor | None
    fit_key: str
    _told: int = 0

    def go_on(self, checkpoint: Path | None) -> None:
        """Train from the beginning, or from a checkpoint; from one of the last step there is nothing left to do."""
        if checkpoint is None or int(checkpoint.name.rpartition("-")[2]) < self.args.max_steps:
            with _quiet(checkpoint is not None):
                self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return
        # transformers would do one step more, in the midst of an epoch
        self.load_extra_state(check_resume(checkpoint, self.identity)["extra"])
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The plan's factors on the learning rate."""
        if self.lr_scheduler is None:
            steps, engine = self.steps, self.optimizer if optimizer is None else optimizer
            assert engine is not None  # the trainer makes it first
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                engine,
                lambda step: steps.schedule.factor(min(step, steps.total), steps.total),
            )
        return self.lr_scheduler

    def _maybe_log_save_evaluate(self, *args: Any, **more: Any) -> None:
        last = self.state.global_step == self.state.max_steps
        self.control.should_log = self.control.should_log or last
        super()._maybe_log_save_evaluate(*args, **more)
        if self.monitor is not None and self.state.global_step > self._told:
            self._told = self.state.global_step
            self.monitor.step(self._told, self.state.max_steps, self.snapshot)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also to the monitor."""
        super().log(logs, start_time)
        entry = self.state.log_history[-1]
        if self.monitor is not None and "loss" in entry:
            self.monitor.log(int(entry["step"]), as_runs(entry))

    def snapshot(self) -> Snapshot:
        """Write a checkpoint of the step that was just done, and point to it."""
        folder = self.output_folder / f"checkpoint-{self.state.global_step}"
        if folder.exists():
            shutil.rmtree(folder)  # of an attempt that went on from before it; the bytes will be the same
        with without_bars():
            self._save_checkpoint(self.model)
        return pointer(self.fit_key, self.state.global_step, folder)

    def extra_state(self) -> dict[str, Any]:
        """Also what was summed up since the last log."""
        return super().extra_state() | {"totals": self.totals.state_dict()}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """The inverse of ``extra_state``."""
        super().load_extra_state(saved)
        self.totals.load_state_dict(saved["totals"])

    def lines(self) -> list[Line]:
        """Everything that was logged of training."""
        return [dict(entry) for entry in self.state.log_history if "loss" in entry]


@contextlib.contextmanager
def _quiet(resuming: bool) -> Iterator[None]:
    """transformers warns of tied weights when it resumes, which a checkpoint rightly holds only once."""
    log = logging.getLogger("transformers.trainer")
    level = log.level
    if resuming:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class LoopPreferenceTrainer(LoopTrainer, PreferenceTrainer):
    """Preference training in a loop."""


class LoopSupervisedTrainer(LoopTrainer, SupervisedTrainer):
    """Supervised fine-tuning in a loop."""


def as_runs(entry: Mapping[str, float]) -> dict[str, np.ndarray]:
    """A logged line as arrays (1,), without what is no metric."""
    return {name: np.array([entry[name]]) for name in sorted(entry) if name not in UNLOGGED}


def pointer(fit_key: str, step: int, folder: Path) -> Snapshot:
    """What names a checkpoint: its fit and the hash of its manifest, which has those of all of its files."""
    names = {"fit": fit_key, "manifest": file_hash(folder / MANIFEST)}
    arrays = {name: np.frombuffer(bytes.fromhex(value), dtype=np.uint8).copy() for name, value in names.items()}
    return {"step": step, "arrays": arrays, "objective": {}}


def pointed_at(snapshot: Snapshot, checkpoints: Path) -> tuple[str, Path]:
    """The fit and the folder of the checkpoint that a snapshot points to.

    Raises: StoreError where it is gone or another one, or for a snapshot of something else.
    """
    arrays = snapshot["arrays"]
    if set(arrays) != {"fit", "manifest"}:
        raise StoreError(f"the snapshot does not point to a checkpoint of a language model: it holds {sorted(arrays)}")
    fit, manifest = (bytes(np.asarray(arrays[name], dtype=np.uint8)).hex() for name in ("fit", "manifest"))
    folder = checkpoints / fit / f"checkpoint-{int(snapshot['step'])}"
    if not (folder / MANIFEST).is_file() or file_hash(folder / MANIFEST) != manifest:
        raise StoreError(
            f"the checkpoint of step {int(snapshot['step'])}, from which this run goes on, is missing or another one "
            f"({folder}); restore it, or start again in an empty folder"
        )
    return fit, folder
