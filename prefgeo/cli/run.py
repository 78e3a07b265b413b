"""`prefgeo run RECIPE`: train one objective on one world, for all seeds of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from prefgeo.cli.console import counted, say, stdout
from prefgeo.cli.run_language import run_language
from prefgeo.errors import UsageError, look_up
from prefgeo.language.recipe import is_language_recipe
from prefgeo.preparation import BACKENDS
from prefgeo.runs import Run, run_recipe
from prefgeo.tracking import tracked

HELP = """Run a recipe: one objective, or a loop over rounds, on a simulated world or a language model.

  prefgeo run recipes/prop2_dpo.yaml --backend exact

  prefgeo run recipes/e1_dpo.yaml --backend torch --out runs/e1 --resume

  prefgeo run recipes/quickstart_lm.yaml --backend torch

The folder holds config.json (everything resolved), manifest.json (seeds, versions, hashes, who was reference),
metrics.jsonl, result.json and theta.safetensors; that of a language model (a recipe with a model section, for torch
only) holds the model and curve.png instead. An existing folder is never overwritten; a run that was killed continues
with --resume and gives the same result, bit for bit.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", help=HELP)(run)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, .yaml.")],
    backend: Annotated[str, typer.Option(help="exact (numpy) or torch.")] = "exact",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run [default: runs/NAME-BACKEND]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")] = False,
    device: Annotated[str, typer.Option(help="For the torch backend: cpu, cuda, cuda:1, ...")] = "cpu",
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 10.0,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Send metrics on, too: tensorboard or wandb; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Parse, run, print."""
    look_up("backend", backend, BACKENDS)
    if not checkpoint_seconds >= 0.0:
        raise UsageError(f"--checkpoint-seconds is {checkpoint_seconds}; it must be at least 0")
    folder = out or Path("runs") / f"{recipe.stem}-{backend}"
    how: Any = {"resume": resume, "device": device, "checkpoint_seconds": checkpoint_seconds}
    with tracked(track or (), folder):
        if is_language_recipe(recipe):
            run_language(recipe, backend, folder, **how)
        else:
            show(run_recipe(recipe, backend, folder, **how))


def show(done: Run) -> None:
    """A table of the metrics, before and after."""
    console = stdout()
    if done.was_finished:
        say(console, f"{done.folder} is finished already; this is its result.")
    base, after = done.estimates("base"), done.estimates()
    table = Table("metric", "base policy", "trained", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, estimate in after.items():
        table.add_row(name, str(base.get(name, "")), str(estimate))
    console.print(table)
    n = len(done.result["seeds"])
    interval = ", mean ± half of the 95% t interval" if n > 1 else ""
    say(console, f"{counted(n, 'seed')}{interval}; written to {done.folder}")
