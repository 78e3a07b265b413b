"""Vectors in parameter space, as one tensor for each named parameter: the residual A W delta and the dual vector."""

from __future__ import annotations

import torch
from torch import Tensor

Direction = dict[str, Tensor]


def zeros_like(parameters: Direction, dtype: torch.dtype | None = None) -> Direction:
    """The zero vector; at least float32, since it accumulates."""
    return {name: torch.zeros_like(value, dtype=dtype or wide(value.dtype)) for name, value in parameters.items()}


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)


def add_(target: Direction, other: Direction, scale: float = 1.0) -> Direction:
    """target += scale * other, in place."""
    for name, value in target.items():
        value.add_(other[name].to(value.dtype), alpha=scale)
    return target


def combine(one: Direction, other: Direction, scale: float) -> Direction:
    """one + scale * other."""
    return {name: torch.add(value, other[name].to(value.dtype), alpha=scale) for name, value in one.items()}


def inner(one: Direction, other: Direction) -> float:
    """<one, other>, summed in float64."""
    return float(sum((value.double() * other[name].double()).sum() for name, value in one.items()))


def norm(direction: Direction) -> float:
    """The 2-norm; each tensor's in its own precision."""
    return sum(float(torch.linalg.vector_norm(value)) ** 2 for value in direction.values()) ** 0.5
