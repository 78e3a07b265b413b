"""Attention over pairs laid end to end in one line, [prompt | responses] [prompt | responses] ..., without padding.

Everything but attention then runs on exactly the tokens that there are. Attention goes prompt by prompt (causal) and
response by response (its prompt, then causal in itself); nothing is computed for tokens that do not see each other.
Many small kernels: made for CPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "prefgeo_packed"


class _Plan:
    """Lengths of prompt and responses of each pair, and the masks of the responses, made once for all layers."""

    def __init__(self, spans: list[list[int]], dtype: torch.dtype, device: torch.device) -> None:
        self.spans = spans
        self.pieces = [length for span in spans for length in span]
        self.answers = [length for span in spans for length in span[1:]]
        self.masks = {
            (length, before): _response_mask(length, before, dtype, device)
            for span in spans
            for length in span[1:]
            for before in (span[0], span[0] - 1)
        }


_CURRENT: ContextVar[_Plan | None] = ContextVar("packed_attention_plan", default=None)


def _response_mask(length: int, prompt: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (length, prompt + length): all of the prompt, and itself up to each token."""
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    itself = torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(later, torch.finfo(dtype).min)
    return torch.cat([torch.zeros(length, prompt, dtype=dtype, device=device), itself], dim=1)


@contextlib.contextmanager
def packed_attention(causal: Any, spans: Tensor) -> Iterator[None]:
    """Within, the model's attention follows ``spans`` (pairs, 1 + responses), the lengths in the line."""
    before = causal.config._attn_implementation
    token = _CURRENT.set(_Plan(spans.tolist(), causal.dtype, causal.device))
    causal.config._attn_implementation = NAME
    try:
        yield
    finally:
        causal.config._attn_implementation = before
        _CURRENT.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, T, D) -> (1, T, heads, D)."""
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    return attend_tokens(rows[0], rows[1], rows[2], scaling)[None], None


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Every token over what it sees: (T, heads, D) each, fewer heads in key and value if grouped -> (T, heads, D)."""
    plan, heads = _plan(), query.shape[1]
    queries, keys, values = (_pieces(part, plan.pieces, heads) for part in (query, key, value))
    out, place = [], 0
    for span in plan.spans:
        own = slice(place, place + len(span))
        out += _one_pair(queries[own], keys[own], values[own], plan, scale)
        place += len(span)
    return torch.cat(out, dim=2)[0].transpose(0, 1)


def attend_places(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """The same where response tokens are predicted: query (N, heads, D) of the batch's ``places``, keys of all tokens.

    The t-th of a response (from 0) is the end of the prompt or the token before, which sees the prompt and t tokens.
    """
    plan, heads = _plan(), query.shape[1]
    queries = _pieces(query, plan.answers, heads)
    keys, values = (_pieces(part, plan.pieces, heads) for part in (key, value))
    out, place, answer = [], 0, 0
    for span in plan.spans:
        for k, length in enumerate(span[1:], 1):
            before = (part[place + k][:, :, : length - 1] for part in (keys, values))
            seen = [torch.cat(both, dim=2) for both in zip((keys[place], values[place]), before, strict=True)]
            mask = plan.masks[length, span[0] - 1].to(query.dtype)
            out.append(scaled_dot_product_attention(queries[answer], seen[0], seen[1], attn_mask=mask, scale=scale))
            answer += 1
        place += len(span)
    return torch.cat(out, dim=2)[0].transpose(0, 1)


def _plan() -> _Plan:
    plan = _CURRENT.get()
    if plan is None:
        raise RuntimeError(
            "packed attention outside packed_attention(...): recomputation of blocks does not go with it"
        )
    return plan


def _pieces(part: Tensor, lengths: list[int], heads: int) -> tuple[Tensor, ...]:
    """(T, heads or groups of heads, D) as pieces (1, heads, length, D).

    Split, not slices: its backward pass is one concatenation instead of a sum of zero-padded tensors.
    """
    if part.shape[1] != heads:
        part = part.repeat_interleave(heads // part.shape[1], dim=1)
    return part.transpose(0, 1)[None].split(lengths, dim=2)


def _one_pair(
    queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], values: tuple[Tensor, ...], plan: _Plan, scale: float | None
) -> list[Tensor]:
    prompt = keys[0].shape[2]
    out = [scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, scale=scale)]
    for query, key, value in zip(queries[1:], keys[1:], values[1:], strict=True):
        seen = torch.cat([keys[0], key], dim=2), torch.cat([values[0], value], dim=2)
        mask = plan.masks[query.shape[2], prompt].to(query.dtype)
        out.append(scaled_dot_product_attention(query, *seen, attn_mask=mask, scale=scale))
    return out


AttentionInterface.register(NAME, _attend)
