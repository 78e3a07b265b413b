"""Sweeps as YAML: a recipe, a grid over its keys, seeds that all cells share, and a baseline to compare with."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from geometry.errors import nearest_name
from prefgeo.errors import UsageError
from prefgeo.language.cells import PreparedLanguage, prepare_language
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.preparation import Prepared, digest, prepare
from prefgeo.recipes import Recipe, Section, Seed, check_recipe, validated
from prefgeo.yaml_reading import Document, Fault, Path_, read_yaml

MOST = 100_000  # cells; more is a slip of the pen
Values = Annotated[list[Any], Field(min_length=1)]


class SweepSpec(Section):
    """What a sweep file holds. ``grid`` and ``baseline`` name keys of the recipe with dots: ``objective.options.beta``.

    ``recipe`` is written in place, or the name of a recipe file beside the sweep; with a ``model`` section it trains
    language models. ``seeds`` replace the recipe's.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str = ""
    recipe: str | dict[str, Any]
    grid: Annotated[dict[str, Values], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    baseline: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its settings, its checked recipe, and the number of the cell it is compared with."""

    index: int
    settings: Mapping[str, Any]
    prepared: Prepared | PreparedLanguage
    baseline: int | None

    def key(self, backend: str) -> str:
        """A hash of all that decides the result, but the seed of a language model."""
        config = {name: value for name, value in self.prepared.config.items() if name not in ("name", "seed")}
        return digest({**config, "backend": backend})[:24]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep."""

    name: str
    folder: Path
    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def trains_language_models(self) -> bool:
        """Whether a cell is a run for each seed, rather than all seeds at once."""
        return isinstance(self.cells[0].prepared, PreparedLanguage)


def load_sweep(path: Path) -> Sweep:
    """A sweep with every cell checked before any runs. Raises ``UsageError`` with file, line and key."""
    document = read_yaml(path)
    spec = validated(SweepSpec, document.values, document.fault)
    base, base_fault, folder = _base(spec, document, path)
    language = "model" in base
    _check_grid(spec, document, LanguageRecipe if language else Recipe)
    keys = tuple(spec.grid)
    points = list(itertools.product(*(range(len(values)) for values in spec.grid.values())))
    if len(points) > MOST:
        raise document.fault(("grid",), f"{len(points):,} cells are more than {MOST:,}; split the sweep")
    places = {point: index for index, point in enumerate(points)}
    against = {key: _index(spec, document, key, value) for key, value in spec.baseline.items()}
    cells = []
    for point, index in places.items():
        settings = {key: spec.grid[key][at] for key, at in zip(keys, point, strict=True)}
        fault = partial(_cell_fault, dict(zip(keys, point, strict=True)), document, base_fault)
        values = _with(base, settings)
        other = places[tuple(against.get(key, at) for key, at in zip(keys, point, strict=True))]
        prepared: Prepared | PreparedLanguage
        if language:
            prepared = prepare_language(values, fault, folder)
        else:
            prepared = prepare(check_recipe(values, fault), fault, folder)
        cells.append(Cell(index, settings, prepared, other if against and other != index else None))
    return Sweep(spec.name, folder, keys, _seeds(spec, cells[0], document), tuple(cells))


def label(value: Any) -> str:
    """A grid value for tables.

    >>> label({"name": "simpo", "options": {"beta": 2.0}}), label(0.1)
    ('simpo(beta=2.0)', '0.1')
    """
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        options = value.get("options") or {}
        return f"{value['name']}({', '.join(f'{key}={each}' for key, each in options.items())})"
    return value if isinstance(value, str) else json.dumps(value)


def _seeds(spec: SweepSpec, cell: Cell, document: Document) -> tuple[int, ...]:
    recipe = cell.prepared.recipe
    seeds = tuple(recipe.seeds) if isinstance(recipe, Recipe) else tuple(spec.seeds or [recipe.seed])
    if len(set(seeds)) != len(seeds):
        raise document.fault(("seeds",), "a seed stands twice; each run needs its own")
    return seeds


def _base(spec: SweepSpec, document: Document, path: Path) -> tuple[dict[str, Any], Fault, Path]:
    """The recipe before the grid, how to tell of its faults, and the folder that its file names start from."""
    if isinstance(spec.recipe, str):
        file = path.parent / spec.recipe
        if not file.is_file():
            raise document.fault(("recipe",), f"there is no file {file}")
        other = read_yaml(file)
        values, fault, folder = copy.deepcopy(other.values), other.fault, file.parent
    else:
        values, folder = copy.deepcopy(spec.recipe), path.parent
        for key in ("seeds", "seed"):
            if key in values and spec.seeds is not None:
                raise document.fault(("recipe", key), "the sweep has seeds already; leave these out")

        def fault(place: Path_, sentence: str) -> UsageError:
            return document.fault(("seeds",) if place[:1] == ("seeds",) else ("recipe", *place), sentence)

    values.setdefault("name", spec.name)
    if spec.seeds is not None and "model" in values:
        values["seed"] = spec.seeds[0]
    elif spec.seeds is not None:
        values["seeds"] = list(spec.seeds)
    return values, fault, folder


def _check_grid(spec: SweepSpec, document: Document, recipe: type[Section]) -> None:
    fixed = ("name", "description", "seeds", "seed")
    sections = [name for name in recipe.model_fields if name not in fixed]
    for key, values in spec.grid.items():
        head = key.partition(".")[0]
        if head in fixed:
            raise document.fault(("grid", key), f"{head} is the same in all cells; give it beside the grid")
        if head not in sections or not all(key.split(".")):
            hint = nearest_name(head, sections)
            raise document.fault(("grid", key), f"unknown key {key!r}.{hint} Keys begin with {', '.join(sections)}")
        seen: list[Any] = []
        for place, value in enumerate(values):
            if any(value == other and type(value) is type(other) for other in seen):
                raise document.fault(("grid", key, place), f"{label(value)} stands twice")
            seen.append(value)
    for one, two in itertools.permutations(spec.grid, 2):
        if two.startswith(f"{one}."):
            raise document.fault(("grid", two), f"{one} sets this already; vary one of the two")


def _index(spec: SweepSpec, document: Document, key: str, value: Any) -> int:
    if key not in spec.grid:
        hint = nearest_name(key, spec.grid)
        raise document.fault(("baseline", key), f"{key!r} is not in the grid.{hint} Known: {', '.join(spec.grid)}")
    if value not in spec.grid[key]:
        known = ", ".join(label(each) for each in spec.grid[key])
        raise document.fault(("baseline", key), f"{label(value)} is not among its values in the grid: {known}")
    return spec.grid[key].index(value)


def _with(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the recipe with dotted keys set; sections on the way that are absent are made."""
    values = copy.deepcopy(dict(base))
    for key, value in settings.items():
        *way, last = key.split(".")
        section: Any = values
        for part in way:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[last] = copy.deepcopy(value)
    return values


def _cell_fault(
    point: Mapping[str, int], document: Document, base_fault: Fault, place: Path_, sentence: str
) -> UsageError:
    """At the grid's value where that is to blame, else in the recipe."""
    dotted = ".".join(str(part) for part in place)
    for key, at in sorted(point.items(), key=lambda item: -len(item[0])):
        if dotted == key or dotted.startswith(f"{key}.") or (place and key.startswith(f"{dotted}.")):
            return document.fault(("grid", key, at), sentence)
    return base_fault(place, sentence)
