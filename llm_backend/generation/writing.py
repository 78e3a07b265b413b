"""The one loop that writes tokens: left-padded batches, a key-value cache, seeded by row and not by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from llm_backend.generation.draws import greedy_tokens, sampled_tokens, uniform_draws
from llm_backend.generation.errors import GenerationError
from llm_backend.generation.protocol import Sampling
from llm_backend.log_probs import unwrap
from llm_backend.models import context_of


def check_prompts(
    prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling, context: int | None
) -> None:
    """Raises GenerationError for a prompt of no tokens, or one that leaves no room for the response."""
    for key, prompt in zip(keys, prompts, strict=True):
        if not prompt:
            raise GenerationError(f"prompt {key} is empty and gets no BOS; a model needs a token to begin from")
        if context is not None and len(prompt) + sampling.max_new_tokens > context:
            raise GenerationError(
                f"prompt {key} has {len(prompt):,} tokens; with {sampling.max_new_tokens:,} new ones that is beyond "
                f"the model's context of {context:,}; write fewer, or cut prompts"
            )


def write_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    ends: frozenset[int],
    pad_id: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[list[list[int]]]:
    """``sampling.candidates`` responses to each prompt as token ids, with the end token where one was written.

    Token t of sample s with key k is the inverse of the model's cumulative distribution at the t-th number of a
    generator seeded by (seed, k, s): the same whatever else is in the batch, up to rounding. The model and torch's
    random state are left as they were. ``progress`` is called with the number of responses done since the last call.
    Raises: GenerationError for prompts that do not fit, or logits that are not finite.
    """
    check_prompts(prompts, keys, sampling, context_of(model))
    jobs = [(place, sample) for place in range(len(prompts)) for sample in range(sampling.candidates)]
    jobs.sort(key=lambda job: -len(prompts[job[0]]))  # prompts of like length need little padding
    found: list[list[list[int]]] = [[[] for _ in range(sampling.candidates)] for _ in prompts]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(jobs), sampling.batch_size):
                part = jobs[start : start + sampling.batch_size]
                draws = None
                if sampling.temperature > 0.0:
                    rows = [uniform_draws(seed, keys[place], s, sampling.max_new_tokens) for place, s in part]
                    draws = torch.from_numpy(np.stack(rows))
                written = _write([prompts[place] for place, _ in part], model, draws, sampling, ends, pad_id)
                for (place, sample), tokens in zip(part, written, strict=True):
                    found[place][sample] = tokens
                if progress is not None:
                    progress(len(part))
    finally:
        model.train(training)
    return found


def _write(
    prompts: Sequence[Sequence[int]],
    model: Any,
    draws: Tensor | None,
    sampling: Sampling,
    ends: frozenset[int],
    pad_id: int,
) -> list[list[int]]:
    device, width = unwrap(model).device, max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    draws = None if draws is None else draws.to(device)
    stops = torch.tensor(sorted(ends), dtype=torch.long, device=device)
    written: list[list[int]] = [[] for _ in prompts]
    rows, open_rows = list(range(len(prompts))), set(range(len(prompts)))  # rows: which prompt each line belongs to
    cache: Any = None
    for step in range(sampling.max_new_tokens):
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache, logits = out.past_key_values, out.logits[:, -1]
        tokens = greedy_tokens(logits) if draws is None else sampled_tokens(logits, draws[:, step, None], sampling)
        stopped = torch.isin(tokens, stops).tolist()
        for row, token, stop in zip(rows, tokens.tolist(), stopped, strict=True):
            if row in open_rows:
                written[row].append(token)
                if stop:
                    open_rows.discard(row)
        if not open_rows:
            break
        ids, places = tokens[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if 2 * len(open_rows) <= len(rows) and isinstance(cache, DynamicCache):
            kept = torch.tensor([line for line, row in enumerate(rows) if row in open_rows], device=device)
            cache.batch_select_indices(kept)  # lines that have ended would be computed for nothing
            ids, places, mask = ids[kept], places[kept], mask[kept]
            draws = None if draws is None else draws[kept]
            rows = [row for row in rows if row in open_rows]
    return written
