"""Merge weights where margins are not linear in the shares, as on sequences: found to the last digits, in few steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import xlogy

from bandits.backend import ExactBackend
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from objectives import make_objective
from prefgeo.algorithms.merge_weights import learn_weights
from prefgeo.backend import FitPlan

OPTIONS = {"n_prompts": 60, "n_candidates": 4, "grammar": {"max_length": 24}, "rewards": {"noise_sd": 0.1}}

BENT = {
    "grammar": {"max_length": 32}, "n_prompts": 160, "n_candidates": 4, "flip_mode": "persistent", "reuse": True,
    "rewards": {"length_bias": 0.0, "noise_sd": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def trajectory() -> tuple[Any, list[Any], Any]:
    """A backend on sequences for two seeds, three policies far from each other, and noisy pairs of the last."""
    backend = ExactBackend(make_simulation("e3", [3, 4], simulated_options("e3", OPTIONS)))
    policies = [backend.load()]
    plan = FitPlan("adam", rate=lambda rows: 0.3, epochs=1, batch_size=10)
    for t in (1, 2):
        rows = backend.preferences(policies[-1], kind="candidates", flip=0.3, round_index=t)
        make = partial(make_objective, "dpo", beta=0.1)
        policies.append(backend.fit(policies[-1], policies[-1], rows, make(), plan=plan)[0])
    return backend, policies, backend.preferences(policies[-1], kind="candidates", flip=0.3, round_index=9)


class Counted:
    """A backend that counts how often margins are asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def merged_margins(self, *given: Any) -> Any:
        self.calls += 1
        return self.inner.merged_margins(*given)


def test_few_evaluations_reach_the_minimum_of_scipy(trajectory: Any) -> None:
    backend, policies, rows = trajectory
    counted = Counted(backend)
    found = learn_weights(counted, policies, rows, beta=0.1, entropy=0.05)
    assert found.residual.max() < 1e-12
    assert counted.calls < 45  # several a step where the line is searched; hundreds without the learned curvature
    for run in range(2):

        def value(logits: np.ndarray, run: int = run) -> float:
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            margins, _, share = backend.merged_margins(policies, rows, np.tile(shares, (2, 1)))
            loss = np.sum(share[run] * np.logaddexp(0.0, -0.1 * margins[run]))
            return float(loss + 0.05 * xlogy(shares, shares).sum())

        best = minimize(value, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
        assert value(np.log(found.shares[run])) <= best.fun + 1e-12


def test_weights_on_one_run_are_as_exact_where_margins_bend_much() -> None:
    """As a language model's: one run, its tolerance told by the backend. Fifty tangent steps end at 6e-9 here."""
    backend = ExactBackend(make_simulation("e3", [2], simulated_options("e3", BENT)))
    policies = [backend.load()]
    plan = FitPlan("adam", rate=lambda rows: 0.5, epochs=1, batch_size=16)
    for t in (1, 2):
        rows = backend.preferences(policies[-1], kind="candidates", flip=0.3, round_index=t)
        policies.append(backend.fit(policies[-1], policies[-1], rows, make_objective("dpo", beta=0.1), plan=plan)[0])
    told = Counted(backend)
    told.weight_tolerance = 1e-9  # type: ignore[attr-defined]
    found = learn_weights(told, policies, rows, beta=1.0, entropy=0.05)
    assert found.residual.max() <= 1e-9 and told.calls < 40
    usual = learn_weights(backend, policies, rows, beta=1.0, entropy=0.05)
    assert np.abs(found.shares - usual.shares).max() < 1e-7
