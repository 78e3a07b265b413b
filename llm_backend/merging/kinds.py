"""The three kinds of merges, each writing its tensors into a folder: models, adapters, adapters into their base."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_backend.merging.adapters import open_adapters, plan_factors
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ADAPTER, ADAPTER_CONFIG, ModelFolder
from llm_backend.merging.into_base import Change, row_plan
from llm_backend.merging.plan import plan_tensors
from llm_backend.merging.report import Written, write_json, written
from llm_backend.merging.shards import Shard, ShardWriter, aligned, divide, write_index
from llm_backend.merging.streaming import BlockReader
from llm_backend.merging.weighted_sum import BLOCK, WeightedSum

Progress = Callable[[int, int], object]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Wishes:
    """How to write: the dtype (None: that of the inputs), the size of files (None: those of the first input)."""

    dtype: torch.dtype | None = None
    max_shard_bytes: int | None = None
    progress: Progress | None = None


def merge_models(
    folders: Sequence[ModelFolder], weights: tuple[float, ...], wishes: Wishes
) -> tuple[int, Callable[[Path, BlockReader], Written]]:
    """(bytes of the result, what writes it). Everything that can be refused from headers is refused here."""
    plans, ties = plan_tensors(folders, wishes.dtype)
    shards = divide(plans, folders[0], wishes.max_shard_bytes)
    total, sum_up = sum(plan.n_bytes for plan in plans), WeightedSum(weights)

    def write(part: Path, reader: BlockReader) -> Written:
        done = 0
        for shard in shards:
            with ShardWriter(shard, part, folders[0].metadata) as writer:
                for plan, values in reader.blocks(shard.plans):
                    writer.add(sum_up(values, plan))
                    _tell(wishes, done + writer.written, total)
                done += writer.written
        write_index(shards, part, folders[0])
        copy_beside(folders[0], part, wishes.dtype)
        read = sum(folders[t].n_bytes for t in sum_up.used)
        return written("model", plans, sum(plan.places[0].n_values for plan in plans), ties, read, done)

    return total, write


def merge_adapters(
    folders: Sequence[ModelFolder], weights: tuple[float, ...], wishes: Wishes
) -> tuple[int, Callable[[Path, BlockReader], Written]]:
    """The exact weighted sum as one adapter of a larger rank."""
    plans, config = plan_factors(open_adapters(folders), weights, wishes.dtype)
    shard, total = Shard(ADAPTER, aligned(plans)), sum(plan.n_bytes for plan in plans)

    def write(part: Path, reader: BlockReader) -> Written:
        with ShardWriter(shard, part, folders[0].metadata) as writer:
            for plan in shard.plans:
                writer.add(plan.values(reader.files))
                _tell(wishes, writer.written, total)
        copy_beside(folders[0], part, None)
        write_json(part / ADAPTER_CONFIG, config)
        read = sum(place.n_bytes for plan in plans for place in plan.parts)
        return written("adapter", plans, sum(math.prod(plan.shape) for plan in plans), {}, read, writer.written)

    return total, write


def merge_into_base(
    base: ModelFolder, folders: Sequence[ModelFolder], weights: tuple[float, ...], wishes: Wishes
) -> tuple[int, Callable[[Path, BlockReader], Written]]:
    """The base's weights plus the weighted sum of what the adapters change."""
    if base.is_adapter:
        raise MergeError(f"{base.path} is an adapter; name the whole model that the adapters were trained on")
    change = Change(base, open_adapters(folders), weights)
    plans = [row_plan(place, wishes.dtype) for place in base.tensors.values()]
    shards, total = divide(plans, base, wishes.max_shard_bytes), sum(plan.n_bytes for plan in plans)

    def write(part: Path, reader: BlockReader) -> Written:
        done = 0
        for shard in shards:
            with ShardWriter(shard, part, base.metadata) as writer:
                for plan in shard.plans:
                    change.write(plan, reader.files, writer.add, BLOCK)
                    _tell(wishes, done + writer.written, total)
                done += writer.written
        write_index(shards, part, base)
        copy_beside(base, part, wishes.dtype)
        read = base.n_bytes + sum(folder.n_bytes for folder in folders)
        return written("adapters into base", plans, sum(plan.places[0].n_values for plan in plans), {}, read, done)

    return total, write


def copy_beside(first: ModelFolder, part: Path, dtype: torch.dtype | None) -> None:
    """Configuration, tokenizer and templates of the first model; config.json states the dtype that was chosen."""
    for path in first.beside():
        shutil.copyfile(path, part / path.name)
    if dtype is not None and (part / "config.json").is_file():
        config = dict(first.config)
        name = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        write_json(part / "config.json", config | {name: str(dtype).removeprefix("torch.")})


def _tell(wishes: Wishes, done: int, total: int) -> None:
    if wishes.progress is not None:
        wishes.progress(min(done, total), total)
