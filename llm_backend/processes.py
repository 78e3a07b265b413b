"""Sums over the processes that train one model together; with one process, nothing at all."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor


def count_and_rank() -> tuple[int, int]:
    """How many processes there are, and which one this is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, on the device and in the type of ``value``; all must call at the same time."""
    if count_and_rank()[0] == 1:
        return value
    whole = _on_backend(value).clone()
    distributed.all_reduce(whole)
    return whole.to(value.device)


def from_first(value: Tensor) -> Tensor:
    """The first process's ``value``, in all of them."""
    if count_and_rank()[0] == 1:
        return value
    whole = _on_backend(value).contiguous().clone()
    distributed.broadcast(whole, 0)
    return whole.to(value.device)


def _on_backend(value: Tensor) -> Tensor:
    """NCCL knows no tensors on the CPU."""
    return value.to(torch.device("cuda", torch.cuda.current_device())) if distributed.get_backend() == "nccl" else value
