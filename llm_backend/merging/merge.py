"""Merge model folders: theta* = sum_t w_t theta_t, block by block, so that no model is ever in memory as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llm_backend.merging.agreement import check_agreement
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder, open_folder
from llm_backend.merging.plan import plan_tensors
from llm_backend.merging.shards import Shard, ShardWriter, divide, write_index
from llm_backend.merging.streaming import BlockReader
from llm_backend.merging.target import check_target, new_folder
from llm_backend.merging.weighted_sum import WeightedSum, checked_weights
from llm_backend.models import DTYPES

RECORD = "merge.json"


@dataclass(frozen=True)
class MergeReport:
    """What a merge read and wrote. ``inputs`` are the folders with the SHA-256 of each of their files of weights."""

    out: Path
    weights: tuple[float, ...]
    inputs: tuple[tuple[Path, dict[str, str | None]], ...]
    kind: str  # "model" or "adapter"
    n_tensors: int
    n_parameters: int
    dtypes: tuple[str, ...]
    ties: dict[str, str]  # names that were stored twice: name -> the one that stays
    bytes_read: int
    bytes_written: int

    def to_json(self) -> dict[str, Any]:
        """As it is written to merge.json, with the versions of the packages."""
        inputs = [
            {"path": str(path), "weight": weight, "sha256": digests}
            for (path, digests), weight in zip(self.inputs, self.weights, strict=True)
        ]
        numbers = {name: getattr(self, name) for name in ("kind", "n_tensors", "n_parameters", "ties")}
        numbers |= {"dtypes": list(self.dtypes), "bytes_read": self.bytes_read, "bytes_written": self.bytes_written}
        return {"inputs": inputs, **numbers, "versions": versions()}


def merge_folders(
    folders: Sequence[str | Path],
    weights: Sequence[float],
    out: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    extrapolate: bool = False,
    max_shard_bytes: int | None = None,
    hashed: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> MergeReport:
    """The model whose parameters are sum_t w_t theta_t, as a folder that transformers loads.

    Sums are taken in float32 (float64 where an input or the result is float64), whatever the models are stored in; the
    result has the inputs' dtype, or ``dtype``. Tied weights are merged and written once. Tokenizer and configuration
    are the first model's. ``progress`` is called with bytes done and bytes in all. ``merge.json`` in the folder says
    what was merged, with the hashes of the inputs' weights unless ``hashed`` is off.
    Source: TPMM-DPO, Eqs. 4, 5 and 7.

    Raises: MergeError for models that do not fit together, weights that do not sum to 1, files that are missing or
    damaged, ``out`` that exists or is an input, and a full disk. The inputs are never written to.
    """
    paths, target = [Path(folder) for folder in folders], Path(out)
    if not paths:
        raise MergeError("a merge needs at least one model, got none")
    if dtype is not None and dtype not in DTYPES:
        raise MergeError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise MergeError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    values = checked_weights(weights, len(paths), extrapolate=extrapolate)
    check_target(target, paths, overwrite=overwrite)
    opened = [open_folder(path) for path in paths]
    check_agreement(opened)
    if opened[0].is_adapter:
        raise MergeError("adapters cannot be merged yet")
    return _merge_models(opened, values, target, DTYPES[dtype] if dtype else None, max_shard_bytes, hashed, progress)


def _merge_models(
    opened: Sequence[ModelFolder],
    weights: tuple[float, ...],
    out: Path,
    dtype: torch.dtype | None,
    max_shard_bytes: int | None,
    hashed: bool,
    progress: Callable[[int, int], object] | None,
) -> MergeReport:
    plans, ties = plan_tensors(opened, dtype)
    shards = divide(plans, opened[0], max_shard_bytes)
    total = sum(plan.n_bytes for plan in plans)
    _check_room(out, total)
    sum_up = WeightedSum(weights)
    files = [file for folder in opened for file in folder.files]
    with new_folder(out) as part, BlockReader(files, sum_up.used, hashed=hashed) as reader:
        done = sum(
            _write_shard(shard, part, opened[0], reader, sum_up, progress and _shifted(progress, shards, number, total))
            for number, shard in enumerate(shards)
        )
        write_index(shards, part, opened[0])
        copy_beside(opened[0], part, dtype)
        digests = reader.digests()
        report = MergeReport(
            out, weights, tuple((each.path, {file.name: digests[file] for file in each.files}) for each in opened),
            "model", len(plans), sum(plan.places[0].n_values for plan in plans),
            tuple(sorted({str(plan.dtype).removeprefix("torch.") for plan in plans})), ties,
            sum(opened[t].n_bytes for t in sum_up.used), done,
        )  # fmt: skip
        write_json(part / RECORD, report.to_json())
    return report


def _write_shard(
    shard: Shard,
    part: Path,
    first: ModelFolder,
    reader: BlockReader,
    sum_up: WeightedSum,
    progress: Callable[[int], object] | None,
) -> int:
    with ShardWriter(shard, part, first.metadata) as writer:
        for plan, values in reader.blocks(shard.plans):
            writer.add(sum_up(values, plan))
            if progress is not None:
                progress(writer.written)
        return writer.written


def _shifted(
    progress: Callable[[int, int], object], shards: Sequence[Shard], number: int, total: int
) -> Callable[[int], object]:
    before = sum(plan.n_bytes for shard in shards[:number] for plan in shard.plans)
    return lambda written: progress(min(before + written, total), total)


def copy_beside(first: ModelFolder, part: Path, dtype: torch.dtype | None) -> None:
    """Configuration, tokenizer and templates of the first model; config.json states the dtype that was chosen."""
    for path in first.beside():
        shutil.copyfile(path, part / path.name)
    if dtype is not None and (part / "config.json").is_file():
        config = dict(first.config)
        name = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        write_json(part / "config.json", config | {name: str(dtype).removeprefix("torch.")})


def write_json(path: Path, document: dict[str, Any]) -> None:
    """A JSON file with floats that read back exactly."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Of the packages that a merge is made with."""
    found = {}
    for name in ("prefgeo", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _check_room(out: Path, size: int) -> None:
    """Say before the work starts what would end it."""
    folder = next(parent for parent in out.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MergeError(f"the result takes {size:,} bytes, but {folder} has only {free:,} free")
