"""What delta can reach, counted exactly and from random probes, against the geometry's counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from geometry.comparisons import Comparisons  # noqa: E402
from geometry.constraint import constraint_weights  # noqa: E402
from geometry.local import local_geometry  # noqa: E402
from geometry.pairs import PairLayout  # noqa: E402
from geometry.policies import LogLinearPolicy  # noqa: E402
from geometry.problem import Problem  # noqa: E402
from geometry.untied import tied_report, untied_dimensions  # noqa: E402
from llm_backend.auxiliary import (  # noqa: E402
    AuxiliaryError,
    ReferenceScores,
    Slots,
    dimensions,
    estimate_dimensions,
    plain_weights,
)
from llm_backend.auxiliary.dimensions import DimensionReport  # noqa: E402
from llm_backend.auxiliary.null_basis import null_basis  # noqa: E402
from llm_backend.finite import FinitePolicy  # noqa: E402


def untied(n, d, seed=0):
    """n examples in general position: of three responses, so that the two compared have independent scores."""
    rng = np.random.default_rng(seed)
    policy = FinitePolicy([3] * n, rng.normal(size=d), rng.normal(size=(3 * n, d)))
    scores = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices])
    choices = torch.stack([3 * torch.arange(n), 3 * torch.arange(n) + 1], dim=1).flatten()
    return Slots.untied(n), scores, choices


@pytest.mark.parametrize(
    ("d", "nullity", "reachable", "verdict"),
    [
        (2, 8, 5, "theta unidentified"),
        (5, 5, 5, "theta unidentified"),
        (7, 3, 3, "partly free"),
        (9, 1, 1, "partly free"),
        (10, 0, 0, "equals DPO"),
        (20, 0, 0, "equals DPO"),
    ],
)
def test_five_untied_examples(d, nullity, reachable, verdict) -> None:
    slots, scores, choices = untied(5, d)
    rows = scores.rows(choices)
    report = dimensions(slots, rows, plain_weights(slots))
    geometry = untied_dimensions(rows[0::2].numpy(), rows[1::2].numpy())
    assert report.nullity == (nullity, nullity) == (geometry.nullity, geometry.nullity)
    assert report.reachable == (reachable, reachable) == (geometry.reachable_margin_dimension,) * 2
    assert report.verdict == verdict == geometry.verdict and report.is_exact
    assert report.margin_dimension == 5
    batches = [(torch.arange(6), choices[:6]), (torch.arange(6, 10), choices[6:])]
    found = estimate_dimensions(slots, scores, batches, plain_weights(slots), probes=12)
    assert found == report  # 12 probes exceed every rank: nothing is left open
    few = estimate_dimensions(slots, scores, batches, plain_weights(slots), probes=1)
    assert few.rank == (1, min(d, 10)) and few.verdict in ("undecided", verdict)
    assert few.reachable[0] <= reachable <= few.reachable[1]
    assert ("equals DPO" in str(report)) == (d >= 10) and str(few.rank[0]) in str(few)


@pytest.mark.parametrize("weights", ["D", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_tied_counts_equal_the_geometrys(weights, seed) -> None:
    rng = np.random.default_rng(seed)
    layout = PairLayout.from_sizes(rng.integers(2, 5, size=3))
    m, d = layout.n_pairs, int(rng.integers(1, 6))
    every = Comparisons.all_pairs(layout)
    count = np.where(rng.random(every.n_comparisons) < 0.6, 1.0, 0.0)
    count[0] = 1.0
    problem = Problem.create(
        rng.normal(size=m), LogLinearPolicy.create(layout, rng.normal(size=(m, d))), every.with_count(count), beta=1.0,
        prompt_distribution=rng.dirichlet(np.ones(3)), reference_theta=rng.normal(size=d),
    )  # fmt: skip
    wanted = tied_report(problem, weights=weights)
    keys = torch.stack([torch.as_tensor(layout.prompt_index), torch.arange(m)], dim=1)
    data = problem.comparisons
    slots = Slots.tied(keys[data.first], keys[data.second], weights=torch.as_tensor(data.count), others=keys)
    diagonal = torch.as_tensor(constraint_weights(problem, weights))
    report = dimensions(slots, torch.as_tensor(np.asarray(local_geometry(problem).score_rows)), diagonal)
    assert report.rank == (wanted.rank,) * 2 and report.nullity == (wanted.nullity,) * 2
    assert report.margin_dimension == wanted.margin_dimension
    assert report.reachable == (wanted.reachable_margin_dimension,) * 2
    policy = FinitePolicy(layout.sizes, problem.reference_theta, problem.policy.features)
    scores = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices])
    index = torch.arange(m)
    found = estimate_dimensions(slots, scores, [(index, index)], diagonal, probes=m + 1, centred=weights == "D")
    assert found == report
    if report.level_rank[0]:
        assert f"unidentified along {report.level_rank[0]} directions" in str(report)


def test_large_models_get_bounds() -> None:
    """1000 parameters against 40 auxiliary variables, 8 probes, in float32: so the rank is at least 8."""
    slots, scores, choices = untied(20, 1000)
    small = {name: value.float() for name, value in scores.parameters.items()}
    scores.parameters = small
    scores._bound.module.float()
    report = estimate_dimensions(slots, scores, [(torch.arange(40), choices)], plain_weights(slots), probes=8)
    assert report.rank == (8, 40) and report.nullity == (0, 32)
    assert report.reachable == (0, 20) and report.verdict == "undecided" and not report.is_exact
    assert "general position" in report.warnings[0]
    assert "general position" not in replace(report, n_parameters=39).warnings[0]
    assert "delta reaches between 0 and 20 of 20" in report.warnings[0] and "8 to 40" in str(report)
    tied = replace(report, rank=(8, 8), level_rank=(0, 0))
    assert tied.reachable == (12, 12) and tied.verdict == "partly free" and not tied.warnings
    assert replace(tied, n_unseen=3).warnings == ("3 responses have a weight but no comparison: their delta stays 0",)


def test_a_frozen_reference_leaves_everything_free() -> None:
    """Scores of zero: no constraint, delta fits everything."""
    slots = Slots.untied(2)
    report = dimensions(slots, torch.zeros(4, 3, dtype=torch.float64), plain_weights(slots))
    assert report == DimensionReport(4, 3, 2, 0, (0, 0), (0, 0))
    assert report.verdict == "theta unidentified"


def test_bad_input_is_refused() -> None:
    slots, scores, choices = untied(2, 3)
    with pytest.raises(AuxiliaryError, match=r"must be \(4, d\) and \(4,\), got \(3, 2\) and \(4,\)"):
        dimensions(slots, torch.zeros(3, 2), torch.ones(4))
    with pytest.raises(AuxiliaryError, match="each of the 4 slots once, got 3 entries"):
        estimate_dimensions(slots, scores, [(torch.arange(3), choices[:3])], torch.ones(4))
    with pytest.raises(AuxiliaryError, match="probes must be at least 1"):
        estimate_dimensions(slots, scores, [(torch.arange(4), choices)], torch.ones(4), probes=0)


def test_rounding_leaves_the_dimensions_consistent() -> None:
    """Scores in float32 with singular values at the edge of rounding: the levels' rank stays within the rank of all, so
    that what delta can reach is never more than there is."""
    rng = np.random.default_rng(0)
    n, d = 200, 60
    left, right = (np.linalg.qr(rng.normal(size=(size, d)))[0] for size in (2 * n, d))
    sizes = np.where(np.arange(d) < 30, 1.0, 1.4e-4)
    rows = torch.tensor((left * sizes) @ right.T, dtype=torch.float32)
    slots = Slots.untied(n)
    report = dimensions(slots, rows, plain_weights(slots))
    assert report.rank == (30, 30) and report.level_rank[1] <= report.rank[0]
    assert report.reachable == (n, n) and report.verdict == "theta unidentified"


@pytest.mark.parametrize(("rank", "nullity"), [(4, 2), (6, 0)])
def test_the_null_space_of_more_parameters_than_anything_square_could_hold(rank: int, nullity: int) -> None:
    """Six variables and 200,000 parameters: no d x d matrix is made, and a basis of nothing is a basis too."""
    rng = np.random.default_rng(1)
    rows = torch.tensor(rng.normal(size=(6, rank)) @ rng.normal(size=(rank, 200_000)), dtype=torch.float32)
    slots = Slots.untied(3)
    basis = null_basis(slots, rows, plain_weights(slots))
    assert basis.shape == (6, nullity)
    if nullity:
        residual = rows.double().T @ basis
        assert float(residual.abs().max()) < 1e-5 * float(rows.abs().max())
        np.testing.assert_allclose((basis.T @ basis).numpy(), np.eye(nullity), atol=1e-12)


def test_many_parameters_do_not_hide_small_scores() -> None:
    """Twenty variables with scores of sizes 1 to 1e-3 in 100,000 float32 parameters: all count, and AuxDPO is DPO."""
    rng = np.random.default_rng(2)
    rows = torch.tensor(rng.normal(size=(20, 100_000)) * np.geomspace(1.0, 1e-3, 20)[:, None], dtype=torch.float32)
    slots = Slots.untied(10)
    report = dimensions(slots, rows, plain_weights(slots))
    assert report.rank == (20, 20) and report.verdict == "equals DPO"
