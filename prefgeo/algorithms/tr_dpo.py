"""TR-DPO: the reference follows the policy during training, softly or in jumps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bandits.schedules import Schedule
from objectives import Objective
from objectives.fitting import Monitor, Snapshot
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.journal import POLICY, Entry, Journal, NoJournal, prefixed
from prefgeo.algorithms.outcome import LoopOutcome, Roles, Round, outcome
from prefgeo.backend import Arrays, Backend, Data, FitPlan, Policy

REFERENCE, MEMORY, STAGE = "reference.", "memory.", "segment"


@dataclass(frozen=True)
class Update:
    """Every ``every`` optimizer steps, ``soft``: ref <- mix * pi + (1 - mix) * ref in parameters; ``hard``: ref <- pi.

    Source: Gorbatovski et al. 2024 (arXiv:2404.09656), Eqs. 4 and 5.
    """

    kind: Literal["soft", "hard"] = "soft"
    mix: float = 0.6
    every: int = 512

    def __post_init__(self) -> None:
        if not 0.0 <= self.mix <= 1.0:
            raise AlgorithmError(f"mix must be in [0, 1], got {self.mix}")
        if self.every < 1:
            raise AlgorithmError(f"every must be at least 1 optimizer step, got {self.every}")

    def roles(self) -> list[Roles]:
        """Who plays which part; the reference moves within the one round."""
        share = self.mix if self.kind == "soft" else 1.0
        moves = f"base, then every {self.every} steps {share:g} policy + {1.0 - share:g} reference"
        return [{"data": "base", "start": "base", "reference": moves, "policy": "policy 1"}]

    def apply(self, backend: Backend[Policy, Data], policy: Policy, reference: Policy) -> Policy:
        """The next reference."""
        share = self.mix if self.kind == "soft" else 1.0
        return backend.merge([policy, reference], np.array([share, 1.0 - share]))


def tr_dpo(
    backend: Backend[Policy, Data],
    objective: Callable[[], Objective],
    *,
    update: Update,
    data: DataSource,
    plan: FitPlan,
    journal: Journal | None = None,
) -> LoopOutcome[Policy]:
    """One training of the base policy on its own pairs, whose reference is updated; the optimiser is never restarted.

    Raises: AlgorithmError for the exact optimiser, which has no steps, and for objectives whose schedule would read
    the number of steps.
    """
    if plan.optimiser == "exact":
        raise AlgorithmError("tr_dpo updates the reference between optimizer steps; use gd or adam, not exact")
    if getattr(objective(), "schedule", "static") != "static":
        raise AlgorithmError("tr_dpo trains in segments, which an objective with a schedule would misread; use static")
    journal, base = journal or NoJournal(), backend.load()
    rows = data.draw(backend, base, 1)
    total = plan.length(rows.n_rows)  # type: ignore[attr-defined]
    at = _resumed(backend, journal, base)
    losses: Arrays = at.losses
    while at.done < total:
        stop = min(at.done + update.every, total)
        part = replace(plan, steps=stop, epochs=None, schedule=_Whole(plan.schedule.kind, plan.schedule.warmup, total))
        watch = _Segment(stop, at.snapshot, journal.monitor(f"{STAGE}-{stop}"))
        policy, losses = backend.fit(base, at.reference, rows, objective(), plan=part, monitor=watch)
        moved = update.apply(backend, policy, at.reference) if stop < total else at.reference
        at = _State(stop, policy, moved, watch.taken, losses)
        _keep(backend, journal, at)
    counts = {f"rows_{name}": value for name, value in backend.counts(rows).items()}
    last = Round(update.roles()[0], at.policy, {**backend.evaluate(at.policy), **losses, **counts})
    return outcome(backend, base, at.reference, [last])


@dataclass(frozen=True)
class _Whole(Schedule):
    """The schedule of the whole training, for a part of it."""

    total: int = 1

    def factor(self, step: int, total: int) -> float:
        """As if ``total`` were all steps."""
        return Schedule.factor(self, step, self.total)


@dataclass
class _Segment:
    """The monitor of a part of the training: begins from a snapshot, and takes one at the end."""

    stop: int
    resume: Snapshot | None
    inner: Monitor | None
    taken: Snapshot | None = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Pass it on."""
        if self.inner is not None:
            self.inner.log(step, values)

    def step(self, done: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Remember the end."""
        if done == self.stop:
            self.taken = snapshot()


@dataclass
class _State:
    """Between two segments."""

    done: int
    policy: Any
    reference: Any
    snapshot: Snapshot | None = None
    losses: Arrays = field(default_factory=dict)


def _keep(backend: Backend[Policy, Data], journal: Journal, at: _State) -> None:
    assert at.snapshot is not None  # every segment has a step
    arrays = prefixed(POLICY, backend.dump(at.policy)) | prefixed(REFERENCE, backend.dump(at.reference))
    arrays |= prefixed(MEMORY, at.snapshot["arrays"]) | prefixed("loss.", at.losses)
    journal.write(STAGE, Entry(arrays, {"done": at.done, "objective": at.snapshot["objective"]}))


def _resumed(backend: Backend[Policy, Data], journal: Journal, base: Policy) -> _State:
    known = journal.read(STAGE)
    if known is None:
        return _State(0, base, base)
    done = int(known.plain["done"])
    snapshot = {"step": done, "arrays": known.part(MEMORY), "objective": known.plain["objective"]}
    policy, reference = backend.load(known.part(POLICY)), backend.load(known.part(REFERENCE))
    return _State(done, policy, reference, snapshot, known.part("loss."))
