"""The picture of a short run: a single logged value is seen."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

pytest.importorskip("transformers")

from prefgeo.language import curve


@pytest.mark.parametrize("n", [1, 5, 6])
def test_few_values_have_marks(n: int) -> None:
    metrics: list[dict[str, Any]] = [{"stage": curve.SFT, "step": 10 * k, "loss": 2.0 - 0.1 * k} for k in range(n)]
    axes = Figure().add_subplot()
    curve._supervised_loss(axes, metrics, {})
    (line,) = axes.lines
    assert len(line.get_xdata()) == n  # type: ignore[arg-type]
    assert (line.get_marker() == "o") == (n <= 5)
