"""One round: data from the base policy, one objective, the base policy as start and as reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

from objectives import Objective
from objectives.fitting import Monitor
from prefgeo.backend import Arrays, Backend, Data, FitPlan, Policy


@dataclass(frozen=True)
class Outcome(Generic[Policy]):
    """The trained policy, its metrics and those of the base policy (each (R,)), and who was what."""

    policy: Policy
    reference: Policy
    metrics: Mapping[str, Any]
    base_metrics: Mapping[str, Any]


ROLES = {"data": "base", "start": "base", "reference": "base", "policy": "theta"}
"""Which policy each part was played by: the base policy of the world, or the trained theta."""


def single_round(
    backend: Backend[Policy, Data],
    objective: Objective,
    *,
    kind: str,
    flip: float,
    plan: FitPlan,
    monitor: Monitor | None = None,
) -> Outcome[Policy]:
    """Train the base policy on preference data of its own responses, regularised towards itself."""
    base = backend.load()
    data = backend.preferences(base, kind=kind, flip=flip, round_index=1)
    policy, notes = backend.fit(base, base, data, objective, plan=plan, monitor=monitor)
    metrics: dict[str, Arrays | Any] = {**backend.evaluate(policy), **notes}
    return Outcome(policy, base, metrics, backend.evaluate(base))
