"""Adapters merged into the weights of their base model: theta_base + sum_t w_t s_t B_t A_t, as a whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llm_backend.merging.adapters import DOWN, Adapter, read_whole
from llm_backend.merging.agreement import is_tied
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder
from llm_backend.merging.plan import TensorPlan
from llm_backend.merging.tensor_files import HashedFile, TensorPlace

PREFIX = "base_model.model."


class Change:
    """What the adapters add to the tensors of the base, rows at a time."""

    def __init__(self, base: ModelFolder, adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
        self.adapters, self.weights = tuple(adapters), tuple(weights)
        self.transposed = bool(adapters[0].folder.config.get("fan_in_fan_out"))
        self.modules = {_tensor_name(module, base): module for module in adapters[0].modules}
        self.base = base
        self._check()

    def __call__(self, name: str, files: Mapping[Path, HashedFile], wide: torch.dtype) -> Callable[[int, int], Tensor]:
        """(first, last) -> rows of the change of this tensor, in ``wide``."""
        module = self.modules[name]
        flip = self.transposed or module.endswith(DOWN[1])
        factors = []
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            if weight != 0.0:
                a, b = (read_whole(place, files).to(wide) for place in adapter.modules[module])
                left, right = (a.T, b.T) if flip else (b, a)
                factors.append((left.mul(weight * adapter.scale), right))
        left, right = torch.cat([each[0] for each in factors], 1), torch.cat([each[1] for each in factors], 0)
        return lambda first, last: left[first:last] @ right

    def blocks(self, plan: TensorPlan, files: Mapping[Path, HashedFile], block: int) -> Iterator[Tensor]:
        """The changed tensor, some ``block`` values at a time. Raises MergeError if not finite."""
        place = plan.places[0]
        row = math.prod(place.shape[1:])
        rows, step = place.n_values // max(row, 1), max(1, block // max(row, 1))
        wide = torch.float64 if torch.float64 in (place.dtype, plan.dtype) else torch.float32
        change = self(plan.name, files, wide) if plan.name in self.modules else None
        for first in range(0, rows, step):
            last = min(first + step, rows)
            raw = torch.empty((last - first) * row * place.dtype.itemsize, dtype=torch.uint8)
            files[place.file].read_into(raw.numpy().data, place.begin + first * row * place.dtype.itemsize)
            values = raw.view(place.dtype)
            if change is not None:
                values = values.to(wide) + change(first, last).reshape(-1)
            values = values.to(plan.dtype)
            if plan.dtype.is_floating_point and not bool(torch.isfinite(values).all()):
                raise MergeError(f"the merged {plan.name} is not finite; look for broken weights in the inputs")
            yield values

    def _check(self) -> None:
        tied = is_tied(self.base)
        for name, module in self.modules.items():
            a, b = self.adapters[0].modules[module]
            if len(a.shape) != 2 or len(b.shape) != 2:
                raise MergeError(f"{a.name} in {a.file} adapts no linear layer; only those are merged into a base")
            shape = (b.shape[0], a.shape[1])
            shape = shape[::-1] if self.transposed or module.endswith(DOWN[1]) else shape
            place = self.base.tensors[name]
            if place.shape != shape:
                raise MergeError(
                    f"{name} is {place.shape} in {place.file}, but the adapters change a layer of {shape}; name the "
                    "base that they were trained on"
                )
            if tied and ("embed" in name or "wte" in name or "lm_head" in name):
                raise MergeError(
                    f"the adapters change {name}, which the base ties to another layer; untie it in the base first"
                )


def _tensor_name(module: str, base: ModelFolder) -> str:
    plain = module.removesuffix(DOWN[0]).removesuffix(DOWN[1]).removeprefix(PREFIX) + ".weight"
    if plain in base.tensors:
        return plain
    # checkpoints of some architectures leave the name of the body out
    short = [name for name in base.tensors if plain.endswith("." + name)]
    if len(short) == 1:
        return short[0]
    raise MergeError(f"{base.path} has no {plain}, which the adapters change; name the base that they were trained on")


def row_plan(place: TensorPlace, dtype: torch.dtype | None) -> TensorPlan:
    """The plan of one tensor of the base."""
    return TensorPlan((place,), dtype if dtype is not None and place.dtype.is_floating_point else place.dtype)
