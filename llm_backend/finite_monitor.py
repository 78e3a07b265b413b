"""Snapshots of the training of finite torch policies, from which it goes on as if never broken off."""

from __future__ import annotations

import numpy as np
import torch

from llm_backend.errors import FiniteError
from llm_backend.finite import FinitePolicy
from objectives import Objective
from objectives.fitting import Monitor, Snapshot


def snapshot(step: int, policy: FinitePolicy, engine: torch.optim.Optimizer, objective: Objective) -> Snapshot:
    """Everything that the following steps depend on, copied to the CPU."""
    memory = {name: value for name, value in engine.state[policy.theta].items() if torch.is_tensor(value)}
    arrays = {"theta": policy.theta.detach(), **{f"memory.{name}": value for name, value in memory.items()}}
    return {
        "step": step,
        "arrays": {name: value.detach().cpu().numpy().copy() for name, value in arrays.items()},
        "objective": objective.state_dict(),
    }


def resume(monitor: Monitor, policy: FinitePolicy, engine: torch.optim.Optimizer, objective: Objective) -> int:
    """The step to go on with; theta, the optimiser's memory and the objective's state are set in place.

    Raises: FiniteError for a snapshot of another run.
    """
    saved = monitor.resume
    if saved is None:
        return 0
    theta = torch.as_tensor(saved["arrays"].get("theta", np.zeros(0)))
    if theta.shape != policy.theta.shape:
        raise FiniteError(f"the snapshot's theta is {tuple(theta.shape)}, this run's {tuple(policy.theta.shape)}")
    with torch.no_grad():
        policy.theta.copy_(theta)
    for name, value in saved["arrays"].items():
        if name.startswith("memory."):
            tensor = torch.as_tensor(np.array(value))
            # a 0-d step counter stays on the CPU, as torch keeps it
            engine.state[policy.theta][name.removeprefix("memory.")] = (
                tensor.to(policy.device) if tensor.ndim else tensor
            )
    objective.load_state_dict(saved["objective"])
    return int(saved["step"])
