"""Preference training of causal LMs: every objective of ``objectives`` as it is, on transformers.Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from llm_backend.errors import BackendError, ReferenceLogProbsError, StepZeroError
from llm_backend.lm_fields import (
    needs_live_reference,
    pair_batch,
    reference_columns,
    row_weights,
    score_pairs,
    sides_of,
    step_weights,
)
from llm_backend.log_probs import unwrap
from llm_backend.metrics import pair_metrics
from llm_backend.reference import Reference, ReferenceLogProbs
from llm_backend.response_trainer import ResponseTrainer, RowData, Rows
from llm_backend.whole_step import WholeStep, pairs_interact, whole_batch
from objectives import Objective, PairLogProbs

START_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative to |log pi|: other batches round otherwise. Half precision: 2e-2."""


class LossVariables(Protocol):
    """Variables of the loss that are no parameters of the model, such as AuxDPO's delta."""

    def to(self, device: torch.device) -> None:
        """The model trains on this device."""

    def fields(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fields of the batch, (n,) each, with a graph to the variables; ``inputs["index"]`` are places in the rows."""

    def after_step(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """The loss of a whole step (its micro-batches are given) has been run backward: move the variables."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log, as they are now; the same in every process."""

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: tensors, numbers and strings."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse."""


class PreferenceTrainer(ResponseTrainer):
    """Minimises the mean of an objective over rows of token ids (``prompt_ids``, ``chosen_ids``, ``rejected_ids``).

    ``reference`` and ``eval_reference`` are of these very rows (``Reference.log_probs``). ``auxiliary`` gives
    further fields (AuxDPO's delta, 0 in evaluation) and moves its own variables after each step. ``live_reference`` is
    for TDPO, which needs the reference's whole distribution at every token: a model of its own, or the policy with its
    adapter off.
    Raises: ReferenceLogProbsError for an objective without its reference; BackendError for options that do not fit.
    """

    objective: Objective
    reference: ReferenceLogProbs | None

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        args: TrainingArguments,
        rows: Rows,
        *,
        reference: ReferenceLogProbs | None = None,
        eval_rows: Rows | None = None,
        eval_reference: ReferenceLogProbs | None = None,
        live_reference: Reference | None = None,
        auxiliary: LossVariables | None = None,
        **more: Any,
    ) -> None:
        for needed, found in ((True, reference), (eval_rows is not None, eval_reference)):
            missing = [c for c in reference_columns(objective) if found is None or c not in found.columns]
            if needed and missing:
                how = f"Reference.log_probs(rows, {sides_of(objective)})"
                raise ReferenceLogProbsError(f"{objective.name} needs {', '.join(missing)}: give the result of {how}")
        if needs_live_reference(objective) and (live_reference is None or _moves(live_reference, model)):
            raise ReferenceLogProbsError(
                f"{objective.name} needs live_reference: a Reference whose model does not train along with the policy"
            )
        self.live_reference = live_reference
        self.objective, self.reference, self.sides = objective, reference, sides_of(objective)
        self.auxiliary = auxiliary
        self.per_dataset = getattr(objective, "statistics", None) == "dataset"
        self.interacting = pairs_interact(objective) and not self.per_dataset
        self._step: WholeStep | None = None
        self._step_weight = 1.0
        identity = {"objective": repr(objective), "reference": None if reference is None else reference.key}
        data = RowData(rows, None if reference is None else reference.columns)
        held_out = eval_rows and RowData(eval_rows, None if eval_reference is None else eval_reference.columns)
        super().__init__(
            model, args, data, eval_data=held_out or None, identity=identity | dict(more.pop("identity", {})), **more
        )
        self._batches: list[dict[str, Tensor]] = []
        if auxiliary is not None and self._sharded:
            raise BackendError("auxiliary variables need whole weights in each process: leave FSDP and DeepSpeed out")
        if auxiliary is not None:
            auxiliary.to(self.args.device)
            self.add_callback(_MoveVariables(self))
        if live_reference is not None:
            live_reference.model.to(self.args.device)

    # -- one optimizer step -----------------------------------------------------------------------------------

    def _prepare_step(self, batches: list[dict[str, Tensor]]) -> None:
        self._batches = batches
        self.objective.train()
        if self.per_dataset and not self.objective.state_dict()["updates"]:
            self._take_dataset_statistics()
        self.objective.begin_step(self.state.global_step, self.state.max_steps)
        weights = [step_weights(inputs) for inputs in batches]
        self._step_weight = self.total_over_processes(sum(float(weight.sum()) for weight in weights))
        self._step = None
        if self.interacting and (len(batches) > 1 or self.accelerator.num_processes > 1):
            with torch.no_grad(), self.compute_loss_context_manager():
                self.model.train()
                numbers = [self.fields(self.model_wrapped, inputs) for inputs in batches]
            self._step = WholeStep(self.objective, numbers, weights, processes=self.accelerator.num_processes)

    def _take_dataset_statistics(self) -> None:
        """Feed the objective once with the whole data set, as the policy is now."""
        with torch.no_grad():
            found = [(self.fields(self.model, one), one) for one in self.evaluation_batches(self.train_dataset)]
        weights = [row_weights(inputs, batch.policy_chosen) for batch, inputs in found]
        whole, weight, _ = whole_batch([batch for batch, _ in found], weights, self.accelerator.num_processes)
        self.objective.update(whole, weight)

    def fields(self, model: Any, inputs: dict[str, Tensor], *, held_out: bool = False) -> PairLogProbs:
        """What the objective reads of a batch; ``held_out`` rows have no auxiliary variables: delta is 0."""
        scores = score_pairs(model, inputs, self.objective, self.live_reference)
        extra = None
        if self.auxiliary is not None and held_out:
            none = torch.zeros_like(scores.log_probs["chosen"])
            extra = {name: none for name in self.objective.fields if name.startswith("delta_")}
        elif self.auxiliary is not None:
            extra = self.auxiliary.fields(inputs)
        return pair_batch(self.objective, scores, inputs, extra)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **_: Any
    ) -> Any:
        """This micro-batch's part of the step's mean loss, times the processes (whose gradients are then averaged)."""
        batch = self.fields(model, inputs)
        weights = row_weights(inputs, batch.policy_chosen)
        if self.state.global_step == 0 and self.reference is not None and self.reference.is_start:
            self._check_start(batch, inputs)
        if self._step is not None:
            loss, losses = self._step.surrogate(batch)
        else:
            if self.interacting:
                self.objective.update(batch.map(lambda value: value.detach()), weights)
            losses = self.objective(batch, weights)
            loss = (weights * losses).sum() / self._step_weight
        self.check_finite(losses, inputs)
        self.totals.add(pair_metrics(self.objective, batch, losses), weights)
        loss = loss * self.accelerator.num_processes
        return (loss, batch) if return_outputs else loss

    def _check_start(self, batch: PairLogProbs, inputs: dict[str, Tensor]) -> None:
        """Before the first step the policy is the reference: margin 0, and for DPO loss ln 2."""
        tolerance = START_TOLERANCE.get(unwrap(self.model).dtype, 2e-2)
        if self.args.bf16 or self.args.fp16:
            tolerance = 2e-2
        for side in self.sides:
            policy, reference = getattr(batch, f"policy_{side}").detach(), getattr(batch, f"reference_{side}")
            if reference is None:
                continue
            gap = (policy - reference).abs()
            bad = gap > tolerance * policy.abs().clamp(min=1.0)
            if bool(bad.any()):
                raise StepZeroError(
                    f"the reference is said to be the policy's start, but before the first step log-probabilities "
                    f"({side}) differ by up to {float(gap.max()):.3g} nats (rows {inputs['row'][bad].tolist()[:5]}): "
                    "the loss would not start at margin 0; take the reference from this model, with dropout off"
                )

    # -- logging, evaluation and state ------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With numbers of the auxiliary variables, after the step that was logged."""
        more = self.auxiliary.metrics() if self.auxiliary is not None and "loss" in logs else {}
        super().log(logs | more, start_time)

    def _evaluate_rows(self, data: RowData) -> dict[str, float]:
        self.objective.eval()
        totals = type(self.totals)()
        batches = self.evaluation_batches(data)
        found = [(self.fields(self.model, inputs, held_out=True), inputs) for inputs in batches]
        weights = [row_weights(inputs, batch.policy_chosen) for batch, inputs in found]
        if self.interacting:
            processes = self.accelerator.num_processes
            step = WholeStep(self.objective, [batch for batch, _ in found], weights, processes=processes)
        for (batch, _), weight in zip(found, weights, strict=True):
            losses = step.surrogate(batch)[1] if self.interacting else self.objective(batch, weight)
            totals.add(pair_metrics(self.objective, batch, losses), weight)
        self.objective.train()
        return totals.means(self.accelerator)

    def extra_state(self) -> dict[str, Any]:
        """The objective's statistics and schedules, and the auxiliary variables."""
        state: dict[str, Any] = {"objective": self.objective.state_dict()}
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state_dict()
        return state

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """The inverse of ``extra_state``."""
        self.objective.load_state_dict(saved["objective"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(saved["auxiliary"])


def _moves(reference: Reference, model: nn.Module) -> bool:
    return unwrap(reference.model) is unwrap(model) and not reference.without_adapter


class _MoveVariables(TrainerCallback):
    """After the model's own step."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.auxiliary is not None:
            self.trainer.auxiliary.after_step(self.trainer._batches)
