"""Metrics as sums and counts: means are taken once, over all pairs of all micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from objectives import Objective, PairLogProbs, dpo_reward


class Totals:
    """Weighted sums by name, in float64 on one device, with the sum of the weights of each."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weights: Tensor) -> None:
        """Take in values (n,) with weights (n,)."""
        wide = torch.float32 if weights.device.type == "mps" else torch.float64
        weight = weights.detach().to(wide)
        for name, value in values.items():
            pair = torch.stack([(weight * value.detach().to(wide)).sum(), weight.sum()])
            self._sums[name] = self._sums[name].to(pair.device) + pair if name in self._sums else pair

    def means(self, accelerator: Any = None) -> dict[str, float]:
        """The means over everything since the last call (over all processes, given the accelerator); empties itself."""
        if not self._sums:
            return {}
        table = torch.stack(list(self._sums.values()))
        if accelerator is not None and accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        names = list(self._sums)
        self._sums = {}
        return {name: float(total / weight) for name, (total, weight) in zip(names, table.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for checkpoints between two logs."""
        return {"sums": {name: value.clone() for name, value in self._sums.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse; sums come back on the CPU and go to where the first new values are."""
        self._sums = dict(saved["sums"])


def pair_metrics(objective: Objective, batch: PairLogProbs, losses: Tensor) -> dict[str, Tensor]:
    """What is logged of every pair, (n,) each.

    ``rewards/*`` are the objective's own implicit reward; an exact tie counts one half in ``rewards/accuracies``.
    ``dpo_rewards/*`` are beta log(pi/ref) (beta 1 where the objective has none), where there is a reference.
    """
    fixed = batch.map(lambda value: value.detach())
    chosen, rejected = objective.implicit_reward(fixed)
    margin = chosen - rejected
    metrics = {
        "loss": losses.detach(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype),
        "logps/chosen": fixed.policy_chosen,
        "logps/rejected": fixed.policy_rejected,
    }
    if fixed.reference_chosen is not None and fixed.reference_rejected is not None:
        plain = dpo_reward(fixed, getattr(objective, "beta", 1.0))
        metrics |= {"dpo_rewards/chosen": plain[0], "dpo_rewards/rejected": plain[1]}
        metrics["dpo_rewards/margins"] = plain[0] - plain[1]
    return metrics
