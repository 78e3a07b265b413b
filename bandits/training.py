"""First-order training of finite policies on preference pairs, for many runs (seeds and settings) at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from bandits.active_blocks import ActiveBlocks
from bandits.errors import TrainingError
from bandits.finite_policies import FinitePolicy, as_runs
from bandits.memory import keep_freed_memory
from bandits.monitor import resume, snapshot
from bandits.optimisers import Optimiser
from bandits.pair_fields import KL, PairFields
from bandits.preference_pairs import PreferencePairs
from bandits.schedules import Schedule
from bandits.shift_invariance import without_normalisers
from bandits.streams import RunStreams
from geometry.pairs import FloatArray, IntArray
from objectives import Objective
from objectives.fitting import Monitor, RateSchedule

Metrics = Callable[[FloatArray], Mapping[str, FloatArray]]
"""theta (R, d) -> named numbers, each (R,)."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What training made: ``theta`` (R, d), and for each name in ``history`` its values (T, R) at the ``steps`` (T,).

    ``history["loss"]`` is the mean loss over all rows at that step's theta; step 0 is before the first update.
    """

    theta: FloatArray
    steps: IntArray
    history: dict[str, FloatArray] = field(default_factory=dict)
    n_steps: int = 0


def train(
    policy: FinitePolicy,
    pairs: PreferencePairs,
    objective: Objective,
    *,
    start: ArrayLike,
    optimiser: Optimiser,
    reference: ArrayLike | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    schedule: RateSchedule | None = None,
    seeds: int | Sequence[int] | RunStreams | None = None,
    log_every: int | None = None,
    metrics: Metrics | None = None,
    kl: KL | None = None,
    monitor: Monitor | None = None,
) -> TrainingResult:
    """Minimise the mean loss of the pairs by first-order steps from ``start``.

    The mean is over rows by their weights. Full batch unless ``batch_size`` is given; then every epoch goes once
    through all rows in an order drawn from each run's own seed. Say either ``steps`` or ``epochs`` (full batch: one
    step is one epoch). Runs are the rows of ``start`` (R, d), and never influence each other: a batched run equals
    the runs made alone. ``reference`` (R, d) or (1, d) is theta of the reference policy, fixed during training.
    ``log_every=k`` records the loss and ``metrics(theta)`` before step 0, after every k-th step and after the last.
    ``kl`` replaces the exact KL(pi || ref) that KTO reads, where blocks are not prompts. An objective with state
    (running statistics, schedules) is told of every step, and keeps its state. A ``monitor`` sees what is logged and
    every step, can take snapshots, and can make training continue from one, with the same bits as without the break;
    the history then begins after the break.

    Raises: TrainingError for bad options, and when a loss is not finite (naming run, step and rows).
    """
    keep_freed_memory()
    plan = _Plan.of(pairs, steps, epochs, batch_size, seeds)
    theta = as_runs(start, policy.n_parameters, "start")
    n_runs = _n_runs(theta, policy, pairs, plan.streams)
    theta = np.array(np.broadcast_to(theta, (n_runs, policy.n_parameters)))
    whole, expand = theta, None
    if batch_size is None:
        pairs = pairs.with_parts(prompt=None, flipped=None).compact()  # rows of weight 0 only cost time
    if monitor is None:  # a monitor may look at log-probabilities
        policy = without_normalisers(policy, pairs, objective)
    log_reference = None if reference is None else policy.log_choices(as_runs(reference, theta.shape[-1], "reference"))
    # decoupled weight decay moves every parameter, and KTO's exact KL looks at every prompt
    if batch_size is None and optimiser.weight_decay == 0.0 and "mismatched_log_ratio" not in objective.fields:
        part = ActiveBlocks.of(policy, pairs, n_runs)
        if part is not None:
            policy, pairs, theta = part.policy, part.pairs, part.take(theta)
            log_reference = None if log_reference is None else part.take(log_reference)
            expand = part.put

    def prepare(rows: PreferencePairs) -> PairFields:
        return PairFields.of(policy, rows, objective.fields, n_runs=n_runs, log_reference=log_reference, kl=kl)

    def all_of(theta: FloatArray) -> FloatArray:
        return theta if expand is None else expand(whole, theta)

    measure = None if metrics is None else (lambda theta: metrics(all_of(theta)))
    log = _Log(prepare(pairs), pairs, objective, measure, log_every, plan.total, monitor)
    memory, schedule = optimiser.start(theta), schedule or Schedule()
    begin, theta = (0, theta) if monitor is None else resume(monitor, theta, memory, objective)
    if begin == 0:
        log.record(0, theta)
    for step, rows in plan.batches(pairs, begin):
        fields = log.fields if rows is pairs else prepare(rows)
        objective.begin_step(step, plan.total)
        gradient, active = gradient_step(fields, rows.weights, objective, theta, step)
        theta = optimiser.step(theta, gradient, memory, schedule.factor(step, plan.total), active)
        log.record(step + 1, theta)
        if monitor is not None:
            monitor.step(step + 1, plan.total, partial(snapshot, step + 1, theta, memory, objective))
    if not np.all(np.isfinite(theta)):
        run = int(np.argmax(~np.isfinite(theta).all(axis=-1)))
        raise TrainingError(f"theta of run {run} is not finite after step {plan.total - 1}; lower the learning rate")
    return TrainingResult(all_of(theta), np.array(log.steps, dtype=np.int64), log.table(), plan.total)


def gradient_step(
    fields: PairFields, weights: FloatArray | None, objective: Objective, theta: FloatArray, step: int
) -> tuple[FloatArray, FloatArray | None]:
    """d mean loss / d theta, (R, d), and which runs have any row in this batch (None: all), after ``update``."""
    log_choices = fields.policy.log_choices(theta)
    batch, active = fields.batch(log_choices), None
    if weights is not None:
        weights = np.broadcast_to(weights, batch.shape)
        empty = ~np.any(weights > 0, axis=-1)
        if np.any(empty):
            active, weights = (~empty).astype(np.float64), np.where(empty[:, None], 1.0, weights)
    objective.update(batch, weights)
    losses, gradient = objective.value_and_gradient(batch, weights)
    check_losses(losses, step)
    return fields.policy.pull_back_logits(fields.cotangent(log_choices, gradient)), active


def check_losses(losses: FloatArray, step: int) -> None:
    """Raise TrainingError, naming run, step and rows, unless every loss (R, n) is finite."""
    if np.isfinite(losses.sum()):
        return
    bad = ~np.isfinite(losses)
    if bad.any():
        run = int(np.argmax(bad.any(axis=-1)))
        rows = np.flatnonzero(bad[run])
        more = f" and {rows.size - 5} more" if rows.size > 5 else ""
        raise TrainingError(
            f"the loss of run {run} is not finite at step {step}, in rows {rows[:5].tolist()}{more}; "
            "lower the learning rate or look at these rows"
        )


@dataclass(frozen=True)
class _Plan:
    """How many steps, and which rows each takes."""

    total: int
    batch_size: int | None
    streams: RunStreams | None

    @classmethod
    def of(
        cls,
        pairs: PreferencePairs,
        steps: int | None,
        epochs: int | None,
        batch_size: int | None,
        seeds: int | Sequence[int] | RunStreams | None,
    ) -> _Plan:
        for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
                raise TrainingError(f"{name} must be a whole number of at least 1, got {value!r}")
        if (steps is None) == (epochs is None):
            raise TrainingError("say how long to train: give either steps or epochs, and not both")
        if batch_size is not None and seeds is None:
            raise TrainingError("minibatches are drawn at random: give seeds=, one for each run")
        if batch_size is None and seeds is not None:
            raise TrainingError("seeds would be ignored, a full batch draws nothing: give batch_size too")
        per_epoch = 1 if batch_size is None else -(-pairs.n_rows // batch_size)
        total = steps if steps is not None else per_epoch * int(epochs or 0)
        return cls(total, batch_size, None if seeds is None else RunStreams.of(seeds))

    def batches(self, pairs: PreferencePairs, begin: int) -> Iterator[tuple[int, PreferencePairs]]:
        """Each step from ``begin`` on, with its rows."""
        if self.batch_size is None or self.streams is None:
            yield from ((step, pairs) for step in range(begin, self.total))
            return
        per_epoch = -(-pairs.n_rows // self.batch_size)
        for step in range(begin, self.total):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or step == begin:
                order = self.streams.permutation(pairs.n_rows, "minibatches", epoch)
            yield step, pairs.rows(order[:, place * self.batch_size : (place + 1) * self.batch_size])


@dataclass
class _Log:
    """The history as it grows."""

    fields: PairFields
    pairs: PreferencePairs
    objective: Objective
    metrics: Metrics | None
    every: int | None
    total: int
    monitor: Monitor | None = None
    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, FloatArray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        every = self.every
        if every is not None and (isinstance(every, bool) or int(every) != every or every < 1):
            raise TrainingError(f"log_every must be a whole number of at least 1, got {every!r}")
        if self.metrics is not None and every is None:
            raise TrainingError("metrics would never be recorded: give log_every as well")

    def record(self, step: int, theta: FloatArray) -> None:
        """Add a line if this step is logged. A theta that is not finite is left to the next step's check."""
        if self.every is None or (step % self.every and step != self.total) or not np.all(np.isfinite(theta)):
            return
        batch = self.fields.batch(self.fields.policy.log_choices(theta))
        weights = self.pairs.weights
        shared = None if weights is None else np.broadcast_to(weights, batch.shape)
        row: dict[str, FloatArray] = {"loss": self.objective.mean_loss(batch, shared)}
        if self.metrics is not None:
            row |= self.metrics(theta)
        self.steps.append(step)
        self.rows.append(row)
        if self.monitor is not None:
            self.monitor.log(step, row)

    def table(self) -> dict[str, FloatArray]:
        """(T, R) for each name."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}


def _n_runs(theta: FloatArray, policy: FinitePolicy, pairs: PreferencePairs, streams: RunStreams | None) -> int:
    sizes = {"start": len(theta), "pairs": pairs.n_runs}
    if policy.features is not None and policy.features.ndim == 3:
        sizes["features"] = len(policy.features)
    if streams is not None:
        sizes["seeds"] = streams.n_runs
    n_runs = max(sizes.values())
    if any(size not in (1, n_runs) for size in sizes.values()):
        raise TrainingError(f"each of these must have one run or all of them, got {sizes}")
    return n_runs
