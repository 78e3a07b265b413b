"""The table of a loop's rounds: whole numbers on a narrow terminal too."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prefgeo.cli.rounds_table import show_rounds

METRICS = {"gold": 0.719, "facts": 0.917, "length": 9.875, "lc_win_rate": 0.5, "kl": 0.0, "accuracy": 0.151}
RESULT = {
    "base": METRICS,
    "rounds": [
        {"roles": {"policy": f"policy-{t}", "reference": f"merge-{t}"}, "metrics": METRICS | {"rows_kept": 40.0 + t},
         "shares": [0.25, 0.75]}
        for t in (1, 2, 3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 140])
def test_no_number_is_cut(width: int) -> None:
    text = io.StringIO()
    show_rounds(Console(file=text, width=width, highlight=False), RESULT)
    shown = text.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    for value in ("gold reward", "LC win rate", "KL to base", "9.875", "policy-3", "merge-3", "0.25 0.75", "43"):
        assert value in shown
    assert max(map(len, shown.splitlines())) <= width
    across = next(line for line in shown.splitlines() if "gold reward" in line)
    assert ("LC win rate" in across) == (width == 140)  # as a line of names, or a line of values
