"""Merging LoRA adapters. The weighted sum is that of their changes of the weights, not of their factors.

    sum_t w_t s_t B_t A_t  =  [w_1 s_1 B_1 | ... | w_k s_k B_k] [A_1; ...; A_k],   s_t = alpha_t / r_t

so the factors are put side by side, and the rank of the result is the sum of the ranks. (Averages of A and of B would
give a product with cross terms, and depend on how each adapter happens to split its change.)
Source: Hu et al. 2022, arXiv:2106.09685, Eq. 3, for the adapter; alpha / sqrt(r) where an adapter says use_rslora.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_backend.merging.agreement import output_dtypes
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder
from llm_backend.merging.tensor_files import HashedFile, TensorPlace

DOWN, UP = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")
REFUSED = {
    "use_dora": "DoRA's magnitudes", "lora_bias": "a bias of its own", "modules_to_save": "whole modules",
    "rank_pattern": "ranks by module", "alpha_pattern": "scales by module", "trainable_token_indices": "single tokens",
    "target_parameters": "single parameters", "layer_replication": "repeated layers", "use_qalora": "QALoRA",
}  # fmt: skip
PLAIN_STARTS = ("gaussian", "orthogonal", "eva")  # the other named ones change the base model too


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, its scale s, and for each adapted module the places of A (r, in) and B (out, r)."""

    folder: ModelFolder
    scale: float
    modules: dict[str, tuple[TensorPlace, TensorPlace]]

    @property
    def rank(self) -> int:
        """r."""
        return next(iter(self.modules.values()))[0].shape[0]


@dataclass(frozen=True)
class FactorPlan:
    """A factor of the result: the inputs' factors side by side, ``axis`` 0 for A and 1 for B, times ``factors``."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int
    parts: tuple[TensorPlace, ...]
    factors: tuple[float, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes to write."""
        return math.prod(self.shape) * self.dtype.itemsize

    def values(self, files: Mapping[Path, HashedFile]) -> Tensor:
        """The factor, of ``shape``. Raises MergeError for values that are not finite."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        pieces = [read_whole(place, files).to(wide).mul_(f) for place, f in zip(self.parts, self.factors, strict=True)]
        merged = torch.cat(pieces, dim=self.axis).to(self.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise MergeError(f"the merged {self.name} is not finite; look for broken weights in the adapters")
        return merged


def open_adapters(folders: Sequence[ModelFolder]) -> list[Adapter]:
    """The adapters, compared with the first. Raises MergeError for what has no one meaning of "merged"."""
    adapters = [_open(folder) for folder in folders]
    first = adapters[0]
    for other in adapters[1:]:
        for key in ("base_model_name_or_path", "fan_in_fan_out", "task_type"):
            ours, theirs = first.folder.config.get(key), other.folder.config.get(key)
            if ours != theirs and None not in (ours, theirs):
                raise MergeError(
                    f"{other.folder.path} has {key} = {theirs!r}, but {first.folder.path} has {ours!r}; only adapters "
                    "of one model can be merged"
                )
        apart = sorted(set(first.modules) ^ set(other.modules))
        if apart:
            raise MergeError(
                f"{apart[0]} is adapted in only one of {first.folder.path} and {other.folder.path}; merge adapters of "
                "the same target modules"
            )
        for module, (a, b) in other.modules.items():
            ours_a, ours_b = first.modules[module]
            if a.shape[1:] != ours_a.shape[1:] or b.shape[0] != ours_b.shape[0]:
                raise MergeError(
                    f"{a.name} in {a.file} belongs to a layer of another shape than that in {ours_a.file}; only "
                    "adapters of one model can be merged"
                )
    return adapters


def plan_factors(
    adapters: Sequence[Adapter], weights: Sequence[float], dtype: torch.dtype | None
) -> tuple[list[FactorPlan], dict[str, Any]]:
    """The factors of the result, and its adapter_config.json, whose scale is 1. Weights of 0 add no rank."""
    used = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight != 0.0]
    plans = []
    for module in adapters[0].modules:
        for axis in (0, 1):
            all_places = [adapter.modules[module][axis] for adapter in adapters]
            kept = output_dtypes([_flat(place) for place in all_places], dtype)
            places = tuple(adapter.modules[module][axis] for adapter, _ in used)
            factors = tuple(weight * adapter.scale if axis else 1.0 for adapter, weight in used)
            shape = list(places[0].shape)
            shape[axis] = sum(place.shape[axis] for place in places)
            plans.append(FactorPlan(places[0].name, tuple(shape), kept, axis, places, factors))
    rank = sum(adapter.rank for adapter, _ in used)
    return plans, adapters[0].folder.config | {"r": rank, "lora_alpha": rank, "use_rslora": False}


def read_whole(place: TensorPlace, files: Mapping[Path, HashedFile]) -> Tensor:
    """A tensor in memory, for small ones."""
    raw = torch.empty(place.n_bytes, dtype=torch.uint8)
    files[place.file].read_into(raw.numpy().data, place.begin)
    return raw.view(place.dtype).reshape(place.shape)


def _open(folder: ModelFolder) -> Adapter:
    config, path = folder.config, folder.path
    if str(config.get("peft_type", "")).upper() != "LORA":
        raise MergeError(f"{path} is an adapter of type {config.get('peft_type')}; only LoRA adapters can be merged")
    for key, what in REFUSED.items():
        if config.get(key):
            raise MergeError(f"{path} has {key} ({what}), for which merging has no one meaning; merge it into its base")
    if config.get("bias", "none") != "none":
        raise MergeError(f"{path} trains biases (bias = {config['bias']!r}); merge it into its base first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in PLAIN_STARTS:
        raise MergeError(f"{path} was started by {start}, which changes the base model too; merge it into its base")
    modules = dict(_pairs(folder))
    if not modules:
        raise MergeError(f"{path} holds no LoRA factors")
    ranks = {a.shape[0] for a, _ in modules.values()}
    r, alpha = config.get("r"), config.get("lora_alpha")
    if ranks != {r} or not isinstance(r, int) or not isinstance(alpha, int | float):
        raise MergeError(
            f"{folder.files[0]} has factors of rank {', '.join(map(str, sorted(ranks)))}, but its configuration says "
            f"r = {r}, lora_alpha = {alpha}"
        )
    return Adapter(folder, float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r), modules)


def _pairs(folder: ModelFolder) -> Iterator[tuple[str, tuple[TensorPlace, TensorPlace]]]:
    for name, a in folder.tensors.items():
        if not name.endswith((*DOWN, *UP)):
            raise MergeError(f"{a.file} holds {name}, which is no factor of LoRA; merge the adapter into its base")
    for down, up in zip(DOWN, UP, strict=True):
        firsts = {name.removesuffix(down) for name in folder.tensors if name.endswith(down)}
        seconds = {name.removesuffix(up) for name in folder.tensors if name.endswith(up)}
        if firsts != seconds:
            raise MergeError(f"{folder.files[0]} has only one of the two factors of {min(firsts ^ seconds)}")
        for module in sorted(firsts):
            a, b = folder.tensors[module + down], folder.tensors[module + up]
            if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1]:
                raise MergeError(f"the factors of {module} in {a.file} do not fit: {a.shape} and {b.shape}")
            yield module + down, (a, b)


def _flat(place: TensorPlace) -> TensorPlace:
    """Without its shape: ranks may differ."""
    return TensorPlace(place.name, place.dtype, (), place.file, place.begin)
