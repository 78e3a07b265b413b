"""PairRM's network: an encoder that reads a prompt and two candidates at once, and a head that compares them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from llm_backend.ranking.errors import RankingError

WEIGHTS = "model.safetensors"
PUBLISHED = {"pretrained_model.": "encoder.", "head_layer.": "head."}
"""Beginnings of tensor names in the published checkpoint, and what they are called here."""


class PairModel(nn.Module):
    """m(x, a, b) = mean over tasks of g(h_x, h_a) - g(h_x, h_b).

    h_x, h_a, h_b (H,) are the encoder's last hidden states at the marks before the prompt and the candidates, g is
    Linear(2H, H), tanh, Linear(H, tasks). a is better where m > 0.
    Source: Jiang et al. 2023, arXiv:2306.02561, Sec. 3.2, with the head of their published model.
    """

    def __init__(self, encoder: nn.Module, *, tasks: int = 1) -> None:
        super().__init__()
        width = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        self.encoder = encoder
        # the places of the published head, whose dropout only acts in training
        self.head = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(2 * width, width), nn.Tanh(), nn.Dropout(0.0), nn.Linear(width, tasks)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, marks: Tensor) -> Tensor:
        """(n, T), (n, T), places of the three marks (n, 3) -> (n,)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        lines = torch.arange(len(marks), device=marks.device)
        prompt, first, second = (hidden[lines, marks[:, each]] for each in range(3))
        better, worse = (self.head(torch.cat([prompt, each], dim=-1)) for each in (first, second))
        found: Tensor = (better - worse).mean(dim=-1)
        return found


def save_pair_model(model: PairModel, folder: Path) -> None:
    """config.json of the encoder and model.safetensors with the tensors ``encoder.*`` and ``head.*``."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.encoder.config
    config.save_pretrained(folder)
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS)


def load_pair_model(folder: Path) -> PairModel:
    """From a folder of ours, or of the published layout (``PUBLISHED``), in float32 and evaluation mode.

    Raises: RankingError for a folder without model, or tensors that are missing, unknown, or of another shape.
    """
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise RankingError(f"{folder} holds no {name}, so it is no folder of a pair ranker")
    try:
        tensors = renamed(load_file(folder / WEIGHTS))
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, SafetensorError) as problem:
        raise RankingError(f"{folder} is no folder of a pair ranker: {' '.join(str(problem).split())[:160]}") from None
    if "head.4.weight" not in tensors:
        raise RankingError(f"{folder / WEIGHTS} has no head.4.weight: it holds an encoder, but no comparing head")
    model = PairModel(encoder, tasks=len(tensors["head.4.weight"]))
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as problem:
        raise RankingError(f"{folder / WEIGHTS} does not fit config.json: {str(problem).splitlines()[-1]}") from None
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise RankingError(f"{folder / WEIGHTS} does not fit config.json: {what}")
    return model.float().eval()


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with names of ours; buffers of positions, which old checkpoints store, are left out."""
    found = {}
    for name, tensor in tensors.items():
        begin = next((old for old in PUBLISHED if name.startswith(old)), None)
        ours = name if begin is None else PUBLISHED[begin] + name[len(begin) :]
        if not ours.endswith("position_ids"):
            found[ours] = tensor
    return found
