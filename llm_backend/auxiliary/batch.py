"""What one batch tells the constraint: its responses, their slots, and each one's share of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_backend.auxiliary.directions import Direction, add_, zeros_like
from llm_backend.auxiliary.scores import ReferenceScores


@dataclass(frozen=True, eq=False)
class AuxiliaryRows:
    """k = 2b responses of b training rows, chosen and rejected in any order.

    ``slots`` (k,); ``shares`` (k,), the weight of the response's row over the sum of the weights of the batch's rows
    (1/b without weights); ``responses`` is what the log-prob function reads, k responses in the same order.
    """

    slots: Tensor
    shares: Tensor
    responses: Any


def rows_of(chosen: Tensor, rejected: Tensor, responses: Any, weights: Tensor | None = None) -> AuxiliaryRows:
    """One batch of rows with slots ``chosen`` and ``rejected`` (b,); ``responses`` in the order chosen, rejected."""
    weights = torch.ones(chosen.shape, dtype=torch.float64) if weights is None else weights.double()
    return AuxiliaryRows(torch.cat([chosen, rejected]), (weights / weights.sum()).repeat(2), responses)


Parts = Sequence[AuxiliaryRows]
"""One optimiser step's rows, in as many micro-batches as fit; the shares are of the whole step, of all processes."""


def pull_parts(scores: ReferenceScores, parts: Parts, cotangents: Sequence[Tensor]) -> Direction:
    """sum over the parts (there may be none), and over the processes that share the step, of A cotangent."""
    total: Direction | None = None
    for part, cotangent in zip(parts, cotangents, strict=True):
        found = scores.pull(part.responses, cotangent)
        total = found if total is None else add_(total, found)
    total = zeros_like(scores.parameters) if total is None else total
    return {name: scores.reduce(value) for name, value in total.items()}


def push_parts(scores: ReferenceScores, parts: Parts, direction: Direction) -> list[Tensor]:
    """<g_i, direction> for the responses of each part."""
    found = [scores.push(part.responses, direction) for part in parts]
    scores.learn(found, direction)
    return found


def batch_residual(scores: ReferenceScores, parts: Parts, rates: Tensor, delta: Tensor) -> Direction:
    """c_B = sum_i share_i rate_(slot i) delta_(slot i) g_i, whose mean over random batches is c = A W delta.

    ``rates`` (m,) are w_i n / count_i: a slot in which many rows take part is met that much more often.
    """
    cotangents = [part.shares * rates[part.slots] * delta[part.slots] for part in parts]
    return pull_parts(scores, parts, cotangents)
