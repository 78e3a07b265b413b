"""Dimensions from a sample of prompts, for data or models too large to count: bounds that hold, and what is likely."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from llm_backend.auxiliary.dimensions import DimensionReport, numerical_rank
from llm_backend.auxiliary.directions import Direction
from llm_backend.auxiliary.errors import AuxiliaryError
from llm_backend.auxiliary.slots import Slots

Gradients = Callable[[Tensor], Iterable[Direction]]
"""slots (k,) -> the score g of each, one at a time."""
HASHES = 2  # numbers that each coordinate is added to: two coordinates that share one hardly ever share both


class Sketch:
    """S^T g for a fixed random S (d, ``HASHES`` p): a coordinate goes into one of p numbers, with a random sign, twice.

    With d <= p nothing is added up: the coordinates themselves. A rank never grows by S, and with p twice the rank or
    more it is kept with high probability.
    Source: Nelson and Nguyen 2013, arXiv:1211.1002 (OSNAP); Woodruff 2014, arXiv:1411.4357, Sec. 2.
    """

    def __init__(self, parameters: Direction, size: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size, self._place = size, dict[str, list[Tensor]]()
        if sum(value.numel() for value in parameters.values()) <= size:
            return
        for name, value in parameters.items():
            drawn = (
                torch.randint(2 * size, (value.numel(),), generator=generator, dtype=torch.int32) for _ in range(HASHES)
            )
            self._place[name] = [place.to(value.device) for place in drawn]

    def __call__(self, direction: Direction) -> Tensor:
        """A vector on the CPU."""
        if not self._place:
            return torch.cat([value.flatten() for value in direction.values()]).cpu()
        parts = []
        for name, places in self._place.items():
            value = direction[name].flatten()
            both = torch.stack([value.new_zeros(2 * self.size).index_add_(0, place, value) for place in places])
            parts.append((both[:, : self.size] - both[:, self.size :]).flatten().cpu())
        return torch.stack(parts).sum(dim=0)


def sampled_dimensions(
    slots: Slots,
    parameters: Direction,
    gradients: Gradients,
    weights: Tensor,
    *,
    most: int = 1000,
    centred: bool = False,
    seed: int = 0,
) -> DimensionReport:
    """Bounds on the dimensions from all responses of random prompts, up to ``most`` of them; exact where those are all.

    Each of them costs one backward pass. With r the rank found in a sample of m1 of m variables the rank of all is at
    least r, and at most r + m - m1, d, and (``centred``: A W B = 0) m - S. What delta can reach in the sample alone it
    can reach in the whole. Scores are scaled to length 1 first, which changes no rank. Raises AuxiliaryError for
    ``most`` below 2.
    """
    if most < 2:
        raise AuxiliaryError(f"a sample of dimensions needs at least 2 responses, got {most}")
    chosen = _sample(slots, most, seed)
    d, m, n_prompts = sum(value.numel() for value in parameters.values()), slots.size, int(slots.prompt.max()) + 1
    sketch = Sketch(parameters, 2 * chosen.numel() + 64, seed=seed)
    active = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in parameters.items()}
    images = []
    for each in gradients(chosen):
        images.append(sketch(each))
        for name, value in each.items():
            active[name] |= value != 0
    rows, n_active = torch.stack(images), sum(int(value.sum()) for value in active.values())
    diagonal = weights[chosen].to(rows.dtype)
    size = rows.norm(dim=1, keepdim=True)
    unit = rows[diagonal > 0] / size[diagonal > 0].clamp(min=torch.finfo(rows.dtype).tiny)
    precision = torch.finfo(rows.dtype).eps
    found = numerical_rank(unit.double().numpy(), precision)
    left = m - chosen.numel()
    rank = (found, min(d, found + left, m - n_prompts * centred))
    kinds, member = torch.unique(slots.component[chosen], return_inverse=True)
    weighted = (diagonal[:, None] * rows).double()
    levels = torch.zeros(kinds.numel(), rows.shape[1], dtype=torch.float64).index_add_(0, member, weighted)
    found = numerical_rank(levels.numpy(), precision, scale=float(torch.linalg.matrix_norm(weighted, 2)))
    level_rank = (found, min(d, found + slots.n_components - kinds.numel(), rank[1]))
    if centred and slots.n_components == n_prompts:
        level_rank = (0, 0)
    unseen = int((slots.count == 0).sum())
    return DimensionReport(m, d, slots.n_components, unseen, rank, level_rank, chosen.numel(), n_active)


def _sample(slots: Slots, most: int, seed: int) -> Tensor:
    """The slots of whole prompts in random order, at most ``most`` (or of one prompt, if it is larger), sorted."""
    sizes = torch.bincount(slots.prompt)
    order = torch.randperm(sizes.numel(), generator=torch.Generator().manual_seed(seed))
    count = max(1, int((sizes[order].cumsum(0) <= most).sum()))
    return torch.nonzero(torch.isin(slots.prompt, order[:count])).flatten()
