"""The weights of a merge, learned exactly: a reference-free preference loss with an entropy bonus, on the simplex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy

from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.backend import Backend, Data, Policy

FloatArray = NDArray[np.float64]
Margins = Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]
"""shares (R, k) -> margins (R, n), their slopes in the shares (R, n, k), shares of the rows (R, n)."""
BARRIERS = (1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14)
TOLERANCE = 1e-9
FLOOR = 1e-60  # entropy keeps shares positive, but perhaps below the smallest float
ENOUGH = 0.01  # of entropy: with this much no barrier is needed on the way


@dataclass(frozen=True, eq=False)
class MergeWeights:
    """``shares`` (R, k) on the simplex; L_pref there, its entropy in nats, and the KKT residual, each (R,)."""

    shares: FloatArray
    loss: FloatArray
    entropy: FloatArray
    residual: FloatArray


def learn_weights(
    backend: Backend[Policy, Data],
    policies: Sequence[Policy],
    data: Data,
    *,
    beta: float,
    entropy: float,
    tolerance: float | None = None,
) -> MergeWeights:
    """argmin over the simplex of E softplus(-beta [log pi_a(y_w) - log pi_a(y_l)]) - entropy * H(a).

    pi_a has the parameters sum_t a_t theta_t. Where y_w and y_l are choices of one softmax block, log Z cancels, the
    margins are linear in a, and the problem is convex; on sequences this is a local minimum found from the centre.
    A backend whose margins are rounded or costly says so by a ``weight_tolerance``, the KKT residual that it can reach;
    its weights are found by Gauss-Newton steps (``linearised_weights``), which evaluate margins a few times.
    Source: TPMM-DPO, Eqs. 8, 10 and 12 (a = softmax(w); here a itself is the unknown).

    Raises: AlgorithmError for bad options, or when the KKT residual stays above ``tolerance`` (None: the backend's
    ``weight_tolerance``, where its arithmetic cannot do better, or 1e-9).
    """
    if not policies:
        raise AlgorithmError("a merge needs at least one policy, got none")
    if not (np.isfinite(beta) and beta > 0.0):
        raise AlgorithmError(f"the beta of the weights must be a number > 0, got {beta!r}")
    if not (np.isfinite(entropy) and entropy >= 0.0):
        raise AlgorithmError(f"the entropy coefficient must be a number >= 0, got {entropy!r}")
    k = len(policies)
    reachable = getattr(backend, "weight_tolerance", None)
    if reachable is not None:
        from prefgeo.algorithms.merge_linearised import linearised_weights  # which is built on this file

        return linearised_weights(
            lambda shares: backend.merged_margins(policies, data, shares),
            1,  # such a backend has one run
            k,
            beta=beta,
            entropy=entropy,
            tolerance=float(reachable) if tolerance is None else tolerance,
        )
    n_runs = len(backend.merged_margins(policies, data, np.full(k, 1.0 / k))[0])
    found = minimise_on_simplex(
        lambda shares: backend.merged_margins(policies, data, shares), n_runs, k, beta=beta, entropy=entropy
    )
    worst = float(found.residual.max())
    if not worst <= (TOLERANCE if tolerance is None else tolerance):
        raise AlgorithmError(
            f"the weights of the merge were not found: KKT residual {worst:.1e}; give more entropy (it is {entropy:g})"
        )
    return found


def minimise_on_simplex(margins: Margins, n_runs: int, k: int, *, beta: float, entropy: float) -> MergeWeights:
    """Newton's method within the simplex, along a path of log-barriers where entropy does not keep shares positive.

    Margins that are not linear in the shares add curvature, which is learned from step to step as in NL2SOL (Dennis,
    Gay and Welsch 1981): it is exactly 0 where they are linear.
    """
    shares = np.full((n_runs, k), 1.0 / k)
    barriers = (() if entropy > ENOUGH else BARRIERS) + ((0.0,) if entropy > 0.0 else ())
    for barrier in barriers if k > 1 else ():
        shares = _newton(_Value(margins, beta, entropy, barrier), shares)
    value, gradient, _, _ = _Value(margins, beta, entropy, 0.0).derivatives(shares)
    spread = -xlogy(shares, shares).sum(axis=-1)
    return MergeWeights(shares, value + entropy * spread, spread, kkt_residual(shares, gradient) / (1.0 + entropy))


def newton(margins: Margins, shares: FloatArray, *, beta: float, entropy: float) -> FloatArray:
    """Shares (R, k) nearer to a minimum, from shares within the simplex, with entropy to keep them there."""
    return _newton(_Value(margins, beta, entropy, 0.0), shares, steps=30)


def kkt_residual(shares: FloatArray, gradient: FloatArray) -> FloatArray:
    """How far (R, k) is from a minimum over the simplex, (R,): with nu = <a, g>, the largest of |a (g - nu)| and
    nu - g. Both vanish exactly at Karush-Kuhn-Tucker points."""
    excess = gradient - np.sum(shares * gradient, axis=-1, keepdims=True)
    return np.maximum(np.abs(shares * excess), -excess).max(axis=-1)


@dataclass(frozen=True)
class _Value:
    """L(a) + entropy sum a log a - barrier sum log a."""

    margins: Margins
    beta: float
    entropy: float
    barrier: float

    def at(self, shares: FloatArray) -> FloatArray:
        """The value, (R,)."""
        m, _, rows = self.margins(shares)
        loss = np.sum(rows * np.logaddexp(0.0, -self.beta * m), axis=-1)
        return self._with_bonus(loss, shares)

    def derivatives(
        self, shares: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, tuple[FloatArray, FloatArray]]:
        """Value (R,), gradient (R, k), Hessian (R, k, k) without the curvature of margins; dL/dm (R, n) and slopes."""
        m, slopes, rows = self.margins(shares)
        loss = np.sum(rows * np.logaddexp(0.0, -self.beta * m), axis=-1)
        down, up = expit(-self.beta * m), expit(self.beta * m)
        push = -self.beta * rows * down
        gradient = np.einsum("rn,rnk->rk", push, slopes)
        hessian = np.einsum("rn,rnk,rnl->rkl", self.beta**2 * rows * down * up, slopes, slopes)
        diagonal = self.entropy / shares + self.barrier / shares**2
        gradient += self.entropy * (np.log(shares) + 1.0) - self.barrier / shares
        hessian += diagonal[..., None] * np.eye(shares.shape[-1])
        return self._with_bonus(loss, shares), gradient, hessian, (push, slopes)

    def _with_bonus(self, loss: FloatArray, shares: FloatArray) -> FloatArray:
        value = loss + self.entropy * xlogy(shares, shares).sum(axis=-1)
        return np.asarray(value if self.barrier == 0.0 else value - self.barrier * np.log(shares).sum(axis=-1))


def _newton(value: _Value, shares: FloatArray, steps: int = 200) -> FloatArray:
    """Damped Newton steps with sum d = 0, never leaving the interior, for all runs at once."""
    curvature = np.zeros((*shares.shape, shares.shape[-1]))
    last: tuple[FloatArray, FloatArray] | None = None
    for _ in range(steps):
        here, gradient, hessian, (push, slopes) = value.derivatives(shares)
        if last is not None:
            turned = np.einsum("rn,rnk->rk", push, slopes - last[1])
            curvature = _secant(curvature, shares - last[0], turned)
        last = shares, slopes
        step = _direction(shares, gradient, hessian + curvature)
        decrement = -np.sum(step * gradient, axis=-1)
        uphill = decrement < 0.0
        if uphill.any():  # the learned curvature misleads there: do without it
            curvature = np.where(uphill[:, None, None], 0.0, curvature)
            step = _direction(shares, gradient, hessian + curvature)
            decrement = -np.sum(step * gradient, axis=-1)
        if np.all((np.abs(step) <= 1e-13 * shares) | (shares <= FLOOR)):
            break
        room = np.where(step < 0.0, -shares / np.where(step < 0.0, step, 1.0), np.inf).min(axis=-1)
        size = np.minimum(1.0, 0.99 * room)
        for _ in range(40):
            # near the minimum differences of values are rounding errors, and the full step is right
            bad = (value.at(shares + size[:, None] * step) > here - 1e-4 * size * decrement) & (decrement > 1e-12)
            if not bad.any():
                break
            size = np.where(bad, 0.5 * size, size)
        shares = shares + size[:, None] * step
        shares = np.maximum(shares / shares.sum(axis=-1, keepdims=True), FLOOR)
    return shares


def _secant(curvature: FloatArray, step: FloatArray, turned: FloatArray) -> FloatArray:
    """The symmetric rank-one update: the curvature (R, k, k) that explains how the step ``turned`` the gradient by way
    of the margins' slopes; unchanged where the step says nothing new."""
    missing = turned - np.einsum("rkl,rl->rk", curvature, step)
    along = np.sum(missing * step, axis=-1)
    size = np.linalg.norm(missing, axis=-1) * np.linalg.norm(step, axis=-1)
    known = np.abs(along) <= 1e-8 * size
    update = np.einsum("rk,rl->rkl", missing, missing) / np.where(known, 1.0, along)[:, None, None]
    return np.asarray(curvature + np.where(known[:, None, None], 0.0, update))


def _direction(shares: FloatArray, gradient: FloatArray, hessian: FloatArray) -> FloatArray:
    """The Newton step with sum 0. Scaled to a unit diagonal, and with the multiplier taken out of the gradient, so that
    small shares keep their relative accuracy."""
    n_runs, k = shares.shape
    diagonal = np.einsum("rkk->rk", hessian)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
    system = np.zeros((n_runs, k + 1, k + 1))
    system[:, :k, :k] = scale[:, :, None] * hessian * scale[:, None, :]
    system[:, :k, k] = system[:, k, :k] = scale
    excess = gradient - np.sum(shares * gradient, axis=-1, keepdims=True)
    right = np.concatenate([-scale * excess, np.zeros((n_runs, 1))], axis=-1)
    scaled: Any = np.linalg.solve(system, right[..., None])[:, :k, 0]
    return np.asarray(scale * scaled)
