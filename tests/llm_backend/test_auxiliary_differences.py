"""Central differences: right by hand, of the size that the function allows, and two evaluations once it is known."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from llm_backend.auxiliary import ReferenceScores  # noqa: E402
from llm_backend.auxiliary.batch import AuxiliaryRows, push_parts  # noqa: E402
from llm_backend.auxiliary.differences import NATS, CentralDifference  # noqa: E402

EPS = torch.finfo(torch.float32).eps


def counted(function):
    """A function of h that remembers where it was asked."""
    asked = []

    def values(size):
        asked.append(size)
        return function(torch.tensor(size, dtype=torch.float64))

    return values, asked


def test_a_line_has_its_slope_and_a_parabola_none_at_its_top() -> None:
    line, asked = counted(lambda h: torch.stack([3.0 * h, -0.5 * h, 2.0 + 0.0 * h]))
    assert CentralDifference(EPS)(line, 1.0).tolist() == pytest.approx([3.0, -0.5, 0.0], rel=1e-12)
    assert asked == [EPS ** (1 / 3), -(EPS ** (1 / 3))]  # a small change, but there is no larger step
    assert float(CentralDifference(EPS)(lambda h: torch.tensor([7.0 - h * h]), 1.0)) == 0.0


def test_the_slope_of_the_last_product_saves_the_retries() -> None:
    """log pi = 2000 sin h: eps^(1/3) would move it by 10 nats. Then two evaluations, at +-h with the wanted change."""
    difference = CentralDifference(EPS)
    steep, asked = counted(lambda h: torch.stack([2000.0 * torch.sin(h), 1000.0 * torch.sin(h)]))
    first = difference(steep, 1.0)
    assert len(asked) > 2 and first.tolist() == pytest.approx([2000.0, 1000.0], rel=1e-6)
    difference.learn(float((first**2).sum()), 2.0, 1.0)
    assert difference.slope == pytest.approx(math.sqrt((2000.0**2 + 1000.0**2) / 2))
    asked.clear()
    again = difference(steep, 1.0)
    assert len(asked) == 2 and again.tolist() == pytest.approx([2000.0, 1000.0], rel=1e-6)
    assert 4000.0 * asked[0] == pytest.approx(NATS * 2000.0 / (2.0 * difference.slope))
    asked.clear()  # a direction that is twice as long: half the step
    difference(lambda h: steep(2.0 * h), 2.0)
    assert len(asked) == 2


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_a_batch_that_is_much_steeper_or_flatter_is_asked_again(factor) -> None:
    difference = CentralDifference(EPS)
    difference.learn(2000.0**2, 1.0, 1.0)
    values, asked = counted(lambda h: torch.stack([factor * 2000.0 * torch.sin(h)]))
    found = difference(values, 1.0)
    assert float(found) == pytest.approx(factor * 2000.0, rel=1e-4) and 2 < len(asked) <= 6
    change = 2.0 * asked[-2] * factor * 2000.0
    assert NATS / 16.0 < change <= 2.0 * NATS


def test_nothing_is_learned_from_a_zero_direction() -> None:
    difference = CentralDifference(EPS)
    assert not difference(lambda h: torch.full((2,), 5.0), 0.0).any()
    difference.learn(0.0, 2.0, 0.0)
    assert difference.slope == 0.0


def test_push_parts_teaches_the_slope_of_all_parts() -> None:
    module = nn.ParameterDict({"theta": nn.Parameter(torch.zeros(2, dtype=torch.float64))})
    table = torch.tensor([[3.0, 0.0], [0.0, 4.0], [12.0, 0.0]], dtype=torch.float64)
    scores = ReferenceScores(module, lambda m, k: table[k] @ m["theta"], product="difference")
    parts = [AuxiliaryRows(k, torch.ones(k.numel()), k) for k in (torch.tensor([0, 1]), torch.tensor([2]))]
    along = push_parts(scores, parts, {"theta": torch.tensor([0.0, 2.0], dtype=torch.float64)})
    assert [value.tolist() for value in along] == [pytest.approx([0.0, 8.0]), pytest.approx([0.0])]
    assert scores.difference.slope == pytest.approx((64.0 / 3) ** 0.5 / 2.0)


def test_autocast_has_no_part_in_a_difference() -> None:
    """As accelerate leaves a model: its forward pass wrapped in autocast, the plain one beside it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))
    given = torch.randn(6, 16)

    def log_probs(m, x):
        return (20.0 * m(x).float()).log_softmax(-1)[:, 0]

    exact = ReferenceScores(module, log_probs)
    direction = {name: torch.randn_like(value) for name, value in exact.parameters.items()}
    wanted = exact.push(given, direction)
    module._original_forward = module.forward
    module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)
    scores = ReferenceScores(module, log_probs, product="difference")
    error = (scores.push(given, direction) - wanted).abs().max() / wanted.abs().max()
    assert float(error) < 2e-3 and module(given).dtype == torch.bfloat16

    def rounded(size):
        moved = {name: value + size * direction[name] for name, value in exact.parameters.items()}
        return log_probs(lambda x: torch.func.functional_call(module, moved, (x,)), given).detach()

    length = sum(float(value.square().sum()) for value in direction.values()) ** 0.5
    noise = CentralDifference(EPS)(rounded, length) - wanted
    assert float(noise.abs().max() / wanted.abs().max()) > 20 * float(error)
