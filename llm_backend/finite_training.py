"""Training of finite torch policies: the simulator's loop with autograd and torch's own optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_backend.errors import FiniteError
from llm_backend.finite import FinitePolicy
from llm_backend.finite_fields import KL, Pairs, pair_log_probs, row_weights
from llm_backend.finite_monitor import resume, snapshot
from objectives import Objective
from objectives.base import shares
from objectives.fitting import Monitor

Order = Callable[[int], np.ndarray]
"""epoch -> the order of the rows in it, (R, n) or (1, n). An input, so that two backends can see the same batches."""


Metrics = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""theta (R, d) -> named numbers, each (R,)."""


@dataclass(frozen=True, eq=False)
class FiniteTraining:
    """What training made: ``theta`` (R, d), and the mean loss (T, R) at the logged ``steps`` (0: at the start)."""

    theta: np.ndarray
    steps: list[int] = field(default_factory=list)
    losses: np.ndarray | None = None
    n_steps: int = 0


def train_finite(
    policy: FinitePolicy,
    pairs: Pairs,
    objective: Objective,
    *,
    optimiser: str,
    learning_rate: float | np.ndarray,
    steps: int,
    reference: Tensor | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    batch_size: int | None = None,
    order: Order | None = None,
    schedule: Callable[[int, int], float] | None = None,
    log_every: int | None = None,
    kl: KL | None = None,
    metrics: Metrics | None = None,
    monitor: Monitor | None = None,
) -> FiniteTraining:
    """Minimise the mean loss of the pairs from ``policy.theta``, in place; every run is a row of theta.

    ``reference`` (R or 1, M) are log-probabilities of the choices under the reference, constant. The rows of step k of
    an epoch are the k-th slice of ``order(epoch)``. Weight decay is decoupled, as in AdamW. Gradient descent takes one
    learning rate, or one for each run (R,). A ``monitor`` is told of every logged line (loss and ``metrics``) and
    of every step, and can make training continue from a snapshot.
    Raises: FiniteError for bad options, and for a loss that is not finite (naming run, step and rows).
    """
    engine = _engine(policy, optimiser, learning_rate, betas, epsilon)
    if (batch_size is None) != (order is None):
        raise FiniteError("minibatches need both batch_size and order (the rows of each epoch); a full batch neither")
    per_epoch = 1 if batch_size is None else -(-pairs.n_rows // batch_size)
    rates = None if np.ndim(learning_rate) == 0 else torch.as_tensor(np.asarray(learning_rate)).to(policy.theta)
    log: dict[int, np.ndarray] = {}
    context: dict[str, Any] = {"log_reference": reference, "kl": kl}

    def record(step: int) -> None:
        if log_every is not None and (step % log_every == 0 or step == steps):
            with torch.no_grad():
                batch = pair_log_probs(policy, pairs, objective.fields, **context)
                log[step] = objective.mean_loss(batch, row_weights(pairs, batch.policy_chosen)).cpu().numpy()
                if monitor is not None:
                    measured = {} if metrics is None else metrics(policy.theta.detach().cpu().numpy())
                    monitor.log(step, {"loss": log[step], **measured})

    rows: Pairs = pairs
    begin = 0 if monitor is None else resume(monitor, policy, engine, objective)
    if begin == 0:
        record(0)
    for step in range(begin, steps):
        epoch, place = divmod(step, per_epoch)
        if order is not None and batch_size is not None:
            if place == 0 or step == begin:
                index = order(epoch)
            rows = pairs.rows(index[:, place * batch_size : (place + 1) * batch_size])
        objective.begin_step(step, steps)
        loss = _loss(policy, rows, objective, context, step)
        engine.zero_grad()
        torch.autograd.backward(loss)
        factor = 1.0 if schedule is None else schedule(step, steps)
        _step(policy, engine, learning_rate, rates, factor, weight_decay)
        record(step + 1)
        if monitor is not None:
            monitor.step(step + 1, steps, partial(snapshot, step + 1, policy, engine, objective))
    return FiniteTraining(
        policy.theta.detach().cpu().numpy().copy(), list(log), np.stack(list(log.values())) if log else None, steps
    )


def _step(
    policy: FinitePolicy,
    engine: torch.optim.Optimizer,
    learning_rate: Any,
    rates: Tensor | None,
    factor: float,
    weight_decay: float,
) -> None:
    """One step at ``factor`` times the learning rate; with ``rates`` (R,) the gradient carries them."""
    size: Any = learning_rate * factor if rates is None else (rates * factor)[:, None]
    with torch.no_grad():
        policy.theta.mul_(1.0 - size * weight_decay)
        if rates is not None and policy.theta.grad is not None:
            policy.theta.grad.mul_(size)
    for group in engine.param_groups:
        group["lr"] = size if rates is None else 1.0
    engine.step()


def _loss(policy: FinitePolicy, rows: Pairs, objective: Objective, context: dict[str, Any], step: int) -> Tensor:
    """Sum over the runs of the mean loss over rows: runs share no parameter, so each gets its own gradient."""
    batch = pair_log_probs(policy, rows, objective.fields, **context)
    weights = row_weights(rows, batch.policy_chosen)
    if weights is not None and bool((weights.sum(dim=-1) <= 0).any()):
        raise FiniteError(f"a batch of step {step} has no row with positive weight in some run; use larger batches")
    with torch.no_grad():
        objective.update(batch.map(lambda value: value.detach()), weights)
    losses = objective(batch, weights)
    if not bool(torch.isfinite(losses).all()):
        run, row = torch.nonzero(~torch.isfinite(losses))[0].tolist()
        raise FiniteError(f"the loss of run {run} is not finite at step {step}, first in row {row}")
    return (shares(batch, weights) * losses).sum()


def _engine(
    policy: FinitePolicy, name: str, learning_rate: Any, betas: Sequence[float], epsilon: float
) -> torch.optim.Optimizer:
    rates = np.asarray(learning_rate, dtype=np.float64)
    if rates.ndim > (name == "gd") or not np.all(np.isfinite(rates) & (rates > 0)):
        each = ", or one for each run" if name == "gd" else ""
        raise FiniteError(f"learning_rate must be a number > 0{each}, got {learning_rate!r}")
    if name == "adam":
        return torch.optim.Adam([policy.theta], lr=float(rates), betas=(betas[0], betas[1]), eps=epsilon)
    if name == "gd":
        return torch.optim.SGD([policy.theta], lr=1.0)  # the rate is set at every step
    raise FiniteError(f"optimiser must be 'gd' or 'adam', got {name!r}")
