"""Responses of a causal LM to prompts, seeded, and what a world says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_backend.generation import ModelGenerator, Sampling
from prefgeo.language.recipe import EvaluateSpec
from prefgeo.language.world_text import TextWorld


def generate_texts(
    model: Any, tokenizer: Any, prompts: Sequence[str], spec: EvaluateSpec, *, max_new_tokens: int, seed: int
) -> list[str]:
    """A response to each prompt, greedy at temperature 0, else sampled from the whole vocabulary.

    A response depends on the seed and its prompt's place alone; model and torch's random state stay as they were.
    """
    sampling = Sampling(temperature=spec.temperature, max_new_tokens=max_new_tokens, batch_size=spec.batch_size)
    written = ModelGenerator(model, tokenizer).generate(prompts, sampling, seed=seed)
    return [response.text for (response,) in written]


def judged(world: TextWorld, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """Mean gold reward, facts and length (words and the end) of responses; standard errors of gold and length."""
    verdicts = world.judge(prompts, responses)
    columns = {name: np.array([getattr(each, name) for each in verdicts]) for name in ("gold", "facts", "length")}
    found = {name: float(values.mean()) for name, values in columns.items()}
    for name in ("gold", "length"):
        deviation = columns[name].std(ddof=1) if len(verdicts) > 1 else 0.0
        found[f"{name}_standard_error"] = float(deviation / np.sqrt(len(verdicts)))
    return found
