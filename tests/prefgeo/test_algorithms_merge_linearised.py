"""Weights by Gauss-Newton steps: the convex optimum where margins are linear, and what scipy finds on sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from bandits.backend import ExactBackend
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.merge_linearised import linearised_weights
from prefgeo.algorithms.merge_weights import learn_weights


def spread_out(backend: ExactBackend, k: int, spread: float) -> list[np.ndarray]:
    rng, base = np.random.default_rng(0), backend.load()
    return [base + spread * rng.normal(size=base.shape) for _ in range(k)]


@pytest.mark.parametrize("entropy", [0.0, 0.005, 0.1, 5.0])
def test_linear_margins_give_the_convex_optimum_in_one_step(entropy: float) -> None:
    backend = ExactBackend(make_simulation("e1", [0, 1, 2], simulated_options("e1", {"n_prompts": 20, "n_arms": 5})))
    policies, pairs = spread_out(backend, 3, 2.0), DataSource("candidates", 0.3).draw(backend, backend.load(), 1)
    calls = []

    def margins(shares: np.ndarray) -> Any:
        calls.append(shares)
        return backend.merged_margins(policies, pairs, shares)

    found = linearised_weights(margins, 3, 3, beta=0.5, entropy=entropy, tolerance=1e-9)
    wanted = learn_weights(backend, policies, pairs, beta=0.5, entropy=entropy)
    np.testing.assert_allclose(found.shares, wanted.shares, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-10)
    np.testing.assert_allclose(found.entropy, wanted.entropy, rtol=0, atol=1e-8)
    assert len(calls) == 2


def test_on_sequences_the_weights_are_a_minimum_that_scipy_finds() -> None:
    settings = simulated_options("e3", {"n_prompts": 40, "grammar": {"max_length": 10}})
    backend = ExactBackend(make_simulation("e3", [0], settings))
    policies, pairs = spread_out(backend, 3, 1.0), DataSource("candidates").draw(backend, backend.load(), 1)

    def margins(shares: np.ndarray) -> Any:
        return backend.merged_margins(policies, pairs, shares)

    def value(w: np.ndarray) -> float:
        a = np.exp(w - w.max())
        a = a / a.sum()
        m, _, rows = margins(a[None])
        return float(np.sum(rows * np.logaddexp(0.0, -0.5 * m)) + 0.02 * np.sum(a * np.log(a)))

    found = linearised_weights(margins, 1, 3, beta=0.5, entropy=0.02, tolerance=1e-6)
    other = minimize(value, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    shares = np.exp(other.x - other.x.max())
    np.testing.assert_allclose(found.shares[0], shares / shares.sum(), rtol=0, atol=1e-4)  # BFGS on differences
    assert value(np.log(found.shares[0])) <= other.fun + 1e-12
    assert np.abs(found.shares - 1.0 / 3.0).max() > 0.05


def test_rounded_margins_do_not_keep_the_steps_from_ending() -> None:
    """Noise as of float32, another one in every evaluation."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(1, 50, 4)) * 3.0
    rows = np.full((1, 50), 1.0 / 50.0)
    calls = []

    def margins(shares: np.ndarray) -> Any:
        calls.append(1)
        exact = np.einsum("rnk,rk->rn", slopes, shares)
        bent = exact + 0.05 * exact**2
        noise = [1e-5 * rng.normal(size=shape) for shape in ((1, 50), (1, 50, 4))]
        return bent + noise[0], slopes * (1.0 + 0.1 * exact)[..., None] + noise[1], rows

    found = linearised_weights(margins, 1, 4, beta=0.3, entropy=0.05)
    assert found.residual.max() <= 1e-4 and len(calls) < 15
    again = linearised_weights(margins, 1, 4, beta=0.3, entropy=0.05)
    np.testing.assert_allclose(again.shares, found.shares, rtol=0, atol=1e-3)


def test_a_backend_says_what_its_margins_allow() -> None:
    backend = ExactBackend(make_simulation("e1", [0], simulated_options("e1", {"n_prompts": 20, "n_arms": 5})))
    policies, pairs = spread_out(backend, 3, 2.0), DataSource("candidates", 0.3).draw(backend, backend.load(), 1)
    calls = []

    class Costly:
        weight_tolerance = 1e-6

        def merged_margins(self, *given: Any) -> Any:
            calls.append(given)
            return backend.merged_margins(*given)

    costly: Any = Costly()
    found = learn_weights(costly, policies, pairs, beta=0.5, entropy=0.1)
    wanted = learn_weights(backend, policies, pairs, beta=0.5, entropy=0.1)
    np.testing.assert_allclose(found.shares, wanted.shares, rtol=0, atol=1e-9)
    assert len(calls) == 2


def test_one_model_and_bad_input() -> None:
    def margins(shares: np.ndarray) -> Any:
        return np.ones((1, 2)), np.ones((1, 2, shares.shape[-1])), np.full((1, 2), 0.5)

    assert linearised_weights(margins, 1, 1, beta=0.1, entropy=0.1).shares.tolist() == [[1.0]]
    with pytest.raises(AlgorithmError, match="beta of the weights must be a number > 0, got 0"):
        linearised_weights(margins, 1, 2, beta=0.0, entropy=0.1)
    with pytest.raises(AlgorithmError, match="entropy coefficient must be a number >= 0, got nan"):
        linearised_weights(margins, 1, 2, beta=1.0, entropy=float("nan"))
    with pytest.raises(AlgorithmError, match="at least one policy"):
        linearised_weights(margins, 1, 0, beta=1.0, entropy=0.1)
    with pytest.raises(AlgorithmError, match=r"were not found: KKT residual .* after 50 steps; give more entropy"):
        linearised_weights(margins, 1, 2, beta=1.0, entropy=0.1, tolerance=-1.0)
