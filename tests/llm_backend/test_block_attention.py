"""Attention in blocks: by hand, against one masked softmax over all tokens, by derivatives, and over random pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_backend import block_attention as module
from llm_backend import packed_attention as packed
from llm_backend.block_attention import Block, block_attention

SPANS = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens_of(spans):
    """(pair, part, position) of every token of the line, and the rows that predict the responses' tokens."""
    tokens = [(n, k, t) for n, span in enumerate(spans) for k, length in enumerate(span) for t in range(length)]
    places = []
    for n, (prompt, *responses) in enumerate(spans):
        for k, length in enumerate(responses, 1):
            places += [tokens.index((n, 0, prompt - 1))] + [tokens.index((n, k, t)) for t in range(length - 1)]
    return tokens, places


def one_softmax(query, key, value, scale, spans, rows):
    """All queries ``rows`` against all keys, with a mask made token by token."""
    tokens, _ = tokens_of(spans)
    seen = torch.tensor([
        [n == m and ((j == k and s <= t) or (j == 0 and k > 0)) for m, j, s in tokens]
        for n, k, t in (tokens[row] for row in rows)
    ])  # fmt: skip
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    score = scale * torch.einsum("nhd,thd->hnt", query, key)
    return torch.einsum("hnt,thd->nhd", score.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)


def case(spans, *, groups=2, seed=0):
    total = sum(map(sum, spans))
    return draw(total, 4, 6, seed=seed), draw(total, groups, 6, seed=seed + 1), draw(total, groups, 6, seed=seed + 2)


def blocks_of(spans):
    return packed._Plan(spans, torch.device("cpu"))


@pytest.fixture(params=["whole", "blocks", "computed again"])
def sizes(request, monkeypatch):
    """Small blocks, so that short lines already have several; then probabilities that are not kept."""
    if request.param != "whole":
        monkeypatch.setattr(packed, "ROWS", 3)
        monkeypatch.setattr(packed, "WHOLE", 5)
    if request.param == "computed again":
        monkeypatch.setattr(module, "KEPT", 0)


def test_two_keys_by_hand():
    query = torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64)
    key = torch.tensor([[[0.0]], [[math.log(3.0)]]], dtype=torch.float64)
    value = torch.tensor([[[8.0]], [[4.0]]], dtype=torch.float64)
    mask = torch.tensor([[-torch.inf], [0.0]])  # of the last key: the first query does not see it
    out = block_attention(query, key, value, 0.5, [Block(slice(0, 2), (slice(0, 1), slice(1, 2)), mask)])
    # the second: scores 0 and log 3, shares 1/4 and 3/4
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 0.25 * 8.0 + 0.75 * 4.0], dtype=torch.float64))


@settings(deadline=None, max_examples=25)
@given(spans=SPANS, rows=st.integers(1, 5), whole=st.integers(0, 12), groups=st.sampled_from([1, 2, 4]))
def test_any_pairs_in_any_blocks_are_one_masked_softmax(spans, rows, whole, groups):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "ROWS", rows)
        patch.setattr(packed, "WHOLE", whole)
        plan = blocks_of(spans)
        query, key, value = case(spans, groups=groups)
        tokens, places = tokens_of(spans)
        every = list(range(len(tokens)))
        for blocks, asked in ((plan.tokens, every), (plan.places, places)):
            out = block_attention(query[asked], key, value, 0.3, blocks)
            wanted = one_softmax(query[asked], key, value, 0.3, spans, asked)
            torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
            covered = sorted(row for block in blocks for row in range(block.rows.start, block.rows.stop))
            assert covered == list(range(len(asked)))
            assert all(block.shape[0] <= max(rows, whole) for block in blocks)


SOME = [[4, 3, 1], [1, 7, 2, 5], [6, 1]]


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch's own, in torch.func.jvp
@pytest.mark.parametrize("what", ["tokens", "places"])
def test_derivatives_backward_and_forward(sizes, what):
    plan, parts = blocks_of(SOME), case(SOME)
    asked = list(range(len(parts[0]))) if what == "tokens" else tokens_of(SOME)[1]
    blocks = getattr(plan, what)
    parts = (parts[0][asked], *parts[1:])

    def function(*given):
        return block_attention(*given, 0.7, blocks)

    def plain(*given):
        return one_softmax(*given, 0.7, SOME, asked)

    leaves = tuple(part.clone().requires_grad_() for part in parts)
    along = draw(*function(*parts).shape, seed=9)
    found = torch.autograd.grad(function(*leaves), leaves, along)
    wanted = torch.autograd.grad(plain(*leaves), leaves, along)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    moves = tuple(draw(*part.shape, seed=20 + k) for k, part in enumerate(parts))
    torch.testing.assert_close(
        torch.func.jvp(function, parts, moves)[1], torch.func.jvp(plain, parts, moves)[1], rtol=1e-11, atol=1e-12
    )
    for k in range(3):  # one of them alone, as when the others are frozen
        alone = lambda part, f=function, k=k: f(*parts[:k], part, *parts[k + 1 :])  # noqa: E731
        same = lambda part, k=k: plain(*parts[:k], part, *parts[k + 1 :])  # noqa: E731
        moved = [torch.func.jvp(f, (parts[k],), (moves[k],))[1] for f in (alone, same)]
        torch.testing.assert_close(*moved, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(alone(leaves[k]), leaves[k], along)[0], wanted[k])


def test_the_gradient_is_that_of_finite_differences_and_has_one_itself():
    parts = tuple(part.requires_grad_() for part in case([[2, 1, 2]]))
    blocks = blocks_of([[2, 1, 2]]).tokens
    assert torch.autograd.gradcheck(lambda *given: block_attention(*given, 0.7, blocks), parts)
    assert torch.autograd.gradgradcheck(lambda *given: block_attention(*given, 0.7, blocks), parts)


def test_long_lines_in_the_sizes_that_are_used():
    spans = [[300, 140, 30], [100, 60, 20, 90], [20, 200]]
    plan, (query, key, value) = blocks_of(spans), case(spans)
    places = tokens_of(spans)[1]
    assert max(block.shape[0] for block in plan.tokens) <= packed.WHOLE
    torch.testing.assert_close(
        block_attention(query, key, value, 0.4, plan.tokens),
        one_softmax(query, key, value, 0.4, spans, list(range(len(query)))),
    )
    torch.testing.assert_close(
        block_attention(query[places], key, value, 0.4, plan.places),
        one_softmax(query[places], key, value, 0.4, spans, places),
    )


def test_half_precision_is_summed_in_float32():
    spans = [[3, 2, 4]]
    parts = [part.bfloat16() for part in case(spans)]
    blocks = blocks_of(spans).tokens
    out = block_attention(*parts, 0.7, blocks)
    assert out.dtype == torch.bfloat16
    exact = block_attention(*(part.float() for part in parts), 0.7, blocks)
    torch.testing.assert_close(out.float(), exact, rtol=2e-2, atol=2e-2)


def test_what_is_kept_is_bounded(monkeypatch):
    spans = [[40, 30, 20]]
    query, key, value = (part.requires_grad_() for part in case(spans))
    blocks = blocks_of(spans).tokens

    def saved(limit):
        monkeypatch.setattr(module, "KEPT", limit)
        out = block_attention(query, key, value, 0.7, blocks)  # alive, or torch 2.11 frees what is saved
        node = out.grad_fn
        while not hasattr(node, "saved_tensors"):
            node = node.next_functions[0][0]
        return node.saved_tensors[3].numel()

    size = sum(4 * rows * keys for rows, keys in (block.shape for block in blocks))
    assert (saved(size), saved(size - 1)) == (size, 0)
