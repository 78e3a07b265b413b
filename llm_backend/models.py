"""Causal LMs: loaded from a folder or a hub name, made small from a configuration, and opened for training in part."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llm_backend.errors import ModelError
from llm_backend.hub import offline
from llm_backend.log_probs import unwrap

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY = ("llama", "qwen3", "gpt2", "mistral")


def load_model(
    name_or_path: str | Path, *, dtype: str = "float32", attention: str = "sdpa", revision: str | None = None
) -> PreTrainedModel:
    """The causal LM in a local folder, or of that name on the hub, with dropout off.

    Raises: ModelError for an unknown dtype, or a folder that holds no causal LM, or not the whole of one.
    """
    _check_dtype(dtype)
    folder = Path(name_or_path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is an adapter and no whole model; add it to its base first: prefgeo merge {folder} --base MODEL "
            "--out DIR"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json, so it is no model folder")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name_or_path), dtype=DTYPES[dtype], attn_implementation=attention, revision=revision,
            output_loading_info=True, local_files_only=offline(str(name_or_path), revision=revision),
        )  # fmt: skip
    except Exception as problem:  # safetensors, pickle, the hub and each model class raise their own kinds
        reason = " ".join(str(problem).split())[:240]
        raise ModelError(f"no causal LM can be loaded from {str(name_or_path)!r}: {reason}") from problem
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        raise ModelError(
            f"the weights in {str(name_or_path)!r} lack {len(missing)} tensors of the model, as {missing[0]}; get the "
            "whole model"
        )
    whole: PreTrainedModel = without_dropout(model)
    return whole


def context_of(model: Any) -> int | None:
    """How many tokens of a line the model has positions for; None where its configuration does not say, or where
    positions are only relative, as in DeBERTa-v3.

    RoBERTa and its kin number positions from the one after the pad id, so the rows of the table before it are unused.
    """
    causal = unwrap(model)
    config = causal.config.get_text_config()
    found: int | None = getattr(config, "max_position_embeddings", None)
    if found is None or not getattr(config, "position_biased_input", True):
        return None
    for name, module in causal.named_modules():
        pad = getattr(module, "padding_idx", None) if name.endswith("position_embeddings") else None
        if pad is not None:
            return found - int(pad) - 1
    return found


def new_model(
    config: PretrainedConfig, *, seed: int, dtype: str = "float32", attention: str = "sdpa"
) -> PreTrainedModel:
    """A model with random weights, the same for the same seed; the global random state is left alone."""
    _check_dtype(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        except (ImportError, ValueError) as problem:  # as flash attention where it is not installed
            reason = " ".join(str(problem).split())[:200]
            raise ModelError(f"attention {attention} cannot be used: {reason}; take sdpa") from None
    return without_dropout(model.to(DTYPES[dtype]))


def tiny_config(
    architecture: str = "llama",
    *,
    vocab_size: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 512,
    tied: bool = True,
    **ids: int,
) -> PretrainedConfig:
    """A small configuration of an architecture in ``TINY``; ``ids`` are bos_token_id, eos_token_id, pad_token_id."""
    if architecture not in TINY:
        raise ModelError(f"architecture must be one of {', '.join(TINY)}, got {architecture!r}")
    common = {"vocab_size": vocab_size, "tie_word_embeddings": tied, **{f"{k}_token_id": None for k in ("bos", "eos")}}
    if architecture == "gpt2":
        size = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context}
    else:
        size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        size |= {"num_key_value_heads": max(1, heads // 2), "intermediate_size": 8 * width // 3}
        size |= {"max_position_embeddings": context}
        if architecture == "qwen3":
            size |= {"head_dim": width // heads}
        if architecture == "mistral":
            common["sliding_window"] = None
    try:
        return AutoConfig.for_model(architecture, **(common | size | ids))
    except Exception as problem:  # transformers checks sizes by errors of its own, the reason behind them
        reason = " ".join(str(problem.__cause__ or problem).split()).rstrip(".")
        raise ModelError(
            f"there is no {architecture} of these sizes: {reason}; width must be a multiple of heads"
        ) from None


def without_dropout(model: Any) -> Any:
    """The model with every dropout probability at 0, so that policy and reference can agree."""
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float) and (name != "p" or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)
    return model


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on linear layers. ``targets`` None: every linear layer but the head."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] | None = None


def open_for_training(model: PreTrainedModel, parts: str | float | Lora = "all", *, seed: int = 0) -> Any:
    """Leave only these parameters trainable: "all", "last_block", a share of the blocks (the last ones), or LoRA.

    A share rounds up to whole blocks; the final norm goes with the last block. Embeddings and head train with "all"
    only. LoRA returns a wrapped model: use the returned one. Raises: ModelError for anything else.
    """
    if isinstance(parts, Lora):
        return _with_lora(model, parts, seed)
    if parts == "all":
        model.requires_grad_(True)
        return model
    blocks = _blocks(model)
    if parts == "last_block":
        count = 1
    elif isinstance(parts, int | float) and not isinstance(parts, bool) and 0.0 < parts <= 1.0:
        count = math.ceil(parts * len(blocks) - 1e-9)
    else:
        raise ModelError(f'trainable must be "all", "last_block", a share of blocks in (0, 1] or Lora, got {parts!r}')
    model.requires_grad_(False)
    for block in list(blocks)[-count:]:
        block.requires_grad_(True)
    for name, module in model.base_model.named_children():
        if name in ("norm", "ln_f", "final_layernorm", "final_layer_norm"):
            module.requires_grad_(True)
    return model


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute activations in the backward pass, also of blocks under which nothing is trained."""
    inner: Any = unwrap(model)
    options = {"use_reentrant": False}
    if hasattr(inner, "activation_checkpointing_enable"):  # its name in later versions of transformers 5
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def trainable_count(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def check_vocabulary(model: nn.Module, n_tokens: int) -> None:
    """Raises ModelError where the tokenizer has ids that the model has no embedding for."""
    rows = unwrap(model).get_input_embeddings().weight.shape[0]
    if n_tokens > rows:
        raise ModelError(
            f"the tokenizer has {n_tokens} tokens, but the model embeds only {rows}; use the tokenizer of this model, "
            "or resize its embeddings"
        )


def _with_lora(model: PreTrainedModel, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model  # slow to import, and only needed here

    if lora.rank < 1:
        raise ModelError(f"the rank of LoRA must be at least 1, got {lora.rank}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers is about to drop
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as problem:  # no layer of these names, or a layer of a kind that LoRA cannot adapt
            linear = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
            wanted = ", ".join(lora.targets or ("all-linear",))
            raise ModelError(
                f"LoRA finds no layers called {wanted}; linear layers here: {', '.join(linear)}"
            ) from problem


def linear_layers(model: nn.Module) -> list[str]:
    """The full names of layers that adapters can be put on."""
    kinds = ("Linear", "Conv1D")  # the latter is GPT-2's, of transformers
    return [name for name, each in model.named_modules() if isinstance(each, nn.Linear) or type(each).__name__ in kinds]


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    lists = [child for child in model.base_model.children() if isinstance(child, nn.ModuleList) and len(child) > 0]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks right under its base model; train all or LoRA")
    return max(lists, key=len)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
