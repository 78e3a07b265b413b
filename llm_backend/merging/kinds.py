"""The three kinds of merges, each writing its tensors into a folder: models, adapters, adapters into their base."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_backend.merging.adapters import FactorPlan, open_adapters, plan_factors
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ADAPTER, ADAPTER_CONFIG, ModelFolder
from llm_backend.merging.into_base import Change, row_plan
from llm_backend.merging.plan import TensorPlan, plan_tensors
from llm_backend.merging.report import Written, write_json, written
from llm_backend.merging.shards import Entry, Plan, Shard, ShardWriter, aligned, divide, write_index
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
    shards, sum_up = divide(plans, folders[0], wishes.max_shard_bytes), WeightedSum(weights)

    def write(part: Path, reader: BlockReader) -> Written:
        def blocks(shard: Shard[TensorPlan]) -> Iterator[Tensor]:
            return (sum_up(values, plan) for plan, values in reader.blocks(shard.plans))

        done = _write_shards(shards, part, folders[0], wishes, blocks)
        write_index(shards, part, folders[0])
        copy_beside(folders[0], part, wishes.dtype)
        read = sum(folders[t].n_bytes for t in sum_up.used)
        return written("model", plans, sum(plan.places[0].n_values for plan in plans), ties, read, done)

    return _size(plans), write


def merge_adapters(
    folders: Sequence[ModelFolder], weights: tuple[float, ...], wishes: Wishes
) -> tuple[int, Callable[[Path, BlockReader], Written]]:
    """The exact weighted sum as one adapter of a larger rank."""
    plans, config = plan_factors(open_adapters(folders), weights, wishes.dtype)
    whole = Shard(ADAPTER, aligned(plans))

    def write(part: Path, reader: BlockReader) -> Written:
        def blocks(shard: Shard[FactorPlan]) -> Iterator[Tensor]:
            return (plan.values(reader.files) for plan in shard.plans)

        done = _write_shards([whole], part, folders[0], wishes, blocks)
        copy_beside(folders[0], part, None)
        write_json(part / ADAPTER_CONFIG, config)
        read = sum(place.n_bytes for plan in plans for place in plan.parts)
        return written("adapter", plans, sum(math.prod(plan.shape) for plan in plans), {}, read, done)

    return _size(plans), write


def merge_into_base(
    base: ModelFolder, folders: Sequence[ModelFolder], weights: tuple[float, ...], wishes: Wishes
) -> tuple[int, Callable[[Path, BlockReader], Written]]:
    """The base's weights plus the weighted sum of what the adapters change."""
    if base.is_adapter:
        raise MergeError(f"{base.path} is an adapter; name the whole model that the adapters were trained on")
    change = Change(base, open_adapters(folders), weights)
    plans = [row_plan(place, wishes.dtype) for place in base.tensors.values()]
    shards = divide(plans, base, wishes.max_shard_bytes)

    def write(part: Path, reader: BlockReader) -> Written:
        def blocks(shard: Shard[TensorPlan]) -> Iterator[Tensor]:
            return (values for plan in shard.plans for values in change.blocks(plan, reader.files, BLOCK))

        done = _write_shards(shards, part, base, wishes, blocks)
        write_index(shards, part, base)
        copy_beside(base, part, wishes.dtype)
        read = base.n_bytes + sum(folder.n_bytes for folder in folders)
        return written("adapters into base", plans, sum(plan.places[0].n_values for plan in plans), {}, read, done)

    return _size(plans), write


def copy_beside(first: ModelFolder, part: Path, dtype: torch.dtype | None) -> None:
    """Configuration, tokenizer and templates of the first model; config.json states the dtype that was chosen."""
    for path in first.beside():
        shutil.copyfile(path, part / path.name)
    if dtype is not None and (part / "config.json").is_file():
        config = dict(first.config)
        name = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        write_json(part / "config.json", config | {name: str(dtype).removeprefix("torch.")})


def _write_shards(
    shards: Sequence[Shard[Plan]],
    part: Path,
    first: ModelFolder,
    wishes: Wishes,
    blocks: Callable[[Shard[Plan]], Iterator[Tensor]],
) -> int:
    """Every file with the blocks of its values in order, telling of each; bytes written, headers included."""
    total = sum(_size(shard.plans) for shard in shards)
    done = 0
    for shard in shards:
        with ShardWriter(shard, part, first.metadata) as writer:
            for values in blocks(shard):
                writer.add(values)
                if wishes.progress is not None:
                    wishes.progress(min(done + writer.written, total), total)
            done += writer.written
    return done


def _size(plans: Sequence[Entry]) -> int:
    return sum(plan.n_bytes for plan in plans)
