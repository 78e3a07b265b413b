"""transformers.Trainer with checkpoints that are whole or not there, hold no pickle, and know what run they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from llm_backend import checkpoints as files
from llm_backend.errors import CheckpointError
from llm_backend.state_files import load_nested, random_state, save_nested, set_random_state


class CheckpointedTrainer(Trainer):
    """Checkpoints in safetensors and JSON; a run that was killed goes on bit for bit on a CPU.

    ``identity`` says what must be the same on resuming. Sharded training (FSDP, DeepSpeed) leaves its optimiser state
    to its engine, in that engine's format.
    """

    model: Any
    train_dataset: Any
    eval_dataset: Any
    identity: dict[str, Any]

    @property
    def output_folder(self) -> Path:
        """Where checkpoints go."""
        return Path(str(self.args.output_dir))

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights, optimiser, schedule and random states."""
        return {}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Take over what ``extra_state`` gave."""

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **more: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest complete checkpoint of ``output_dir``.

        Raises: CheckpointError where there is none, it is damaged, or objective, reference or rows have changed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = files.last_checkpoint(self.output_folder)
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir} holds no complete checkpoint to resume from")
        if resume_from_checkpoint:
            saved = files.check_resume(resume_from_checkpoint, self.identity)
            self.load_extra_state(saved["extra"])
            resume_from_checkpoint = str(resume_from_checkpoint)
        return super().train(resume_from_checkpoint or None, *args, **more)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        parent = Path(self._get_output_dir(trial=trial))
        folder = parent / f"checkpoint-{self.state.global_step}"
        files.check_weights(self.model, parent)
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # transformers would delete before the end
        try:
            with files.writing(folder, finish=self._all_have_written):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        if self.args.should_save:
            files.remove_old(parent, keep, self.state.best_model_checkpoint)

    def _all_have_written(self) -> bool:
        self.accelerator.wait_for_everyone()
        return bool(self.args.should_save)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.output_folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=self._tied_once(state_dict))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(self.args.to_json_string())

    @property
    def _sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def whole_weights(self) -> dict[str, Any] | None:
        """Of FSDP or DeepSpeed: the shards of all processes put together, in the first one. Else None."""
        return self._tied_once(self.accelerator.get_state_dict(self.model_wrapped)) if self._sharded else None

    def _tied_once(self, weights: dict[str, Any] | None) -> dict[str, Any] | None:
        """Gathered weights share no memory, by which transformers would see which are one."""
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        return None if weights is None else {name: value for name, value in weights.items() if name not in tied}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            files.save_run_state(output_dir, self.identity, extra=self.extra_state())
        if self._sharded:  # each shard is written by its own engine, in its own format
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            files.save_optimizer(self.optimizer, output_dir)
            files.save_schedule(self.lr_scheduler, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            files.load_optimizer(self.optimizer, checkpoint)
            files.load_schedule(self.lr_scheduler, checkpoint)

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            save_nested(self.accelerator.scaler.state_dict(), Path(output_dir) / files.SCALER)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_nested(Path(checkpoint) / files.SCALER))

    def _save_rng_state(self, output_dir: str) -> None:
        save_nested(random_state(), Path(output_dir) / f"{files.RANDOM}_{self.args.process_index}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_nested(Path(checkpoint) / f"{files.RANDOM}_{self.args.process_index}"))
