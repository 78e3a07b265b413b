"""Tokens per second of ModelGenerator's loop against ``model.generate`` of transformers, greedy and sampled.

    python benchmarks/bench_generation.py [--prompts N] [--tokens N] [--threads N] [--repeats N]

A Llama of 5M parameters (4 layers, width 256, vocabulary 8000) with random weights, float32, writes a fixed number of
tokens (no end token) to prompts of 16 to 48 tokens in batches of 16, left-padded, with a key-value cache. Sampling is
at temperature 1 from the whole vocabulary, and with top-p 0.95 and top-k 50. In a second part one token in 40 ends a
response, so that lines end at different times; only tokens of responses count. Best of the repeats, alternating.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VOCABULARY, BATCH = 8000, 16
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "top_p_top_k": {"temperature": 1.0, "top_p": 0.95, "top_k": 50},
}


def main() -> None:
    """Run both on the same model and prompts, publish tokens per second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    import numpy as np
    import torch
    from report import publish

    from llm_backend.models import new_model, tiny_config

    torch.set_num_threads(options.threads)
    model = new_model(tiny_config(vocab_size=VOCABULARY, width=256, layers=4, pad_token_id=0), seed=0)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCABULARY, size=size).tolist() for size in rng.integers(16, 49, size=options.prompts)]
    numbers: dict[str, Any] = {"prompts": options.prompts, "new_tokens": options.tokens, "batch": BATCH}
    for part, ends in (("fixed_length", frozenset[int]()), ("early_ends", frozenset(range(0, VOCABULARY, 40)))):
        for kind, setting in KINDS.items():
            numbers[f"{part}_{kind}"] = compare(
                lambda kind=setting, ends=ends: ours(model, prompts, options.tokens, kind, ends),  # type: ignore[misc]
                lambda kind=setting, ends=ends: theirs(model, prompts, options.tokens, kind, ends),  # type: ignore[misc]
                options.repeats,
            )
    publish("generation", numbers)


def compare(one: Callable[[], int], other: Callable[[], int], repeats: int) -> dict[str, float]:
    """Tokens per second of both, and how many times faster the first is; one run before to warm up."""
    best = [0.0, 0.0]
    for repeat in range(repeats + 1):
        for place, work in enumerate((one, other)):
            start = time.perf_counter()
            written = work()
            if repeat:
                best[place] = max(best[place], written / (time.perf_counter() - start))
    return {"prefgeo_per_s": best[0], "transformers_per_s": best[1], "ratio": best[0] / best[1]}


def ours(model: Any, prompts: list[list[int]], tokens: int, kind: dict[str, Any], ends: frozenset[int]) -> int:
    """How many tokens were written."""
    from llm_backend.generation import Sampling
    from llm_backend.generation.writing import write_tokens

    sampling = Sampling(max_new_tokens=tokens, batch_size=BATCH, **kind)
    found = write_tokens(model, prompts, range(len(prompts)), sampling, seed=0, ends=ends)
    return sum(len(response) for (response,) in found)


def theirs(model: Any, prompts: list[list[int]], tokens: int, kind: dict[str, Any], ends: frozenset[int]) -> int:
    """The same by ``model.generate``, in the same batches."""
    import torch

    choice = {"do_sample": True, "top_k": 0, "top_p": 1.0} | kind if kind["temperature"] else {"do_sample": False}
    ordered, written = sorted(prompts, key=len, reverse=True), 0
    torch.manual_seed(0)
    for start in range(0, len(ordered), BATCH):
        part = ordered[start : start + BATCH]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(each)) + each for each in part])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in part])
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, pad_token_id=0,
            eos_token_id=sorted(ends) or None, **choice,
        )  # fmt: skip
        for row in out[:, width:].tolist():
            stops = [place for place, token in enumerate(row) if token in ends]
            written += stops[0] + 1 if stops else len(row)
    return written


if __name__ == "__main__":
    main()
