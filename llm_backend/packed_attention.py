"""Attention over pairs laid end to end in one line, [prompt | responses] [prompt | responses] ..., without padding.

Everything but attention then runs on exactly the tokens that there are. Attention goes pair by pair, in blocks
(``block_attention``): long prompts and responses by some rows at a time, so that little is computed for tokens that do
not see each other; short pairs whole, as many small products cost more than they save. Made for CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from llm_backend.block_attention import Block, block_attention
from llm_backend.line_attention import LineAttention

ROWS, WHOLE = 128, 192
"""Rows of a block in a long prompt or response, and tokens up to which a pair is one block."""


class _Plan:
    """The blocks of a batch, made once for all layers: ``tokens`` for all queries, ``places`` for those that predict a
    response token. The t-th of a response (from 0) is the end of the prompt or the token before; it sees the prompt and
    t tokens."""

    def __init__(self, spans: list[list[int]], device: torch.device) -> None:
        most = max(WHOLE, ROWS)
        self._earlier = torch.full((most + 1, most), -torch.inf, device=device).triu()  # 0 where column < row
        self.tokens: list[Block] = []
        self.places: list[Block] = []
        start = answer = 0
        for prompt, *responses in spans:
            total = sum(responses)
            if prompt + total <= WHOLE:
                self.tokens.append(self._whole(start, prompt, responses))
            else:
                self.tokens += self._causal(start, (), start, prompt)
                self.tokens += self._responses(start + prompt, start, prompt, responses, own=True)
            self.places += self._responses(answer, start, prompt, responses, own=False)
            start, answer = start + prompt + total, answer + total

    def _whole(self, start: int, prompt: int, responses: list[int]) -> Block:
        end = start + prompt + sum(responses)
        mask = self._seen(end - start, own=True).clone()
        mask[prompt:, prompt:] = self._apart(responses, own=True)
        return Block(slice(start, end), (slice(start, end),), mask)

    def _responses(self, row: int, start: int, prompt: int, responses: list[int], *, own: bool) -> list[Block]:
        """Of one pair; ``row`` is where its queries begin, ``start`` its keys. ``own``: a query sees its own token."""
        total, first = sum(responses), start + prompt
        if total <= ROWS:
            return [Block(slice(row, row + total), (slice(start, first + total),), self._apart(responses, own=own))]
        found: list[Block] = []
        for length in responses:
            found += self._causal(row, (slice(start, start + prompt),), first, length, own=own)
            row, first = row + length, first + length
        return found

    def _causal(
        self, row: int, before: tuple[slice, ...], first: int, length: int, *, own: bool = True
    ) -> Iterator[Block]:
        """``length`` queries against the keys from ``first`` on, each as far as itself, after all keys ``before``."""
        for i in range(0, length, ROWS):
            j = min(i + ROWS, length)
            keys = slice(first, first + j - (not own))
            if before and before[-1].stop == first:
                runs = (*before[:-1], slice(before[-1].start, keys.stop))
            else:
                runs = (*before, keys) if keys.stop > keys.start else before
            yield Block(slice(row + i, row + j), runs, self._seen(j - i, own=own))

    def _apart(self, responses: list[int], *, own: bool) -> Tensor:
        """Responses side by side, none of which sees another: (tokens, tokens)."""
        mask = self._earlier.new_full((sum(responses), sum(responses)), -torch.inf)
        at = 0
        for length in responses:
            seen = self._seen(length, own=own)
            mask[at : at + length, at : at + seen.shape[1]] = seen
            at += length
        return mask

    def _seen(self, length: int, *, own: bool) -> Tensor:
        """Row t sees t columns, or t + 1 with its ``own``: (length, length - 1), (length, length)."""
        return self._earlier[1 : length + 1, :length] if own else self._earlier[:length, : length - 1]


def packed_attention(causal: Any, spans: Tensor) -> AbstractContextManager[None]:
    """Within, the model's attention follows ``spans`` (pairs, 1 + responses), the lengths in the line."""
    return _LINE.following(causal, _Plan(spans.tolist(), causal.device))


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Every token over what it sees: (T, heads, D) each, fewer heads in key and value if grouped -> (T, heads, D)."""
    return _attend(query, key, value, _LINE.plan, scale)


def attend_places(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """The same where response tokens are predicted: query (N, heads, D) of the batch's ``places``, all keys."""
    return block_attention(query, key, value, _scale(query, scale), _LINE.plan.places)


def _attend(query: Tensor, key: Tensor, value: Tensor, plan: _Plan, scale: float | None) -> Tensor:
    return block_attention(query, key, value, _scale(query, scale), plan.tokens)


def _scale(query: Tensor, given: float | None) -> float:
    return query.shape[-1] ** -0.5 if given is None else given


_LINE = LineAttention(
    "prefgeo_packed",
    "packed attention outside packed_attention(...): recomputation of blocks does not go with it",
    _attend,
)
