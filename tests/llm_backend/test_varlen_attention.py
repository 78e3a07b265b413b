"""Packed pairs by variable-length attention: which token sees which, without the kernel, and with it on a GPU."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from llm_backend import log_probs, varlen_attention
from llm_backend.batching import Collator
from llm_backend.log_probs import best_collator, response_log_probs
from llm_backend.models import new_model, tiny_config
from llm_backend.slot_responses import PAIR
from llm_backend.varlen_attention import Plan, trial, varlen_runs


def sequence_by_sequence(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, scale: Any = None,
    window_size: Any = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    """What torch documents of ``varlen_attn``: sequences apart, the last query aligned with the last key."""
    assert window_size == (-1, 0) and query.shape[1:] == key.shape[1:] == value.shape[1:]
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key)
    out, scale = [], query.shape[-1] ** -0.5 if scale is None else scale
    bounds = [list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)) for starts in (cu_seq_q, cu_seq_k)]
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        assert q1 - q0 <= max_q and k1 - k0 <= max_k
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * scale
        later = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).triu(k1 - k0 - (q1 - q0) + 1)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), value[k0:k1]))
    return torch.cat(out)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's meaning in its place."""
    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = sequence_by_sequence  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    trial.cache_clear()


def rows(n: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    parts = ("prompt", *PAIR)
    return [
        {"row": i} | {f"{p}_ids": rng.integers(31, size=rng.integers(1, 7)).tolist() for p in parts} for i in range(n)
    ]


def test_plan_by_hand() -> None:
    plan = Plan([[2, 1, 3], [1, 1, 1]], torch.device("cpu"))
    assert plan.index.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 6, 6, 7, 6, 8]
    assert [starts.tolist() for starts in plan.starts] == [[0, 2, 3, 6, 7, 8, 9], [0, 2, 5, 10, 11, 13, 15]]
    assert plan.longest == (3, 5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_values_and_gradients_are_those_of_separate_lines(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; Llama's keys are grouped."""
    model = new_model(tiny_config(architecture, vocab_size=31, width=32), seed=1, dtype="float64")
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(4.0)
    parameters = list(model.parameters())

    def run(collate: Collator) -> list[torch.Tensor]:
        found = response_log_probs(model, collate(rows())).log_probs
        total = found["chosen"].sum() - 0.3 * found["rejected"].sum()
        return [*found.values(), *torch.autograd.grad(total, parameters)]

    expected = run(Collator(shared=False))
    monkeypatch.setattr(log_probs, "varlen_runs", lambda causal: True)
    monkeypatch.setattr(log_probs, "packed_attention", None)  # not this one
    for mine, theirs in zip(run(Collator(packed=True)), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("kernel")
def test_the_trial_sees_a_kernel_that_means_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device("cpu")
    assert trial(here, torch.bfloat16, 4, 2, 16)

    def first_aligned(query: Any, key: Any, value: Any, *more: Any, **options: Any) -> Any:
        flipped = sequence_by_sequence(query, key.flip(0), value, *more, **options)
        return flipped

    def absent(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available for execution on the device")

    for other in (first_aligned, absent):
        trial.cache_clear()
        monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", other)
        assert not trial(here, torch.bfloat16, 4, 2, 16)
    trial.cache_clear()


def test_it_is_for_half_precision_on_a_gpu_alone() -> None:
    model = new_model(tiny_config("llama", vocab_size=31), seed=0, dtype="bfloat16")
    assert not varlen_runs(model)
    with pytest.raises(RuntimeError, match="outside varlen_attention"):
        part = torch.zeros(1, 1, 2, 4)
        varlen_attention._LINE.interface(model, part, part, part, None)


@pytest.mark.gpu
def test_the_kernel_gives_what_padded_lines_give() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    model = new_model(tiny_config("llama", vocab_size=31, width=64), seed=0, dtype="bfloat16").cuda()
    assert varlen_runs(model), "torch's variable-length attention does not pass its trial here"
    assert best_collator(model, PAIR).packed
    with torch.no_grad():
        both = [
            response_log_probs(model, {name: value.cuda() for name, value in collate(rows()).items()}).log_probs
            for collate in (Collator(packed=True), Collator(shared=False))
        ]
    for side in PAIR:
        torch.testing.assert_close(both[0][side], both[1][side], rtol=2e-2, atol=5e-2)
