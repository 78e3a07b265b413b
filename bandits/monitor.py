"""Snapshots of a training run, from which it goes on as if never broken off."""

from __future__ import annotations

import numpy as np

from bandits.errors import TrainingError
from bandits.optimisers import Memory
from geometry.pairs import FloatArray
from objectives import Objective
from objectives.fitting import Monitor, Snapshot


def snapshot(step: int, theta: FloatArray, memory: Memory, objective: Objective) -> Snapshot:
    """Everything that the following steps depend on, copied; the data and their order come from the seeds."""
    arrays = {"theta": theta, **{f"memory.{name}": value for name, value in memory.items()}}
    return {
        "step": step,
        "arrays": {name: np.array(value) for name, value in arrays.items()},
        "objective": objective.state_dict(),
    }


def resume(monitor: Monitor, theta: FloatArray, memory: Memory, objective: Objective) -> tuple[int, FloatArray]:
    """The step to go on with and its theta; ``memory`` and the objective's state are set in place.

    Raises: TrainingError for a snapshot of another run.
    """
    saved = monitor.resume
    if saved is None:
        return 0, theta
    arrays = saved["arrays"]
    if set(arrays) != {"theta", *(f"memory.{name}" for name in memory)} or arrays["theta"].shape != theta.shape:
        raise TrainingError(
            f"the snapshot does not fit: it holds {sorted(arrays)} with theta {np.shape(arrays.get('theta'))}, this "
            f"run needs theta {theta.shape}"
        )
    for name in memory:
        memory[name] = np.array(arrays[f"memory.{name}"])
    objective.load_state_dict(saved["objective"])
    return int(saved["step"]), np.array(arrays["theta"])
