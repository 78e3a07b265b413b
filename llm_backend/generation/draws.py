"""The next token of every row: greedy, or the inverse of a cumulative distribution at a draw that the seed decides."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_backend.generation.errors import GenerationError
from llm_backend.generation.protocol import Sampling


def uniform_draws(seed: int, key: int, sample: int, n: int) -> NDArray[np.float64]:
    """(n,) numbers in [0, 1), one for each token of sample ``sample`` to the prompt with key ``key``."""
    return np.random.default_rng([seed, key, sample]).random(n)


def greedy_tokens(logits: Tensor) -> Tensor:
    """(rows, V) -> (rows,). The first of the largest. Raises GenerationError for logits that are not finite."""
    tokens = logits.argmax(dim=-1)
    _require_finite(logits.gather(-1, tokens[:, None]))
    return tokens


def sampled_tokens(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """(rows, V), (rows, 1) -> (rows,): the first token at which the cumulative distribution exceeds the draw.

    Tokens are in the order of their ids. Raises GenerationError for logits that are not finite.
    """
    cumulative = next_probabilities(logits, sampling).cumsum(dim=-1)
    total = cumulative[:, -1:]
    _require_finite(total)
    places = torch.searchsorted(cumulative, draws * total, right=True)
    return places.squeeze(1).clamp(max=logits.shape[-1] - 1)


def next_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(rows, V), float64: softmax(logits / temperature), zero outside the tokens that top-k and top-p keep.

    Top-k keeps exactly k tokens and top-p the fewest, likeliest first, that hold ``top_p`` of what top-k kept (Holtzman
    et al. 2020, arXiv:1904.09751); of equally likely tokens the lower id comes first. Not normalised again.
    """
    p = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return p
    width = min(sampling.top_k or p.shape[-1], p.shape[-1])
    ordered = (p.topk(width, dim=-1) if sampling.top_k else p.sort(dim=-1, descending=True)).values
    before = ordered.cumsum(dim=-1) - ordered
    kept = (before < sampling.top_p * ordered.sum(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
    if sampling.top_p == 1.0:
        kept = torch.full_like(kept, width)
    least = ordered.gather(-1, (kept - 1).clamp(min=0))
    above, equal = p > least, p == least  # of those equal to the least that is kept, the lower ids
    equal &= equal.cumsum(dim=-1) <= kept - above.sum(dim=-1, keepdim=True)
    return torch.where(above | equal, p, 0.0)


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise GenerationError("the model's logits are not finite; it is broken, or too large for its dtype")
