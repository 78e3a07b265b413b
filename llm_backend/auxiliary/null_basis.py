"""Basis of the null space of A W, for small d: delta = N z satisfies the constraint at every step."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import null_space
from torch import Tensor

from llm_backend.auxiliary.errors import AuxiliaryError
from llm_backend.auxiliary.slots import Slots

LARGEST = 5_000  # slots; the basis is dense and found by a singular value decomposition


def null_basis(slots: Slots, rows: Tensor, weights: Tensor, *, gauge: bool = False) -> Tensor:
    """Orthonormal N (m, k) with A W N = 0; with ``gauge`` also B^T W N = 0, which removes prompt constants.

    ``rows`` (m, d) is A^T over the slots, ``weights`` (m,) the diagonal of W. A W and B^T W are scaled to the same size
    first, so that neither decides the other's rank. Source: AuxDPO, arXiv:2510.20413, Sec. 5 and appendix 7.2.
    Raises AuxiliaryError for too many slots, for shapes that do not fit, and for gauge rows on untied slots.
    """
    if slots.size > LARGEST:
        raise AuxiliaryError(
            f"mode 'exact' needs a dense basis for {slots.size} slots, above {LARGEST}; use mode 'dual'"
        )
    if rows.ndim != 2 or rows.shape[0] != slots.size:
        raise AuxiliaryError(f"the score rows must be ({slots.size}, d), got {tuple(rows.shape)}")
    if gauge and not slots.is_tied:
        raise AuxiliaryError("gauge rows are for tied delta: on untied slots they would be another constraint")
    diagonal, precision = weights.to(torch.float64).numpy(), torch.finfo(rows.dtype).eps
    blocks = [_unit(rows.double().numpy().T * diagonal)]
    if gauge:
        member = np.zeros((int(slots.prompt.max()) + 1, slots.size))
        member[slots.prompt.numpy(), np.arange(slots.size)] = diagonal
        blocks.append(_unit(member))
    matrix = np.concatenate(blocks)
    if matrix.shape[0] > slots.size:  # more parameters than slots: the same null space, without d x d vectors
        matrix = np.asarray(np.linalg.qr(matrix, mode="r"))
    # rounding of the scores moves singular values by eps |A W|_F <= eps sqrt(m) |A W|_2: those below count as zeros
    return torch.as_tensor(np.ascontiguousarray(null_space(matrix, rcond=precision * slots.size)))


def _unit(matrix: np.ndarray) -> np.ndarray:
    size = float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0
    return matrix / size if size > 0 else matrix
