"""Blocks of all inputs, one after the other: the next is read and hashed while the last is added and written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_backend.merging.plan import TensorPlan
from llm_backend.merging.tensor_files import HashedFile
from llm_backend.merging.weighted_sum import BLOCK

Piece = tuple[TensorPlan, int, int]
"""A tensor, and its values from which to which."""
WIDEST = 8  # bytes of a value


class BlockReader:
    """Reads the same piece of a tensor from every input that is used, each in a thread of its own.

    ``files`` are all files of weights, open.
    """

    def __init__(self, files: Sequence[Path], used: Sequence[int], *, hashed: bool = True) -> None:
        self._stack = contextlib.ExitStack()
        self.files = {path: self._stack.enter_context(HashedFile(path, hashed=hashed)) for path in files}
        self._used = tuple(used)
        self._pool = self._stack.enter_context(ThreadPoolExecutor(max(1, len(self._used))))

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def blocks(self, plans: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, list[Tensor | None]]]:
        """Every piece of every tensor in order, with its values in each input, (n,); None where an input is not used.

        The memory of a block is used again two blocks later.
        """
        k = len(plans[0].places) if plans else 0
        rooms = [[np.empty(BLOCK * WIDEST, dtype=np.uint8) for _ in range(k)] for _ in range(2)]
        waiting: tuple[TensorPlan, list[Future[Tensor] | None]] | None = None
        for number, (plan, start, stop) in enumerate(_pieces(plans)):
            room = rooms[number % 2]
            jobs: list[Future[Tensor] | None] = [None] * k
            ready = None if waiting is None else _results(waiting)
            for t in self._used:
                jobs[t] = self._pool.submit(self._read, plan, t, start, stop, room[t])
            if ready is not None:
                yield ready
            waiting = (plan, jobs)
        if waiting is not None:
            yield _results(waiting)

    def digests(self) -> dict[Path, str | None]:
        """SHA-256 of every file."""
        paths = list(self.files)
        return dict(zip(paths, self._pool.map(lambda path: self.files[path].digest(), paths), strict=True))

    def _read(self, plan: TensorPlan, t: int, start: int, stop: int, room: np.ndarray) -> Tensor:
        place = plan.places[t]
        size = place.dtype.itemsize
        raw = room[: (stop - start) * size]
        self.files[place.file].read_into(raw.data, place.begin + start * size)
        return torch.from_numpy(raw).view(place.dtype)


def _pieces(plans: Sequence[TensorPlan]) -> Iterator[Piece]:
    for plan in plans:
        n = plan.places[0].n_values
        for start in range(0, n, BLOCK):
            yield plan, start, min(start + BLOCK, n)


def _results(waiting: tuple[TensorPlan, list[Future[Tensor] | None]]) -> tuple[TensorPlan, list[Tensor | None]]:
    plan, jobs = waiting
    return plan, [None if job is None else job.result() for job in jobs]
