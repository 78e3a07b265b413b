"""`prefgeo run` for a recipe with a ``model`` section: a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from prefgeo.cli.console import say, stdout
from prefgeo.cli.rounds_table import show_rounds
from prefgeo.errors import UsageError

COLUMNS = ("stage", "held-out accuracy", "by margin", "gold reward", "facts", "length")


def run_language(
    recipe: Path, backend: str, folder: Path, *, resume: bool, device: str, checkpoint_seconds: float
) -> None:
    """Run and print. Raises ``UsageError`` for the exact backend, and where torch is not installed."""
    if backend != "torch":
        raise UsageError(
            f"{recipe} trains a language model, which the {backend} backend cannot do: run it with --backend torch"
        )
    try:
        from prefgeo.language.run import run_language_recipe
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a language model needs {error.name}, which is not installed: pip install 'prefgeo[llm]'"
        ) from None
    done = run_language_recipe(recipe, folder, resume=resume, device=device, checkpoint_seconds=checkpoint_seconds)
    from prefgeo.language.launch import leave_launch

    if leave_launch() > 0:
        return  # the first process of a launch tells
    console = stdout()
    if done.was_finished:
        say(console, f"{done.folder} is finished already; this is its result.")
    table = Table(*COLUMNS, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, record in done.result["stages"].items():
        table.add_row(stage, *_row(record))
    console.print(table)
    if "rounds" in done.result:
        show_rounds(console, done.result)
    say(console, "95% intervals in brackets, ± one standard error")
    say(console, f"curve in {done.folder / 'curve.png'}, model in {done.folder / 'model'}")


def _row(record: Mapping[str, Any]) -> list[str]:
    pairs, said = record["pairs"]["held_out"], record.get("generations")
    row = [_with_interval(pairs, name) for name in ("accuracy", "by_margin")]
    if said is None:
        return [*row, "", "", ""]
    gold, length = (_with_error(said, name, f"{name}_standard_error") for name in ("gold", "length"))
    return [*row, gold, f"{said['facts']:.3f}", length]


def _with_interval(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return ""
    low, high = values[f"{name}_interval"]
    return f"{values[name]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _with_error(values: Mapping[str, float], name: str, error: str) -> str:
    return f"{values[name]:.3f} ± {values[error]:.3f}"
