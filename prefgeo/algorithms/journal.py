"""What a loop writes down after each stage, so that a run that was killed does no finished stage again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from objectives import Objective
from objectives.fitting import Monitor
from prefgeo.backend import Arrays, Backend, Data, FitPlan, Policy

POLICY, NOTE = "policy.", "note."


@dataclass(frozen=True)
class Entry:
    """A finished stage: named arrays, and plain values."""

    arrays: Arrays
    plain: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Any]:
        """The arrays whose names begin with ``prefix``, without it."""
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}


class Journal(Protocol):
    """Where stages are kept, by name; a stage that is written again replaces the older entry.

    ``needs``: from here on the loop opens no other policy that there is by now.
    """

    def read(self, stage: str) -> Entry | None: ...

    def write(self, stage: str, entry: Entry) -> None: ...

    def monitor(self, stage: str) -> Monitor | None: ...

    def needs(self, policies: Sequence[Any]) -> None: ...


class NoJournal:
    """Keeps nothing and watches nothing."""

    def read(self, stage: str) -> Entry | None:
        """Nothing is kept."""
        return None

    def write(self, stage: str, entry: Entry) -> None:
        """Nothing is kept."""

    def monitor(self, stage: str) -> Monitor | None:
        """Nobody watches."""
        return None

    def needs(self, policies: Sequence[Any]) -> None:
        """Whoever keeps them knows."""


def fitted(
    backend: Backend[Policy, Data],
    journal: Journal,
    stage: str,
    data: Callable[[], Data],
    objective: Objective,
    *,
    start: Policy,
    reference: Policy,
    plan: FitPlan,
    later: Sequence[Policy] = (),
) -> tuple[Policy, Arrays]:
    """The policy that a stage of training makes, with its loss and the counts of its data; from the journal if there.

    ``data`` is called only where the stage is not finished. Metrics of the policy are among the notes. ``later``: the
    policies that are read by this stage's data or later on, besides ``start`` and ``reference``; only where the stage
    is not finished is the journal told of them, since after a resume earlier stages do not know of later policies.
    """
    known = journal.read(stage)
    if known is not None:
        kept = known.part(NOTE)
        return backend.load(known.part(POLICY)), {name: kept[name] for name in known.plain["notes"]}
    journal.needs([start, reference, *later])
    rows, monitor = data(), journal.monitor(stage)
    policy, losses = backend.fit(start, reference, rows, objective, plan=plan, monitor=monitor)
    counts = {f"rows_{name}": value for name, value in backend.counts(rows).items()}
    notes = {**backend.evaluate(policy), **losses, **counts}
    if plan.optimiser == "exact" and monitor is not None:  # there were no steps to log
        monitor.log(1, notes)
    arrays = prefixed(POLICY, backend.dump(policy)) | prefixed(NOTE, notes)
    journal.write(stage, Entry(arrays, {"notes": list(notes)}))  # files do not keep the order of arrays
    return policy, notes


def prefixed(prefix: str, arrays: Arrays) -> dict[str, Any]:
    """The same arrays under longer names."""
    return {f"{prefix}{name}": np.asarray(value) for name, value in arrays.items()}
