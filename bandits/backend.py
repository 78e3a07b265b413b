"""The exact backend: finite policies in numpy, for all seeds of a run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from bandits.blocks import block_spread, block_sum
from bandits.errors import SimulationError
from bandits.finite_policies import as_runs
from bandits.minimisers import minimise
from bandits.optimisers import OPTIMISERS
from bandits.pair_fields import PairFields
from bandits.preference_pairs import PreferencePairs
from bandits.simulation import Simulation
from bandits.training import Metrics, train
from geometry.pairs import FloatArray
from objectives import Objective
from objectives.fitting import Monitor, Plan, Snapshot
from objectives.metrics import pair_metrics


class ExactBackend:
    """``prefgeo.backend.Backend`` on a simulation. A policy is its parameters, (R, d); data are ``PreferencePairs``."""

    def __init__(self, world: Simulation) -> None:
        self.world = world

    def load(self, arrays: Mapping[str, FloatArray] | None = None) -> FloatArray:
        """The base policy, or one that ``dump`` wrote. Raises SimulationError for arrays of another world."""
        if arrays is None:
            return self.world.base_theta
        theta = as_runs(arrays["theta"], self.world.policy.n_parameters, "theta")
        if len(theta) != self.world.n_runs:
            raise SimulationError(f"theta is of {len(theta)} runs, this world has {self.world.n_runs}")
        return theta

    def dump(self, policy: FloatArray) -> dict[str, FloatArray]:
        """A policy as named arrays."""
        return {"theta": np.array(policy)}

    def preferences(
        self,
        policy: FloatArray,
        *,
        kind: str,
        flip: float,
        round_index: int,
        split: str = "train",
        part: tuple[int, int] = (0, 1),
    ) -> PreferencePairs:
        """Preference data of the policy's responses, labelled by the world."""
        return self.world.preferences(policy, kind=kind, flip=flip, round_index=round_index, split=split, part=part)

    def counts(self, data: PreferencePairs) -> Mapping[str, FloatArray]:
        """Rows kept, dropped and flipped."""
        return self.world.counts(data)

    def fit(
        self,
        start: FloatArray,
        reference: FloatArray,
        data: PreferencePairs,
        objective: Objective,
        *,
        plan: Plan,
        monitor: Monitor | None = None,
    ) -> tuple[FloatArray, Mapping[str, FloatArray]]:
        """Train, or minimise (one run after the other); and each run's final ``loss`` (``gradient_norm`` too)."""
        if plan.optimiser == "exact":
            return self._minimise(start, reference, data, objective, monitor)
        world = self.world
        found = train(
            world.policy, data, objective, start=start, reference=reference, kl=world.kl,
            metrics=self._metrics(reference, data, objective),
            optimiser=OPTIMISERS[plan.optimiser](plan.rate(data), weight_decay=plan.weight_decay),
            steps=plan.length(data.n_rows), batch_size=plan.batch_size, schedule=plan.schedule,
            seeds=None if plan.batch_size is None else world.streams, log_every=plan.log_interval(data.n_rows),
            monitor=monitor,
        )  # fmt: skip
        return found.theta, {"loss": self._loss(found.theta, reference, data, objective)}

    def merge(self, policies: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
        """sum_i weights_i theta_i; weights (k,), or (R, k), one set for each run."""
        shares = self.world.merge_shares(weights, [theta.shape for theta in policies])
        return self._combined(policies, shares)

    def merged_margins(
        self, policies: Sequence[FloatArray], data: PreferencePairs, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Margins of the merged policy and their slopes; d log pi / d a_t = z_t - E_pi z_t, z_t the logits of t."""
        policy, layout = self.world.policy, self.world.policy.layout
        log_choices = policy.log_choices(self._combined(policies, weights))
        probability, slopes = np.exp(log_choices), []
        for theta in policies:
            logits = policy.logits(theta)
            slopes.append(_margin(data, logits - block_spread(layout, block_sum(layout, probability * logits))))
        return _margin(data, log_choices), np.stack(slopes, axis=-1), self.world.shares(data)

    def evaluate(self, policy: FloatArray) -> Mapping[str, FloatArray]:
        """Exact metrics, each (R,)."""
        return self.world.measure(policy)

    def _metrics(self, reference: FloatArray, data: PreferencePairs, objective: Objective) -> Metrics:
        """The world's metrics, and how the policy sees the pairs that it is trained on."""
        world, shape = self.world, (self.world.n_runs, data.n_rows)
        fields = PairFields.of(
            world.policy, data, (*objective.fields, "reference_chosen", "reference_rejected"), n_runs=world.n_runs,
            log_reference=world.policy.log_choices(reference), kl=world.kl,
        )  # fmt: skip
        weights, beta = np.broadcast_to(data.weight_array(), shape), getattr(objective, "beta", 1.0)

        def metrics(theta: FloatArray) -> Mapping[str, FloatArray]:
            batch = fields.batch(world.policy.log_choices(theta))
            return {**world.measure(theta), **pair_metrics(objective, batch, weights, beta=beta)}

        return metrics

    def _combined(self, policies: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
        """The merge, for any weights: derivatives look beyond the simplex."""
        shares = np.broadcast_to(weights, (self.world.n_runs, len(policies)))
        return np.einsum("rk,krd->rd", shares, np.stack(list(policies)))

    def _loss(
        self, theta: FloatArray, reference: FloatArray, data: PreferencePairs, objective: Objective
    ) -> FloatArray:
        policy = self.world.policy
        fields = PairFields.of(
            policy, data, objective.fields, n_runs=len(theta), log_reference=policy.log_choices(reference),
            kl=self.world.kl,
        )  # fmt: skip
        batch = fields.batch(policy.log_choices(theta))
        weights = None if data.weights is None else np.broadcast_to(data.weights, batch.shape)
        return np.asarray(objective.mean_loss(batch, weights))

    def _minimise(
        self,
        start: FloatArray,
        reference: FloatArray,
        data: PreferencePairs,
        objective: Objective,
        monitor: Monitor | None,
    ) -> tuple[FloatArray, Mapping[str, FloatArray]]:
        world, n_runs = self.world, self.world.n_runs
        rows: list[FloatArray] = []  # theta, loss and gradient norm of the runs that are done
        if monitor is not None and monitor.resume is not None:
            rows = list(monitor.resume["arrays"]["minima"])
        for run in range(len(rows), n_runs):
            found = minimise(
                world.policy.at_run(run), data.run(run), objective, start=world.of_run(start, run),
                reference=world.of_run(reference, run), kl=world.kl,
            )  # fmt: skip
            rows.append(np.concatenate([found.theta, [found.loss, found.gradient_norm]]))
            if monitor is not None:
                monitor.step(run + 1, n_runs, partial(_minima, rows))
        table = np.stack(rows)
        return table[:, :-2], {"loss": table[:, -2], "gradient_norm": table[:, -1]}


def _margin(data: PreferencePairs, log_choices: FloatArray) -> FloatArray:
    """log pi(y_w) - log pi(y_l), (R, n)."""
    return data.chosen.total(log_choices) - data.rejected.total(log_choices)


def _minima(rows: list[FloatArray]) -> Snapshot:
    return {"step": len(rows), "arrays": {"minima": np.stack(rows)}, "objective": {}}
