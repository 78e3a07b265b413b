"""Self-instruct by a real model: one that learned lists of tasks from nothing writes new ones of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_backend.generation import ModelGenerator
from llm_backend.prompts import InstructionFilters, PromptBatch, SelfInstruct, SelfInstructOptions
from llm_backend.prompts.instruction_filters import FILTERS
from llm_backend.prompts.task_lists import ask
from llm_backend.toy import make_model, make_tokenizer

VERBS, NOUNS, PLACES = ("Draft", "Name", "Sort"), ("river", "song", "tool"), ("town", "park", "shop")
KIND = [f"{verb} one {noun} of the {place}" for verb in VERBS for noun in NOUNS for place in PLACES]
OPTIONS = SelfInstructOptions(
    examples=2, calls=4, temperature=1.0, top_p=1.0, max_new_tokens=24,
    filters=InstructionFilters(similarity=None),  # the kind has six words, of which new tasks change one
)  # fmt: skip
TASKS = KIND[::2]


@pytest.fixture(scope="module")
def generator() -> ModelGenerator:
    """A model that saw lists of half of the kind's 27 tasks."""
    tokenizer: Any = make_tokenizer([*TASKS, str(ask(TASKS[:2], 2, chat=False))], 400)
    model, rng = (
        make_model(len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1),
        np.random.default_rng(0),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        shown = [[TASKS[place] for place in rng.choice(len(TASKS), 4, replace=False)] for _ in range(16)]
        texts = [str(ask(each, 2, chat=False)).removesuffix("\nTask 5:") + "\n" for each in shown]
        rows = tokenizer(texts, return_tensors="pt", padding=True)
        labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
        loss = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return ModelGenerator(model, tokenizer)


def test_new_tasks_of_the_kind_come_out_and_every_other_is_counted(generator: ModelGenerator, tmp_path: Path) -> None:
    source = SelfInstruct(TASKS, OPTIONS, folder=tmp_path)
    batch = source.prompts(1, 4, generator=generator, seed=0)
    assert len(set(batch.prompts)) == 4 and not set(batch.prompts) & set(TASKS)
    assert set(batch.prompts) & set(KIND), batch.prompts  # what it never saw, put together as what it saw
    assert batch.counts["repeats"] > 0 and tuple(batch.counts) == FILTERS  # it also writes what it learned
    again: PromptBatch = SelfInstruct(TASKS, OPTIONS).prompts(1, 4, generator=generator, seed=0)
    assert again == batch
    assert source.prompts(2, 2, generator=generator, seed=0).prompts != batch.prompts[:2]
