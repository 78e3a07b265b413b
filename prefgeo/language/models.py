"""The model of a recipe, opened for training as it says, and the reference that it names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from geometry.errors import nearest_name
from llm_backend.data import DataError
from llm_backend.errors import ModelError
from llm_backend.models import Lora, linear_layers, load_model, new_model, open_for_training, tiny_config
from llm_backend.reference import Reference
from llm_backend.tokenizers import check_special_tokens, check_vocabulary
from prefgeo.language.model_names import MODEL, REFERENCE, at, tokenizer_place
from prefgeo.language.recipe import LanguageRecipe, ModelSpec
from prefgeo.yaml_reading import Fault


def start_model(recipe: LanguageRecipe, tokenizer: Any, fault: Fault) -> Any:
    """The model that everything begins with; a tiny one has random weights of the recipe's seed.

    Raises: ``UsageError`` with line and key where there is none, or the tokenizer does not fit.
    """
    spec = recipe.model
    with at(fault, tokenizer_place(recipe)):
        check_special_tokens(tokenizer, eos_needed=recipe.data.eos != "never")
    if spec.sizes is not None:
        sizes = spec.sizes.model_dump()
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        with at(fault, ("model", "sizes")):
            config = tiny_config(sizes.pop("architecture"), vocab_size=len(tokenizer), **sizes, **ids)
        with at(fault, ("model", "attention")):
            model = new_model(config, seed=recipe.seed, dtype=spec.dtype, attention=spec.attention)
    else:
        with at(fault, MODEL):
            model = load_model(spec.name, dtype=spec.dtype, attention=spec.attention)
    embeddings: Any = model.get_input_embeddings()
    with at(fault, tokenizer_place(recipe)):
        check_vocabulary(tokenizer, int(embeddings.weight.shape[0]))
    return model


def check_parts(model: Any, spec: ModelSpec, fault: Fault) -> None:
    """Raises ``UsageError`` with line and key for adapters of layers or blocks that the model has not: before the model
    is evaluated, and long before it is trained."""
    if spec.lora is None:
        return
    blocks = int(model.config.num_hidden_layers)
    if spec.lora.blocks is not None and spec.lora.blocks > blocks:
        raise fault(("model", "lora", "blocks"), f"the model has {blocks}; give at most that, or leave it out for all")
    linear = {name.rpartition(".")[2] for name in linear_layers(model)}
    for place, target in enumerate(spec.lora.targets or ()):
        if target.rpartition(".")[2] not in linear:
            known = sorted(linear)
            hint = nearest_name(target, known)
            told = f"no linear layer is called {target!r}.{hint} Known: {', '.join(known)}"
            raise fault(("model", "lora", "targets", place), told)


def stored_model(folder: Path, spec: ModelSpec) -> Any:
    """A model that an earlier stage of this run wrote."""
    return load_model(folder, dtype=spec.dtype, attention=spec.attention)


def opened(model: Any, spec: ModelSpec, seed: int) -> Any:
    """The model with the parts trainable that the recipe says."""
    if spec.lora is None:
        return open_for_training(model, spec.trainable)
    targets = None if spec.lora.targets is None else tuple(spec.lora.targets)
    if spec.lora.blocks is not None:
        targets = _in_last_blocks(model, targets, spec.lora.blocks)
    return open_for_training(model, Lora(spec.lora.r, spec.lora.alpha, targets), seed=seed)


def make_reference(recipe: LanguageRecipe, policy: Any, tokenizer: Any, fault: Fault) -> Reference:
    """The reference that the recipe names; ``policy`` is as it is before preference training.

    Raises: ``UsageError`` with line and key for one that is not there, or of another vocabulary.
    """
    name = recipe.reference.name
    if name == "path":
        path = str(recipe.reference.path)
        with at(fault, REFERENCE):
            found = Reference.path(path, dtype=recipe.model.dtype, attention=recipe.model.attention)
            try:
                check_vocabulary(tokenizer, int(found.model.get_input_embeddings().weight.shape[0]))
            except DataError as problem:
                raise DataError(f"the reference {path} does not fit the policy's tokenizer: {problem}") from None
        return found
    return Reference.adapter_off(policy) if name == "adapter_off" else Reference.initial(policy)


def live_reference(reference: Reference) -> Reference:
    """A reference to score with during training, for TDPO: where it is the policy's own start, a copy that stays."""
    if reference.is_start and not reference.without_adapter:
        return Reference(reference.name, copy.deepcopy(reference.model).requires_grad_(False), is_start=True)
    return reference


def _in_last_blocks(model: Any, targets: tuple[str, ...] | None, blocks: int) -> tuple[str, ...]:
    """Full names of the linear layers called ``targets`` in the last blocks."""
    from torch import nn

    n = int(model.config.num_hidden_layers)
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        inside = any(part.isdigit() and n - blocks <= int(part) < n for part in parts)
        wanted = targets is None or parts[-1] in targets
        if inside and wanted and isinstance(module, nn.Linear):
            found.append(name)
    if not found:
        raise ModelError(f"the last {blocks} blocks have no linear layer called {', '.join(targets or ('at all',))}")
    return tuple(found)
