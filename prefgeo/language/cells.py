"""Language-model recipes as cells of a sweep: checked beforehand, run for one seed, and reduced to named numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from objectives.options import hyperparameters
from prefgeo.errors import UsageError
from prefgeo.language.recipe import LanguageRecipe, check_language_recipe
from prefgeo.yaml_reading import Fault

BEFORE = "before"
GENERATED = ("gold", "facts", "length")
COUNTS, BOUNDS = ("variables", "parameters", "margin_dimension", "delta_rms", "delta_residual"), ("rank", "reachable")


@dataclass(frozen=True)
class PreparedLanguage:
    """A checked recipe. ``config`` is all of it, resolved and as JSON, with the hashes of the files that it reads."""

    recipe: LanguageRecipe
    config: dict[str, Any]
    fault: Fault

    def check_names(self, folder: Path) -> None:
        """Raises ``UsageError`` with line and key for a model that is nowhere. File names start in ``folder``."""
        from prefgeo.language.model_names import check_names

        check_names(self.recipe, self.fault, folder)


def prepare_language(values: Mapping[str, Any], fault: Fault, folder: Path) -> PreparedLanguage:
    """Check plain values. Raises ``UsageError`` with line and key. File names start in ``folder``."""
    from prefgeo.language.data import find_source, world_options

    recipe = check_language_recipe(values, fault)
    inputs: dict[str, str] = {}
    if recipe.data.world is not None:
        world_options(recipe.data.world, fault)
    elif isinstance(source := find_source(str(recipe.data.path), folder), Path) and source.is_file():
        state = source.stat()
        inputs = {source.name: _hash(source, state.st_size, state.st_mtime_ns)}
    return PreparedLanguage(recipe, plain_recipe(recipe) | {"inputs": inputs}, fault)


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file: the cells of a sweep mostly read the same one."""
    from prefgeo.language.data import sha256

    return sha256(path)


def plain_recipe(recipe: LanguageRecipe) -> dict[str, Any]:
    """The whole recipe as JSON, with every default filled in, those of the objective too."""
    config = recipe.model_dump(mode="json")
    objective = recipe.objective.make()
    config["objective"]["options"] = {each.name: getattr(objective, each.name) for each in hyperparameters(objective)}
    loaded: dict[str, Any] = json.loads(json.dumps(config))
    return loaded


def train_language(payload: Mapping[str, Any], fault: Fault) -> dict[str, Any]:
    """Run one seed of a cell in its folder, or go on with it: metrics, each with one value. The bar is the sweep's."""
    try:
        from prefgeo.language.run import check_device, run_checked
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a language model needs {error.name}, which is not installed: pip install 'prefgeo[llm]'"
        ) from None
    from prefgeo.progress import part_of_sweep

    check_device(payload["device"])
    recipe = check_language_recipe(payload["recipe"], fault)
    with part_of_sweep(Path(payload["out"]).name):
        done = run_checked(
            recipe, fault, Path(payload["folder"]), Path(payload["out"]),
            resume=True, device=payload["device"], seconds=payload["seconds"], start_from=Path(payload["start_from"]),
        )  # fmt: skip
    return {"metrics": {name: [value] for name, value in named_numbers(done.result).items()}}


def named_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's result, by name: what preference training ended with, and what it began with.

    ``SPLIT/accuracy`` by log-probability, ``SPLIT/accuracy_by_margin`` by implicit reward, both also by category as
    ``SPLIT/accuracy/CATEGORY``; ``gold``, ``facts`` and ``length`` of generations; all after ``before/`` those of the
    stage before preference training; ``auxiliary/...``, of AuxDPO's variables; of a loop ``round_0/...``, the base
    policy's, and ``round_t/...``.
    """
    stages = list(result["stages"].values())
    found = _stage_numbers(stages[-1], "") | _auxiliary_numbers(stages[-1].get("auxiliary", {}))
    if len(stages) > 1:
        found |= _stage_numbers(stages[-2], f"{BEFORE}/")
    rounds = [result["base"], *(each["metrics"] for each in result["rounds"])] if "rounds" in result else []
    for t, metrics in enumerate(rounds):
        found |= {f"round_{t}/{name}": float(value) for name, value in metrics.items()}
    return found


def _stage_numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for split, pairs in record["pairs"].items():
        for name, part in (("accuracy", ""), ("by_margin", "_by_margin")):
            if name in pairs:
                found[f"{prefix}{split}/accuracy{part}"] = float(pairs[name])
        for name, part in (("by_category", ""), ("by_category_by_margin", "_by_margin")):
            for category, value in pairs.get(name, {}).items():
                found[f"{prefix}{split}/accuracy{part}/{category}"] = float(value)
    for name in GENERATED:
        if name in record.get("generations", {}):
            found[f"{prefix}{name}"] = float(record["generations"][name])
    return found


def _auxiliary_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    found = {f"auxiliary/{name}": float(record[name]) for name in COUNTS if name in record}
    for name in BOUNDS:
        if name in record:
            least, most = record[name]
            found |= {f"auxiliary/{name}_least": float(least), f"auxiliary/{name}_most": float(most)}
    return found
