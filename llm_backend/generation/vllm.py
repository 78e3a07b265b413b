"""Responses of a model folder by vLLM, where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, GenerationConfig

from llm_backend.data.rows import Content
from llm_backend.generation.errors import GenerationError
from llm_backend.generation.protocol import Response, Sampling, checked_keys
from llm_backend.generation.texts import as_response, end_tokens, prompt_encoder, prompt_ids
from llm_backend.generation.writing import check_prompts
from llm_backend.token_options import TokenOptions
from llm_backend.tokenizers import load_tokenizer

COLDEST = 0.01  # vLLM takes this for any lower temperature


class VLLMGenerator:
    """A ``Generator`` over a model folder (or hub name) on vLLM's own batching; ``Sampling.batch_size`` is not used.

    Every sample is a request of its own, with token ids for a prompt and a seed made of (seed, key, sample): vLLM then
    draws it from a random state of its own. Which tokens come out differs from ``ModelGenerator``, and a vLLM that
    changes its kernels with the batch may round differently in another batch. ``dtype`` float32 | float16 | bfloat16 |
    auto; ``memory`` is the share of the accelerator that vLLM may take; ``context`` limits prompt and response.
    Raises: GenerationError where vLLM is not installed, DataError for a folder without a tokenizer with EOS.
    """

    def __init__(
        self,
        folder: str | Path,
        options: TokenOptions | None = None,
        *,
        dtype: str = "auto",
        context: int | None = None,
        memory: float = 0.9,
        devices: int = 1,
    ) -> None:
        vllm = _import_vllm()
        self.tokenizer = load_tokenizer(folder)
        self.encoder = prompt_encoder(self.tokenizer, options or TokenOptions())
        self.ends = end_tokens(self.encoder, _generation_config(folder))
        stated = getattr(AutoConfig.from_pretrained(str(folder)).get_text_config(), "max_position_embeddings", None)
        self.context = context or stated
        self._parameters = vllm.SamplingParams
        self._engine = vllm.LLM(
            model=str(folder), dtype=dtype, max_model_len=self.context, gpu_memory_utilization=memory,
            tensor_parallel_size=devices, generation_config="vllm", seed=0,
        )  # fmt: skip

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        """See ``Generator.generate``. Raises GenerationError also for a temperature that vLLM would change."""
        if 0.0 < sampling.temperature < COLDEST:
            raise GenerationError(
                f"vLLM takes temperatures below {COLDEST} for {COLDEST}, got {sampling.temperature}; take 0 (greedy) "
                f"or at least {COLDEST}"
            )
        numbers = checked_keys(prompts, keys)
        ids = prompt_ids(self.encoder, prompts, numbers)
        check_prompts(ids, numbers, sampling, self.context)
        jobs = [(place, sample) for place in range(len(ids)) for sample in range(sampling.candidates)]
        written = self._engine.generate(
            [{"prompt_token_ids": ids[place]} for place, _ in jobs],
            [self._request(sampling, request_seed(seed, numbers[place], sample)) for place, sample in jobs],
            use_tqdm=False,
        )
        found: list[list[Response]] = [[] for _ in prompts]
        for (place, _), output in zip(jobs, written, strict=True):
            tokens = [int(token) for token in output.outputs[0].token_ids]
            chat = not isinstance(prompts[place], str)
            found[place].append(as_response(self.tokenizer, ids[place], tokens, self.ends, chat=chat))
        return found

    def _request(self, sampling: Sampling, seed: int) -> Any:
        return self._parameters(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,  # all of them, in every version
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=sorted(self.ends),
            detokenize=False,
            seed=seed if sampling.temperature > 0.0 else None,
        )


def request_seed(seed: int, key: int, sample: int) -> int:
    """A number below 2^63 for the request, decided by all three."""
    return int(np.random.SeedSequence([seed, key, sample]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generation_config(folder: str | Path) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except OSError:
        return None


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise GenerationError(
            f"VLLMGenerator needs vllm ({error}); install it with: pip install vllm (on a machine with an accelerator "
            "that it supports), or use ModelGenerator"
        ) from None
