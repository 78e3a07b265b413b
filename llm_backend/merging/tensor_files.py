"""Safetensors files read block by block: the header, checked against the size of the file, and hashed bytes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from llm_backend.merging.errors import MergeError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, the limit of the format
CATCH_UP = 2**22  # bytes read at once for the hash alone


@dataclass(frozen=True)
class TensorPlace:
    """Where the values of a tensor are: bytes ``begin`` to ``begin + n_bytes`` of ``file``, row-major."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    begin: int

    @property
    def n_values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return self.n_values * self.dtype.itemsize


def read_header(file: Path) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata.

    Raises: MergeError for a file that is missing, cut short, damaged, or holds a dtype that torch cannot add.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise MergeError(f"{file} is cut short or is no safetensors file; copy or save it again")
            header = json.loads(stream.read(length))
    except OSError as problem:
        raise MergeError(f"{file} cannot be read: {problem.strerror or problem}") from None
    except ValueError as problem:
        if isinstance(problem, MergeError):
            raise
        raise MergeError(f"{file} has a damaged header; copy or save it again") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    try:
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        places = {name: _place(name, entry, file, 8 + length) for name, entry in entries}
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        if isinstance(problem, MergeError):
            raise
        raise MergeError(f"{file} has a damaged header; copy or save it again") from None
    end = 8 + length
    for place in places.values():
        if place.begin != end:
            raise MergeError(f"{file} has a damaged header at {place.name}; copy or save it again")
        end += place.n_bytes
    if end != size:
        what = "is cut short" if end > size else "is longer than it should be"
        raise MergeError(f"{file} {what} ({size:,} bytes, its header says {end:,}); copy or save it again")
    return places, metadata


def _place(name: str, entry: Mapping[str, Any], file: Path, start: int) -> TensorPlace:
    if entry["dtype"] not in DTYPES:
        raise MergeError(
            f"{name} in {file} is {entry['dtype']}, which cannot be averaged; convert the model to a plain dtype first"
        )
    shape = tuple(int(side) for side in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    place = TensorPlace(name, DTYPES[entry["dtype"]], shape, file, start + begin)
    if min(shape, default=0) < 0 or end - begin != place.n_bytes:
        raise ValueError(name)
    return place


class HashedFile:
    """A file that is read at given places, and hashed as a whole along the way.

    The hash is SHA-256 of the file. Reads in the order of the file feed it for nothing; the rest is read at the end.
    """

    def __init__(self, path: Path, *, hashed: bool = True) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._state = hashlib.sha256() if hashed else None
        self._hashed = 0

    def read_into(self, target: memoryview, begin: int) -> None:
        """Fill ``target`` with the bytes from ``begin`` on. Raises MergeError where the file ends before."""
        if self._hashed < begin <= self._hashed + CATCH_UP:
            self.catch_up(begin)  # the header, or a tensor that is not merged
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], begin + done)
            if count == 0:
                raise MergeError(f"{self.path} became shorter while it was read; copy or save it again")
            done += count
        if self._state is not None and self._hashed == begin:
            self._state.update(target)
            self._hashed += len(target)

    def catch_up(self, end: int) -> None:
        """Hash what comes before ``end`` and was not read."""
        buffer = bytearray(CATCH_UP)
        while self._state is not None and self._hashed < end:
            self.read_into(memoryview(buffer)[: min(CATCH_UP, end - self._hashed)], self._hashed)

    def digest(self) -> str | None:
        """SHA-256 of the whole file, in hexadecimal; None where it was not asked for."""
        self.catch_up(os.fstat(self._descriptor).st_size)
        return None if self._state is None else self._state.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
