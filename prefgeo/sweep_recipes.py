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

from pydantic import Field, field_validator, model_validator

from geometry.errors import nearest_name
from prefgeo.errors import UsageError
from prefgeo.language.cells import PreparedLanguage, prepare_language
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.preparation import Prepared, digest, prepare
from prefgeo.recipes import SWEEPING, Recipe, Section, Seed, check_recipe, validated
from prefgeo.yaml_reading import Document, Fault, Path_, read_yaml

CASE = "case"
UNHASHED = ("name", "seed", "keep_policies")
"""Keys of a resolved recipe that decide no result, and the seed, which is told beside it."""
MOST = 100_000  # cells; more is a slip of the pen
Values = Annotated[list[Any], Field(min_length=1)]


class SweepSpec(Section):
    """What a sweep file holds. ``grid`` and ``baseline`` name keys of the recipe with dots: ``objective.options.beta``.

    ``cases`` are values that belong together, by name, each {key: value}: one more axis of the grid, called ``case``.
    ``recipe`` is written in place, or the name of a recipe file beside the sweep; with a ``model`` section it trains
    language models. ``seeds`` replace the recipe's.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str = ""
    recipe: str | dict[str, Any]
    grid: Annotated[dict[str, Values], Field(min_length=1)] = Field(default_factory=dict)
    cases: dict[str, Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=dict)
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    baseline: dict[str, Any] = Field(default_factory=dict)

    @field_validator("recipe", mode="before")
    @classmethod
    def _name_or_recipe(cls, value: Any) -> Any:
        if not isinstance(value, str | dict):
            raise ValueError(f"must be the name of a recipe file, or a recipe written in place, got {value!r}")
        return value

    @model_validator(mode="after")
    def _something_varies(self) -> SweepSpec:
        if not self.grid and not self.cases:
            raise ValueError("say what to vary: give a grid or cases")
        return self

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each axis: those of the grid, after the names of the cases."""
        return ({CASE: list(self.cases)} if self.cases else {}) | self.grid


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its settings, its checked recipe, and the number of the cell it is compared with."""

    index: int
    settings: Mapping[str, Any]
    prepared: Prepared | PreparedLanguage
    baseline: int | None

    def key(self, backend: str) -> str:
        """A hash of all that decides the result, but the seed of a language model."""
        config = {name: value for name, value in self.prepared.config.items() if name not in UNHASHED}
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
    if "objective" in document.values and not any(key in document.values for key in SWEEPING):
        raise document.fault(
            ("objective",),
            f"this is a recipe of one run; say: prefgeo run {path}, or write a sweep of it, with "
            f"recipe: {path.name} and a grid",
        )
    spec = validated(SweepSpec, document.values, document.fault)
    base, base_fault, folder = _base(spec, document, path)
    language = "model" in base
    _check_grid(spec, document, LanguageRecipe if language else Recipe)
    keys = tuple(spec.axes)
    points = list(itertools.product(*(range(len(values)) for values in spec.axes.values())))
    if len(points) > MOST:
        raise document.fault(("grid",), f"{len(points):,} cells are more than {MOST:,}; split the sweep")
    places = {point: index for index, point in enumerate(points)}
    against = {key: _index(spec, document, key, value) for key, value in spec.baseline.items()}
    cells = []
    for point, index in places.items():
        settings = {key: spec.axes[key][at] for key, at in zip(keys, point, strict=True)}
        fault = partial(_cell_fault, dict(zip(keys, point, strict=True)), spec, document, base_fault)
        values = _with(base, {**spec.cases.get(settings.get(CASE, ""), {}), **{k: settings[k] for k in spec.grid}})
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
    places: list[Path_] = [("grid", key) for key in spec.grid]
    places += [("cases", name, key) for name, case in spec.cases.items() for key in case]
    for place in places:
        key = str(place[-1])
        head = key.partition(".")[0]
        if head in fixed:
            raise document.fault(place, f"{head} is the same in all cells; give it beside the grid")
        if head not in sections or not all(key.split(".")):
            hint = nearest_name(head, sections)
            raise document.fault(place, f"unknown key {key!r}.{hint} Keys begin with {', '.join(sections)}")
    for key, values in spec.grid.items():
        seen: list[Any] = []
        for at, value in enumerate(values):
            if any(value == other and type(value) is type(other) for other in seen):
                raise document.fault(("grid", key, at), f"{label(value)} stands twice")
            seen.append(value)
    for one, two in itertools.permutations(places, 2):
        together = one[0] == "grid" or two[0] == "grid" or one[1] == two[1]  # not keys of two cases
        if together and (one[-1] == two[-1] or str(two[-1]).startswith(f"{one[-1]}.")):
            raise document.fault(two, f"{one[-1]} sets this already; vary one of the two")


def _index(spec: SweepSpec, document: Document, key: str, value: Any) -> int:
    if key not in spec.axes:
        hint = nearest_name(key, spec.axes)
        raise document.fault(("baseline", key), f"{key!r} is not in the grid.{hint} Known: {', '.join(spec.axes)}")
    if value not in spec.axes[key]:
        known = ", ".join(label(each) for each in spec.axes[key])
        raise document.fault(("baseline", key), f"{label(value)} is not among its values in the grid: {known}")
    return spec.axes[key].index(value)


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
    point: Mapping[str, int], spec: SweepSpec, document: Document, base_fault: Fault, place: Path_, sentence: str
) -> UsageError:
    """At the grid's or the case's value where that is to blame, else in the recipe."""
    dotted = ".".join(str(part) for part in place)
    set_here: dict[str, Path_] = {key: ("grid", key, at) for key, at in point.items() if key in spec.grid}
    if spec.cases:
        name = spec.axes[CASE][point[CASE]]
        set_here |= {key: ("cases", name, key) for key in spec.cases[name]}
    for key, where in sorted(set_here.items(), key=lambda item: -len(item[0])):
        if dotted == key or dotted.startswith(f"{key}.") or (place and key.startswith(f"{dotted}.")):
            return document.fault(where, sentence)
    return base_fault(place, sentence)
