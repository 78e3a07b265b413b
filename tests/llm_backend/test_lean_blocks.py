"""Fused elementwise work and the shortened last block: the same values and gradients as transformers' own blocks."""

from __future__ import annotations

import contextlib

import pytest
import torch

from llm_backend import log_probs
from llm_backend.batching import Collator
from llm_backend.elementwise import gated_silu, rms_norm, rotated
from llm_backend.lean_blocks import lean_blocks
from llm_backend.log_probs import response_log_probs
from llm_backend.models import Lora, new_model, open_for_training, tiny_config

ROWS = [
    {"prompt_ids": [1, 2, 3, 4], "chosen_ids": [5, 6, 7], "rejected_ids": [8]},
    {"prompt_ids": [9], "chosen_ids": [3], "rejected_ids": [4, 11, 2, 12]},
]
TOKENS, READ = 4 + 3 + 1 + 1 + 1 + 4, 3 + 1 + 1 + 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_norm(values, weight):
    return weight * values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def plain_turn(values, cosine, sine):
    one, two = values.chunk(2, dim=-1)
    return values * cosine + torch.cat([-two, one], dim=-1) * sine


TABLES = draw(5, 1, 6, seed=3), draw(5, 1, 6, seed=4)
CASES = {
    "norm": (lambda x, w: rms_norm(x, w, 1e-5), plain_norm, (draw(5, 2, 6), draw(6, seed=1))),
    "rotary": (lambda x: rotated(x, *TABLES), lambda x: plain_turn(x, *TABLES), (draw(5, 2, 6),)),
    "gate": (gated_silu, lambda g, u: g * torch.sigmoid(g) * u, (draw(5, 6), draw(5, 6, seed=1))),
}


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch's own, in torch.func.jvp
@pytest.mark.parametrize("name", CASES)
def test_fused_work_has_the_values_and_derivatives_of_the_plain_formula(name):
    fused, plain, parts = CASES[name]
    parts = tuple(part.clone().requires_grad_() for part in parts)
    torch.testing.assert_close(fused(*parts), plain(*parts), rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(fused, parts)
    fixed = tuple(part.detach() for part in parts)
    moves = tuple(draw(*part.shape, seed=7 + k) for k, part in enumerate(parts))
    along, wanted = (torch.func.jvp(function, fixed, moves)[1] for function in (fused, plain))
    torch.testing.assert_close(along, wanted, rtol=1e-12, atol=1e-12)
    one = torch.func.jvp(lambda first: fused(first, *fixed[1:]), fixed[:1], moves[:1])[1]
    torch.testing.assert_close(
        one, torch.func.jvp(lambda first: plain(first, *fixed[1:]), fixed[:1], moves[:1])[1], rtol=1e-12, atol=1e-12
    )


def loud_model(architecture):
    model = new_model(tiny_config(architecture, vocab_size=31, width=32), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(6.0) if parameter.ndim == 2 else parameter.add_(0.1 * len(name))
    return model


def scores_and_gradients(model):
    model.zero_grad()
    found = response_log_probs(model, Collator(packed=True)(ROWS)).log_probs
    total = found["chosen"] @ torch.tensor([1.0, -2.0]) + found["rejected"] @ torch.tensor([0.3, 1.5])
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return torch.cat(list(found.values())).detach(), gradients


@pytest.mark.parametrize("parts", ["all", "last_block", Lora(rank=2)])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_scores_and_gradients_are_those_of_the_blocks_themselves(monkeypatch, architecture, parts):
    model = open_for_training(loud_model(architecture), parts)
    if isinstance(parts, Lora):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    scores, gradients = scores_and_gradients(model)
    monkeypatch.setattr(log_probs, "lean_blocks", lambda *_: contextlib.nullcontext(False))
    plain_scores, plain_gradients = scores_and_gradients(model)
    torch.testing.assert_close(scores, plain_scores, rtol=1e-5, atol=1e-5)
    assert set(gradients) == set(plain_gradients)
    for name, gradient in gradients.items():
        wanted = plain_gradients[name]
        torch.testing.assert_close(gradient, wanted, rtol=0.0, atol=1e-4 * float(wanted.abs().max() + 1e-3))


def test_the_last_block_runs_only_where_it_is_read():
    model = loud_model("llama")
    seen = []
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            part.register_forward_hook(lambda _, __, out: seen.append(out.shape[0]))
    response_log_probs(model, Collator(packed=True)(ROWS))
    assert seen == [TOKENS] * 3 * (len(model.model.layers) - 1) + [TOKENS, READ, READ]  # keys come first
    changed = [module for module in model.modules() if "forward" in vars(module)]
    assert changed == []  # everything is itself again


@pytest.mark.parametrize("case", ["gpt2", "float64", "autocast", "other activation", "own forward"])
def test_models_that_are_not_known_are_left_alone(case):
    model = loud_model("gpt2" if case == "gpt2" else "llama")
    if case == "float64":
        model.double()
    if case == "other activation":
        model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    if case == "own forward":
        model.model.layers[0].mlp.forward = lambda x: x
    mixed = torch.autocast("cpu", torch.bfloat16) if case == "autocast" else contextlib.nullcontext()
    with mixed, lean_blocks(model, torch.tensor([0])) as at_end:
        assert not at_end
