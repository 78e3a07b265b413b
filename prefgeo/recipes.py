"""Recipes: YAML files that say what to run, checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geometry.errors import nearest_name
from objectives import Objective, ObjectiveError, UnknownObjectiveError, make_objective
from prefgeo.yaml_reading import Fault, Path_, read_yaml

Model = TypeVar("Model", bound=BaseModel)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
SWEEPING = ("grid", "cases", "recipe")
"""Keys that a sweep has and a recipe has not."""


class Section(BaseModel):
    """What all parts of a recipe share: no unknown keys, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorldSpec(Section):
    """Which world: a ``name`` with its options (docs/simulator.md lists both), or the ``file`` of a problem.

    File names (here and among the options) are relative to the recipe's folder.
    """

    name: str | None = None
    file: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_world(self) -> WorldSpec:
        if (self.name is None) == (self.file is None):
            raise ValueError("give the name of a world or the file of a problem, and not both")
        if self.file is not None and self.options:
            raise ValueError("a problem in a file has no options: change the file")
        return self


class DataSpec(Section):
    """How the preference pairs of the round come about.

    ``kind``: ``candidates`` draws N responses from the base policy and compares best with worst (simulated worlds);
    ``hybrid`` compares the sources' best with the policy's worst (e6); ``population`` is every comparison of a problem
    with its exact BTL weights, ``sampled`` draws hard labels (problems). Left out: the world's usual kind.
    ``flip`` is the probability that a label is turned around.
    """

    kind: Literal["candidates", "hybrid", "population", "sampled"] | None = None
    flip: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0


class ObjectiveSpec(Section):
    """The objective by name and its hyperparameters (docs/objectives.md); those left out take the paper's values."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    def make(self) -> Objective:
        """A fresh objective. Raises ObjectiveError."""
        return make_objective(self.name, **self.options)


class TrainingSpec(Section):
    """How the objective is minimised.

    ``optimiser: world`` is the optimiser that a simulated world was designed with; learning_rate, steps, epochs and
    batch_size then replace the world's own. ``exact`` is the minimiser itself; then no other key is allowed.
    ``log_every`` counts steps; left out, a run logs about ten times.
    """

    optimiser: Literal["world", "exact", "gd", "adam"] = "world"
    learning_rate: Positive | None = None
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    log_every: Count | None = None

    @model_validator(mode="after")
    def _nothing_ignored(self) -> TrainingSpec:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None} - {"optimiser"}
        ignored = given if self.optimiser == "exact" else given & {"schedule", "warmup", "weight_decay"}
        if self.optimiser in ("exact", "world") and ignored:
            raise ValueError(f"optimiser: {self.optimiser} would ignore {', '.join(sorted(ignored))}; leave it out")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, and not both")
        if self.optimiser in ("gd", "adam"):
            if self.learning_rate is None:
                raise ValueError(f"optimiser: {self.optimiser} needs a learning_rate")
            if self.steps is None and self.epochs is None:
                raise ValueError("say how long to train: give steps or epochs")
        return self


class AlgorithmSpec(Section):
    """A loop around training, by name, and its settings (``prefgeo.algorithm_settings``)."""

    name: Literal["iterative", "tpmm", "aipo", "sppo", "sdpo", "tr_dpo", "wrpo"]
    options: dict[str, Any] = Field(default_factory=dict)


class Recipe(Section):
    """One run: one world, one objective, one round of training or the ``algorithm``, for every seed (a seed fixes world
    and data)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str = ""
    world: WorldSpec
    data: DataSpec = DataSpec()
    objective: ObjectiveSpec
    training: TrainingSpec = TrainingSpec()
    algorithm: AlgorithmSpec | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Recipe:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: a seed stands twice; each run needs its own")
        return self


def load_recipe(path: Path) -> tuple[Recipe, Fault]:
    """A checked recipe, and how to tell of later faults in it. Raises ``UsageError`` with file, line and key."""
    document = read_yaml(path)
    if found := [key for key in SWEEPING if key in document.values]:
        raise document.fault((found[0],), f"this is a sweep and not one run; say: prefgeo sweep {path}")
    return check_recipe(document.values, document.fault), document.fault


def check_recipe(values: Any, fault: Fault) -> Recipe:
    """The recipe in plain values; ``fault`` makes the errors. The objective's options are checked, the world's not."""
    recipe = validated(Recipe, values, fault)
    try:
        recipe.objective.make()
    except ObjectiveError as error:
        part = "name" if isinstance(error, UnknownObjectiveError) else "options"
        raise fault(("objective", part), str(error)) from None
    return recipe


def validated(model: type[Model], values: Any, fault: Fault) -> Model:
    """``values`` as a model. Raises what ``fault`` makes of the first mistake: its keys, and what would be right."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # a key that is mistyped is also missing; the mistyped one is what to tell
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        place = tuple(part for part in first["loc"] if isinstance(part, str | int))
        raise fault(place, _sentence(model, first, place)) from None


def _sentence(model: type[BaseModel], fault: Any, place: Path_) -> str:
    if fault["type"] == "extra_forbidden":
        known = _keys(model, place[:-1])
        return f"unknown key {place[-1]!r}.{nearest_name(str(place[-1]), known)} Known: {', '.join(known)}"
    if fault["type"] == "missing":
        return "this key is missing"
    if fault["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        hint = nearest_name(str(fault["input"]), known)
        return f"unknown {place[-1]} {fault['input']!r}.{hint} Known: {', '.join(known)}"
    if fault["type"] == "model_type":
        known = _keys(model, place)
        return f"must be a section with keys ({', '.join(known)}), got {fault['input']!r}"
    if fault["type"] == "float_type" and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", str(fault["input"])):
        return f"YAML reads {fault['input']} as a text; write the number with a point, as in 1.0e-3"
    given = "" if isinstance(fault["input"], dict | list) else f", got {fault['input']!r}"
    return f"{fault['msg'].removeprefix('Value error, ')}{'' if fault['type'] == 'value_error' else given}"


def _keys(model: type[BaseModel], place: Path_) -> list[str]:
    """The keys allowed in the section at ``place``."""
    for part in place:
        if isinstance(part, int):
            continue  # an entry of a list
        inner = sections_of(model.model_fields[part].annotation) if part in model.model_fields else []
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can hold: one, one that may be absent, or a list of them."""
    options = [annotation, *get_args(annotation)]
    options += [each for option in options for each in get_args(option)]
    return [kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)]
