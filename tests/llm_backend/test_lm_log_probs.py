"""Log-probabilities of responses against full logits, one sequence at a time: values, gradients, memory, shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llm_backend.batching import Collator, LengthSampler, line_length
from llm_backend.errors import BatchingError, ModelError
from llm_backend.head import token_log_probs
from llm_backend.log_probs import attention_mask, best_collator, response_log_probs, shares_prompts
from llm_backend.models import new_model, tiny_config
from llm_backend.sequential_kl import HeadInput, token_kls

VOCABULARY = 61
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def random_rows(n=5, seed=0, longest=9):
    rng = np.random.default_rng(seed)

    def ids(least=1):
        return rng.integers(0, VOCABULARY, size=rng.integers(least, longest)).tolist()

    return [{"row": i, "prompt_ids": ids(), "chosen_ids": ids(), "rejected_ids": ids()} for i in range(n)]


def loud_model(architecture="llama", dtype="float64", attention="sdpa", tied=True):
    """Weights ten times the usual, so that what a token can see matters."""
    model = new_model(
        tiny_config(architecture, vocab_size=VOCABULARY, width=32, tied=tied), seed=1, dtype=dtype, attention=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def naive(model, prompt, response):
    """Full logits of one sequence without padding: the definition."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    return sum(logits[len(prompt) - 1 + t, token] for t, token in enumerate(response))


def naive_pair(model, rows):
    return {
        side: torch.stack([naive(model, row["prompt_ids"], row[f"{side}_ids"]) for row in rows])
        for side in ("chosen", "rejected")
    }


def gradients(model, value):
    return torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])


LAYOUTS = {"separate": Collator(shared=False), "shared": Collator(), "packed": Collator(packed=True)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_those_of_full_logits(architecture, dtype, layout):
    model, rows = loud_model(architecture, dtype), random_rows()
    with torch.no_grad():
        scores = response_log_probs(model, LAYOUTS[layout](rows))
        for side, expected in naive_pair(model, rows).items():
            assert scores.log_probs[side].dtype == getattr(torch, dtype)
            torch.testing.assert_close(scores.log_probs[side], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
            assert scores.lengths[side].tolist() == [len(row[f"{side}_ids"]) for row in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_gradients_are_those_of_full_logits(architecture, tied, layout):
    model, rows = loud_model(architecture, tied=tied), random_rows(3)
    factors = torch.tensor([[1.0, -0.4, 2.0], [-1.3, 0.7, 0.2]], dtype=torch.float64)
    found = response_log_probs(model, LAYOUTS[layout](rows), chunk_elements=4 * VOCABULARY).log_probs
    expected = naive_pair(model, rows)
    for mine, naives in zip(
        gradients(model, sum((f * v).sum() for f, v in zip(factors, found.values(), strict=True))),
        gradients(model, sum((f * v).sum() for f, v in zip(factors, expected.values(), strict=True))),
        strict=True,
    ):
        # the norms of Llama and Qwen3 compute in float32 whatever the model's dtype; GPT-2's do not
        tolerance = 1e-12 if architecture == "gpt2" else 3e-6
        torch.testing.assert_close(mine, naives, rtol=0.0, atol=tolerance * float(naives.abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_does_not_depend_on_its_batch_or_padding(attention, layout):
    model, rows = loud_model(attention=attention), random_rows(6)
    rows[2]["rejected_ids"] = list(range(40))  # everyone else is padded
    with torch.no_grad():
        together = response_log_probs(model, replace(LAYOUTS[layout], pad_id=7)(rows)).log_probs
        for i, row in enumerate(rows):
            alone = response_log_probs(model, LAYOUTS[layout]([row])).log_probs
            for side in together:
                # eager attention takes its softmax in float32 whatever the model's dtype
                tolerance = 1e-10 if attention == "sdpa" else 1e-5
                torch.testing.assert_close(together[side][i], alone[side][0], rtol=tolerance, atol=tolerance)


def test_responses_in_one_line_are_blind_to_each_other_and_padding_to_nothing():
    batch = Collator()([{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}])
    assert batch["segments"].tolist() == [[0, 0, 1, 1, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert batch["places"].tolist() == [1, 2, 1]  # token 5 is predicted at the end of the prompt
    assert batch["targets"].tolist() == [3, 4, 5]
    assert batch["owners"].tolist() == [0, 0, 1]
    seen = attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_four_responses_share_a_prompt():
    model, rows = loud_model(), random_rows(2)
    for row in rows:
        row |= {"source_chosen_ids": [4, 5], "source_rejected_ids": [9]}
    sides = ("chosen", "rejected", "source_chosen", "source_rejected")
    with torch.no_grad():
        fields = response_log_probs(model, Collator(sides)(rows), sides).policy_fields()
        expected = torch.stack([naive(model, row["prompt_ids"], row["source_rejected_ids"]) for row in rows])
    torch.testing.assert_close(fields["policy_source_rejected"], expected, rtol=1e-10, atol=1e-10)
    assert fields["source_chosen_length"].tolist() == [2.0, 2.0]


def test_weights_of_wpo():
    model, rows = loud_model(), random_rows(3)
    weights = response_log_probs(model, Collator()(rows), collision=True).weight_fields()
    for i, row in enumerate(rows):
        prompt, response = row["prompt_ids"], row["chosen_ids"]
        log_pi = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        terms = log_pi.gather(1, torch.tensor(response)[:, None])[:, 0] - (log_pi.exp() ** 2).sum(-1).log()
        torch.testing.assert_close(weights["weight_chosen"][i], terms.mean().exp().detach(), rtol=1e-10, atol=0.0)
    assert not weights["weight_chosen"].requires_grad
    with pytest.raises(ModelError, match="collision=True"):
        response_log_probs(model, Collator()(rows)).weight_fields()


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch's own, in torch.func.jvp
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_head_passes_gradcheck_and_jvp(frozen, with_bias):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (7, 3), (7,))
    )
    targets = torch.tensor([0, 6, 2, 2, 5])
    parts = [hidden, *([] if frozen else [weight]), *([bias] if with_bias and not frozen else [])]

    def run(*given):
        table = weight if frozen else given[1]
        shift = (bias if frozen else given[2]) if with_bias else None
        return token_log_probs(given[0], table, shift, targets, chunk_elements=14).log_prob

    assert torch.autograd.gradcheck(run, [part.requires_grad_() for part in parts])
    assert torch.autograd.gradgradcheck(run, parts)
    plain = (hidden @ weight.T + (bias if with_bias else 0.0)).log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(run(*parts), plain, rtol=1e-12, atol=1e-12)
    fixed = [part.detach() for part in parts]
    for part in (weight, bias):
        part.requires_grad_(False)
    moves = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in fixed]
    _, along = torch.func.jvp(run, tuple(fixed), tuple(moves))
    step = 1e-6
    ahead = run(*[part + step * move for part, move in zip(fixed, moves, strict=True)])
    behind = run(*[part - step * move for part, move in zip(fixed, moves, strict=True)])
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-7)  # central differences


@pytest.mark.parametrize("with_bias", [True, False])
def test_sequential_kl_passes_gradcheck(with_bias):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias = draw(5, 3), draw(7, 3), draw(7) if with_bias else None
    reference = HeadInput(draw(5, 4), draw(7, 4), None)

    def run(*given):
        policy = HeadInput(given[0], given[1], given[2] if with_bias else None)
        return token_kls(policy, reference, chunk_elements=14)

    parts = [part.requires_grad_() for part in (hidden, weight, bias) if part is not None]
    assert torch.autograd.gradcheck(run, parts)
    log_pi = (hidden @ weight.T + (bias if with_bias else 0.0)).log_softmax(-1)
    log_ref = (reference.hidden @ reference.weight.T).log_softmax(-1)
    expected = (log_ref.exp() * (log_ref - log_pi)).sum(-1)
    torch.testing.assert_close(run(*parts), expected, rtol=1e-12, atol=1e-12)
    same = HeadInput(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
    torch.testing.assert_close(token_kls(same, same), torch.zeros(5, dtype=torch.float64), rtol=0.0, atol=1e-15)


def test_half_precision_is_summed_in_float32():
    """A bfloat16 model: the scores must be those of its own hidden states and weights, multiplied exactly."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, 32, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(VOCABULARY, (40,), generator=generator)
    found = token_log_probs(hidden, weight, None, targets).log_prob
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(40), targets]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(found.sum(), [hidden, weight])
    theirs = torch.autograd.grad(exact.sum(), [hidden, weight])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2)  # gradients are stored in bfloat16


@pytest.mark.gpu
def test_half_precision_on_a_gpu_is_summed_in_float32():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16().cuda() for n in (40, VOCABULARY))
    targets = torch.randint(VOCABULARY, (40,), generator=generator).cuda()
    parts = [hidden.requires_grad_(), weight.requires_grad_()]
    found = token_log_probs(*parts, None, targets).log_prob
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(40), targets]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), parts), torch.autograd.grad(exact.sum(), parts), strict=True
    ):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=2e-2, atol=2e-2)  # stored in bfloat16


def test_no_block_of_tokens_times_vocabulary_is_kept():
    """What autograd keeps for the backward pass of the head is linear in tokens, not tokens x vocabulary."""
    n, width, vocabulary = 512, 16, 4096
    hidden = torch.randn(n, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_log_probs(hidden, weight, None, torch.zeros(n, dtype=torch.long)).log_prob.sum()
    assert max(kept) <= max(n, vocabulary) * width
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        token_log_probs(hidden, weight, None, torch.zeros(n, dtype=torch.long), chunk_elements=2**16).log_prob.sum()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 4 * 2 * 2**16 + 4 * n * width  # bytes: a chunk, and what logsumexp takes beside it


def test_models_that_cannot_be_scored_say_so():
    model = loud_model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match=r"final_logit_softcapping = 30\.0"):
        response_log_probs(model, Collator()(random_rows(1)))
    model = loud_model()
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="plain linear layer, got Sequential"):
        response_log_probs(model, Collator()(random_rows(1)))
    model = loud_model()
    response_log_probs(model, Collator()(random_rows(1)))
    assert "forward" not in vars(model.lm_head)  # the head is itself again


def test_sharing_is_found_out_by_trying():
    for architecture in ("llama", "qwen3", "gpt2"):
        assert shares_prompts(loud_model(architecture))
    model = loud_model()
    inner = model.model.forward
    # a model that ignores the mask it is given sees the chosen response from the rejected one
    model.model.forward = lambda *args, attention_mask=None, **more: inner(*args, **more)
    assert not shares_prompts(model)
    windowed = new_model(tiny_config("mistral", vocab_size=VOCABULARY), seed=0)
    windowed.config.sliding_window = 4
    assert not shares_prompts(windowed)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # the name differs between versions of transformers
def test_the_layout_is_the_best_that_the_model_can():
    assert best_collator(loud_model(), ("chosen", "rejected")) == Collator(packed=True)
    assert best_collator(loud_model(), ("chosen",)) == Collator(("chosen",), packed=True)
    assert best_collator(loud_model(), ("chosen", "rejected"), share=False) == Collator(shared=False)
    model = loud_model()
    model.gradient_checkpointing_enable()
    assert best_collator(model, ("chosen", "rejected")) == Collator()  # blocks are computed again: not packed
    model.model.config.sliding_window = 4
    assert best_collator(model, ("chosen", "rejected")) == Collator(shared=False)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(BatchingError, match="packed lines share"):
        Collator(shared=False, packed=True)(random_rows(1))
    with pytest.raises(RuntimeError, match="outside packed_attention"):
        model.config._attn_implementation = "prefgeo_packed"
        model(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_ids": [], "chosen_ids": [1], "rejected_ids": [1], "row": 3}, "prompt_ids of row 3 is empty"),
        ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [1], "row": 4}, "chosen_ids of row 4 is empty"),
        ({"prompt_ids": [1], "chosen_ids": [1]}, "no column 'rejected_ids'"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(BatchingError, match=message):
        Collator()([row])
    with pytest.raises(BatchingError, match="at least one row"):
        Collator()([])


def test_epochs_are_sorted_in_windows_and_independent_of_the_split():
    lengths = [line_length(row, ("chosen", "rejected")) for row in random_rows(70)]
    sampler = LengthSampler(lengths, 8, seed=3, window=4)
    first = list(sampler)
    assert sorted(first) == list(range(70)) and first == list(sampler) and len(sampler) == 70
    steps = [[lengths[i] for i in first[k : k + 8]] for k in range(0, 70, 8)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    spread = np.mean([max(step) - min(step) for step in steps])
    assert spread < 0.5 * (max(lengths) - min(lengths))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthSampler(lengths, 8, seed=4, window=4)) != first
    even = LengthSampler(lengths, 8, seed=3, multiple=8)
    assert len(list(even)) == len(even) == 64
    with pytest.raises(BatchingError, match="too few"):
        LengthSampler([1], 8, seed=0, multiple=2)
