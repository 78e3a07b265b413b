"""Floating-point operations and memory that training a Llama on pairs takes, by how the pairs are laid out.

With P parameters in the matrices of the blocks, L layers, A = heads * head size, V x H the head; t tokens in lines, of
which n predict a token of a response, and a pairs of a query and a key that it sees:

    forward = 2 P t + 4 L A a + 2 V H n,    training step = 3 forward,    reference = 1 forward

Source: 6 N + 12 L A T a token for training, Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with T keys for each
query, a head at every token, and 2 N + 4 L A T of it forward (Kaplan et al. 2020, arXiv:2001.08361, Sec. 2.1). Nothing
that is computed again in the backward pass counts, nor norms, softmax and activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]
PARTS = ("prompt", "chosen", "rejected")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
PEAK_TFLOPS = {
    "H200": 989.0, "GH200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.0, "B200": 2250.0,
    "A100": 312.0, "A800": 312.0, "H800": 989.0, "H20": 148.0, "L40S": 362.0, "L4": 121.0, "A40": 150.0, "A10": 125.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bfloat16 products with float32 sums, 10^12 a second, of the makers' data sheets; the first word of a name that
is found in the device's name counts, longer ones first."""


def peak_tflops(device: str) -> float | None:
    """The table's number for a device by its name, or None.

    >>> peak_tflops("NVIDIA H100 PCIe"), peak_tflops("NVIDIA L40S"), peak_tflops("Abacus")
    (756.0, 362.0, None)
    """
    for name in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if name.lower() in device.lower():
            return PEAK_TFLOPS[name]
    return None


@dataclass(frozen=True)
class Shape:
    """P, L, A, V H as above, and all parameters (a head that is the embedding counts once)."""

    block_parameters: int
    layers: int
    attention: int
    head: int
    parameters: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From the configuration of a model of Llama's kind."""
        width, size = config.hidden_size, config.head_dim
        query, key = config.num_attention_heads * size, config.num_key_value_heads * size
        block = width * (query + 2 * key) + query * width + 3 * width * config.intermediate_size
        layers, table = config.num_hidden_layers, config.vocab_size * width
        norms = width * (2 * layers + 1)
        total = layers * block + table * (1 if config.tie_word_embeddings else 2) + norms
        return cls(layers * block, layers, query, table, total)


@dataclass(frozen=True)
class Work:
    """Tokens in lines t, of which n predict a response's token, and (query, key) pairs a."""

    tokens: float = 0.0
    predicted: float = 0.0
    attended: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.predicted + other.predicted, self.attended + other.attended)

    def forward(self, shape: Shape) -> float:
        """FLOPs of one forward pass."""
        blocks = 2.0 * shape.block_parameters * self.tokens + 4.0 * shape.layers * shape.attention * self.attended
        return blocks + 2.0 * shape.head * self.predicted


def needed(rows: Rows) -> Work:
    """What the pairs need: every prompt once, no padding, a token meets the tokens that it sees."""
    return sum((_needed(*_lengths(row)) for row in rows), Work())


def laid_out(rows: Rows, layout: str) -> Work:
    """What one batch computes: "packed" as needed; "shared" lines [prompt | chosen | rejected], or "separate" lines
    [prompt | response], padded to the longest, where every token meets the whole line."""
    if layout == "packed":
        return needed(rows)
    lengths = [_lengths(row) for row in rows]
    shared = layout == "shared"
    width = max(sum(each) if shared else each[0] + max(each[1:]) for each in lengths)
    lines = len(rows) * (1 if shared else 2)
    return Work(lines * width, sum(chosen + rejected for _, chosen, rejected in lengths), lines * width**2)


def _needed(prompt: int, chosen: int, rejected: int) -> Work:
    causal = [n * (n + 1) / 2 for n in (prompt, chosen, rejected)]
    return Work(prompt + chosen + rejected, chosen + rejected, sum(causal) + prompt * (chosen + rejected))


def _lengths(row: Mapping[str, Any]) -> tuple[int, int, int]:
    prompt, chosen, rejected = (len(row[f"{part}_ids"]) for part in PARTS)
    return prompt, chosen, rejected


@dataclass(frozen=True)
class Cost:
    """An epoch of DPO with its reference: FLOPs, and the most tokens that one batch of the training holds."""

    flops: float
    peak_tokens: float


def epoch_cost(
    shape: Shape, batches: Iterable[Rows], layout: str, reference_batches: Iterable[Rows] | None = None
) -> Cost:
    """Of training on ``batches``, with the reference scored in the same batches or in others."""
    train = [laid_out(batch, layout) for batch in batches]
    reference = train if reference_batches is None else [laid_out(batch, layout) for batch in reference_batches]
    flops = 3.0 * sum(work.forward(shape) for work in train) + sum(work.forward(shape) for work in reference)
    return Cost(flops, max(work.tokens for work in train))


def expected(config: Any, rows: Rows, batch_size: int, *, dtype: str, seed: int = 0) -> dict[str, Any]:
    """What is to be expected of ours (by layout) and of TRL's: FLOPs a pair, and peak memory in MiB, before a run.

    TRL takes rows in random order in separate lines and keeps a second model; ours are sorted by length within windows,
    and score the reference before. Memory: weights, gradients and Adam's two moments in the model's dtype, and what
    the blocks keep for the backward pass (``kept_bytes``); not what kernels and the head take for a moment.
    """
    shape, size = Shape.of(config), BYTES[dtype]
    order = np.random.default_rng(seed).permutation(len(rows))
    random_batches = [[rows[i] for i in order[k : k + batch_size]] for k in range(0, len(order), batch_size)]
    trl = epoch_cost(shape, random_batches, "separate")
    kept = kept_bytes(config, dtype)

    def memory(tokens: float, copies: int) -> float:
        return (copies * size * shape.parameters + kept * tokens) / 2**20

    theirs = memory(trl.peak_tokens, 5)
    found: dict[str, Any] = {
        "parameters": shape.parameters,
        "needed_gflop_per_pair": 4.0 * needed(rows).forward(shape) / len(rows) / 1e9,
        "kept_bytes_per_token": kept,
        "trl": {"gflop_per_pair": trl.flops / len(rows) / 1e9, "peak_mib": theirs},
    }
    for layout in ("shared", "packed"):
        cost = epoch_cost(shape, sorted_batches(rows, batch_size, seed), layout, reference_batches(rows))
        mine = memory(cost.peak_tokens, 4)
        found[layout] = {
            "gflop_per_pair": cost.flops / len(rows) / 1e9, "peak_mib": mine, "flop_ratio": trl.flops / cost.flops,
            "memory_ratio": mine / theirs,
        }  # fmt: skip
    return found


def sorted_batches(rows: Rows, batch_size: int, seed: int = 0) -> Iterator[Rows]:
    """The batches of our trainer's first epoch on one device."""
    from llm_backend.batching import LengthSampler, line_length

    order = list(LengthSampler([line_length(row, PARTS[1:]) for row in rows], batch_size, seed=seed))
    return ([rows[i] for i in order[k : k + batch_size]] for k in range(0, len(order), batch_size))


def reference_batches(rows: Rows) -> Iterator[Rows]:
    """The batches in which our reference is scored."""
    from llm_backend.batching import line_length
    from llm_backend.reference import TOKENS_PER_BATCH, batches_by_length

    lengths = np.array([line_length(row, PARTS[1:]) for row in rows])
    return ([rows[i] for i in batch] for batch in batches_by_length(lengths, TOKENS_PER_BATCH))


def kept_bytes(config: Any, dtype: str, tokens: int = 32) -> float:
    """Bytes a token that all blocks keep for the backward pass, counted on a short line through one block here."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    one = copy.deepcopy(config)
    one.num_hidden_layers, one.vocab_size = 1, 8
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(one, attn_implementation="sdpa").to(getattr(torch, dtype))
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is used twice
        return tensor

    held: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    return config.num_hidden_layers * sum(kept.values()) / tokens
