"""A sweep: every cell of a grid, all seeds at once in each, kept one by one so that a killed sweep can go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefgeo.endings import orderly_on_sigterm
from prefgeo.errors import UsageError
from prefgeo.folders import Folder
from prefgeo.language.cells import PreparedLanguage
from prefgeo.preparation import digest
from prefgeo.progress import ProgressBar
from prefgeo.recipe_changes import check_unchanged
from prefgeo.runs import git_revision, run_versions
from prefgeo.sweep_recipes import Sweep, load_sweep
from prefgeo.sweep_tables import as_csv, as_parquet, results_table, summary_table
from prefgeo.sweep_units import Unit, joined, sweep_units
from prefgeo.sweep_workers import Found, Pool, workers

CONFIG, CELLS, RUNS = "sweep.json", "cells", "runs"
TABLES = ("results", "summary")


class SweepFolder(Folder):
    """Files of one sweep: sweep.json, a file for each unit that is done or has failed, the tables, and the folders of
    language-model runs."""

    what = "sweep"
    files = (CONFIG, CELLS, RUNS, *(f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv")))


@dataclass(frozen=True)
class SweepRun:
    """A sweep whose cells have all been tried; ``computed`` of its units now, the others before."""

    folder: Path
    sweep: Sweep
    results: Mapping[int, Mapping[str, Any]]
    computed: int

    @property
    def failures(self) -> dict[int, str]:
        """Number of the cell -> what went wrong."""
        return {index: result["error"] for index, result in self.results.items() if result["status"] == "failed"}


def run_sweep(
    path: Path,
    backend: str,
    out: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    resume: bool = False,
    device: str = "cpu",
    checkpoint_seconds: float = 10.0,
) -> SweepRun:
    """Run a sweep file and write its tables. Cells that are done already (``resume``) are read, not run again.

    Raises: ``UsageError`` for a fault in the file, a folder that exists or belongs to another sweep, or a cluster that
    does not answer. A cell that fails does not raise: it is recorded with its reason, and tried again by ``resume``.
    """
    sweep = load_sweep(path)
    if sweep.trains_language_models and backend != "torch":
        raise UsageError(f"{path} trains language models, which the {backend} backend cannot do: say --backend torch")
    for cell in sweep.cells:
        if isinstance(cell.prepared, PreparedLanguage):
            cell.prepared.check_names(sweep.folder)
    with orderly_on_sigterm(), workers(jobs, cluster) as pool:
        folder = SweepFolder.claim(out, resume=resume)
        try:
            return _run(sweep, folder, pool, {"backend": backend, "device": device, "seconds": checkpoint_seconds})
        finally:
            folder.release()


def _run(sweep: Sweep, folder: SweepFolder, pool: Pool, how: Mapping[str, Any]) -> SweepRun:
    units = sweep_units(sweep, how["backend"], _begin(folder, sweep, how["backend"], how["device"]))
    done = {unit.key: found for unit in units if (found := _stored(folder, unit.key)) is not None}
    waiting = list({unit.key: unit for unit in units if unit.key not in done}.values())  # cells may be alike
    settings = {unit.key: dict(unit.cell.settings) | unit.seed_setting for unit in units}
    for key, result in _watched(pool, waiting, folder.path, sweep, len(settings), how):
        done[key] = result
        folder.write_json(f"{CELLS}/{key}.json", {"cell": settings[key], "result": result})
    results = joined(sweep, units, done)
    _write_tables(folder, sweep, results)
    return SweepRun(folder.path, sweep, results, len(waiting))


def _begin(folder: SweepFolder, sweep: Sweep, backend: str, device: str) -> dict[int, str]:
    """Say what this folder holds, or check that it is the same sweep; the key of each cell by its number."""
    keys = {cell.index: cell.key(backend) for cell in sweep.cells}
    config = {
        "name": sweep.name,
        "backend": backend,
        "device": device,
        "seeds": list(sweep.seeds),
        "cells": {keys[cell.index]: dict(cell.settings) for cell in sweep.cells},
    }
    if not folder.has(CONFIG):
        if (folder.path / CELLS).exists():
            raise UsageError(f"{folder.path} is not the folder of a sweep: {CONFIG} is missing; choose another --out")
        recipes = {keys[cell.index]: cell.prepared.config for cell in sweep.cells}
        told = {"sweep": config, "recipes": recipes, "versions": run_versions(), "git_revision": git_revision()}
        folder.write_json(CONFIG, told)
    else:
        keys = _known_keys(folder, sweep, keys, config)
    (folder.path / CELLS).mkdir(exist_ok=True)
    return keys


def _known_keys(folder: SweepFolder, sweep: Sweep, keys: dict[int, str], config: Mapping[str, Any]) -> dict[int, str]:
    """The keys under which the folder has the cells: an earlier version, whose recipes had fewer keys, made others.

    Raises: ``UsageError`` for the folder of another sweep, with what differs.
    """
    stored = folder.read_json(CONFIG)
    before, recipes = stored.get("sweep", {}), stored.get("recipes", {})
    if digest(before) == digest(config):
        return keys
    for name in ("name", "backend", "device", "seeds"):
        check_unchanged(folder.path, {name: before.get(name)}, {name: config[name]}, what="sweep")
    known = {digest(settings): key for key, settings in before.get("cells", {}).items()}
    if set(known) != {digest(dict(cell.settings)) for cell in sweep.cells} or not recipes:
        raise UsageError(f"{folder.path} belongs to another sweep: its cells are others; choose another --out")
    found: dict[int, str] = {}
    for cell in sweep.cells:
        found[cell.index] = known[digest(dict(cell.settings))]
        there, here = ({**each, "name": "", "seed": 0} for each in (recipes[found[cell.index]], cell.prepared.config))
        check_unchanged(folder.path, there, here, what="sweep")
    return found


def _stored(folder: SweepFolder, key: str) -> dict[str, Any] | None:
    """The result of a unit that is done; None for one that is not, or has failed."""
    name = f"{CELLS}/{key}.json"
    if not folder.has(name):
        return None
    result: dict[str, Any] = folder.read_json(name).get("result", {})
    return result if result.get("status") == "done" else None


def _watched(
    pool: Pool, waiting: Sequence[Unit], out: Path, sweep: Sweep, total: int, how: Mapping[str, Any]
) -> Iterator[Found]:
    """The results as they come, with a bar. Units that others begin with come before these."""
    done = total - len(waiting)
    bar = ProgressBar(f"sweep {sweep.name}", patience=0.0)
    try:
        bar.show(done, total)
        for part in ([u for u in waiting if u.is_first], [u for u in waiting if not u.is_first]):
            for found in pool([unit.payload(sweep.folder, out / RUNS, how) for unit in part]) if part else ():
                yield found
                done += 1
                bar.show(done, total)
    finally:
        bar.stop()


def _write_tables(folder: SweepFolder, sweep: Sweep, results: Mapping[int, Mapping[str, Any]]) -> None:
    tables = {"results": results_table(sweep, results), "summary": summary_table(sweep, results)}
    for name, table in tables.items():
        folder.write(f"{name}.parquet", as_parquet(table))
        folder.write(f"{name}.csv", as_csv(table))
