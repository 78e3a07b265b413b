"""The two stages of training, each on a trainer that continues from its own checkpoints."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import PrinterCallback

from llm_backend.checkpoints import last_checkpoint
from llm_backend.lm_fields import reference_columns, sides_of
from llm_backend.models import checkpoint_activations
from llm_backend.processes import count_and_rank
from llm_backend.reference import Reference, ReferenceLogProbs
from llm_backend.response_trainer import ResponseTrainer, watched_arguments
from llm_backend.supervised import SupervisedTrainer
from llm_backend.trainer import LossVariables, PreferenceTrainer
from objectives import Objective
from prefgeo.language.folder import PREFERENCE, SFT, LanguageFolder
from prefgeo.language.launch import REFERENCE, FollowedFolder
from prefgeo.language.stage_monitor import StageMonitor
from prefgeo.language.tokens import Rows
from prefgeo.language.training_spec import SupervisedTraining

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def steps_per_epoch(spec: SupervisedTraining, n_rows: int) -> int:
    """Optimiser steps in which all rows are met once; of several processes each takes ``batch_size`` rows at a time,
    and the last few rows are left out where they are not enough for all."""
    processes = count_and_rank()[0]
    rounds = math.ceil(n_rows / spec.batch_size) if processes == 1 else n_rows // (spec.batch_size * processes)
    return math.ceil(rounds / spec.accumulation)


def stage_arguments(
    spec: SupervisedTraining, n_rows: int, folder: LanguageFolder, stage: str, *, seed: int, device: str
) -> Any:
    """What transformers' Trainer is told. ``warmup`` becomes whole steps, rounded up."""
    steps = spec.steps if spec.steps is not None else steps_per_epoch(spec, n_rows) * int(spec.epochs or 1)
    return watched_arguments(
        folder.checkpoints(stage),
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.learning_rate,
        max_steps=steps,
        lr_scheduler_type=SCHEDULES[spec.schedule],
        warmup_steps=math.ceil(spec.warmup * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        precision=spec.precision,
        logging_steps=spec.log_every,
        save_total_limit=1,
        device=device,
        seed=seed,
    )


def run_supervised(
    model: Any, rows: Rows, spec: SupervisedTraining, folder: LanguageFolder, *, seed: int, device: str, pad_id: int,
    seconds: float,
) -> dict[str, Any] | None:  # fmt: skip
    """SFT in place; returns as ``run_preference``."""
    if spec.gradient_checkpointing:
        checkpoint_activations(model)
    arguments = stage_arguments(spec, len(rows), folder, SFT, seed=seed, device=device)
    trainer = SupervisedTrainer(model, arguments, rows, pad_id=pad_id)
    _train(trainer, folder, SFT, seed, seconds)
    return trainer.whole_weights()


def run_preference(
    model: Any, rows: Rows, objective: Objective, reference: ReferenceLogProbs | None, live: Reference | None,
    spec: SupervisedTraining, folder: LanguageFolder, *, seed: int, device: str, pad_id: int, seconds: float,
    auxiliary: LossVariables | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Preference training in place. ``live`` is the reference as a model, ``auxiliary`` AuxDPO's variables, for
    objectives that need them. Returns the whole weights, in the first process, where training sharded them; else
    None, and they are in ``model``."""
    if spec.gradient_checkpointing:
        checkpoint_activations(model)
    arguments = stage_arguments(spec, len(rows), folder, PREFERENCE, seed=seed, device=device)
    trainer = PreferenceTrainer(
        model, objective, arguments, rows, reference=reference, live_reference=live, auxiliary=auxiliary, pad_id=pad_id
    )
    _train(trainer, folder, PREFERENCE, seed, seconds)
    return trainer.whole_weights()


def training_reference(
    reference: Reference, objective: Objective, rows: Rows, folder: LanguageFolder, pad_id: int
) -> ReferenceLogProbs | None:
    """log ref of the training rows, kept for a run that continues; None where the objective has no reference."""
    if not reference_columns(objective):
        return None
    if isinstance(folder, FollowedFolder):
        folder.wait_for_reference()
    return reference.log_probs(rows, sides_of(objective), cache=folder.checkpoints(REFERENCE), pad_id=pad_id)


def _train(trainer: ResponseTrainer, folder: LanguageFolder, stage: str, seed: int, seconds: float) -> None:
    monitor = StageMonitor(folder, stage, seed, seconds=seconds, what=f"{stage} training")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(monitor)
    log, resume = logging.getLogger("transformers.trainer"), last_checkpoint(folder.checkpoints(stage)) is not None
    level = log.level
    if resume:
        log.setLevel(logging.ERROR)  # it warns of tied weights, which a checkpoint rightly holds only once
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        log.setLevel(level)
        monitor.bar.stop()
