"""A policy of a loop: a model folder, known by the digest of what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_backend.loops.errors import StoreError

CONFIG = "config.json"
VOLATILE = ("_name_or_path", "transformers_version")
"""Keys of config.json that say where a model came from, not what it is."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class StoredPolicy:
    """A whole model folder (safetensors, configuration, tokenizer) and its SHA-256, in hexadecimal digits."""

    digest: str
    path: Path = field(compare=False)  # where it is does not make it another policy


def folder_digest(folder: Path) -> str:
    """SHA-256 of tensors, configuration and tokenizer of a model folder.

    Tensors count by name, dtype, shape and bytes, whichever file they are in, one in memory at a time; so a folder of
    one file and one of several shards of the same model have one digest.
    Raises: StoreError for a folder without a model, or one that cannot be read.
    """
    found = hashlib.sha256()
    try:
        for name, tensor in stored_tensors(folder):
            found.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kept = {name: value for name, value in config.items() if name not in VOLATILE}
        found.update(json.dumps(kept, sort_keys=True).encode())
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                found.update(f"{name}:{len(content)};".encode() + content)
    except (OSError, ValueError, SafetensorError) as problem:
        raise StoreError(f"{folder} is no whole model folder: {' '.join(str(problem).split())[:160]}") from None
    return found.hexdigest()


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model folder by name, read one after the other. Raises StoreError where there are none."""
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            places |= dict.fromkeys(stored.keys(), file)
    if not places:
        raise StoreError(f"{folder} holds no safetensors file, so there is no model in it")
    for name in sorted(places):
        with safe_open(places[name], framework="pt") as stored:
            yield name, stored.get_tensor(name)
