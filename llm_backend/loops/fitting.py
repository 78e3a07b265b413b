"""One fit of a loop: reference first, then the policy, continued from a checkpoint where there is one."""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PrinterCallback

from llm_backend.lm_fields import needs_live_reference, reference_columns, sides_of
from llm_backend.loops.errors import LoopError
from llm_backend.loops.loop_trainer import (
    Line,
    LoopPreferenceTrainer,
    LoopSupervisedTrainer,
    LoopTrainer,
    as_runs,
    pointed_at,
    pointer,
)
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import LoopRows
from llm_backend.loops.store import POLICIES, PolicyStore, key_of
from llm_backend.loops.training import LoopTraining, Steps, arguments, plain_training
from llm_backend.models import Lora, checkpoint_activations, open_for_training
from llm_backend.reference import Reference, ReferenceLogProbs, rows_hash
from llm_backend.response_trainer import RowData
from llm_backend.state_files import MANIFEST
from objectives import Objective
from objectives.fitting import Monitor

FITS, CHECKPOINTS = "fits", "checkpoints"
SUPERVISED = "nll"
"""The name of the objective of supervised fine-tuning."""


@dataclass(frozen=True)
class Fit:
    """What is fitted to what. Objective "nll" is supervised fine-tuning, by the mean over tokens."""

    store: PolicyStore
    start: StoredPolicy
    reference: StoredPolicy
    rows: LoopRows
    objective: Objective
    steps: Steps
    training: LoopTraining
    seed: int

    @property
    def supervised(self) -> bool:
        """Whether only the chosen responses are read."""
        return self.objective.name == SUPERVISED

    @property
    def sides(self) -> tuple[str, ...]:
        """The responses of a row that are read."""
        return ("chosen",) if self.supervised else sides_of(self.objective)

    def training_key(self) -> str:
        """The digest of all that the parts of one training have in common, whose reference may move."""
        extra = [{name: row[name] for name in ("win_chosen", "win_rejected") if name in row} for row in self.rows.rows]
        return key_of(
            start=self.start.digest, rows=rows_hash(self.rows.rows, self.sides), extra=extra, seed=self.seed,
            objective=repr(self.objective), state=repr(self.objective.state_dict()), steps=self.steps.identity(),
            training=plain_training(self.training), dtype=self.store.dtype,
        )  # fmt: skip

    def key(self, begin: str) -> str:
        """The digest of all that the outcome depends on; ``begin`` names the checkpoint it goes on from."""
        plan = [self.steps.total, self.steps.log_every, repr(self.steps.schedule)]
        return key_of(
            training=self.training_key(), reference=self.reference.digest, plan=plan, begin=begin,
            loss_rows=self.training.loss_rows,
        )  # fmt: skip

    # -- the course of a fit --------------------------------------------------------------------------------------

    def run(self, monitor: Monitor | None) -> tuple[StoredPolicy, dict[str, np.ndarray]]:
        """The trained policy and its final loss on the rows, (1,); from the store where this very fit was finished.

        Raises: LoopError for rows that lack what the objective reads, an objective with variables of its own.
        """
        self._check()
        if self.steps.total == 0:
            raise LoopError("the plan has no steps; give at least 1 step or 1 epoch")
        checkpoints = self.store.root / CHECKPOINTS
        before = None if monitor is None else monitor.resume
        begun = 0 if before is None else int(before["step"])
        folder, key = None, self.key("")
        if before is not None:
            fit, folder = pointed_at(before, checkpoints)
            if fit != key:  # a part of a training whose earlier part was another fit
                key = self.key(fit)
        known = self.store.recall(FITS, key)
        if known is None or not self.store.has(known["policy"]):
            self._forget_others(key, folder)
            began = "" if folder is None or folder.parent.name == key else folder.parent.name
            self._forget_parts(began)
            known = self._train(key, folder, monitor) | {"reference": self.reference.digest, "began": began}
            self.store.remember(FITS, key, known)
        elif monitor is not None:
            _replay(known["lines"], begun, monitor)
            last = checkpoints / key / f"checkpoint-{self.steps.total}"
            if (last / MANIFEST).is_file():
                monitor.step(self.steps.total, self.steps.total, lambda: pointer(key, self.steps.total, last))
        return self.store.get(known["policy"]), {"loss": np.array([known["loss"]])}

    def _train(self, key: str, checkpoint: Path | None, monitor: Monitor | None) -> dict[str, Any]:
        store, folder = self.store, self.store.root / CHECKPOINTS / key
        store.release()
        reference, live = None, None
        if not self.supervised and self.reference.digest != self.start.digest:
            other = Reference.named(f"policy:{self.reference.digest}", store.model(self.reference))
            reference = self._log_probs(other, folder)
            live = other if needs_live_reference(self.objective) else None
            if live is None:
                del other
                store.release()
        model = self._opened()
        if not self.supervised and self.reference.digest == self.start.digest:
            reference = self._log_probs(Reference.initial(model), folder)
            if needs_live_reference(self.objective):
                live = Reference.named(f"policy:{self.reference.digest}", store.model(self.reference))
        trainer = self._trainer(model, reference, live, folder)
        trainer.steps, trainer.monitor, trainer.fit_key = self.steps, monitor, key
        trainer.remove_callback(PrinterCallback)
        trainer.go_on(checkpoint)
        lines, loss = trainer.lines(), self._final_loss(trainer)
        trained = trainer.model
        del trainer, model, live
        policy = store.add(trained.to("cpu"), self.start)
        del trained
        gc.collect()  # trainer, optimiser and callbacks hold one another
        store.release()
        return {"policy": policy.digest, "loss": loss, "lines": lines}

    def _opened(self) -> Any:
        model = self.store.load(self.start)
        model = open_for_training(model, self.training.trainable, seed=self.seed).to(self.store.device)
        if self.training.gradient_checkpointing:
            checkpoint_activations(model)
        return model

    def _log_probs(self, reference: Reference, folder: Path) -> ReferenceLogProbs | None:
        if not reference_columns(self.objective):
            return None
        pad = self._pad_id()
        return reference.log_probs(self.rows.rows, self.sides, cache=folder / "reference", pad_id=pad)

    def _trainer(
        self, model: Any, reference: ReferenceLogProbs | None, live: Reference | None, folder: Path
    ) -> LoopTrainer:
        told = arguments(self.steps, self.training, folder, seed=self.seed, device=self.store.device)
        if told.world_size > 1:
            raise LoopError("a loop runs in one process, which alone writes to its store; start it without a launcher")
        # the fit's key has the reference; the parts of a training differ in it
        identity = {"training": self.training_key(), "reference": "that of each part"}
        if self.supervised:
            return LoopSupervisedTrainer(model, told, self.rows.rows, pad_id=self._pad_id(), identity=identity)
        return LoopPreferenceTrainer(
            model, self.objective, told, self.rows.rows, reference=reference, live_reference=live,
            pad_id=self._pad_id(), identity=identity,
        )  # fmt: skip

    def _final_loss(self, trainer: LoopTrainer) -> float:
        data, most = trainer.train_dataset, self.training.loss_rows
        if most is not None and most < len(data):
            data = RowData(data.rows[:most], {name: values[:most] for name, values in data.columns.items()})
        trainer.monitor = None
        return float(trainer.evaluate(data)["eval_loss"])

    def _pad_id(self) -> int:
        return int(self.store.tokenizer(self.start).pad_token_id)

    # -- checks and housekeeping ------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.rows.rows:
            raise LoopError("there are no rows to train on")
        fields = self.objective.fields
        if any(name.startswith("delta_") for name in fields):
            raise LoopError(f"{self.objective.name} has variables of its own, which loops do not train; use another")
        first = self.rows.rows[0]
        for side in self.sides:
            if f"{side}_ids" not in first:
                raise LoopError(f"{self.objective.name} reads {side} responses, which these rows do not have")
        if any(name.startswith("win_") for name in fields) and "win_chosen" not in first:
            raise LoopError(
                f"{self.objective.name} reads win rates, which these rows do not have; give the source a win_scale if "
                "its scores are logits of a Bradley-Terry model"
            )
        if isinstance(self.training.trainable, Lora) and self.store.dtype in ("bfloat16", "float16"):
            raise LoopError(
                f"adapters are merged into the weights after each fit, and {self.store.dtype} would round them away; "
                "store policies in float32 and train with precision bfloat16"
            )

    def _forget_others(self, key: str, checkpoint: Path | None) -> None:
        """Remove checkpoints of earlier fits, whose stages are finished; not the one that this goes on from.

        Of this fit, too: a later one, which nobody was told of before a kill, would count among those that are kept.
        """
        kept = {key} | ({checkpoint.parent.name} if checkpoint is not None else set())
        root = self.store.root / CHECKPOINTS
        for folder in root.iterdir() if root.is_dir() else ():
            for one in [folder] if folder.name not in kept else folder.glob("checkpoint-*"):
                if one != checkpoint:
                    shutil.rmtree(one, ignore_errors=True)

    def _forget_parts(self, began: str) -> None:
        """Where this is part t of a training: drop policy t - 2 and the reference of part t - 1, which nobody opens.

        The journal of the loop names policy t - 1 and the reference of part t by now.
        """
        before = self.store.recall(FITS, began) if began else None
        if before is None:
            return
        earlier = self.store.recall(FITS, before["began"]) if before["began"] else None
        done_with = {before["reference"]} | ({earlier["policy"]} if earlier else set())
        for digest in done_with - {self.start.digest, self.reference.digest, before["policy"]}:
            if self.store.has(digest):
                self.store.drop(StoredPolicy(digest, self.store.root / POLICIES / digest))


def _replay(lines: list[Line], begun: int, monitor: Monitor) -> None:
    """Log again what a fit logged after the step that the monitor knows of."""
    for line in lines:
        if line["step"] > begun:
            monitor.log(int(line["step"]), as_runs(line))
