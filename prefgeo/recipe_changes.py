"""Whether two resolved recipes say the same: keys that one of them lacks, as it was written by an earlier version, have
their defaults."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bandits.worlds.simulated.catalogue import SIMULATED, simulated_options
from objectives import make_objective
from objectives.options import hyperparameters
from prefgeo.algorithm_settings import ALGORITHMS
from prefgeo.errors import UsageError
from prefgeo.language.loop_spec import RANKINGS
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.recipes import Recipe, sections_of
from prefgeo.yaml_reading import Path_

UNCOUNTED = ("description", "keep_policies")
"""Keys that change nothing of what is computed."""
FOLLOWING = "data_fingerprints."
"""What changes with other keys is told where nothing else has changed."""
SHOWN, LONGEST = 3, 60  # changes that are told, and characters of a value
ABSENT = object()


def check_unchanged(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], what: str = "run") -> None:
    """Raises ``UsageError`` that names what is not as in the folder's run (or other ``what``), with both values."""
    found = list(changes(before, now))
    if not found:
        return
    found = [each for each in found if not each[0].startswith(FOLLOWING)] or found
    told = [f"{key} is {_short(there)} there and {_short(here)} here" for key, there, here in found[:SHOWN]]
    more = f", and {len(found) - SHOWN} more keys differ" if len(found) > SHOWN else ""
    raise UsageError(f"{folder} belongs to another {what}: {'; '.join(told)}{more}; undo that, or choose another --out")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key with dots, value in ``before``, value in ``now``) of everything that differs, defaults filled in."""
    for key, there, here in _differing((), filled(before), filled(now)):
        if key[0] not in UNCOUNTED:
            yield ".".join(map(str, key)), there, here


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe, as config.json holds it, with the default of every key that it lacks."""
    whole = _with_defaults(LanguageRecipe if "model" in config else Recipe, config)
    _fill_options(whole.get("objective"), _objective)
    _fill_options(whole.get("algorithm"), lambda name, given: _with_defaults(ALGORITHMS[name], given))
    _fill_options(whole.get("ranking"), lambda name, given: _with_defaults(RANKINGS[name], given))
    for world in (whole.get("world"), (whole.get("data") or {}).get("world")):
        _fill_options(world, _world)
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


def _with_defaults(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(values))
    for name, field in model.model_fields.items():
        if name not in found and not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data=found)
            found[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        for section in sections_of(field.annotation):
            inner = found.get(name)
            if isinstance(inner, dict):
                found[name] = _with_defaults(section, inner)
            elif isinstance(inner, list):
                found[name] = [_with_defaults(section, each) if isinstance(each, dict) else each for each in inner]
    return found


def _fill_options(section: Any, fill: Any) -> None:
    """Options whose defaults depend on the section's name. Those that cannot be filled stay as they are."""
    if not isinstance(section, dict) or not isinstance(section.get("options"), dict):
        return
    try:
        section["options"] = fill(section["name"], section["options"])
    except (ValueError, KeyError, TypeError):
        return


def _objective(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    made = make_objective(name, **given)
    return {each.name: getattr(made, each.name) for each in hyperparameters(made)}


def _world(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(simulated_options(name, given)) if name in SIMULATED else dict(given)


def _differing(place: Path_, before: Any, now: Any) -> Iterator[tuple[Path_, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differing((*place, key), before.get(key, ABSENT), now.get(key, ABSENT))
    elif before is ABSENT or now is ABSENT or before != now:
        yield place, before, now


def _short(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
