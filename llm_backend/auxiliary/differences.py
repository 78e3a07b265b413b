"""Derivatives along a line by central differences, two evaluations each once the function's slope is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NATS = 0.5  # wanted between the two ends, for the steepest response; twice as much is accepted


class CentralDifference:
    """d f(0) of f(h) = log pi(theta0 + h v), (k,), with h |v| at most eps^(1/3).

    A step that is small for the parameters can still be large for the sum over a long response, whose log-prob in
    float32 is rounded to 1e-4: so h is chosen by how much log-probs change. ``slope`` is the root mean square of
    <g_i, v> / |v| in the last product (0: none yet), from which the next one starts.
    """

    def __init__(self, precision: float) -> None:
        self.slope = 0.0
        self._most = precision ** (1.0 / 3.0)

    def __call__(self, values: Callable[[float], Tensor], length: float) -> Tensor:
        """[f(h) - f(-h)] / (2 h), (k,); ``length`` is |v|."""
        most = self._most / length if length > 0 else 1.0
        size = most if self.slope == 0.0 or length == 0.0 else min(most, NATS / (4.0 * self.slope * length))
        for _ in range(20):
            difference = values(size) - values(-size)
            change = float(difference.abs().max())
            if change > 2.0 * NATS:
                size *= NATS / change
            elif 0.0 < change < NATS / 16.0 and size < most:
                size = min(most, size * NATS / change)
            else:
                break
        return difference / (2.0 * size)

    def learn(self, squares: float, count: float, length: float) -> None:
        """Remember the slope: ``squares`` is the sum of <g_i, v>^2 over ``count`` responses (of all processes)."""
        if count > 0 and length > 0 and squares > 0:
            self.slope = (squares / count) ** 0.5 / length


def coarsest(parameters: dict[str, Tensor]) -> float:
    """The largest eps among the parameters' types."""
    return max(torch.finfo(value.dtype).eps for value in parameters.values())
