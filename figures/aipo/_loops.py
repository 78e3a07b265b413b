"""What the figures of AIPO share: the sequence world for some seeds, its training plan, and a metric by iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bandits.backend import ExactBackend
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from objectives import make_objective
from prefgeo.algorithms.aipo import aipo
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.outcome import LoopOutcome
from prefgeo.backend import FitPlan, constant_rate


def sequence_world(runs: Sequence[int], **options: Any) -> tuple[ExactBackend, FitPlan]:
    """World E3 with some options, a run for each seed; and its plan: one epoch of Adam on minibatches a round."""
    settings = simulated_options("e3", options)
    backend = ExactBackend(make_simulation("e3", list(runs), settings))
    return backend, FitPlan("adam", constant_rate(settings.learning_rate), epochs=1, batch_size=settings.batch_size)


def iterated(
    world: tuple[ExactBackend, FitPlan], objective: str, values: Mapping[str, float], rounds: int
) -> LoopOutcome[Any]:
    """AIPO's loop with an objective."""
    backend, plan = world
    make = partial(make_objective, objective, **values)
    return aipo(backend, make, rounds=rounds, data=DataSource("candidates"), plan=plan)


def by_iteration(found: LoopOutcome[Any], metric: str) -> np.ndarray:
    """A metric after each iteration, (rounds + 1, seeds); 0 is the base policy."""
    return np.stack([each[metric] for each in (found.base_metrics, *(stage.metrics for stage in found.rounds))])
