"""What a sweep computes one by one: a cell with all of its seeds or, where language models are trained, one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefgeo.language.cells import PreparedLanguage
from prefgeo.language.shared_start import start_key
from prefgeo.sweep_recipes import Cell, Sweep
from prefgeo.sweep_workers import Payload


@dataclass(frozen=True)
class Unit:
    """``key`` names its result. With a ``seed`` it is a run in a folder of that name, which begins with the stages
    before preference training of the run ``begins_with``: of the first unit that has the same ones, itself perhaps."""

    key: str
    cell: Cell
    seed: int | None = None
    begins_with: str = ""

    @property
    def is_first(self) -> bool:
        """Whether no other unit has to come before."""
        return self.seed is None or self.begins_with == self.key

    @property
    def seed_setting(self) -> dict[str, int]:
        """The seed, where it is a setting of the unit."""
        return {} if self.seed is None else {"seed": self.seed}

    def payload(self, home: Path, runs: Path, how: Mapping[str, Any]) -> Payload:
        """What a worker is told. File names start in ``home``; ``runs`` holds the folders of runs."""
        recipe = self.cell.prepared.recipe.model_dump(exclude_unset=True) | self.seed_setting
        told = {"key": self.key, "recipe": recipe, "folder": str(home.resolve()), **how}
        if self.seed is not None:
            told |= {"out": str((runs / self.key).resolve()), "start_from": str((runs / self.begins_with).resolve())}
        return told


def sweep_units(sweep: Sweep, backend: str, keys: Mapping[int, str] | None = None) -> list[Unit]:
    """All units, in the order of cells and seeds. ``keys``: those of the cells by number, if not their own."""
    units: list[Unit] = []
    first: dict[str, str] = {}
    for cell in sweep.cells:
        key = cell.key(backend) if keys is None else keys[cell.index]
        if not isinstance(cell.prepared, PreparedLanguage):
            units.append(Unit(key, cell))
            continue
        for seed in sweep.seeds:
            name = f"{key}-{seed}"
            begins_with = first.setdefault(start_key(cell.prepared.config, seed), name)
            units.append(Unit(name, cell, seed, begins_with))
    return units


def joined(sweep: Sweep, units: Sequence[Unit], found: Mapping[str, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The result of each cell by its number: metrics with a value for each seed. It failed where a seed of it did."""
    of_cell: dict[int, list[Unit]] = {cell.index: [] for cell in sweep.cells}
    for unit in units:
        of_cell[unit.cell.index].append(unit)
    results: dict[int, Mapping[str, Any]] = {}
    for index, mine in of_cell.items():
        failed = [(unit.seed, found[unit.key]) for unit in mine if found[unit.key]["status"] == "failed"]
        if failed:
            seed, result = failed[0]
            told = result["error"] if seed is None else f"seed {seed}: {result['error']}"
            results[index] = {"status": "failed", "error": told}
        elif mine[0].seed is None:
            results[index] = found[mine[0].key]
        else:
            parts = [found[unit.key]["metrics"] for unit in mine]
            names = [name for name in parts[0] if all(name in part for part in parts)]
            metrics = {name: [value for part in parts for value in part[name]] for name in names}
            results[index] = {"status": "done", "metrics": metrics}
    return results
