"""The LM head in token chunks: log-probabilities of given tokens without a tokens x vocabulary block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Logits that exist at one time; small on a CPU, so that a chunk stays in its cache."""


class TokenScores(NamedTuple):
    """``log_prob`` (N,) of the target tokens, differentiable; ``collision`` (N,) log sum_v pi(v)^2, a constant."""

    log_prob: Tensor
    collision: Tensor | None


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    collision: bool = False,
    chunk_elements: int | None = None,
) -> TokenScores:
    """log softmax(hidden @ weight.T + bias)[targets], float32 at least, one chunk of tokens at a time.

    Shapes: hidden (N, H), weight (V, H), bias (V,), targets (N,). The backward pass computes the logits of each chunk
    again; where weight and bias are frozen, the forward pass already leaves the (N, H) derivative and nothing is
    computed twice. Gradients flow to hidden, weight and bias, a second time too; ``torch.func.jvp`` works as well.
    """
    limit = chunk_elements or CHUNK_ELEMENTS.get(hidden.device.type, 2**24)
    chunk = max(1, limit // weight.shape[0])
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    unit = frozen and hidden.requires_grad and torch.is_grad_enabled()
    with torch.autocast(hidden.device.type, enabled=False):
        if weight.dtype != hidden.dtype:
            weight = weight.to(hidden.dtype)
        scores = _TokenLogProbs.apply(hidden, weight, bias, targets, chunk, unit, collision)
    return TokenScores(scores[0], scores[3] if collision else None)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _TokenLogProbs(torch.autograd.Function):
    """d log p(y) / d logits = onehot(y) - softmax; logits are computed again, chunk by chunk, when it is needed."""

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, unit: bool, collision: bool
    ) -> tuple[Tensor, ...]:
        n, wide = hidden.shape[0], wide_dtype(hidden.dtype)
        log_prob, normaliser = hidden.new_empty(n, dtype=wide), hidden.new_empty(n, dtype=wide)
        collisions = hidden.new_empty(n if collision else 0, dtype=wide)
        slope = hidden.new_empty((n if unit else 0, hidden.shape[1]))
        table = head_table(weight)
        room = _room(hidden, table, chunk)
        for piece in pieces(n, chunk):
            logits = head_logits(hidden[piece], table, bias, room)
            target, peak = targets[piece, None], logits.amax(dim=-1, keepdim=True)
            reached = logits.gather(1, target)[:, 0]
            total = logits.sub_(peak).exp_().sum(dim=-1)  # logsumexp, in the memory of the logits
            normaliser[piece] = peak[:, 0] + total.log()
            log_prob[piece] = reached - normaliser[piece]
            if collision:
                collisions[piece] = 2.0 * (torch.linalg.vector_norm(logits, dim=-1) / total).log()
            if unit:
                gap = _less_target(logits.div_(total[:, None]), target)
                slope[piece] = -product(_narrow(gap, table), table)
        return log_prob, normaliser, slope, collisions

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, bias, targets, ctx.chunk, ctx.unit, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(hidden, weight, bias, targets, *output[1:3])
        ctx.save_for_forward(hidden, weight, bias, targets, *output[1:3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, slope = ctx.saved_tensors
        given, none = gradients[0], (None,) * 4
        if ctx.unit and not torch.is_grad_enabled():
            return ((given[:, None] * slope).to(hidden.dtype), None, None, *none)
        table, wide = head_table(weight), wide_dtype(hidden.dtype)
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        for piece, gap in _gaps(hidden, table, bias, targets, normaliser, ctx.chunk):
            # d log p / d logits = onehot - softmax; the factor of a row is applied to its H numbers, not to its V
            factor = -given[piece, None]
            if by_hidden is not None:
                by_hidden[piece] = factor * product(_narrow(gap, table), table)
            if by_weight is not None:
                add_product(by_weight, _narrow(gap, table).T, (factor * hidden[piece]).to(table.dtype))
            if by_bias is not None:
                by_bias += (gap.T @ factor.to(gap.dtype))[:, 0]
        cast = (
            by_weight.to(weight.dtype) if by_weight is not None else None,
            by_bias.to(bias.dtype) if by_bias is not None else None,
        )
        return (by_hidden, *cast, *none)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, _ = ctx.saved_tensors
        along_hidden, along_weight, along_bias = tangents[:3]
        table, out = head_table(weight), torch.zeros_like(normaliser)
        along_table = None if along_weight is None else head_table(along_weight)
        for piece, gap in _gaps(hidden, table, bias, targets, normaliser, ctx.chunk):
            # sum_v (onehot - softmax)_v d logits_v, d logits = dh W^T + h dW^T + db, without the d logits
            if along_hidden is not None:
                out[piece] -= (product(_narrow(gap, table), table) * along_hidden[piece]).sum(dim=-1)
            if along_table is not None:
                out[piece] -= (product(_narrow(gap, table), along_table) * hidden[piece]).sum(dim=-1)
            if along_bias is not None:
                out[piece] -= gap @ along_bias.to(gap.dtype)
        return out, None, None, None


def _gaps(
    hidden: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, normaliser: Tensor, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    """softmax - onehot of one chunk after the other."""
    graph = torch.is_grad_enabled()  # a graph of the derivative is asked for: no memory may be used twice
    room = None if graph else _room(hidden, table, chunk)
    for piece in pieces(hidden.shape[0], chunk):
        logits = head_logits(hidden[piece], table, bias, room)
        share = logits.softmax(dim=-1).clone() if graph else logits.sub_(normaliser[piece, None]).exp_()
        yield piece, _less_target(share, targets[piece, None])


def pieces(n: int, chunk: int) -> Iterator[slice]:
    """Slices of at most ``chunk`` that cover n."""
    return (slice(start, min(start + chunk, n)) for start in range(0, n, chunk))


def head_table(weight: Tensor) -> Tensor:
    """The head's matrix in the dtype that products are taken in: half precision only where sums are still float32."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.float() if half and not weight.is_cuda else weight


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, summed and returned in float32 for half precision."""
    if left.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left, right, out_dtype=torch.float32)  # CUDA only; _table keeps half dtypes off other devices
    return left @ right


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += product(left, right)


def _narrow(values: Tensor, table: Tensor) -> Tensor:
    return values.to(table.dtype)


def _room(hidden: Tensor, table: Tensor, chunk: int) -> Tensor:
    """Memory for the logits of one chunk after the other: fresh memory costs more than what is computed in it."""
    return hidden.new_empty((min(chunk, hidden.shape[0]), table.shape[0]), dtype=wide_dtype(hidden.dtype))


def head_logits(hidden: Tensor, table: Tensor, bias: Tensor | None, room: Tensor | None = None) -> Tensor:
    """Logits of a chunk of hidden states, float32 at least; in ``room`` if it is given and the product can."""
    rows = hidden.to(table.dtype)
    if room is None or room.dtype != table.dtype:
        logits = product(rows, table.T)
    else:
        logits = torch.mm(rows, table.T, out=room[: rows.shape[0]])
    return logits if bias is None else logits.add_(bias)


def _less_target(share: Tensor, target: Tensor) -> Tensor:
    """softmax - onehot, in place."""
    return share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
