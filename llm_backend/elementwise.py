"""RMS norm, rotary positions and gated activation with few passes over memory and little kept for the backward pass.

On a CPU these cost as much as a third of the matrix products where each step of them is an operation of its own. All
are differentiable backward and forward (``torch.func.jvp``), once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * values / sqrt(mean(values^2) + epsilon) over the last axis. Source: arXiv:1910.07467, Eq. 4."""
    out: Tensor = _RMSNorm.apply(values, weight, epsilon)[0]
    return out


def rotated(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions of (T, heads, D) by tables (T, 1, D), halves turned into each other.

    Source: arXiv:2104.09864, Eq. 34, in the order of channels that transformers uses.
    """
    out: Tensor = _Rotated.apply(values, cosine, sine)
    return out


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Source: arXiv:2002.05202, Eq. 6 ("SwiGLU")."""
    out: Tensor = _GatedSilu.apply(gate, up)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        scale = length.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()
        return torch.mul(values, scale).mul_(weight), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.save_for_forward(*inputs[:2], output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, scale = ctx.saved_tensors
        unit, given = values * scale, gradients[0]
        by_weight = (given * unit).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None
        along = given * weight
        share = (along * unit).mean(dim=-1, keepdim=True)
        return along.addcmul_(unit, share, value=-1.0).mul_(scale), by_weight, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        values, weight, scale = ctx.saved_tensors
        unit = values * scale
        along_values, along_weight = tangents[:2]
        out = torch.zeros_like(unit)
        if along_values is not None:
            share = (along_values * unit).mean(dim=-1, keepdim=True)
            out = out + (along_values - unit * share) * scale * weight
        if along_weight is not None:
            out = out + unit * along_weight
        return out, None


def _turn(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = values.shape[-1] // 2
    out = values * cosine
    out[..., :half].addcmul_(values[..., half:], sine[..., :half], value=-1.0)
    out[..., half:].addcmul_(values[..., :half], sine[..., half:])
    return out


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        return _turn(values, cosine, sine)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        given, half = gradients[0], gradients[0].shape[-1] // 2
        out = given * cosine  # the transpose, which is the turn back
        out[..., :half].addcmul_(given[..., half:], sine[..., half:])
        out[..., half:].addcmul_(given[..., :half], sine[..., :half], value=-1.0)
        return out, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _turn(tangents[0], *ctx.saved_tensors)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        return silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        given = gradients[0]
        return torch.ops.aten.silu_backward(given * up, gate), silu(gate).mul_(given)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        gate, up = ctx.saved_tensors
        along_gate, along_up = tangents
        out = torch.zeros_like(up)
        if along_gate is not None:
            out = out + torch.ops.aten.silu_backward(along_gate * up, gate)
        if along_up is not None:
            out = out + silu(gate) * along_up
        return out
