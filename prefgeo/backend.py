"""The Backend protocol: all that an algorithm may ask. Exact, torch and language-model backends have its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from bandits.schedules import Schedule
from objectives import Objective
from objectives.fitting import Monitor

Policy = TypeVar("Policy")
Data = TypeVar("Data")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class FitPlan:
    """How to fit. ``rate(data)`` is the learning rate, a number or one for each run; ``optimiser`` is "gd", "adam" or
    "exact" (the minimiser itself, which reads nothing else). Give ``steps`` or ``epochs``."""

    optimiser: str
    rate: Callable[[Any], Any] | None = None
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)
    log_every: int | None = None

    def length(self, n_rows: int) -> int:
        """The number of steps on data of ``n_rows`` rows. An epoch of full batches is one step."""
        per_epoch = 1 if self.batch_size is None else -(-n_rows // self.batch_size)
        return self.steps if self.steps is not None else per_epoch * int(self.epochs or 0)

    def log_interval(self, n_rows: int) -> int:
        """Steps between two lines of the log: ``log_every``, or about ten lines in all."""
        return self.log_every or max(1, self.length(n_rows) // 10)


def constant_rate(value: float) -> Callable[[Any], float]:
    """The learning rate ``value`` whatever the data, for ``FitPlan.rate``.

    >>> constant_rate(0.02)("any data")
    0.02
    """
    return lambda data: value


class Backend(Protocol[Policy, Data]):
    """What an algorithm may ask. Policies and data are opaque to it; metrics are one number for each seed."""

    def load(self, arrays: Arrays | None = None) -> Policy:
        """The base policy (the first reference), or one from the arrays that ``dump`` gave."""
        ...

    def dump(self, policy: Policy) -> Arrays:
        """A policy as named arrays, exactly."""
        ...

    def preferences(
        self,
        policy: Policy,
        *,
        kind: str,
        flip: float,
        round_index: int,
        split: str = "train",
        part: tuple[int, int] = (0, 1),
    ) -> Data:
        """Preference data of responses from ``policy``, labelled by the world's own reward, flipped with ``flip``.

        ``round_index`` and ``split`` name the draw; others are independent of it. ``part`` (i, n) takes the rows
        i, i + n, i + 2 n, ... of it. The kind "supervised" gives demonstrations as chosen, where a world has any.
        """
        ...

    def counts(self, data: Data) -> Arrays:
        """How many rows there are, by name, each (R,): kept, and what was dropped or flipped, and why."""
        ...

    def fit(
        self,
        start: Policy,
        reference: Policy,
        data: Data,
        objective: Objective,
        *,
        plan: FitPlan,
        monitor: Monitor | None = None,
    ) -> tuple[Policy, Arrays]:
        """The policy that minimises the objective's mean loss, or is trained to; and its final loss, (R,)."""
        ...

    def merge(self, policies: Sequence[Policy], weights: Any) -> Policy:
        """The policy whose parameters are the weighted sum of the given ones'."""
        ...

    def merged_margins(
        self, policies: Sequence[Policy], data: Data, weights: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """How the policy merged with ``weights`` (R, k) sees the data, without a reference.

        log pi(y_w) - log pi(y_l), (R, n); its derivatives in the weights, (R, n, k); and the rows' shares, (R, n).
        """
        ...

    def evaluate(self, policy: Policy) -> Arrays:
        """Exact metrics of the policy against the base policy, each (R,)."""
        ...
