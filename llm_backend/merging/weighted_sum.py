"""The weighted sum of blocks of values, in float32 (float64 where an input or the result is), checked as it is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_backend.merging.errors import MergeError
from llm_backend.merging.plan import TensorPlan

BLOCK = 2**18
"""Values at once: few enough that the blocks of some models stay in a core's cache."""
TOLERANCE = 1e-9


def checked_weights(weights: Sequence[float], k: int, *, extrapolate: bool = False) -> tuple[float, ...]:
    """The weights as floats. Raises MergeError unless there are k, finite, with sum 1 to 1e-9; negative ones only with
    ``extrapolate``."""
    values = tuple(float(weight) for weight in weights)
    if len(values) != k:
        raise MergeError(f"{k} models need {k} weights, got {len(values)}")
    if not np.isfinite(values).all():
        raise MergeError(f"every weight must be a finite number, got {', '.join(f'{value:g}' for value in values)}")
    total = float(np.sum(values))
    if abs(total - 1.0) > TOLERANCE:
        raise MergeError(f"the weights must sum to 1, but they sum to {total:.12g}")
    if min(values) < 0.0 and not extrapolate:
        raise MergeError(
            f"the weight {min(values):g} is negative, which extrapolates beyond the models; allow it if it is meant "
            "(--allow-extrapolation)"
        )
    return values


class WeightedSum:
    """theta_b + sum_t w_t (theta_t - theta_b), b the model of the largest weight.

    As the weights sum to 1 that is sum_t w_t theta_t. Written so, equal values merge to themselves and a weight of 1
    gives its model, both bit for bit; and what is rounded are the small differences.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)
        self.base = int(np.argmax(self.weights))
        self.used = tuple(t for t, weight in enumerate(self.weights) if weight != 0.0)
        self._room: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, values: Sequence[Tensor | None], plan: TensorPlan) -> Tensor:
        """Blocks (n,), None where the weight is 0, -> (n,) in the plan's dtype; the memory is used again next time.

        Raises: MergeError for a sum that is not finite or beyond the range of the dtype.
        """
        base = values[self.base]
        assert base is not None  # its weight is the largest, so not 0
        if not base.dtype.is_floating_point:
            return self._same(values, plan)
        used = [value for value in values if value is not None]
        wide = torch.float64 if torch.float64 in (plan.dtype, *(each.dtype for each in used)) else torch.float32
        centre = base if base.dtype == wide else self._take("centre", wide, len(base)).copy_(base)
        total = self._take("total", wide, len(base)).copy_(centre)
        change = self._take("change", wide, len(base))
        for t in self.used:
            each = values[t]
            if t != self.base and each is not None:
                if each.dtype == wide:
                    torch.sub(each, centre, out=change)
                else:
                    change.copy_(each).sub_(centre)
                total.add_(change, alpha=self.weights[t])
        self._check(total, plan)
        return total if plan.dtype == wide else self._take("out", plan.dtype, len(base)).copy_(total)

    def _same(self, values: Sequence[Tensor | None], plan: TensorPlan) -> Tensor:
        """Integers and booleans have no weighted sum: they must be identical."""
        base = values[self.base]
        assert base is not None
        for place, value in zip(plan.places, values, strict=True):
            if value is not None and not torch.equal(value, base):
                raise MergeError(
                    f"{plan.name} in {place.file} differs from that in {plan.places[self.base].file}; values of dtype "
                    f"{str(plan.dtype).removeprefix('torch.')} cannot be averaged"
                )
        return base

    def _check(self, total: Tensor, plan: TensorPlan) -> None:
        low, high = (float(bound) for bound in torch.aminmax(total))
        limit = torch.finfo(plan.dtype).max
        if not (-limit <= low and high <= limit):
            files = ", ".join(str(place.file) for place in plan.places)
            raise MergeError(
                f"the merged {plan.name} holds values that are not finite, or beyond "
                f"{str(plan.dtype).removeprefix('torch.')}; look for broken weights in {files}"
            )

    def _take(self, name: str, dtype: torch.dtype, n: int) -> Tensor:
        if (name, dtype) not in self._room:
            self._room[name, dtype] = torch.empty(BLOCK, dtype=dtype)
        return self._room[name, dtype][:n]
