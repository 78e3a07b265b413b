"""Model folders as merging sees them: which tensors in which files, and the documents beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_backend.merging.errors import MergeError
from llm_backend.merging.tensor_files import TensorPlace, read_header

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
INDEX, ADAPTER_CONFIG = "model.safetensors.index.json", "adapter_config.json"
BESIDE = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "*.tiktoken", "chat_template*", "*processor_config.json", "configuration_*.py",
    "modeling_*.py", "tokenization_*.py",
)  # fmt: skip
"""What belongs to a model besides its weights, and is copied from the first one."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder with the weights of a model, or of a LoRA adapter, in safetensors."""

    path: Path
    files: tuple[Path, ...]  # of weights, in the order of the shards
    tensors: dict[str, TensorPlace]
    metadata: dict[str, str]
    is_adapter: bool
    index: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or adapter_config.json of an adapter."""
        return read_json(self.path / (ADAPTER_CONFIG if self.is_adapter else "config.json"))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.n_bytes for place in self.tensors.values())

    def beside(self) -> list[Path]:
        """Files to copy along."""
        found = {path for pattern in BESIDE for path in self.path.glob(pattern) if path.is_file()}
        return sorted(path for path in found if path.suffix != ".safetensors" and path.name != INDEX)


def open_folder(path: Path) -> ModelFolder:
    """Read the headers of all files of weights.

    Raises: MergeError for a folder that is missing or holds no safetensors weights, for a shard that is missing or
    damaged, and for an index that does not fit its shards.
    """
    if not path.is_dir():
        raise MergeError(f"{path} is no folder; name the folder of a model, or of a checkpoint that was saved whole")
    if (path / ADAPTER).is_file():
        return _whole(path, path / ADAPTER, is_adapter=True)
    if not (path / "config.json").is_file():
        raise MergeError(f"{path} holds no config.json and no adapter, so it is no model folder")
    if (path / INDEX).is_file():
        return _sharded(path)
    if (path / MODEL).is_file():
        return _whole(path, path / MODEL, is_adapter=False)
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.safetensors") for file in path.glob(pattern))
    hint = f"; it holds {others[0]}, so save the model again as safetensors" if others else ""
    raise MergeError(f"{path} holds neither {MODEL} nor {INDEX}{hint}")


def _whole(path: Path, file: Path, *, is_adapter: bool) -> ModelFolder:
    tensors, metadata = read_header(file)
    return ModelFolder(path, (file,), tensors, metadata, is_adapter)


def _sharded(path: Path) -> ModelFolder:
    index = read_json(path / INDEX)
    table = index.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise MergeError(f"{path / INDEX} has no weight_map; copy or save the model again")
    names = sorted(set(table.values()))
    if any(Path(name).name != name for name in names):
        raise MergeError(f"{path / INDEX} names files of other folders; copy or save the model again")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise MergeError(f"{path} lacks {missing[0]}, which its index names; copy or save the model again")
    tensors: dict[str, TensorPlace] = {}
    metadata: dict[str, str] = {}
    for name in names:
        found, metadata = read_header(path / name)
        tensors |= {key: place for key, place in found.items() if table.get(key) == name}
    lost = sorted(set(table) - set(tensors))
    if lost:
        raise MergeError(f"{path / table[lost[0]]} lacks {lost[0]}, which the index says is there")
    return ModelFolder(path, tuple(path / name for name in names), tensors, metadata, False, index)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MergeError for a file that is missing or damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise MergeError(f"{path} cannot be read: {problem}") from None
    if not isinstance(document, dict):
        raise MergeError(f"{path} is no JSON object")
    return document
