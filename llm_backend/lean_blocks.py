"""Decoder blocks of Llama's kind on packed pairs: fused elementwise work, a last block that runs where it is read.

Past the last block only the places that predict a response token meet the head. There, prompt tokens need their key and
value and nothing more: no query, no output of the attention, no MLP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation

from llm_backend.elementwise import gated_silu, rms_norm, rotated
from llm_backend.packed_attention import attend_places, attend_tokens

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Modules of transformers whose blocks are norm, attention (q, k, v, o; rotary), norm, gated MLP, and nothing else."""


@contextlib.contextmanager
def lean_blocks(causal: Any, places: Tensor) -> Iterator[bool]:
    """Within ``packed_attention``, run known blocks this way; yields whether the model then ends in ``places`` alone.

    Parameters, wrappers of linear layers (LoRA) and hooks of blocks stay what they are. Other models are left alone.
    """
    layers = _known_layers(causal)
    if not layers:
        yield False
        return
    final = causal.model.norm
    for layer in layers:
        layer.forward = partial(_block, layer, places if layer is layers[-1] else None)
    final.forward = partial(_normed, final)
    try:
        yield True
    finally:
        for changed in (*layers, final):
            del changed.forward


def _known_layers(causal: Any) -> list[Any]:
    """The blocks of a float32 model of ``ARCHITECTURES``, none of any other."""
    layers = list(getattr(getattr(causal, "model", None), "layers", None) or [])
    modules = [f"transformers.models.{name}.modeling_{name}" for name in ARCHITECTURES]
    names = {"mlp": "MLP", "input_layernorm": "RMSNorm", "post_attention_layernorm": "RMSNorm"}
    for layer in layers:
        parts = [causal.model.norm, layer, *(getattr(layer, name, None) for name in ("self_attn", *names))]
        plain = all(type(part).__module__ in modules and "forward" not in vars(part) for part in parts)
        if not plain or type(layer.mlp.act_fn) is not SiLUActivation:
            return []
    single = causal.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return layers if single else []


def _block(
    layer: Any, places: Tensor | None, hidden_states: Tensor, *_: Any, position_embeddings: Any, **__: Any
) -> Tensor:
    """One block on (1, T, H); with ``places`` (N,) its output there only, (1, N, H)."""
    attention, hidden = layer.self_attn, hidden_states[0]
    cosine, sine = (table[0, :, None] for table in position_embeddings)
    normed = _normed(layer.input_layernorm, hidden)
    key, value = (_heads(attention, project(normed)) for project in (attention.k_proj, attention.v_proj))
    key = rotated(_head_norm(attention, "k_norm", key), cosine, sine)
    if places is not None:
        hidden, normed = hidden.index_select(0, places), normed.index_select(0, places)
        cosine, sine = cosine.index_select(0, places), sine.index_select(0, places)
    query = rotated(_head_norm(attention, "q_norm", _heads(attention, attention.q_proj(normed))), cosine, sine)
    attend = attend_tokens if places is None else attend_places
    hidden = hidden + attention.o_proj(attend(query, key, value, attention.scaling).flatten(1))
    normed = _normed(layer.post_attention_layernorm, hidden)
    mlp = layer.mlp
    return (hidden + mlp.down_proj(gated_silu(mlp.gate_proj(normed), mlp.up_proj(normed))))[None]


def _heads(attention: Any, flat: Tensor) -> Tensor:
    return flat.unflatten(-1, (-1, attention.head_dim))


def _head_norm(attention: Any, name: str, values: Tensor) -> Tensor:
    norm = getattr(attention, name, None)
    return values if norm is None else _normed(norm, values)


def _normed(norm: Any, values: Tensor) -> Tensor:
    return rms_norm(values, norm.weight, norm.variance_epsilon)
