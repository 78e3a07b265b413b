"""Self-instruct for real: a small model learns the seed tasks' list from nothing, and writes new instructions.

    python benchmarks/self_instruct.py [--data FILE] [--steps N] [--prompts N] [--rounds N]

A Llama of about half a million parameters is trained on lists of five random seed tasks (those held out never among
them), with a tokenizer of their own text; then ``SelfInstruct`` asks it for new ones. What comes out is a small
model's English, but the whole path is real: contexts, sampling, parsing, every filter. Counts by filter, instructions
a second, and some of the instructions are published.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Train, write the rounds, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.path.join(os.environ.get("PREFGEO_DATA", "."), "self_instruct_seed_tasks.jsonl")
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    from report import publish

    from llm_backend.generation import ModelGenerator
    from llm_backend.prompts import SelfInstruct, SelfInstructOptions, load_seed_tasks

    options = SelfInstructOptions(
        examples=3, machine_examples=1, temperature=0.8, max_new_tokens=80, heldout_share=0.1, patience=10
    )
    source = SelfInstruct([task.instruction for task in load_seed_tasks(given.data)], options)
    begun = time.perf_counter()
    model, tokenizer, loss = learn_lists(source.in_context, steps=given.steps)
    numbers: dict[str, Any] = {
        "seed_tasks": len(source.seed_tasks), "parameters": sum(part.numel() for part in model.parameters()),
        "training_steps": given.steps, "training_seconds": time.perf_counter() - begun, "last_loss": loss,
    }  # fmt: skip
    generator = ModelGenerator(model, tokenizer)
    for number in range(1, given.rounds + 1):
        begun = time.perf_counter()
        batch = source.prompts(number, given.prompts, generator=generator, seed=0)
        seconds = time.perf_counter() - begun
        numbers[f"round_{number}"] = {
            "accepted": len(batch), "left_out": dict(batch.counts), "seconds": seconds, "first_ones": batch.prompts[:8],
        }  # fmt: skip
    publish("self_instruct", numbers)


def learn_lists(tasks: Sequence[str], *, steps: int, seed: int = 0) -> tuple[Any, Any, float]:
    """A model and a tokenizer of lists of five random tasks, and the mean loss of the last ten steps in nats."""
    import numpy as np
    import torch

    from llm_backend.prompts.task_lists import ask
    from llm_backend.toy import make_model, make_tokenizer

    tokenizer = make_tokenizer([*tasks, str(ask(tasks[:3], 2, chat=False))], 2000)
    model = make_model(len(tokenizer), seed, hidden_size=96, intermediate_size=256)
    rng, rate, losses = np.random.default_rng(seed), 3e-3, []
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        texts = []
        for _ in range(16):
            shown = [tasks[place] for place in rng.choice(len(tasks), 5, replace=False)]
            texts.append(str(ask(shown, 2, chat=False)).removesuffix("\nTask 6:") + "\n")
        rows = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
        labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
        loss = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * (1.0 - step / steps)
        optimiser.step()
        losses.append(float(loss.detach()))
    return model, tokenizer, sum(losses[-10:]) / len(losses[-10:])


if __name__ == "__main__":
    main()
