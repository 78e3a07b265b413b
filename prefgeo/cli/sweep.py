"""`prefgeo sweep FILE`: a grid of recipes, with paired seeds, on this machine or on a Dask cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prefgeo.cli.console import counted, say, stdout
from prefgeo.errors import UsageError, look_up
from prefgeo.preparation import BACKENDS
from prefgeo.sweep import SweepRun, run_sweep
from prefgeo.sweep_recipes import label
from prefgeo.sweep_tables import Comparison, compare

HELP = """Run a recipe over a grid of settings; all seeds of a cell at once, the same seeds in every cell.

  prefgeo sweep recipes/sweeps/e1_noise.yaml --jobs 2

  prefgeo sweep recipes/sweeps/e1_noise.yaml --cluster tcp://host:8786 --out sweeps/noise --resume

The folder gets results.parquet/.csv (a row for each cell and seed) and summary.parquet/.csv (means, 95% t intervals,
paired differences to the baseline). A sweep that was killed goes on with --resume; finished cells are not run again.
A cell that fails is recorded with its reason, the others go on, and the exit status is 1.

A recipe with a model section (--backend torch) is a run for each cell and seed, with its folder in runs/; what cells
have in common before preference training, SFT above all, is done once for each seed.
"""
SHOWN = (
    "J", "expected_reward", "win_rate", "lc_win_rate", "mean_length", "kl", "loss",
    "held_out/accuracy", "held_out/accuracy_by_margin", "out_of_domain/accuracy", "gold", "length",
)  # fmt: skip
LEADING = ("J", "lc_win_rate", "win_rate", "gold", "held_out/accuracy")
COLUMNS = 5  # metrics in the printed table; the files have all


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep", help=HELP)(run)


def run(
    sweep: Annotated[Path, typer.Argument(help="A sweep, .yaml.")],
    backend: Annotated[str, typer.Option(help="exact (numpy) or torch.")] = "exact",
    jobs: Annotated[int | None, typer.Option(help="Processes on this machine. Default: 1.", show_default=False)] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, as in tcp://host:8786.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep [default: sweeps/NAME-BACKEND]", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the sweep in the folder, if there is one.")
    ] = False,
    device: Annotated[str, typer.Option(help="For the torch backend: cpu, cuda, cuda:1, ...")] = "cpu",
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Seconds between two checkpoints of a language-model run.")
    ] = 10.0,
) -> int:
    """Parse, run, print."""
    look_up("backend", backend, BACKENDS)
    if jobs is not None and cluster is not None:
        raise UsageError("--jobs and --cluster exclude each other: a cluster has its own workers")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs is {jobs}; it must be at least 1")
    if not checkpoint_seconds >= 0.0:
        raise UsageError(f"--checkpoint-seconds is {checkpoint_seconds}; it must be at least 0")
    folder = out or Path("sweeps") / f"{sweep.stem}-{backend}"
    done = run_sweep(
        sweep, backend, folder, jobs=jobs or 1, cluster=cluster, resume=resume, device=device,
        checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip
    show(stdout(), done)
    return 1 if done.failures else 0


def show(console: Console, done: SweepRun) -> None:
    """The table, then what failed and where the files are."""
    rows = compare(done.sweep, done.results)
    found = list(dict.fromkeys(row.metric for row in rows))
    names = [name for name in SHOWN if name in found][:COLUMNS] or found[:COLUMNS]
    paired = any(row.difference is not None for row in rows)
    lead = next((name for name in LEADING if name in names), "") if paired else ""
    table = Table(*done.sweep.keys, *names, *([f"{lead} vs baseline"] if lead else []), pad_edge=False)
    by_cell: dict[int, dict[str, Comparison]] = {cell.index: {} for cell in done.sweep.cells}
    for row in rows:
        by_cell[row.cell.index][row.metric] = row
    for cell in done.sweep.cells:
        mine = by_cell[cell.index]
        values = [str(mine[name].estimate) if name in mine else "failed" for name in names]
        against = [_difference(mine.get(lead), cell.baseline is None)] if lead else []
        table.add_row(*(label(cell.settings[key]) for key in done.sweep.keys), *values, *against)
    console.print(table)
    for index, sentence in done.failures.items():
        settings = ", ".join(f"{key}={label(value)}" for key, value in done.sweep.cells[index].settings.items())
        say(console, f"failed: {settings}: {sentence}")
    cells, seeds = counted(len(done.sweep.cells), "cell"), counted(len(done.sweep.seeds), "seed")
    now = counted(done.computed, "run") if done.sweep.trains_language_models else f"{done.computed} run"
    say(console, f"{cells} ({now} now) x {seeds}, mean ± half of the 95% t interval; in {done.folder}")


def _difference(row: Comparison | None, is_baseline: bool) -> str:
    if row is None or row.difference is None:
        return "baseline" if is_baseline and row is not None else ""
    sign = "+" if row.difference.mean >= 0 else ""
    return f"{sign}{row.difference}"
