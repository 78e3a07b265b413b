"""Before training: how much room the constraint A W delta = 0 leaves delta, and what that does to theta."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_backend.auxiliary.directions import add_, zeros_like
from llm_backend.auxiliary.errors import AuxiliaryError
from llm_backend.auxiliary.scores import ReferenceScores
from llm_backend.auxiliary.slots import Slots

EQUALS_DPO = "equals DPO"
UNIDENTIFIED = "theta unidentified"
PARTLY_FREE = "partly free"
UNDECIDED = "undecided"
Bounds = tuple[int, int]


@dataclass(frozen=True)
class DimensionReport:
    """Dimensions as (least, most), equal where they are known.

    ``rank`` of A W; ``nullity`` = m - rank; ``margin_dimension`` = m - components of the comparison graph, the
    dimension of all margins; ``reachable`` that of the margins which delta can make alone; ``level_rank`` = rank A W C,
    C the indicators of components: the directions in which levels of delta that no comparison sees can move theta.
    ``n_sampled``: from how many of the variables the bounds were made, where not from all. ``n_active``: parameters
    that any score depends on (of LoRA one half: the other is multiplied by zeros at the start), where counted.
    """

    n_slots: int
    n_parameters: int
    n_components: int
    n_unseen: int
    rank: Bounds
    level_rank: Bounds
    n_sampled: int | None = None
    n_active: int | None = None

    @property
    def n_scored(self) -> int:
        """Parameters that bound the rank."""
        return self.n_parameters if self.n_active is None else self.n_active

    @property
    def nullity(self) -> Bounds:
        """m - rank."""
        return self.n_slots - self.rank[1], self.n_slots - self.rank[0]

    @property
    def margin_dimension(self) -> int:
        """m - components."""
        return self.n_slots - self.n_components

    @property
    def reachable(self) -> Bounds:
        """nullity - components + rank A W C: the null space, less its part that moves no margin."""
        least = self.nullity[0] - self.n_components + self.level_rank[0]
        most = self.nullity[1] - self.n_components + self.level_rank[1]
        return max(0, least), min(self.margin_dimension, most)

    @property
    def is_exact(self) -> bool:
        """Whether all dimensions are known."""
        return self.rank[0] == self.rank[1] and self.level_rank[0] == self.level_rank[1]

    @property
    def verdict(self) -> str:
        """Equals DPO (delta moves no margin), theta unidentified (it fits all margins), partly free, or undecided."""
        least, most = self.reachable
        if most == 0:
            return EQUALS_DPO
        if least == self.margin_dimension:
            return UNIDENTIFIED
        return PARTLY_FREE if least > 0 and most < self.margin_dimension else UNDECIDED

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the theory says of these numbers, one sentence each; empty when there is nothing to warn of."""
        found, dimension = [], self.margin_dimension
        if self.verdict == EQUALS_DPO:
            found.append("equals DPO: the constraint leaves delta no margin to move, so that AuxDPO is DPO")
        if self.verdict == UNIDENTIFIED:
            found.append(f"theta unidentified: delta fits all {dimension} margin dimensions at every theta")
        if self.verdict == UNDECIDED:
            found.append(
                f"undecided: delta reaches between {self.reachable[0]} and {self.reachable[1]} of {dimension} margin "
                "dimensions (0: equals DPO; all: theta unidentified); count more of them"
            )
            if self.n_scored >= self.n_slots:
                found[-1] += "; scores in general position, at least one parameter a variable: it equals DPO"
        if self.level_rank[0] > 0 and self.verdict != EQUALS_DPO:
            found.append(
                f"theta unidentified along {_text(self.level_rank)} directions: levels of delta that no comparison "
                "sees move it (unconnected responses, or weights with A W B != 0)"
            )
        if self.n_unseen:
            found.append(f"{self.n_unseen} responses have a weight but no comparison: their delta stays 0")
        return tuple(found)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        bounds = {name: list(getattr(self, name)) for name in ("rank", "nullity", "reachable", "level_rank")}
        counts = {"variables": self.n_slots, "parameters": self.n_parameters, "components": self.n_components}
        rest = {"sampled": self.n_sampled, "active_parameters": self.n_active}
        told = {"margin_dimension": self.margin_dimension, "verdict": self.verdict, "warnings": list(self.warnings)}
        return counts | {name: value for name, value in rest.items() if value is not None} | bounds | told

    @property
    def _active(self) -> str:
        return "" if self.n_scored == self.n_parameters else f"{self.n_scored} of them with scores, "

    def __str__(self) -> str:
        head = (
            f"AuxDPO: {self.n_slots} auxiliary variables, {self.n_parameters} trainable parameters, {self._active}rank "
            f"{_text(self.rank)}, nullity {_text(self.nullity)}, reachable margins {_text(self.reachable)} of "
            f"{self.margin_dimension}: {self.verdict}"
        )
        if self.n_sampled is not None and self.n_sampled < self.n_slots:
            head += f" (from {self.n_sampled} of the variables)"
        return "\n".join([head, *(f"warning: {sentence}" for sentence in self.warnings)])


def dimensions(slots: Slots, rows: Tensor, weights: Tensor) -> DimensionReport:
    """The exact count from the score rows A^T (m, d) and the weights (m,): singular values of A sqrt(W) and A W C.

    Source: section 6 of the theory page; for untied delta it is the count of ``geometry.untied_dimensions``.
    Raises AuxiliaryError for shapes that do not fit.
    """
    if rows.ndim != 2 or rows.shape[0] != slots.size or weights.shape != (slots.size,):
        raise AuxiliaryError(
            f"score rows and weights must be ({slots.size}, d) and ({slots.size},), "
            f"got {tuple(rows.shape)} and {tuple(weights.shape)}"
        )
    precision = torch.finfo(rows.dtype).eps
    matrix, diagonal = rows.double().numpy(), weights.double().numpy()
    rank = numerical_rank(np.sqrt(diagonal)[:, None] * matrix, precision)
    weighted = diagonal[:, None] * matrix
    levels = np.zeros((slots.n_components, matrix.shape[1]))
    np.add.at(levels, slots.component.numpy(), weighted)
    # rounding in sums that cancel is measured against what was summed
    level_rank = numerical_rank(levels, precision, scale=float(np.linalg.norm(weighted, 2)))
    level_rank = min(level_rank, rank)  # as it is without rounding: A W C has the columns of A W in other mixtures
    return _report(slots, matrix.shape[1], (rank, rank), (level_rank, level_rank))


def estimate_dimensions(
    slots: Slots,
    scores: ReferenceScores,
    batches: Iterable[tuple[Tensor, Any]],
    weights: Tensor,
    *,
    probes: int = 16,
    seed: int = 0,
    centred: bool = False,
) -> DimensionReport:
    """The count without score rows, for d too large: ranks of Omega^T (W^1/2 A^T A W^1/2) Omega and of the same for C.

    Omega (m, probes) is normal. A rank below ``probes`` is the numerical rank of the whole (almost surely; eigenvalues
    below ``scores.noise`` of the largest count as zero); otherwise it is a lower bound. ``batches`` are
    (slots (k,), responses) that cover every slot once; each probe costs two ``pull`` and two ``push`` over all of them.
    ``centred`` says that A W B = 0 (weights D over whole response sets), which bounds the rank by m - S.
    Source: Halko, Martinsson and Tropp 2011, SIAM Review 53(2), Sec. 4.
    Raises AuxiliaryError for slots missed or met twice.
    """
    listed = list(batches)
    met = torch.cat([index for index, _ in listed]) if listed else torch.zeros(0, dtype=torch.int64)
    if not torch.equal(met.sort().values, torch.arange(slots.size)):
        raise AuxiliaryError(f"the batches must hold each of the {slots.size} slots once, got {met.numel()} entries")
    if probes < 1:
        raise AuxiliaryError(f"probes must be at least 1, got {probes}")
    generator, diagonal = torch.Generator().manual_seed(seed), weights.double()
    coarse = torch.zeros(slots.size, slots.n_components, dtype=torch.float64)
    coarse[torch.arange(slots.size), slots.component] = diagonal
    d, m = scores.n_parameters, slots.size
    fine = diagonal.sqrt()[:, None] * torch.randn(m, probes, dtype=torch.float64, generator=generator)
    most = min(d, m - (int(slots.prompt.max()) + 1) * centred)
    found, scale = _sketch(scores, listed, fine)
    rank = (min(found, most), found if found < min(probes, most) else most)
    mixed = coarse @ torch.randn(slots.n_components, probes, dtype=torch.float64, generator=generator)
    found, _ = _sketch(scores, listed, mixed, scale * float(diagonal.max()))
    most = min(d, slots.n_components, rank[1])
    level_rank = (min(found, most), found if found < min(probes, most) else most)
    return _report(slots, d, rank, level_rank)


def _sketch(
    scores: ReferenceScores, batches: list[tuple[Tensor, Any]], probes: Tensor, scale: float = 0.0
) -> tuple[int, float]:
    """Numerical rank of probes^T A^T A probes, and its largest eigenvalue; zero is measured against ``scale`` too."""
    images = torch.zeros_like(probes)
    for column in range(probes.shape[1]):
        total = zeros_like(scores.parameters)
        for index, responses in batches:
            add_(total, scores.pull(responses, probes[index, column]))
        for index, responses in batches:
            images[index, column] = scores.push(responses, total).double().cpu()
    gram = probes.T @ images
    values = torch.linalg.eigvalsh(0.5 * (gram + gram.T))
    largest = max(float(values[-1]), 0.0)
    return int((values > scores.noise * max(largest, scale)).sum()) if largest > 0 else 0, largest


def _report(slots: Slots, d: int, rank: Bounds, level_rank: Bounds) -> DimensionReport:
    return DimensionReport(slots.size, d, slots.n_components, int((slots.count == 0).sum()), rank, level_rank)


def numerical_rank(matrix: np.ndarray, precision: float, scale: float = 0.0) -> int:
    """Singular values above the rounding of the largest (or of ``scale``) in numbers of relative ``precision``.

    ``matrix`` (m, d) has scores in its rows. Rounding moves a singular value by precision |matrix|_F <= precision
    sqrt(m) |matrix|_2 at most, whatever d; 4 m in place of sqrt(m) leaves room for how the scores were computed.
    """
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(values > precision * matrix.shape[0] * 4.0 * max(float(values[0]), scale)))


def _text(bounds: Bounds) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
