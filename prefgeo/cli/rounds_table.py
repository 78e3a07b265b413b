"""The rounds of a loop on a language model, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "gold": "gold reward", "facts": "facts", "length": "length", "lc_win_rate": "LC win rate",
    "kl": "KL to base", "accuracy": "accuracy", "rows_kept": "rows",
}  # fmt: skip


def show_rounds(console: Console, result: Mapping[str, Any]) -> None:
    """A line for the base policy and for each round, with the shares of its merge where there is one; turned
    around where the console is too narrow for so many columns."""
    lines: list[tuple[Any, Any, Any]] = [({"policy": "base", "reference": ""}, result["base"], None)]
    lines += [(each["roles"], each["metrics"], each.get("shares")) for each in result["rounds"]]
    names = [name for name in COLUMNS if any(name in metrics for _, metrics, _ in lines)]
    merged = any(shares is not None for _, _, shares in lines)
    heads = ["policy", "reference", *(COLUMNS[name] for name in names), *(["merge"] if merged else [])]
    rows = []
    for roles, metrics, shares in lines:
        row = [f"{metrics[name]:.3f}".removesuffix(".000") if name in metrics else "" for name in names]
        told = [" ".join(f"{share:.2f}" for share in shares or [])] if merged else []
        rows.append([roles["policy"], roles["reference"], *row, *told])
    table = _table(heads, rows, left=2)
    if (
        console.measure(table, options=console.options.update(width=10_000)).maximum > console.width
    ):  # a narrow terminal: a column for each policy
        heads, *rows = [list(column) for column in zip(heads, *rows, strict=True)]
        table = _table(heads, rows, left=1)
    console.print(table)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Table:
    table = Table(*heads, pad_edge=False)
    for place, column in enumerate(table.columns):
        column.no_wrap, column.justify = True, "left" if place < left else "right"
    for row in rows:
        table.add_row(*row)
    return table
