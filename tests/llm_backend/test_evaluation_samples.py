"""Samples, their KL to the reference, and win rates: exactness, batches, statistics, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_backend.data import PreferenceRow, Preferences  # noqa: E402
from llm_backend.evaluation import (  # noqa: E402
    Decoding,
    EvaluationError,
    Sampling,
    TokenSet,
    evaluate_sets,
    length_controlled,
    pair_sets,
    sample_responses,
    score_sets,
    token_kl,
    win_metrics,
)
from llm_backend.models import new_model, tiny_config  # noqa: E402
from llm_backend.toy import make_model, make_tokenizer  # noqa: E402

VOCABULARY = 7
EOS = 1


def model_of(architecture="llama", seed=1, scale=8.0, vocab_size=VOCABULARY, **sizes):
    config = tiny_config(architecture, vocab_size=vocab_size, width=32, tied=False, **sizes)
    model = new_model(config, seed=seed, dtype="float64")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def prompts_of(*prompts):
    return [TokenSet(row, list(prompt), [], (), "", "", str(row)) for row, prompt in enumerate(prompts)]


PROMPTS = prompts_of([2, 3], [4], [5, 6, 2, 3, 4], [2, 3, 3])


def next_probabilities(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_greedy_takes_the_most_probable_token(architecture) -> None:
    model = model_of(architecture)
    found = sample_responses(model, PROMPTS, Decoding(temperature=0.0, max_new_tokens=6), eos_id=EOS)
    for each, (response,) in zip(PROMPTS, found, strict=True):
        for place, token in enumerate(response):
            assert token == next_probabilities(model, each.prompt + response[:place]).argmax()
        assert len(response) == 6 or response[-1] == EOS
        assert EOS not in response[:-1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_samples_do_not_depend_on_the_batch(architecture) -> None:
    model = model_of(architecture, scale=2.0).train()
    one, many, part = (
        sample_responses(model, rows, Decoding(max_new_tokens=8, batch_size=size), samples=3, eos_id=EOS)
        for rows, size in ((PROMPTS, 1), (PROMPTS, 12), (PROMPTS[2:], 5))
    )
    assert one == many
    assert one[2:] == part
    assert model.training
    other = sample_responses(model, PROMPTS, Decoding(max_new_tokens=8, seed=1), samples=3, eos_id=EOS)
    assert one != other
    assert len({tuple(tokens) for each in one for tokens in each}) > 6


def test_samples_have_the_models_distribution() -> None:
    """3,000 first tokens: every frequency within 4 standard deviations, also at temperature 2."""
    model, n = model_of(), 3000
    for temperature in (1.0, 2.0):
        decoding = Decoding(max_new_tokens=1, temperature=temperature, batch_size=n)
        (found,) = sample_responses(model, PROMPTS[:1], decoding, samples=n, eos_id=EOS)
        p = next_probabilities(model, PROMPTS[0].prompt) ** (1 / temperature)
        p /= p.sum()
        counts = np.bincount([tokens[0] for tokens in found], minlength=VOCABULARY)
        assert np.all(np.abs(counts / n - p) <= 4 * np.sqrt(p * (1 - p) / n) + 1e-12)


def test_token_kl_is_that_of_full_logits_whatever_the_batches() -> None:
    policy, reference = model_of(seed=1), model_of(seed=2)
    sets = [TokenSet(0, [2, 3], [[4, 5], [6]], (0,), "", "", "a"), TokenSet(1, [5], [[2, 2, 2, 3]], (0,), "", "", "b")]
    expected = []
    for each in sets:
        for response in each.responses:
            pairs = [
                [next_probabilities(model, each.prompt + response[:place]) for model in (policy, reference)]
                for place in range(len(response))
            ]
            expected.append(sum(float(np.sum(p * np.log(p / q))) for p, q in pairs))
    for budget in (1, 8, 1000):
        np.testing.assert_allclose(token_kl(policy, reference, sets, tokens_per_batch=budget), expected, rtol=1e-10)
    assert np.all(token_kl(policy, policy, sets) == 0.0)


def test_token_kl_of_samples_estimates_the_kl_of_sequences() -> None:
    """Sequences of two tokens can be listed: sum of pi log(pi / ref) over all 49, exactly. The mean over 2,000 samples
    is within 4 standard errors, and closer than log pi - log ref is expected to be."""
    policy, reference = model_of(seed=1), model_of(seed=2)
    every = [[a, b] for a in range(VOCABULARY) for b in range(VOCABULARY)]
    exact_set = [TokenSet(0, [2, 3], every, (0,), "", "", "a")]
    log_p, log_q = (score_sets(model, exact_set).log_probs for model in (policy, reference))
    exact = float(np.sum(np.exp(log_p) * (log_p - log_q)))
    assert np.exp(log_p).sum() == pytest.approx(1.0, rel=1e-10)
    decoding = Decoding(max_new_tokens=2, batch_size=2000)
    (samples,) = sample_responses(policy, PROMPTS[:1], decoding, samples=2000, eos_id=None)
    sampled = [TokenSet(0, [2, 3], samples, (0,), "", "", "a")]
    values = token_kl(policy, reference, sampled, tokens_per_batch=100_000)
    ratios = score_sets(policy, sampled).log_probs - score_sets(reference, sampled).log_probs
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(2000)
    assert values.std() < ratios.std()


def test_win_rates_by_hand() -> None:
    ones = np.ones(4)
    plain, controlled = win_metrics(np.array([1.0, 0, 2, 5]), np.array([0.0, 0, 3, 1]), ones, ones, np.arange(4))
    assert (plain.value, plain.ties) == ((1 + 0.5 + 0 + 1) / 4, 1)
    assert controlled.value == pytest.approx(plain.value, rel=1e-12)  # lengths do not differ
    lengths = np.random.default_rng(0).integers(1, 9, size=(2, 60)).astype(float)
    rewards = np.random.default_rng(1).normal(size=(2, 60))
    _, controlled = win_metrics(*rewards, *lengths, np.arange(60))
    credits = (rewards[0] > rewards[1]).astype(float)
    assert controlled == length_controlled(credits, lengths[0] - lengths[1], np.arange(60))


def test_nothing_but_ties_gives_no_interval() -> None:
    plain, controlled = win_metrics(np.ones(9), np.ones(9), np.arange(9.0), np.ones(9), np.arange(9))
    assert (controlled.value, controlled.low, controlled.interval) == (0.5, None, "none: all are ties")
    assert plain.low is not None and plain.low < 0.3


def test_length_controlled_win_rate_finds_the_rate_at_equal_length() -> None:
    """The policy wins by being longer: 63 % in all, but 35 % at equal length by construction."""
    rng = np.random.default_rng(0)
    difference = rng.normal(40.0, 40.0, size=20_000)
    p = expit(np.log(0.35 / 0.65) + 1.6 * np.tanh(difference / difference.std()))
    credits = (rng.random(p.size) < p).astype(float)
    found = length_controlled(credits, difference, np.arange(p.size))
    assert credits.mean() > 0.55
    assert found.low < 0.35 < found.high
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(0.35, abs=0.02)
    assert found.high - found.low < 0.04


@pytest.mark.parametrize(
    ("credits", "difference"),
    [(np.ones(5), np.arange(5.0)), (np.array([0.0, 0, 1, 1]), np.array([-2.0, -1, 1, 2]))],
)
def test_no_finite_estimate_is_said_so(credits, difference) -> None:
    found = length_controlled(credits, difference, np.arange(credits.size))
    assert np.isnan(found.value)
    assert found.interval == "none: separable by length"


ROWS = (PreferenceRow(0, "Is it one?", " one", " two"), PreferenceRow(1, "Is it one?", " one", " three"),
        PreferenceRow(2, "Is it two?", " two", " one"))  # fmt: skip
TOKENIZER = make_tokenizer(["Is it one, two or three? one"] * 4, 280)
SETS = pair_sets(Preferences(ROWS, "here"))


def test_the_whole_with_a_gold_reward() -> None:
    """Two distinct prompts, four samples of each; a reward that counts a letter."""
    policy, reference = (make_model(len(TOKENIZER), seed, tie_word_embeddings=True) for seed in (0, 1))
    seen = []

    def gold(prompt: str, response: str, chosen: list[str]) -> float:
        seen.append((prompt, tuple(chosen)))
        return float(len(response))

    sampling = Sampling(samples=4, decoding=Decoding(max_new_tokens=5), gold=gold)
    report = evaluate_sets("pairs", SETS, TOKENIZER, policy, reference, sampling=sampling, kl_on_data=True)
    assert report.value("kl", "samples").n == 8
    assert report.value("kl", "samples").value > 0
    assert report.value("kl_along_data", "given responses").n == 6
    assert report.value("win_rate", "gold_reward").n == 8
    assert report.value("gold_reward_reference", "gold_reward").n == 8
    assert set(seen) == {("Is it one?", (" one",)), ("Is it two?", (" two",))}


def test_equal_models_tie() -> None:
    model = make_model(len(TOKENIZER))
    sampling = Sampling(decoding=Decoding(max_new_tokens=4), gold=lambda prompt, response, chosen: float(len(response)))
    report = evaluate_sets("pairs", SETS, TOKENIZER, model, model, sampling=sampling)
    assert report.value("kl", "samples").value == 0.0
    assert (report.value("win_rate", "gold_reward").value, report.value("win_rate", "gold_reward").ties) == (0.5, 2)


def test_other_temperatures_have_no_kl() -> None:
    model, other = make_model(len(TOKENIZER)), make_model(len(TOKENIZER), 1)
    sampling = Sampling(decoding=Decoding(max_new_tokens=2, temperature=0.0), gold=lambda *_: 1.0)
    report = evaluate_sets("pairs", SETS, TOKENIZER, model, other, sampling=sampling)
    assert "kl" not in {metric.name for metric in report.metrics}


def test_what_is_refused() -> None:
    with pytest.raises(EvaluationError, match="max_new_tokens must be at least 1, got 0"):
        Decoding(max_new_tokens=0)
    with pytest.raises(EvaluationError, match=r"temperature must be 0 \(greedy\) or more, got -1"):
        Decoding(temperature=-1.0)
    with pytest.raises(EvaluationError, match="greedy decoding writes one response to a prompt, not 2"):
        Sampling(samples=2, decoding=Decoding(temperature=0.0))
    with pytest.raises(EvaluationError, match="prompt 2 has 5 tokens; with 12 new ones that is beyond"):
        sample_responses(model_of(context=16), PROMPTS, Decoding(max_new_tokens=12), eos_id=EOS)
    model = make_model(len(TOKENIZER))
    with pytest.raises(EvaluationError, match="KL is to a reference; name one with --reference"):
        evaluate_sets("pairs", SETS, TOKENIZER, model, kl_on_data=True)
    with pytest.raises(EvaluationError, match="judged by their KL to a reference or by a gold reward: give one"):
        evaluate_sets("pairs", SETS, TOKENIZER, model, sampling=Sampling())
    bad = Sampling(decoding=Decoding(max_new_tokens=1), gold=lambda *_: float("nan"))
    with pytest.raises(EvaluationError, match="the gold reward must return a finite number, got nan for row 0"):
        evaluate_sets("pairs", SETS, TOKENIZER, model, sampling=bad)
    with pytest.raises(EvaluationError, match="policy and reference predict 7 and 9 tokens; KL needs one vocabulary"):
        token_kl(model_of(), model_of(vocab_size=9), [TokenSet(0, [2], [[3]], (0,), "", "", "a")])
