"""The weights of a merge where margins bend and are rounded, as those of language models: Gauss-Newton steps."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, xlogy

from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.merge_weights import (
    FloatArray,
    Margins,
    MergeWeights,
    kkt_residual,
    minimise_on_simplex,
    newton,
)

TRIALS = 8  # of one step
PATIENCE, FINE = 8, 1e-6  # steps, and a residual that only exact margins can reach
VISIBLE = 1e-6  # a decrease of the loss that float32 shows
Linear = tuple[FloatArray, FloatArray, FloatArray]
"""Margins (R, n), their slopes (R, n, k), the rows' shares (R, n)."""


def linearised_weights(
    margins: Margins,
    n_runs: int,
    k: int,
    *,
    beta: float,
    entropy: float,
    tolerance: float = 1e-4,
    steps: int = 50,
) -> MergeWeights:
    """argmin over the simplex of E softplus(-beta m(a)) - entropy * H(a), for margins m that are not linear in a.

    Each step replaces m by its tangent m(a) + m'(a) (b - a), whose problem is convex and is solved exactly
    (``minimise_on_simplex``), and goes from a towards that solution as far as the value itself falls. Where the steps
    end, a is a Karush-Kuhn-Tucker point of the problem itself. A step mostly costs one evaluation of margins and
    slopes, and margins that are linear take one step. ``tolerance`` bounds the KKT residual; the default leaves room
    for float32.
    Steps along tangents gain the same factor each, and little where margins bend much. So, where a fine tolerance and
    exact margins allow it, Newton's steps with learned curvature follow after ``PATIENCE`` of them.
    Source: TPMM-DPO, Eqs. 8, 10 and 12; started from equal weights, as in its w = 0.

    Raises: AlgorithmError for bad options, or where the residual stays above ``tolerance``.
    """
    if k < 1:
        raise AlgorithmError("a merge needs at least one policy, got none")
    if not (np.isfinite(beta) and beta > 0.0):
        raise AlgorithmError(f"the beta of the weights must be a number > 0, got {beta!r}")
    if not (np.isfinite(entropy) and entropy >= 0.0):
        raise AlgorithmError(f"the entropy coefficient must be a number >= 0, got {entropy!r}")
    shares = np.full((n_runs, k), 1.0 / k)
    here = margins(shares)
    for step in range(steps if k > 1 else 0):
        if step >= PATIENCE and entropy > 0.0 and tolerance < FINE:
            shares = newton(margins, shares, beta=beta, entropy=entropy)
            here = margins(shares)
            break
        target = minimise_on_simplex(_tangent(here, shares), n_runs, k, beta=beta, entropy=entropy).shares
        shares, here = _towards(target, shares, here, margins, beta, entropy)
        if float(_residual(here, shares, beta, entropy).max()) <= tolerance:
            break
    found = _residual(here, shares, beta, entropy)
    if not float(found.max()) <= tolerance:
        raise AlgorithmError(
            f"the weights of the merge were not found: KKT residual {float(found.max()):.1e} after {steps} steps; give "
            f"more entropy (it is {entropy:g}), or less beta (it is {beta:g})"
        )
    spread = -xlogy(shares, shares).sum(axis=-1)
    return MergeWeights(shares, _value(here, shares, beta, 0.0), spread, found)


def _towards(
    target: FloatArray, shares: FloatArray, here: Linear, margins: Margins, beta: float, entropy: float
) -> tuple[FloatArray, Linear]:
    """The whole way, or less where the value rises or its slope has turned round: then to where the slope vanishes.

    Slopes decide near the end, where rounding hides differences of values.
    """
    step, size = target - shares, np.ones(len(shares))
    value, slope = _value(here, shares, beta, entropy), _slope(here, shares, step, beta, entropy)
    for _ in range(TRIALS):
        new = shares + size[:, None] * step
        there = margins(new)
        turned = _slope(there, new, step, beta, entropy)
        rises = (_value(there, new, beta, entropy) > value) & (-slope > VISIBLE)
        bad = rises | (turned > 0.5 * np.abs(slope))
        if not bad.any():
            break
        crossing = -slope / np.where(turned > slope, turned - slope, np.inf)
        size = np.where(bad, size * np.clip(crossing, 0.1, 0.8), size)
    return new, there


def _tangent(here: Linear, at: FloatArray) -> Margins:
    values, slopes, rows = here
    return lambda shares: (values + np.einsum("rnk,rk->rn", slopes, shares - at), slopes, rows)


def _value(here: Linear, shares: FloatArray, beta: float, entropy: float) -> FloatArray:
    loss = np.sum(here[2] * np.logaddexp(0.0, -beta * here[0]), axis=-1)
    return np.asarray(loss + entropy * xlogy(shares, shares).sum(axis=-1))


def _gradient(here: Linear, shares: FloatArray, beta: float, entropy: float) -> FloatArray:
    values, slopes, rows = here
    gradient = np.einsum("rn,rnk->rk", -beta * rows * expit(-beta * values), slopes)
    return gradient if entropy == 0.0 else gradient + entropy * (np.log(shares) + 1.0)


def _residual(here: Linear, shares: FloatArray, beta: float, entropy: float) -> FloatArray:
    return kkt_residual(shares, _gradient(here, shares, beta, entropy)) / (1.0 + entropy)


def _slope(here: Linear, shares: FloatArray, step: FloatArray, beta: float, entropy: float) -> FloatArray:
    return np.asarray(np.sum(step * _gradient(here, shares, beta, entropy), axis=-1))
