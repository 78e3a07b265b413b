"""Attention over pairs laid end to end in one line on a GPU: torch's variable-length flash attention, once a layer.

A prompt is a sequence of its own. A response is one whose keys are its prompt's and its own: the kernel aligns the last
query with the last key, so that each token sees the whole prompt and the response up to itself. Nothing is padded, no
mask is made, and what is kept for the backward pass is linear in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_backend.line_attention import LineAttention

HALF = (torch.bfloat16, torch.float16)
TOLERANCE = 3e-2
"""Of the trial, relative to the largest value: half precision, twice rounded."""


class Plan:
    """Where sequences begin among queries and keys, and which token of the line each key is, for ``spans`` of pairs."""

    def __init__(self, spans: Sequence[Sequence[int]], device: torch.device) -> None:
        queries: list[int] = []
        keys: list[int] = []
        index: list[np.ndarray] = []
        begin = 0
        for prompt, *responses in spans:
            head = np.arange(begin, begin + prompt)
            queries += [prompt, *responses]
            keys += [prompt, *(prompt + length for length in responses)]
            index.append(head)
            begin += prompt
            for length in responses:
                index += [head, np.arange(begin, begin + length)]
                begin += length
        self.longest = max(queries), max(keys)
        self.index = torch.from_numpy(np.concatenate(index)).to(device)
        self.starts = [
            torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)
            for lengths in (queries, keys)
        ]


def varlen_attention(causal: Any, spans: Tensor) -> AbstractContextManager[None]:
    """Within, the model's attention follows ``spans`` (pairs, 1 + responses), the lengths in the line."""
    return _LINE.following(causal, Plan(spans.tolist(), causal.device))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """Every token over what it sees: (T, heads, D) each, fewer heads in key and value if grouped -> (T, heads, D)."""
    from torch.nn.attention.varlen import varlen_attn  # not in every torch, and slow to import

    group = query.shape[1] // key.shape[1]
    seen = [part.index_select(0, plan.index) for part in (key, value)]
    if group > 1:
        seen = [part.repeat_interleave(group, dim=1) for part in seen]
    keys, values = seen
    bounds = (plan.starts[0], plan.starts[1], plan.longest[0], plan.longest[1])
    out: Any = varlen_attn(query.contiguous(), keys, values, *bounds, scale=scale, window_size=(-1, 0))
    result: Tensor = out
    return result


def varlen_runs(causal: Any) -> bool:
    """Whether this model, where it is and in its dtype, can take this attention: tried out, forward and backward."""
    if causal.device.type != "cuda" or causal.dtype not in HALF:
        return False
    config = causal.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return False
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return trial(causal.device, causal.dtype, heads, groups, size)


@cache
def trial(device: torch.device, dtype: torch.dtype, heads: int, groups: int, size: int) -> bool:
    """Whether values and gradients are those of a dense mask in float32, on two pairs of random numbers."""
    spans = [[5, 3, 2], [1, 1, 4]]
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(map(sum, spans)), count, size) for count in (heads, groups, groups, heads)]
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    try:
        mine = _with_gradients(lambda q, k, v: attend(q, k, v, Plan(spans, device), None), drawn, dtype)
        exact = _with_gradients(_dense(spans), drawn, torch.float32)
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError):  # another torch, or another GPU
        return False
    return all(bool(((a - b).abs() <= TOLERANCE * b.abs().max()).all()) for a, b in zip(mine, exact, strict=True))


def _with_gradients(way: Any, drawn: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of <result, last of ``drawn``>, in float32, computed in ``dtype``."""
    leaves = [part.detach().to(dtype).requires_grad_() for part in drawn[:3]]
    with torch.enable_grad():
        out = way(*leaves)
        found = torch.autograd.grad((out * drawn[3].to(out.dtype)).sum(), leaves)
    return [part.detach().float() for part in (out, *found)]


def _dense(spans: Sequence[Sequence[int]]) -> Any:
    """The same attention by a mask over all tokens."""
    pair = np.repeat(np.arange(len(spans)), [sum(span) for span in spans])
    segment = np.concatenate([np.repeat(np.arange(len(span)), span) for span in spans])
    same = pair[:, None] == pair[None, :]
    seen = same & ((segment[None, :] == 0) | (segment[None, :] == segment[:, None])) & np.tri(len(pair), dtype=bool)

    def way(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        group = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(group, dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, keys) * query.shape[2] ** -0.5
        hidden = torch.from_numpy(~seen).to(query.device)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), values)

    return way


_LINE = LineAttention("prefgeo_varlen", "packed attention outside varlen_attention(...)", attend)
