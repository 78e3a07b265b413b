"""transformers.Trainer for rows of token ids: batches of like length, exact sums, evaluation, checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from llm_backend.batching import Collator, LengthSampler, line_length
from llm_backend.checkpointed_trainer import CheckpointedTrainer
from llm_backend.checkpoints import last_checkpoint
from llm_backend.errors import BackendError, BatchingError, NonFiniteLossError
from llm_backend.log_probs import best_collator, checked_head, shares_prompts, unwrap
from llm_backend.metrics import Totals
from llm_backend.reference import rows_hash

Rows = Sequence[Mapping[str, Any]]


def training_arguments(output_dir: str | Path, **options: Any) -> TrainingArguments:
    """TrainingArguments with what these trainers rely on; every option of transformers may be given."""
    defaults: dict[str, Any] = {
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
    }
    return TrainingArguments(output_dir=str(output_dir), **(defaults | options))


def watched_arguments(output_dir: str | Path, *, precision: str, device: str, **options: Any) -> TrainingArguments:
    """Of a run with a monitor, which says when to save and shows how far it is; ``precision`` of the forward pass."""
    return training_arguments(
        output_dir,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        logging_first_step=True,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )


class RowData(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows with further columns (n_rows,) beside them."""

    def __init__(self, rows: Rows, columns: Mapping[str, np.ndarray] | None = None) -> None:
        if len(rows) == 0:
            raise BatchingError("there are no rows to train on or to evaluate")
        self.rows, self.columns = rows, dict(columns or {})
        for name, values in self.columns.items():
            if len(values) != len(rows):
                raise BatchingError(f"column {name} has {len(values)} values for {len(rows)} rows: it is of other data")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return (
            {"row": index}
            | dict(self.rows[index])
            | {"index": index}
            | {name: float(v[index]) for name, v in self.columns.items()}
        )


class ResponseTrainer(CheckpointedTrainer):
    """What preference training and SFT share. Concrete classes give ``_prepare_step`` and ``_evaluate_rows``.

    The gradient of an optimizer step is that of one mean over all its rows, however they are split into micro-batches
    and processes; metrics are sums and counts. ``share_prompt`` None tries out how far the model can share the
    prompt of a pair (``best_collator``).
    """

    sides: tuple[str, ...] = ("chosen", "rejected")

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        data: RowData,
        *,
        eval_data: RowData | None = None,
        share_prompt: bool | None = None,
        pad_id: int = 0,
        identity: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        checked_head(unwrap(model))
        if args.remove_unused_columns:
            raise BackendError("remove_unused_columns must be False; make the arguments with training_arguments(...)")
        if args.n_gpu > 1:
            raise BackendError(
                "start one process for each GPU (torchrun, accelerate launch): DataParallel is not exact"
            )
        if args.gradient_checkpointing:
            share_prompt = shares_prompts(model) if share_prompt is None else share_prompt
            self.collate = Collator(self.sides, pad_id, shared=share_prompt and len(self.sides) > 1)
        else:
            self.collate = best_collator(model, self.sides, pad_id, share=share_prompt)
            if unwrap(model).device.type != args.device.type:  # tried out where the model is, not where it will be
                self.collate = replace(self.collate, packed=False)
        self.totals = Totals()
        self.identity = {"rows": rows_hash(data.rows, self.sides), **dict(identity or {})}
        super().__init__(
            model=model, args=args, data_collator=self.collate, train_dataset=data, eval_dataset=eval_data, **more
        )

    # -- one optimizer step -----------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        lengths = [line_length(row, self.sides, self.collate.shared) for row in data.rows]
        each, world = self.args.per_device_train_batch_size, self.args.world_size
        step = each * self.args.gradient_accumulation_steps * world
        multiple = each * world if world > 1 else 1
        return LengthSampler(lengths, step, seed=self.args.seed, multiple=multiple)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The micro-batches of the next optimizer step, after ``_prepare_step`` has seen them all."""
        batches = [self._prepare_inputs(batch) for batch in itertools.islice(epoch_iterator, num_batches)]
        if batches:
            self._prepare_step(batches)
        return batches, None

    def _prepare_step(self, batches: list[dict[str, Tensor]]) -> None:
        raise NotImplementedError

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch. Raises NonFiniteLossError, naming rows, before any harm."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs)  # type: ignore[assignment]
        deepspeed = "DEEPSPEED" in str(self.accelerator.distributed_type)
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        detached: Tensor = loss.detach()
        return detached

    def check_finite(self, losses: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Raises NonFiniteLossError with the rows whose loss is NaN or infinite, and the checkpoint to go back to."""
        finite = torch.isfinite(losses.detach())
        if bool(finite.all()):
            return
        rows = inputs["row"][~finite].tolist()
        earlier = last_checkpoint(self.output_folder)
        rest = f"the last good checkpoint is {earlier}" if earlier else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"the loss is not finite at step {self.state.global_step} in row{'s' * (len(rows) > 1)} "
            f"{', '.join(map(str, rows[:8]))}; nothing was updated, {rest}"
        )

    def total_over_processes(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        wide = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(wide, reduction="sum"))

    # -- logging and evaluation -------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers logs, with the means of all pairs since the last log."""
        super().log(logs | self.totals.means(self.accelerator) if "loss" in logs else logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Means over the rows of the evaluation data, each counted once, whatever the number of processes."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(data, RowData):
            raise BackendError("evaluate needs RowData: give the trainer eval_data, or pass some")
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            means = self._evaluate_rows(data)
        self.model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_batches(self, data: RowData) -> Iterator[dict[str, Tensor]]:
        """The rows of this process, longest first."""
        mine = list(range(self.args.process_index, len(data), self.args.world_size))
        mine.sort(key=lambda i: -line_length(data.rows[i], self.sides, self.collate.shared))
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(mine), size):
            yield self._prepare_inputs(self.collate([data[i] for i in mine[start : start + size]]))

    def _evaluate_rows(self, data: RowData) -> dict[str, float]:
        raise NotImplementedError
