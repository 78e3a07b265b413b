"""VLLMGenerator against a stand-in for vLLM: every argument is one that it documents; outputs are read rightly."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_backend.generation import GenerationError, ModelGenerator, Sampling, VLLMGenerator  # noqa: E402
from llm_backend.generation.vllm import request_seed  # noqa: E402
from llm_backend.generation.writing import write_tokens  # noqa: E402
from llm_backend.models import load_model  # noqa: E402
from llm_backend.toy import make_model  # noqa: E402
from tests.llm_backend.cat_and_dog import TOKENIZER  # noqa: E402

TEXTS = ["the cat", "a dog ran over the", "on"]


class SamplingParams:
    """The fields of vLLM's SamplingParams that generation without a server may set, with its checks of their ranges."""

    def __init__(
        self, *, n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=1.0, top_p=1.0,
        top_k=0, min_p=0.0, seed=None, stop=None, stop_token_ids=None, ignore_eos=False, max_tokens=16, min_tokens=0,
        logprobs=None, detokenize=True, skip_special_tokens=True,
    ) -> None:  # fmt: skip
        assert n == 1
        assert temperature >= 0.0
        assert 0.0 < top_p <= 1.0
        assert isinstance(top_k, int) and top_k >= -1
        assert seed is None or 0 <= seed < 2**63
        assert all(isinstance(token, int) for token in stop_token_ids)
        self.__dict__.update(
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, ends=stop_token_ids, max_tokens=max_tokens,
            detokenize=detokenize,
        )  # fmt: skip


class LLM:
    """vLLM's LLM for offline use: the model itself by our own loop, one request at a time, with the request's seed."""

    made: ClassVar[list[dict]] = []

    def __init__(
        self, model, *, tokenizer=None, tensor_parallel_size=1, dtype="auto", seed=0, gpu_memory_utilization=0.9,
        enforce_eager=False, max_model_len=None, generation_config="auto",
    ) -> None:  # fmt: skip
        assert isinstance(model, str)
        assert generation_config in ("auto", "vllm")
        self.model, self.requests = load_model(model), []
        LLM.made.append({"dtype": dtype, "memory": gpu_memory_utilization, "context": max_model_len})

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params)
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            assert set(prompt) == {"prompt_token_ids"}
            self.requests.append((prompt["prompt_token_ids"], params))
            sampling = Sampling(
                temperature=params.temperature, top_p=params.top_p, top_k=max(params.top_k, 0),
                max_new_tokens=params.max_tokens,
            )  # fmt: skip
            seed = 0 if params.seed is None else params.seed
            ends = frozenset(params.ends)
            ((tokens,),) = write_tokens(self.model, [prompt["prompt_token_ids"]], [0], sampling, seed=seed, ends=ends)
            reason = "stop" if tokens[-1] in ends else "length"
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, text="", finish_reason=reason)]))
        return outputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder with two end tokens, and the stand-in where vllm would be."""
    model = make_model(len(TOKENIZER))
    model.generation_config.eos_token_id = [2, 60, 61, 62, 63, 64]
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return tmp_path


def test_greedy_is_that_of_the_model_generator(folder) -> None:
    generator = VLLMGenerator(folder, dtype="float32", memory=0.5, context=64)
    assert LLM.made[-1] == {"dtype": "float32", "memory": 0.5, "context": 64}
    greedy = Sampling(temperature=0.0, max_new_tokens=8)
    assert generator.generate(TEXTS, greedy, seed=0) == ModelGenerator(load_model(folder), TOKENIZER).generate(
        TEXTS, greedy, seed=0
    )
    assert [params.seed for _, params in generator._engine.requests] == [None] * 3


def test_each_sample_is_a_request_with_its_own_seed(folder) -> None:
    generator = VLLMGenerator(folder)
    assert LLM.made[-1]["context"] == 2048  # the model's own
    sampling = Sampling(candidates=3, temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=12)
    together = generator.generate(TEXTS, sampling, seed=3)
    requests = generator._engine.requests
    assert [len(each) for each in together] == [3, 3, 3]
    assert [params.seed for _, params in requests] == [request_seed(3, key, s) for key in range(3) for s in range(3)]
    assert len({params.seed for _, params in requests}) == 9
    for _, params in requests:
        assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.7, 0.9, 20, 12)
        assert params.ends == [2, 60, 61, 62, 63, 64]
        assert not params.detokenize
    assert generator.generate(TEXTS[2:], sampling, seed=3, keys=[2]) == together[2:]
    assert {response.finished for each in together for response in each} == {True, False}
    generator.generate(TEXTS[:1], Sampling(max_new_tokens=1), seed=0)
    assert generator._engine.requests[-1][1].top_k == -1  # all, for every version of vLLM


def test_what_is_refused(folder, monkeypatch) -> None:
    generator = VLLMGenerator(folder, context=16)
    with pytest.raises(GenerationError, match=r"vLLM takes temperatures below 0.01 for 0.01, got 0.001"):
        generator.generate(TEXTS, Sampling(temperature=0.001), seed=0)
    with pytest.raises(GenerationError, match=r"prompt 5 has \d+ tokens; with 15 new ones that is beyond .* of 16"):
        generator.generate(TEXTS[:1], Sampling(max_new_tokens=15), seed=0, keys=[5])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(GenerationError, match=r"VLLMGenerator needs vllm .*pip install vllm"):
        VLLMGenerator(folder)
