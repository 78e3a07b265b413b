"""From scores of responses to the batch that an objective reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llm_backend.errors import BatchingError
from llm_backend.log_probs import ResponseScores, response_log_probs
from llm_backend.reference import Reference
from objectives import Objective, PairLogProbs
from objectives.batch import SIDES

PAIR = ("chosen", "rejected")
HOW = {
    "reference": "give the trainer a reference (llm_backend.reference)",
    "win": "add this column to the rows: a probability for each of them",
    "delta": "give the trainer an auxiliary that makes it",
    "seqkl": "give the trainer a live_reference, as this compares whole distributions at every token",
    "mismatched": 'use kl="batch" or a number',
}


def sides_of(objective: Objective) -> tuple[str, ...]:
    """The responses of a row that an objective reads: chosen, rejected and, for WRPO, those of the sources."""
    named = {name.removeprefix("policy_") for name in objective.fields if name.startswith("policy_")}
    return tuple(side for side in SIDES if side in PAIR or side in named)


def reference_columns(objective: Objective) -> tuple[str, ...]:
    """The log-probabilities under the reference that an objective needs."""
    return tuple(name for name in objective.fields if name.startswith("reference_"))


def needs_live_reference(objective: Objective) -> bool:
    """Whether log-probabilities of the reference are not enough (TDPO's sequential KL)."""
    return any(name.startswith("seqkl_") for name in objective.fields)


def score_pairs(
    model: Any, inputs: Mapping[str, Tensor], objective: Objective, live_reference: Reference | None = None
) -> ResponseScores:
    """The responses of a batch, with what WPO and TDPO need where they need it."""
    collision = any(name.startswith("weight_") for name in objective.fields)
    reference = live_reference.head_input(inputs) if live_reference and needs_live_reference(objective) else None
    return response_log_probs(model, inputs, sides_of(objective), collision=collision, reference=reference)


def pair_batch(
    objective: Objective,
    scores: ResponseScores,
    inputs: Mapping[str, Tensor],
    extra: Mapping[str, Tensor] | None = None,
) -> PairLogProbs:
    """Everything that the objective reads: scores, columns of the rows (reference, win rates), and ``extra`` fields.

    References that are present come along for logging even where the objective does without them.
    Raises: BatchingError for a field that nothing provides.
    """
    values = scores.policy_fields() | dict(extra or {})
    if any(name.startswith("weight_") for name in objective.fields):
        values |= scores.weight_fields()
    like = scores.log_probs["chosen"]
    columns = {f"{kind}_{side}" for kind in ("reference", "win") for side in SIDES if side in scores.log_probs}
    values |= {name: inputs[name].to(like.dtype) for name in columns if name in inputs and name not in values}
    for name in objective.fields:
        if name not in values:
            raise BatchingError(f"{objective.name} needs {name}: {HOW.get(name.split('_')[0], 'nothing provides it')}")
    return PairLogProbs(**values, validate=False)


def row_weights(inputs: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Column ``weight`` of the rows, or ones, (n,)."""
    return inputs["weight"].to(like.dtype) if "weight" in inputs else like.new_ones(like.shape)


def step_weights(inputs: Mapping[str, Tensor]) -> Tensor:
    """The same in float64, before anything is scored: weights of a whole optimizer step are summed in it."""
    lengths = inputs["lengths"][0]
    return row_weights(inputs, lengths.float() if lengths.device.type == "mps" else lengths.double())
