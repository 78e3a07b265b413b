"""Safetensors files written tensor by tensor: which tensor goes into which file, headers, and the index."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from llm_backend.merging.folders import INDEX, MODEL, ModelFolder
from llm_backend.merging.plan import TensorPlan
from llm_backend.merging.tensor_files import NAMES


class Entry(Protocol):
    """A tensor to write."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def n_bytes(self) -> int: ...


Plan = TypeVar("Plan", bound=Entry)


@dataclass(frozen=True)
class Shard(Generic[Plan]):
    """A file to write, and its tensors in the order of their bytes."""

    name: str
    plans: tuple[Plan, ...]

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Length and JSON, padded to whole words."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        begin = 0
        for plan in self.plans:
            offsets = [begin, begin + plan.n_bytes]
            entries[plan.name] = {"dtype": NAMES[plan.dtype], "shape": list(plan.shape), "data_offsets": offsets}
            begin = offsets[1]
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def divide(plans: Sequence[TensorPlan], first: ModelFolder, max_bytes: int | None) -> list[Shard[TensorPlan]]:
    """The files of the first input again, or files of at most ``max_bytes`` (more only where one tensor is larger)."""
    if max_bytes is None:
        groups: dict[str, list[TensorPlan]] = {}
        for plan in plans:
            groups.setdefault(plan.places[0].file.name, []).append(plan)
        return [Shard(name, aligned(group)) for name, group in groups.items()]
    cut: list[list[TensorPlan]] = []
    size = 0
    for plan in plans:
        if not cut or size + plan.n_bytes > max_bytes:
            cut.append([])
            size = 0
        cut[-1].append(plan)
        size += plan.n_bytes
    if len(cut) == 1:
        return [Shard(MODEL, aligned(cut[0]))]
    total = len(cut)
    return [Shard(f"model-{i:05d}-of-{total:05d}.safetensors", aligned(group)) for i, group in enumerate(cut, 1)]


def write_index(shards: Sequence[Shard[TensorPlan]], folder: Path, first: ModelFolder) -> None:
    """The table of names where there are several files, or the first input has one."""
    if len(shards) == 1 and shards[0].name == MODEL:
        return
    total = sum(plan.n_bytes for shard in shards for plan in shard.plans)
    metadata = {**first.index.get("metadata", {}), "total_size": total}
    table = {plan.name: shard.name for shard in shards for plan in shard.plans}
    document = {"metadata": metadata, "weight_map": dict(sorted(table.items()))}
    (folder / INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class ShardWriter:
    """Writes blocks one after the other, exactly as a shard's header says."""

    def __init__(self, shard: Shard[Any], folder: Path, metadata: Mapping[str, str]) -> None:
        self._descriptor = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self.written = 0
        self._write(memoryview(shard.header(metadata)))

    def add(self, values: Tensor) -> None:
        """The next values, (n,)."""
        raw = values.detach().contiguous().view(-1)
        self._write(raw.view(torch.uint8).numpy().data)

    def _write(self, data: memoryview) -> None:
        while len(data):
            count = os.write(self._descriptor, data)
            self.written += count
            data = data[count:]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def aligned(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Wide dtypes first, as the format's own writer does it, so that every tensor begins at a multiple of its size."""
    return tuple(sorted(plans, key=lambda plan: -plan.dtype.itemsize))
