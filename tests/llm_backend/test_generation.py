"""Generation: parity with transformers, the distribution and support of samples, batches, ends, texts, errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_backend.data.rows import PreferenceRow  # noqa: E402
from llm_backend.errors import ModelError  # noqa: E402
from llm_backend.generation import GenerationError, ModelGenerator, Sampling  # noqa: E402
from llm_backend.generation.draws import next_probabilities, sampled_tokens, uniform_draws  # noqa: E402
from llm_backend.generation.writing import write_tokens  # noqa: E402
from llm_backend.models import new_model, tiny_config  # noqa: E402
from llm_backend.token_options import TokenOptions  # noqa: E402
from llm_backend.tokenization import tokenize_preferences  # noqa: E402
from llm_backend.toy import make_model  # noqa: E402
from tests.llm_backend.cat_and_dog import TOKENIZER  # noqa: E402

TEXTS = ["the cat", "a dog ran over the", "on", "the green hill"]
CHAT = [[{"role": "user", "content": "the cat?"}], [{"role": "user", "content": "a dog ran over the hill"}]]
ENDS = frozenset([1])


def model_of(architecture="llama", seed=1, scale=8.0, vocab_size=40, dtype="float64", **sizes):
    config = tiny_config(architecture, vocab_size=vocab_size, width=32, tied=False, **sizes)
    model = new_model(config, seed=seed, dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def random_prompts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 40, size=size).tolist() for size in rng.integers(1, 12, size=n)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_greedy_is_that_of_transformers_token_for_token(architecture) -> None:
    """12 prompts of 1 to 11 tokens in batches of 5: some end early, by one of four end tokens, others are cut at 12."""
    model, prompts = model_of(architecture, pad_token_id=0), random_prompts(12)
    greedy = Sampling(temperature=0.0, max_new_tokens=12, batch_size=5)
    ends = frozenset([1, 5, 9, 13])
    ours = write_tokens(model, prompts, range(12), greedy, seed=0, ends=ends)
    lengths = set()
    for prompt, (found,) in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=sorted(ends),
            pad_token_id=0,
        )  # fmt: skip
        assert found == theirs[0, len(prompt) :].tolist()
        lengths.add(len(found))
    assert 12 in lengths
    assert len(lengths) > 2  # lines ended at different steps, so that dropping ended lines was exercised


def test_first_tokens_have_the_models_distribution() -> None:
    """10,000 draws at temperature 1.5: a chi-square test of fixed seed against the softmax."""
    model, n = model_of(scale=3.0), 10_000
    sampling = Sampling(candidates=n, temperature=1.5, max_new_tokens=1, batch_size=2500)
    ((*found,),) = write_tokens(model, [[3, 4, 5]], [0], sampling, seed=7, ends=ENDS)
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1] / 1.5).softmax(-1).numpy() * n
    counts = np.bincount([tokens[0] for tokens in found], minlength=40)
    assert expected.min() > 5  # so that the test applies to every token
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(counts[::-1], expected).pvalue < 1e-6  # it can fail


PROBABILITIES = np.array([0.05, 0.3, 0.1, 0.3, 0.25])


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),  # of the two likeliest the lower id
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.2}, {1}),
        ({"top_p": 0.31}, {1, 3}),
        ({"top_p": 0.61}, {1, 3, 4}),
        ({"top_p": 0.951}, {0, 1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.49}, {1}),  # half of what top-k kept
        ({"top_k": 2, "top_p": 0.51}, {1, 3}),
    ],
)
def test_cuts_keep_exactly_these_tokens(cut, kept) -> None:
    logits = torch.tensor(np.log(PROBABILITIES))[None]
    found = next_probabilities(logits, Sampling(**cut))[0].numpy()
    assert set(np.flatnonzero(found)) == kept
    np.testing.assert_allclose(found[sorted(kept)], PROBABILITIES[sorted(kept)], rtol=1e-12)
    draws = torch.tensor(uniform_draws(0, 0, 0, 2000))[:, None]
    drawn = sampled_tokens(logits.expand(2000, -1), draws, Sampling(**cut))
    assert set(drawn.tolist()) == kept


def test_a_draw_of_zero_takes_no_token_that_was_cut() -> None:
    drawn = sampled_tokens(torch.tensor(np.log(PROBABILITIES))[None], torch.zeros(1, 1).double(), Sampling(top_k=3))
    assert drawn.tolist() == [1]


def test_cuts_keep_what_transformers_keeps() -> None:
    """Without ties the kept set is that of transformers' top-k and top-p warpers, in its order."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for top_k, top_p in ((5, 1.0), (0, 0.7), (12, 0.6)):
        scores = logits / 0.8
        if top_k:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1.0:
            scores = TopPLogitsWarper(top_p)(None, scores)
        ours = next_probabilities(logits, Sampling(temperature=0.8, top_k=top_k, top_p=top_p))
        assert torch.equal(ours > 0, torch.isfinite(scores))
        assert torch.allclose(ours / ours.sum(-1, keepdim=True), scores.softmax(-1), rtol=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_do_not_depend_on_the_batch_but_on_seed_and_key(architecture) -> None:
    model = make_model(len(TOKENIZER), architecture=architecture).double().train()
    generator, state = ModelGenerator(model, TOKENIZER), torch.random.get_rng_state()

    def run(prompts, keys=None, seed=3, size=16, candidates=2):
        sampling = Sampling(candidates=candidates, max_new_tokens=6, batch_size=size)
        return generator.generate(prompts, sampling, seed=seed, keys=keys)

    together = run(TEXTS)
    assert run(TEXTS, size=2) == together
    assert run(TEXTS[::-1], keys=[3, 2, 1, 0], size=5) == together[::-1]
    assert run(TEXTS[2:3], keys=[2]) == together[2:3]
    assert [each[:1] for each in together] == run(TEXTS, candidates=1)
    assert run(TEXTS, keys=[4, 5, 6, 7]) != together
    assert run(TEXTS, seed=4) != together
    assert run([TEXTS[0]] * 2)[0] != run([TEXTS[0]] * 2)[1]  # one prompt twice, two keys
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_lines_that_end_leave_the_batch_without_a_trace() -> None:
    """Sampled, with ten end tokens: lines end at many steps, and the others go on with their own draws and places."""
    model, prompts, ends = model_of(scale=2.0), random_prompts(8), frozenset(range(10))
    sampling = Sampling(candidates=2, max_new_tokens=10, batch_size=16)
    together = write_tokens(model, prompts, range(8), sampling, seed=0, ends=ends)
    assert len({len(tokens) for each in together for tokens in each}) > 4
    for key, prompt in enumerate(prompts):
        assert write_tokens(model, [prompt], [key], sampling, seed=0, ends=ends) == together[key : key + 1]


def test_prompts_are_those_of_training(monkeypatch) -> None:
    """What the model is shown first are the prompt ids that tokenisation for training gives, for text and messages,
    whole or cut on the left."""
    model = make_model(len(TOKENIZER))
    cut = TokenOptions(max_prompt_length=4, truncation="cut_prompt_left")
    for prompts, options in ((TEXTS, None), (CHAT, None), (TEXTS, cut), (CHAT, cut)):
        answer = [{"role": "assistant", "content": "a dog"}] if prompts is CHAT else " a dog"
        other = [{"role": "assistant", "content": "a cat"}] if prompts is CHAT else " a cat"
        rows = [PreferenceRow(i, prompt, answer, other) for i, prompt in enumerate(prompts)]
        expected = tokenize_preferences(rows, TOKENIZER, options).dataset["prompt_ids"]
        shown, forward = [], type(model).forward

        def seen(self, *, input_ids, attention_mask, shown=shown, forward=forward, **rest):
            if input_ids.shape[1] > 1:
                shown.extend(ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True))
            return forward(self, input_ids=input_ids, attention_mask=attention_mask, **rest)

        monkeypatch.setattr(type(model), "forward", seen)
        generator = ModelGenerator(model, TOKENIZER, options)
        generator.generate(prompts, Sampling(max_new_tokens=2, batch_size=3), seed=0)
        monkeypatch.undo()
        assert sorted(shown) == sorted(list(each) for each in expected)
        assert options is None or max(map(len, shown)) == 4


def test_several_end_tokens_end_a_response() -> None:
    model = make_model(len(TOKENIZER))
    model.generation_config.eos_token_id = [2, 5, 60, 61, 62, 63, 64, 65, 66, 67]
    generator = ModelGenerator(model, TOKENIZER)
    assert generator.ends == frozenset([2, 5, 60, 61, 62, 63, 64, 65, 66, 67])
    (found,) = generator.generate(["the cat"], Sampling(candidates=60, max_new_tokens=30), seed=0)
    endings = set()
    for response in found:
        assert response.finished == (response.token_ids[-1] in generator.ends)
        assert not generator.ends & set(response.token_ids[:-1])
        assert len(response.token_ids) == 30 or response.finished
        body = response.token_ids[: -1 if response.finished else None]
        assert response.text == TOKENIZER.decode(body, skip_special_tokens=True)
        endings |= {response.token_ids[-1]} if response.finished else {"cut"}
    assert len(endings) > 3
    assert "cut" in endings


def test_prompt_and_text_are_what_was_written() -> None:
    """A SentencePiece-like decoder drops the space of a first word; seen after its prompt, the space is kept."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "▁hot": 2, "▁tea": 3, "▁is": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    model = new_model(tiny_config(vocab_size=5, width=32), seed=0)
    (found,) = ModelGenerator(model, tokenizer).generate(["hot tea"], Sampling(candidates=20, max_new_tokens=4), seed=0)
    written = [response for response in found if response.token_ids[0] >= 2]
    assert written
    for response in written:
        assert response.text.startswith(" ")
        assert tokenizer.decode([2, 3]) == "hot tea"


def test_what_is_refused() -> None:
    for setting, message in (
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"temperature": float("nan")}, r"temperature must be 0 \(greedy\) or more, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], where 1 is no cut, got 0.0"),
        ({"top_k": -1}, r"top_k must be 0 \(no cut\) or more, got -1"),
        ({"temperature": 0.0, "candidates": 2}, "all 2 candidates would be the same"),
        ({"temperature": 0.0, "top_k": 5}, r"temperature 0 \(greedy\) would ignore top_p and top_k"),
    ):
        with pytest.raises(GenerationError, match=message):
            Sampling(**setting)
    model = make_model(len(TOKENIZER), max_position_embeddings=20)
    generator = ModelGenerator(model, TOKENIZER)
    with pytest.raises(GenerationError, match=r"prompt 7 has \d+ tokens; with 19 new ones that is beyond .* of 20"):
        generator.generate(["the cat"], Sampling(max_new_tokens=19), seed=0, keys=[7])
    with pytest.raises(GenerationError, match="there are 2 prompts but 1 keys"):
        generator.generate(TEXTS[:2], Sampling(max_new_tokens=1), seed=0, keys=[7])
    with pytest.raises(GenerationError, match="a key must be a whole number >= 0, got -1"):
        generator.generate(TEXTS[:1], Sampling(max_new_tokens=1), seed=0, keys=[-1])
    with pytest.raises(GenerationError, match="prompt 0 is empty and gets no BOS"):
        write_tokens(model, [[]], [0], Sampling(), seed=0, ends=ENDS)
    with pytest.raises(ModelError, match="the tokenizer has 292 tokens, but the model embeds only 100"):
        ModelGenerator(make_model(100), TOKENIZER)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(GenerationError, match="the model's logits are not finite"):
            generator.generate(["the"], Sampling(temperature=temperature, max_new_tokens=4), seed=0)
    assert generator.generate([], Sampling(), seed=0) == []
