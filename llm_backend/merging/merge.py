"""Merge model folders: theta* = sum_t w_t theta_t, block by block, so that no model is ever in memory as a whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_backend.merging.agreement import check_agreement
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder, open_folder
from llm_backend.merging.kinds import Progress, Wishes, merge_adapters, merge_into_base, merge_models
from llm_backend.merging.report import RECORD, MergeReport, write_json
from llm_backend.merging.streaming import BlockReader
from llm_backend.merging.target import check_target, new_folder
from llm_backend.merging.weighted_sum import checked_weights
from llm_backend.models import DTYPES


def merge_folders(
    folders: Sequence[str | Path],
    weights: Sequence[float],
    out: str | Path,
    *,
    dtype: str | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
    extrapolate: bool = False,
    max_shard_bytes: int | None = None,
    hashed: bool = True,
    progress: Progress | None = None,
    note: Mapping[str, Any] | None = None,
) -> MergeReport:
    """The model whose parameters are sum_t w_t theta_t, as a folder that transformers loads.

    Sums are taken in float32 (float64 where an input or the result is float64), whatever the models are stored in; the
    result has the inputs' dtype, or ``dtype``. Tied weights are merged and written once. Tokenizer and configuration
    are the first model's, and the files of weights are divided as the first model's, or by ``max_shard_bytes``.
    LoRA adapters become one adapter whose rank is the sum of theirs, exactly; or, with their ``base``, a whole model.
    ``merge.json`` in the folder says what was merged, with the SHA-256 of the inputs' files unless ``hashed`` is off,
    and ``note``, if any (how the weights came about). ``progress`` is called with bytes written and bytes in all.
    Source: TPMM-DPO, Eqs. 4, 5 and 7.

    Raises: MergeError for models that do not fit together, weights that do not sum to 1 (or negative ones without
    ``extrapolate``), files that are missing or damaged, ``out`` that exists (without ``overwrite``) or is an input, and
    a full disk. The inputs are never written to, and ``out`` is there completely or not at all.
    """
    paths, target = [Path(folder) for folder in folders], Path(out)
    root = None if base is None else Path(base)
    if not paths:
        raise MergeError("a merge needs at least one model, got none")
    if dtype is not None and dtype not in DTYPES:
        raise MergeError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise MergeError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    values = checked_weights(weights, len(paths), extrapolate=extrapolate)
    opened = opened_together(paths, target, base=root, overwrite=overwrite)
    wishes = Wishes(DTYPES[dtype] if dtype else None, max_shard_bytes, progress)
    if root is not None:
        if not opened[0].is_adapter:
            raise MergeError(f"a base is for adapters, but {paths[0]} is a whole model; leave the base out")
        opened = [*opened, open_folder(root)]
        size, write = merge_into_base(opened[-1], opened[:-1], values, wishes)
    else:
        size, write = (merge_adapters if opened[0].is_adapter else merge_models)(opened, values, wishes)
    _check_room(target, size)
    used = [t for t, value in enumerate(values) if value != 0.0]
    files = [file for folder in opened for file in folder.files]
    with _one_thread(), new_folder(target) as part, BlockReader(files, used, hashed=hashed) as reader:
        found = write(part, reader)
        digests = reader.digests()
        hashes = tuple({file.name: digests[file] for file in folder.files} for folder in opened)
        report = MergeReport(target, tuple(paths), values, root, hashes, found)
        write_json(part / RECORD, report.to_json() | dict(note or {}))
    return report


def opened_together(
    paths: Sequence[Path], out: Path, *, base: Path | None = None, overwrite: bool = False
) -> list[ModelFolder]:
    """The folders, after everything was looked at that can be without their weights. Raises MergeError."""
    check_target(out, [*paths, *([] if base is None else [base])], overwrite=overwrite)
    opened = [open_folder(path) for path in paths]
    check_agreement(opened)
    return opened


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks fit into one core's cache, and reading and hashing want the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_room(out: Path, size: int) -> None:
    """Say before the work starts what would end it."""
    folder = next(parent for parent in out.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MergeError(f"the result takes {size:,} bytes, but {folder} has only {free:,} free")
