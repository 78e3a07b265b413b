"""Pictures made of small panels, three in a row, as curve.png is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

BLUE, RED, DARK, GREY = "#00798c", "#d1495b", "#1d3557", "#6b6b6b"


def draw_panels(title: str, panels: Sequence[Callable[[Any], None]]) -> bytes:
    """A PNG; each panel draws on the axes that it is given. The same bytes for the same numbers."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        panel(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
