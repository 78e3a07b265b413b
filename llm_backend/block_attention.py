"""Attention over a plan of blocks, as one node of the graph: what no block names is neither computed nor kept.

    out_t = sum_j p_tj v_j,   p_t = softmax_j(scale <q_t, k_j> + mask_tj)        Source: arXiv:1706.03762, Eq. 1

A block is some rows of queries against one or more runs of keys. Matrix products read rows and keys where they lie and
write where the result belongs, so nothing is cut out, padded or joined. Differentiable backward and forward
(``torch.func.jvp``); a second backward pass goes through the same formula made of plain operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 2**23
"""Probabilities that may be kept for the backward pass, of one layer and batch; more are computed again there."""


@dataclass(frozen=True, eq=False)
class Block:
    """Queries ``rows`` against the keys of ``runs``, one after the other; ``mask`` (rows, m) is added to the scores of
    the last m of them."""

    rows: slice
    runs: tuple[slice, ...]
    mask: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and keys."""
        return self.rows.stop - self.rows.start, sum(run.stop - run.start for run in self.runs)

    def columns(self) -> list[tuple[slice, slice]]:
        """Each run of keys, and where its scores stand."""
        found, start = [], 0
        for run in self.runs:
            found.append((run, slice(start, start + run.stop - run.start)))
            start = found[-1][1].stop
        return found


Blocks = Sequence[Block]


def block_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks) -> Tensor:
    """Shapes: query (N, heads, D), key and value (T, heads or fewer, D), the same for heads // fewer neighbours -> (N,
    heads, D). Every row of the queries is in one block. Half precision is computed in float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    share = query.shape[1] // key.shape[1]
    parts = [query * scale, *(part if share == 1 else part.repeat_interleave(share, dim=1) for part in (key, value))]
    out: Tensor = _BlockAttention.apply(*(part.to(wide) for part in parts), blocks)[0]
    return out.to(query.dtype)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        out, kept = torch.empty_like(query), _room(query, blocks, keep=True)
        queries, keys, values, outs = (part.transpose(0, 1) for part in (query, key, value, out))
        for block, share in zip(blocks, _views(query, blocks, kept), strict=True):
            _probabilities(queries, keys, block, share)
            _weigh(share, values, block, outs[:, block.rows])
        return out, kept if _keeps(query, blocks) else kept.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.blocks = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])
        ctx.save_for_forward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept = ctx.saved_tensors
        needs, blocks, given = ctx.needs_input_grad[:3], ctx.blocks, gradients[0]
        if torch.is_grad_enabled():  # a graph of this pass is asked for
            return (*_plain_gradients((query, key, value), needs, given, blocks), None)
        by_query, by_key, by_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        every = (query, key, value, given, by_query, by_key, by_value)
        queries, keys, values, along, to_queries, to_keys, to_values = (part.transpose(0, 1) for part in every)
        slopes = _views(query, blocks, _room(query, blocks, keep=False))
        for block, share, slope in zip(blocks, _shares(query, key, blocks, kept), slopes, strict=True):
            rows = along[:, block.rows]
            if needs[2]:
                _spread(share, rows, block, to_values)
            _score(rows, values, block, slope)
            torch.ops.aten._softmax_backward_data(slope, share, -1, slope.dtype, grad_input=slope)
            if needs[0]:
                _weigh(slope, keys, block, to_queries[:, block.rows])
            if needs[1]:
                _spread(slope, queries[:, block.rows], block, to_keys)
        found = (by_query, by_key, by_value)
        return (*(part if needed else None for part, needed in zip(found, needs, strict=True)), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        query, key, value, kept = ctx.saved_tensors
        out = torch.zeros_like(query)
        queries, keys, values, outs = (part.transpose(0, 1) for part in (query, key, value, out))
        by_query, by_key, by_value = (None if part is None else part.transpose(0, 1) for part in tangents[:3])
        slopes = _views(query, ctx.blocks, _room(query, ctx.blocks, keep=False))
        for block, share, slope in zip(ctx.blocks, _shares(query, key, ctx.blocks, kept), slopes, strict=True):
            rows, found = block.rows, outs[:, block.rows]
            pairs = ((by_query, keys), (queries, by_key))
            sides = [(one, other) for one, other in pairs if one is not None and other is not None]
            for k, (one, other) in enumerate(sides):
                change = slope if k == 0 else torch.empty_like(slope)
                _score(one[:, rows], other, block, change)
                if k:
                    slope += change
            if sides:
                slope *= share
                slope -= share * slope.sum(dim=-1, keepdim=True)
                found += _weigh(slope, values, block, torch.empty_like(found))
            if by_value is not None:
                found += _weigh(share, by_value, block, torch.empty_like(found))
        return out, None


def _keeps(query: Tensor, blocks: Blocks) -> bool:
    return sum(_size(query, block) for block in blocks) <= KEPT


def _size(query: Tensor, block: Block) -> int:
    rows, keys = block.shape
    return query.shape[1] * rows * keys


def _room(query: Tensor, blocks: Blocks, *, keep: bool) -> Tensor:
    """Memory for the probabilities of all blocks where they are kept, else for those of one block after the other."""
    sizes = [_size(query, block) for block in blocks]
    return query.new_empty(sum(sizes) if keep and _keeps(query, blocks) else max(sizes))


def _views(query: Tensor, blocks: Blocks, room: Tensor) -> list[Tensor]:
    """(heads, rows, keys) of each block, in that memory."""
    found, start = [], 0
    for block in blocks:
        size = _size(query, block)
        start = start if start + size <= room.shape[0] else 0
        found.append(room[start : start + size].view(query.shape[1], *block.shape))
        start += size
    return found


def _shares(query: Tensor, key: Tensor, blocks: Blocks, kept: Tensor) -> Any:
    """The probabilities of each block, as they were kept or computed again."""
    if kept.numel():
        yield from _views(query, blocks, kept)
        return
    for block, share in zip(blocks, _views(query, blocks, _room(query, blocks, keep=False)), strict=True):
        _probabilities(query.transpose(0, 1), key.transpose(0, 1), block, share)
        yield share


def _probabilities(queries: Tensor, keys: Tensor, block: Block, out: Tensor) -> None:
    _score(queries[:, block.rows], keys, block, out)
    out[:, :, out.shape[2] - block.mask.shape[1] :] += block.mask
    torch.softmax(out, dim=-1, out=out)


def _score(rows: Tensor, keys: Tensor, block: Block, out: Tensor) -> None:
    """out = rows keys^T: (heads, rows, D), (heads, T, D) -> (heads, rows, keys of the block)."""
    for run, place in block.columns():
        torch.bmm(rows, keys[:, run].transpose(1, 2), out=out[:, :, place])


def _weigh(share: Tensor, values: Tensor, block: Block, out: Tensor) -> Tensor:
    """out = share values: (heads, rows, keys of the block), (heads, T, D) -> (heads, rows, D)."""
    (first, place), *others = block.columns()
    torch.bmm(share[:, :, place], values[:, first], out=out)
    for run, place in others:
        out.baddbmm_(share[:, :, place], values[:, run])
    return out


def _spread(share: Tensor, rows: Tensor, block: Block, total: Tensor) -> None:
    """total += share^T rows, at the keys of the block: (heads, rows, keys), (heads, rows, D) -> (heads, T, D)."""
    for run, place in block.columns():
        total[:, run].baddbmm_(share[:, :, place].transpose(1, 2), rows)


def _plain_gradients(
    tensors: tuple[Tensor, ...], needs: Sequence[bool], given: Tensor, blocks: Blocks
) -> list[Tensor | None]:
    """The gradients, with a graph, by operations that autograd knows."""
    queries, keys, values = (part.transpose(0, 1) for part in tensors)
    outs = []
    for block in sorted(blocks, key=lambda block: block.rows.start):
        key, value = (torch.cat([part[:, run] for run in block.runs], dim=1) for part in (keys, values))
        score = queries[:, block.rows] @ key.transpose(1, 2)
        before = score.shape[2] - block.mask.shape[1]
        score = score + torch.nn.functional.pad(block.mask, (before, 0))
        outs.append(score.softmax(dim=-1) @ value)
    out = torch.cat(outs, dim=1).transpose(0, 1)
    wanted = [part for part, needed in zip(tensors, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(out, wanted, given, create_graph=True))
    return [next(found) if needed else None for needed in needs]
