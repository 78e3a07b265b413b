"""Merged model folders: the weighted sum, exactly, in every dtype and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_backend.merging import merge_folders
from llm_backend.models import load_model, new_model, tiny_config


def saved(folder: Path, seed: int, *, dtype: str = "float32", architecture: str = "llama", **options: Any) -> Path:
    config = tiny_config(architecture, vocab_size=40, width=16, layers=2, heads=2, **options)
    new_model(config, seed=seed, dtype=dtype).save_pretrained(folder)
    return folder


def parameters(folder: Path, dtype: str = "float64") -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(folder, dtype=dtype).named_parameters()}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
def test_the_merge_is_the_weighted_sum(tmp_path: Path, architecture: str) -> None:
    folders = [saved(tmp_path / str(t), t, architecture=architecture, dtype="float64") for t in range(3)]
    weights = [0.2, 0.5, 0.3]
    report = merge_folders(folders, weights, tmp_path / "out")
    merged, inputs = parameters(tmp_path / "out"), [parameters(folder) for folder in folders]
    for name, value in merged.items():
        expected = sum(w * each[name] for w, each in zip(weights, inputs, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-15)
    assert report.n_parameters == sum(value.numel() for value in merged.values())
