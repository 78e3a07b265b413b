"""The torch backend on finite worlds: the same runs as the exact backend, with autograd, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_backend.errors import FiniteError
from llm_backend.finite import FinitePolicy
from llm_backend.finite_fields import KL, Pairs, pair_log_probs, row_weights
from llm_backend.finite_minimiser import minimise_finite
from llm_backend.finite_training import train_finite
from objectives import Objective
from objectives.fitting import Monitor, Plan, Snapshot
from objectives.metrics import pair_metrics


class World(Protocol):
    """What a finite world offers, in numpy: who speaks (sizes, features, base policy), data, metrics, KL, orders."""

    @property
    def sizes(self) -> np.ndarray: ...
    @property
    def features(self) -> np.ndarray | None: ...
    @property
    def base_theta(self) -> np.ndarray: ...
    @property
    def n_runs(self) -> int: ...
    @property
    def preferences(self) -> Callable[..., Any]: ...
    @property
    def counts(self) -> Callable[[Any], Mapping[str, np.ndarray]]: ...
    @property
    def shares(self) -> Callable[[Any], np.ndarray]: ...
    def merge_shares(self, weights: Any, shapes: Sequence[tuple[int, ...]]) -> np.ndarray: ...
    @property
    def measure(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]: ...
    @property
    def kl(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]: ...
    def order(self, n_rows: int, epoch: int) -> np.ndarray: ...


class TorchBackend:
    """``prefgeo.backend.Backend`` on a finite world. A policy is its parameters, a float64 tensor (R, d)."""

    def __init__(self, world: World, *, device: str = "cpu") -> None:
        self.world = world
        self.device = _checked_device(device)

    def load(self, arrays: Mapping[str, np.ndarray] | None = None) -> Tensor:
        """The base policy, or one that ``dump`` wrote. Raises FiniteError for arrays of another world."""
        theta = self.world.base_theta if arrays is None else arrays["theta"]
        if theta.shape != self.world.base_theta.shape:
            raise FiniteError(f"theta must be {self.world.base_theta.shape} in this world, got {theta.shape}")
        return torch.tensor(np.asarray(theta, dtype=np.float64), device=self.device)

    def dump(self, policy: Tensor) -> dict[str, np.ndarray]:
        """A policy as named arrays."""
        return {"theta": policy.detach().cpu().numpy().copy()}

    def preferences(
        self,
        policy: Tensor,
        *,
        kind: str,
        flip: float,
        round_index: int,
        split: str = "train",
        part: tuple[int, int] = (0, 1),
    ) -> Any:
        """Preference data of the policy's responses, labelled by the world."""
        theta = policy.detach().cpu().numpy()
        return self.world.preferences(theta, kind=kind, flip=flip, round_index=round_index, split=split, part=part)

    def counts(self, data: Any) -> Mapping[str, np.ndarray]:
        """Rows kept, dropped and flipped."""
        return self.world.counts(data)

    def fit(
        self,
        start: Tensor,
        reference: Tensor,
        data: Pairs,
        objective: Objective,
        *,
        plan: Plan,
        monitor: Monitor | None = None,
    ) -> tuple[Tensor, Mapping[str, np.ndarray]]:
        """Train, or minimise (one run after the other); and each run's final ``loss`` (``gradient_norm`` too)."""
        if plan.optimiser == "exact":
            return self._minimise(start, reference, data, objective, monitor)
        world, policy = self.world, self._policy(start)
        log_reference, kl = self._log_choices(reference), self._kl()
        steps = plan.length(data.n_rows)

        def metrics(theta: np.ndarray) -> Mapping[str, np.ndarray]:
            return {**world.measure(theta), **_seen(policy, data, objective, log_reference, kl, theta)}

        train_finite(
            policy, data, objective, optimiser=plan.optimiser, learning_rate=plan.rate(data), steps=steps,
            reference=log_reference, weight_decay=plan.weight_decay, batch_size=plan.batch_size,
            order=None if plan.batch_size is None else lambda epoch: world.order(data.n_rows, epoch),
            schedule=plan.schedule.factor, log_every=plan.log_interval(data.n_rows), kl=kl,
            metrics=metrics, monitor=monitor,
        )  # fmt: skip
        theta = policy.theta.detach()
        if not bool(torch.isfinite(theta).all()):
            raise FiniteError(f"theta is not finite after step {steps - 1}; lower the learning rate")
        with torch.no_grad():
            batch = pair_log_probs(policy, data, objective.fields, log_reference=log_reference, kl=kl)
            loss = objective.mean_loss(batch, row_weights(data, batch.policy_chosen))
        return theta, {"loss": loss.cpu().numpy()}

    def merge(self, policies: Sequence[Tensor], weights: Any) -> Tensor:
        """sum_i weights_i theta_i; weights (k,), or (R, k), one set for each run."""
        return self._combined(policies, self.world.merge_shares(weights, [tuple(theta.shape) for theta in policies]))

    def merged_margins(
        self, policies: Sequence[Tensor], data: Any, weights: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Margins of the merged policy and their slopes; d log pi / d a_t = z_t - E_pi z_t, z_t the logits of t."""
        policy = self._policy(self._combined(policies, weights))

        def margins(values: Tensor) -> Tensor:
            return policy.total(values, data.chosen) - policy.total(values, data.rejected)

        with torch.no_grad():
            log_choices = policy.log_choices()
            slopes = []
            for theta in policies:
                logits = policy.logits(theta)
                slopes.append(margins(logits - policy.block_spread(policy.block_sum(log_choices.exp() * logits))))
            values = margins(log_choices)
        return values.cpu().numpy(), torch.stack(slopes, dim=-1).cpu().numpy(), self.world.shares(data)

    def evaluate(self, policy: Tensor) -> Mapping[str, np.ndarray]:
        """Exact metrics, each (R,), by the world."""
        return self.world.measure(policy.detach().cpu().numpy())

    def _combined(self, policies: Sequence[Tensor], weights: Any) -> Tensor:
        """The merge, for any weights: derivatives look beyond the simplex."""
        shares = torch.as_tensor(np.array(weights, dtype=np.float64), device=self.device)
        return torch.einsum("rk,krd->rd", shares.expand(self.world.n_runs, -1), torch.stack(list(policies)))

    def _policy(self, theta: Tensor) -> FinitePolicy:
        return FinitePolicy(self.world.sizes, theta, self.world.features, device=self.device)

    def _log_choices(self, theta: Tensor) -> Tensor:
        with torch.no_grad():
            return self._policy(theta).log_choices()

    def _kl(self) -> KL:
        """The world's own KL of whole responses, which numpy computes; it is a constant of the loss."""

        def kl(log_choices: Tensor, log_reference: Tensor) -> Tensor:
            value = self.world.kl(log_choices.detach().cpu().numpy(), log_reference.cpu().numpy())
            return torch.as_tensor(np.asarray(value), device=self.device)

        return kl

    def _minimise(
        self, start: Tensor, reference: Tensor, data: Any, objective: Objective, monitor: Monitor | None
    ) -> tuple[Tensor, Mapping[str, np.ndarray]]:
        n_runs, features = self.world.n_runs, self.world.features
        rows: list[np.ndarray] = []  # theta, loss and gradient norm of the runs that are done
        if monitor is not None and monitor.resume is not None:
            rows = list(monitor.resume["arrays"]["minima"])
        log_reference = self._log_choices(reference)
        for run in range(len(rows), n_runs):
            own = features if features is None or features.ndim == 2 else features[run]
            policy = FinitePolicy(self.world.sizes, start[run], own, device=self.device)
            found = minimise_finite(policy, data.run(run), objective, reference=log_reference[run][None], kl=self._kl())
            rows.append(np.concatenate([found.theta, [found.loss, found.gradient_norm]]))
            if monitor is not None:
                monitor.step(run + 1, n_runs, partial(_minima, rows))
        table = np.stack(rows)
        theta = torch.as_tensor(table[:, :-2], device=self.device)
        return theta, {"loss": table[:, -2], "gradient_norm": table[:, -1]}


def _seen(
    policy: FinitePolicy, data: Pairs, objective: Objective, log_reference: Tensor, kl: KL, theta: np.ndarray
) -> Mapping[str, np.ndarray]:
    """How the policy at ``theta`` sees the pairs that it is trained on."""
    needed = (*objective.fields, "reference_chosen", "reference_rejected")
    with torch.no_grad():
        point = torch.as_tensor(theta, device=policy.device, dtype=policy.theta.dtype)
        batch = pair_log_probs(policy, data, needed, theta=point, log_reference=log_reference, kl=kl)
        weights = row_weights(data, batch.policy_chosen)
        found = pair_metrics(objective, batch, weights, beta=getattr(objective, "beta", 1.0))
    return {name: value.cpu().numpy() for name, value in found.items()}


def _minima(rows: list[np.ndarray]) -> Snapshot:
    return {"step": len(rows), "arrays": {"minima": np.stack(rows)}, "objective": {}}


def _checked_device(name: str) -> torch.device:
    """The device. Raises FiniteError if torch does not know it, or this machine does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FiniteError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
