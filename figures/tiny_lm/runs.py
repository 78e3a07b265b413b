"""Run a case: on tiny language models, a seed at a time and continued where it stopped; and in the exact simulator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bandits.backend import ExactBackend
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from figures.tiny_lm.cases import Case
from objectives import make_objective
from prefgeo.algorithm_settings import ALGORITHMS
from prefgeo.algorithms.data_source import DataSource
from prefgeo.backend import FitPlan, constant_rate

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "lm_loops"
SAME = {"expected_reward": "gold", "mean_length": "length", "mean_facts": "facts"}
"""Names of the simulator's metrics -> those of language models."""


def recipe_values(case: Case, seed: int, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe of a case as plain values; ``sizes`` are further changes, as for a quick trial."""
    values: dict[str, Any] = yaml.safe_load((RECIPES / f"{case.recipe}.yaml").read_text(encoding="utf-8"))
    changes = {"objective": {"name": case.objective, "options": dict(case.options)}, "seed": seed}
    for key, value in {**changes, **case.changes, **(sizes or {})}.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):
                break  # a section that the case does without
            place = place[part]
        else:
            place[last] = copy.deepcopy(value)
    return {name: value for name, value in values.items() if value is not None}


def language_rounds(
    case: Case, seed: int, folder: Path, donor: Path | None, sizes: dict[str, Any] | None = None
) -> list[dict[str, float]]:
    """The metrics of the base policy and after each round. ``donor``: another run, whose SFT is taken where it fits."""
    from prefgeo.language.recipe import check_language_recipe
    from prefgeo.language.run import run_checked
    from prefgeo.yaml_reading import parse_yaml

    document = parse_yaml(yaml.safe_dump(recipe_values(case, seed, sizes), sort_keys=False), case.name)
    recipe = check_language_recipe(document.values, document.fault)
    done = run_checked(
        recipe, document.fault, folder.parent, folder, resume=True, device="cpu", seconds=60.0, start_from=donor
    )
    return [dict(done.result["base"]), *(dict(each["metrics"]) for each in done.result["rounds"])]


def exact_rounds(case: Case, seeds: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The same of the simulator, one number for each seed."""
    exact = case.exact
    world = make_simulation(exact.world, list(seeds), simulated_options(exact.world, exact.options))
    plan = FitPlan("adam", rate=constant_rate(exact.rate), epochs=1, batch_size=16)
    found = ALGORITHMS[exact.algorithm].model_validate(dict(exact.settings)).run(
        ExactBackend(world), partial(make_objective, case.objective, **case.options),
        DataSource(exact.kind, exact.flip), plan, None,
    )  # fmt: skip
    stages = [found.base_metrics, *(each.metrics for each in found.rounds)]
    return [_as_language({name: np.asarray(value) for name, value in each.items()}) for each in stages]


def _as_language(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names of language models; responses in the sources' style are the ``marked`` ones, good or not."""
    if "mass_source" in metrics:
        metrics["marked"] = metrics["mass_source"] + metrics["mass_imitation"]
    return {SAME.get(name, name): value for name, value in metrics.items()}
