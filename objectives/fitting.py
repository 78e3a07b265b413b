"""What every trainer of an objective is given beside it: the plan of a fit, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

Snapshot = dict[str, Any]
"""``step`` (steps done), ``arrays`` (the parameters, and what the optimiser remembers), ``objective`` (its state)."""


class RateSchedule(Protocol):
    """The factor on the learning rate at ``step`` (0-based) of ``total`` steps."""

    def factor(self, step: int, total: int) -> float: ...


class Plan(Protocol):
    """How to fit: ``rate(data)`` is the learning rate, ``length(n)`` the steps on n rows, ``log_interval(n)`` of them a
    line of the log. ``optimiser`` "exact" is the minimiser itself, and reads nothing else."""

    @property
    def optimiser(self) -> str: ...
    @property
    def rate(self) -> Any: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def schedule(self) -> RateSchedule: ...
    def length(self, n_rows: int) -> int: ...
    def log_interval(self, n_rows: int) -> int: ...


class Monitor(Protocol):
    """Is told of every logged line and every step. ``resume`` is the snapshot to start from, None for the beginning."""

    @property
    def resume(self) -> Snapshot | None: ...

    def log(self, step: int, values: Mapping[str, NDArray[Any]]) -> None: ...

    def step(self, done: int, total: int, snapshot: Callable[[], Snapshot]) -> None: ...
