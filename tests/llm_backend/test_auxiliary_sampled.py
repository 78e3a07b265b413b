"""Dimensions from a sample of prompts: exact where the sample is everything, else bounds that hold the exact count."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llm_backend.auxiliary import (  # noqa: E402
    AuxiliaryError,
    ReferenceScores,
    Slots,
    dimensions,
    plain_weights,
    reference_weights,
    sampled_dimensions,
)
from llm_backend.auxiliary.sampled import HASHES, Sketch  # noqa: E402
from llm_backend.finite import FinitePolicy  # noqa: E402


def world(d, *, tied=True, seed=0):
    """8 prompts with four responses each, all pairs compared; or each pair with two variables of its own."""
    rng = np.random.default_rng(seed)
    policy = FinitePolicy([4] * 8, rng.normal(size=d), rng.normal(size=(32, d)))
    scores = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices])
    pairs = torch.tensor([(4 * s + i, 4 * s + j) for s in range(8) for i in range(4) for j in range(i)])
    if tied:
        keys = torch.stack([torch.arange(32) // 4, torch.arange(32)], dim=1)
        return Slots.tied(keys[pairs[:, 0]], keys[pairs[:, 1]]), scores, torch.arange(32)
    return Slots.untied(len(pairs)), scores, pairs.flatten()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("d", [3, 10, 40])
def test_a_whole_sample_is_exact_and_a_part_bounds_it(d, tied):
    slots, scores, choices = world(d, tied=tied)
    weights = reference_weights(slots, scores.log_probs(choices)) if tied else plain_weights(slots)
    exact = dimensions(slots, scores.rows(choices), weights)

    def gradients(wanted):
        return scores.each(choices[wanted])

    whole = sampled_dimensions(slots, scores.parameters, gradients, weights, most=100, centred=tied)
    assert (whole.rank, whole.level_rank, whole.verdict) == (exact.rank, exact.level_rank, exact.verdict)
    assert whole.is_exact and whole.n_sampled == slots.size and whole.n_active == d and "from" not in str(whole)
    part = sampled_dimensions(slots, scores.parameters, gradients, weights, most=9, centred=tied, seed=1)
    assert part.n_sampled == 8 and "(from 8 of the variables)" in str(part)
    for one, all_of_it in ((part.rank, exact.rank), (part.level_rank, exact.level_rank)):
        assert one[0] <= all_of_it[0] <= one[1]
    assert part.reachable[0] <= exact.reachable[0] <= part.reachable[1]
    assert part.verdict in ("undecided", exact.verdict)
    assert part.plain()["sampled"] == 8 and part.plain()["rank"] == list(part.rank)


def test_parameters_without_scores_do_not_count() -> None:
    """As one half of LoRA at its start: three of ten features are zero."""
    slots, scores, choices = world(10)
    policy = FinitePolicy([4] * 8, np.zeros(10), np.random.default_rng(1).normal(size=(32, 10)) * (np.arange(10) < 7))
    scores = ReferenceScores(policy, lambda p, index: p.log_choices()[0, index])
    weights = plain_weights(slots)
    found = sampled_dimensions(slots, scores.parameters, lambda wanted: scores.each(choices[wanted]), weights)
    assert (found.n_active, found.n_parameters, found.rank) == (7, 10, (7, 7))
    assert "10 trainable parameters, 7 of them with scores, rank 7" in str(found)


def test_a_sketch_is_linear_and_keeps_ranks() -> None:
    parameters = {"a": torch.zeros(30, 20, dtype=torch.float64), "b": torch.zeros(7, dtype=torch.float64)}
    sketch, generator = Sketch(parameters, 20, seed=2), torch.Generator().manual_seed(0)

    def draw():
        shapes = {name: value.shape for name, value in parameters.items()}
        return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}

    one, two = draw(), draw()
    both = {name: 2.0 * one[name] - two[name] for name in one}
    torch.testing.assert_close(sketch(both), 2.0 * sketch(one) - sketch(two))
    assert int(torch.linalg.matrix_rank(torch.stack([sketch(draw()) for _ in range(12)]))) == 12
    squares = torch.stack([Sketch(parameters, 200, seed=seed)(one).square().sum() / HASHES for seed in range(30)])
    length = sum(float(value.square().sum()) for value in one.values())
    assert float(squares.mean()) == pytest.approx(length, rel=0.1)  # E |S^T g|^2 = |g|^2; sd of the mean: 2%


def test_few_scored_parameters_among_many_keep_their_rank() -> None:
    """60 of 5000 coordinates in 2 x 100 numbers: some share one, and the rank stays."""
    parameters = {"a": torch.zeros(5000, dtype=torch.float64)}
    sketch, rows = Sketch(parameters, 100, seed=0), torch.zeros(80, 5000, dtype=torch.float64)
    rows[:, ::84] = torch.randn(80, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = torch.stack([sketch({"a": row}) for row in rows])
    assert images.shape == (80, 200) and int(torch.linalg.matrix_rank(images)) == 60
    assert int(torch.linalg.matrix_rank(images[:, :100])) < 60  # one number each would not do


def test_too_small_a_sample_is_refused() -> None:
    slots, scores, _ = world(3)
    with pytest.raises(AuxiliaryError, match="needs at least 2 responses, got 1"):
        sampled_dimensions(slots, scores.parameters, scores.each, plain_weights(slots), most=1)
