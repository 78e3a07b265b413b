"""Whether models can be merged: one architecture, one vocabulary, the same tensors of the same shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder, read_json
from llm_backend.merging.tensor_files import TensorPlace

IGNORED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation"}
"""Keys of config.json that do not decide what the weights compute; so are dropout and the ids of special tokens."""
ONE_FILE = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def check_agreement(folders: Sequence[ModelFolder]) -> None:
    """Compare every folder with the first, the most telling differences first.

    Raises: MergeError that names the file or the tensor, and both values.
    """
    first = folders[0]
    for other in folders[1:]:
        if other.is_adapter != first.is_adapter:
            whole, adapter = (first, other) if other.is_adapter else (other, first)
            raise MergeError(
                f"{adapter.path} is an adapter and {whole.path} a whole model; merge the adapter into its base first"
            )
        check_vocabularies(first.path, other.path)
        if not first.is_adapter:
            check_configs(first, other)


def check_vocabularies(first: Path, other: Path) -> None:
    """Where both folders hold a tokenizer: that it has the same tokens with the same ids. Raises MergeError."""
    ours, theirs = _vocabulary(first), _vocabulary(other)
    if ours is None or theirs is None or ours[1] == theirs[1]:
        return
    raise MergeError(
        f"{other / theirs[0]} has another vocabulary than {first / ours[0]}; only models whose token ids mean the same "
        "can be merged"
    )


def _vocabulary(folder: Path) -> tuple[str, Any] | None:
    """(file, tokens and ids, or a hash of the file)."""
    if (folder / "tokenizer.json").is_file():
        document = read_json(folder / "tokenizer.json")
        model = document.get("model") or {}
        added = sorted((entry["id"], entry["content"]) for entry in document.get("added_tokens") or ())
        return "tokenizer.json", (model.get("vocab"), model.get("merges"), added)
    for name in ONE_FILE:
        if (folder / name).is_file():
            return name, hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return None


def check_configs(first: ModelFolder, other: ModelFolder) -> None:
    """That both config.json describe the same function of the weights. Raises MergeError that names the key."""
    ours, theirs = _relevant(first.config), _relevant(other.config)
    if ours != theirs and set(ours) != set(theirs):
        ours, theirs = _relevant(_filled(first.config)), _relevant(_filled(other.config))
    for folder in (first, other):
        if "quantization_config" in folder.config:
            raise MergeError(f"{folder.path} is quantised; merge the models before quantising them")
    for key in ("architectures", "model_type", "vocab_size", "tie_word_embeddings", *sorted(ours | theirs)):
        if ours.get(key) != theirs.get(key):
            raise MergeError(
                f"{other.path / 'config.json'} says {key} = {json.dumps(theirs.get(key))}, but "
                f"{first.path / 'config.json'} says {json.dumps(ours.get(key))}; only models of one kind can be merged"
            )


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in IGNORED and not key.endswith(("_token_id", "dropout", "_pdrop"))
    }


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of the architecture, where transformers knows it: versions differ in what they write."""
    from transformers import AutoConfig  # slow to import, and seldom needed

    try:
        rest = {key: value for key, value in config.items() if key != "model_type"}
        filled: dict[str, Any] = AutoConfig.for_model(str(config["model_type"]), **rest).to_dict()
    except (KeyError, ValueError, TypeError):
        return dict(config)
    return json.loads(json.dumps(filled, default=str)) | {"architectures": config.get("architectures")}


def is_tied(folder: ModelFolder) -> bool:
    """Whether the head is the table of the embeddings, by config.json or the default of its architecture."""
    name = "tie_word_embeddings"
    for config in (folder.config, folder.config.get("text_config") or {}):
        if name in config:
            return bool(config[name])
    return bool(_filled(folder.config).get(name))


def output_dtypes(places: Sequence[TensorPlace], dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to write: that of the inputs, or the chosen one for floating values. Raises MergeError."""
    first = places[0]
    for other in places[1:]:
        if other.shape != first.shape:
            raise MergeError(
                f"{first.name} is {_shape(other)} in {other.file} but {_shape(first)} in {first.file}; only models of "
                "one shape can be merged"
            )
        mixed = other.dtype != first.dtype
        if mixed and (dtype is None or not (other.dtype.is_floating_point and first.dtype.is_floating_point)):
            hint = "; choose the dtype of the result" if first.dtype.is_floating_point else ""
            raise MergeError(
                f"{first.name} is {_plain(other.dtype)} in {other.file} but {_plain(first.dtype)} in {first.file}{hint}"
            )
    return dtype if dtype is not None and first.dtype.is_floating_point else first.dtype


def _shape(place: TensorPlace) -> str:
    return " x ".join(str(side) for side in place.shape) or "a scalar"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
