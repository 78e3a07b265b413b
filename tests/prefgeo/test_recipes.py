"""Recipes: what is refused, with which sentence; and every recipe of the project, parsed and run in a tiny setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.single_round import single_round
from prefgeo.errors import UsageError
from prefgeo.language.recipe import is_language_recipe
from prefgeo.preparation import make_backend, prepare
from prefgeo.recipes import check_recipe, load_recipe
from prefgeo.sweep_recipes import load_sweep

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = (
    "e1_dpo", "e1_sdpo", "e1_tpmm", "e1_tr_dpo", "e2_iterative", "e3_aipo", "e3_dpo", "e3_sppo", "e6_wrpo",
    "e6_wrpo_two_stage", "prop2_dpo",
)  # fmt: skip
SWEEPS = ("e1_noise", "e4_simpo_alpha_dpo", "prop2_baselines")
LANGUAGE_SWEEPS = (  # run by test_language_recipes_small.py, those of real models by test_language_recipes_lm.py
    *("mmlu_pro_small", "mmlu_pro_small_lora", "hh_small"),
    *("llama32_1b_blocks", "llama32_1b_data"),
)
TINY: dict[str, dict[str, Any]] = {
    "e1": {"n_prompts": 15, "n_arms": 4},
    "e2": {"n_prompts": 15, "n_arms": 4},
    "e3": {"n_prompts": 60, "grammar": {"max_length": 16}},
    "e4": {"n_prompts": 40, "n_arms": 5, "dimension": 3},
    "e6": {"n_prompts": 60},
    "prop2": {},
}
GOOD = """name: test
world: {name: e1}
objective:
  name: dpo
  options: {beta: 0.1}
training:
  optimiser: world
seeds: [0, 1]
"""


def refused(text: str, folder: Path, *, world: bool = False) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        recipe, fault = load_recipe(path)
        prepared = prepare(recipe, fault, folder)
        if world:
            prepared.world.build(recipe.seeds)
    return str(caught.value).replace(str(path), "recipe.yaml")


def test_the_good_one_is_good(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD, encoding="utf-8")
    recipe, fault = load_recipe(tmp_path / "recipe.yaml")
    config = prepare(recipe, fault, tmp_path).config
    assert config["world"]["options"]["n_prompts"] == 150
    assert config["objective"] == {"name": "dpo", "options": {"beta": 0.1}}
    assert (config["training"]["optimiser"], config["training"]["steps"], config["seeds"]) == ("gd", 20, [0, 1])


CASES = {  # replaced -> by, and the whole sentence that must come
    "unknown key": ("training:", "trainng:", "line 6, trainng: unknown key 'trainng'. Did you mean 'training'?"),
    "unknown inner key": ("  options: {beta", "  option: {beta", "line 5, objective.option: unknown key 'option'. Did"),
    "missing key": ("name: test\n", "", "line 1, name: this key is missing"),
    "wrong type": ("seeds: [0, 1]", "seeds: 3", "line 8, seeds: Input should be a valid list, got 3"),
    "wrong seed": ("[0, 1]", "[0, -1]", "line 8, seeds.1: Input should be greater than or equal to 0, got -1"),
    "half a seed": ("[0, 1]", "[0, 1.5]", "line 8, seeds.1: Input should be a valid integer, got 1.5"),
    "no seed": ("[0, 1]", "[]", "line 8, seeds: List should have at least 1 item"),
    "same seeds": ("[0, 1]", "[1, 1]", "seeds: a seed stands twice"),
    "unknown world": ("name: e1", "name: e12", "line 2, world.name: unknown world 'e12'. Did you mean 'e2'? Known: e1"),
    "no world": ("{name: e1}", "{}", "line 2, world: give the name of a world or the file of a problem, and not both"),
    "missing file": ("{name: e1}", "{file: no.json}", "line 2, world.file: there is no file"),
    "unknown option": (
        "{name: e1}", "{name: e1, options: {n_prompt: 3}}",
        "line 2, world.options.n_prompt: world 'e1' has no option 'n_prompt'. Did you mean 'n_prompts'?",
    ),
    "option type": (
        "{name: e1}", "{name: e1, options: {n_prompts: 2.5}}",
        "line 2, world.options.n_prompts: must be a whole number, got 2.5",
    ),
    "option value": (
        "{name: e1}", "{name: e1, options: {n_prompts: 0}}",
        "line 2, world.options.n_prompts: n_prompts must be a finite number above 0, got 0",
    ),
    "option name": (
        "{name: e1}", "{name: e1, options: {flip_mode: idd}}",
        "line 2, world.options.flip_mode: must be one of 'iid', 'persistent', got 'idd'",
    ),
    "inner option": (
        "{name: e1}", "{name: e3, options: {grammar: {n_good: 0}}}",
        "line 2, world.options.grammar.n_good: n_good must be a whole number of at least 1, got 0",
    ),
    "group": ("{name: e1}", "{name: e3, options: {grammar: 3}}", "grammar: grammar is a group of options, got 3"),
    "elsewhere": (
        "{name: e1}", "{name: e1, options: {beta: 1.0}}",
        "world.options.beta: beta is no property of the world; say it under objective.options.beta",
    ),
    "loops only": ("{name: e1}", "{name: e2, options: {reuse: false}}", "reuse would be ignored: one round has only"),
    "NaN option": (
        "{name: e1}", "{name: e1, options: {base_spread: .nan}}",
        "line 2, world.options.base_spread: must be a finite number, got nan",
    ),
    "problem option": (
        "{name: e1}", "{name: prop2, options: {n13: 2.0}}",
        "line 2, world.options.n13: world 'prop2' has no option 'n13'. Did you mean",
    ),
    "problem option type": (
        "{name: e1}", "{name: prop2, options: {n12: many}}", "world.options.n12: must be a number, got 'many'"
    ),
    "no such kind": (
        "objective:", "data: {kind: population}\nobjective:",
        "line 3, data.kind: world e1 makes data of kind candidates, not population",
    ),
    "unknown kind": (
        "objective:", "data: {kind: candidate}\nobjective:",
        "line 3, data.kind: unknown kind 'candidate'. Did you mean 'candidates'?",
    ),
    "NaN flip": ("objective:", "data: {flip: .nan}\nobjective:", "line 3, data.flip: Input should be a finite number"),
    "flip": ("objective:", "data: {flip: 1.5}\nobjective:", "data.flip: Input should be less than or equal to 1"),
    "exact labels": (
        "{name: e1}", "{name: e6}\ndata: {flip: 0.1}", "data.flip: the labels of world e6 are exact; leave flip out"
    ),
    "unknown objective": (
        "name: dpo", "name: sim", "line 4, objective.name: unknown objective 'sim'. Did you mean 'simpo'? Known: dpo"
    ),
    "objective option": (
        "{beta: 0.1}", "{betta: 0.1}", "line 5, objective.options: dpo has no option 'betta', so it would be ignored."
    ),
    "NaN beta": ("{beta: 0.1}", "{beta: .nan}", "objective.options: dpo: beta must be a number > 0, got nan"),
    "smoothing": (
        "name: dpo\n  options: {beta: 0.1}", "name: cdpo\n  options: {label_smoothing: 0.5}",
        "objective.options: cdpo: label_smoothing must be a number in [0, 0.5), got 0.5",
    ),
    "no sources": (
        "name: dpo", "name: wrpo",
        "line 4, objective.name: wrpo needs responses of source models, which world e1 does not have; worlds that have "
        "them: e6",
    ),
    "no win rates": (
        "name: dpo\n  options: {beta: 0.1}", "name: sppo",
        "objective.name: sppo needs win rates, which world e1 does not have; worlds that have them: e3, e5, every pro",
    ),
    "no auxiliary rewards": (
        "name: dpo", "name: auxdpo", "objective.name: auxdpo needs auxiliary rewards, which world e1 does not have; no"
    ),
    "unknown optimiser": (
        "optimiser: world", "optimiser: adm",
        "line 7, training.optimiser: unknown optimiser 'adm'. Did you mean 'adam'? Known: world, exact, gd, adam",
    ),
    "no rate": ("optimiser: world", "optimiser: adam", "line 6, training: optimiser: adam needs a learning_rate"),
    "no length": (
        "optimiser: world", "{optimiser: adam, learning_rate: 0.1}", "say how long to train: give steps or epochs"
    ),
    "two lengths": (
        "optimiser: world", "{optimiser: adam, learning_rate: 0.1, steps: 3, epochs: 2}", "give either steps or epochs"
    ),
    "no steps": ("optimiser: world", "{optimiser: world, steps: 0}", "training.steps: Input should be greater than"),
    "no batch": ("optimiser: world", "{optimiser: world, batch_size: 0}", "training.batch_size: Input should be gr"),
    "ignored": (
        "optimiser: world", "{optimiser: exact, steps: 3}", "training: optimiser: exact would ignore steps; leave it"
    ),
    "ignored by the world": (
        "optimiser: world", "{optimiser: world, warmup: 0.1}", "optimiser: world would ignore warmup; leave it out"
    ),
    "number as text": (
        "optimiser: world", "{optimiser: adam, steps: 3, learning_rate: 1e-3}",
        "training.learning_rate: YAML reads 1e-3 as a text; write the number with a point, as in 1.0e-3",
    ),
    "no optimiser of its own": (
        "{name: e1}", "{name: prop2}", "training.optimiser: prop2 has no optimiser of its own; say optimiser: exact"
    ),
    "same result": (
        "world: {name: e1}\nobjective:\n  name: dpo\n  options: {beta: 0.1}\ntraining:\n  optimiser: world",
        "world: {name: prop2}\nobjective:\n  name: dpo\ntraining:\n  optimiser: exact",
        "seeds: nothing is random here (a fixed world, population data, no minibatches): 2 seeds would give one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_told_with_line_and_key(case: str, tmp_path: Path) -> None:
    old, new, sentence = CASES[case]
    assert old in GOOD
    text = GOOD.replace(old, new).replace("training:\n  {", "training: {")
    message = refused(text, tmp_path)
    assert message.startswith("recipe.yaml, line ")
    assert sentence in message


def test_a_problem_that_cannot_be_trained_is_told(tmp_path: Path) -> None:
    text = GOOD.replace("{name: e1}", "{name: random_quadratic}").replace("optimiser: world", "optimiser: exact")
    message = refused(text.replace("[0, 1]", "[0]"), tmp_path, world=True)
    assert "line 2, world: only policies with logits linear in theta are trained here; use `prefgeo solve`" in message
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    text = GOOD.replace("{name: e1}", "{file: bad.json}").replace("optimiser: world", "optimiser: exact")
    assert "line 2, world.file: " in refused(text.replace("[0, 1]", "[0]"), tmp_path, world=True)


# -- the recipes of the project ---------------------------------------------------------------------------------------


def test_the_lists_name_every_file() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file() and not is_language_recipe(path)]
    assert sorted(RECIPES) == sorted(path.stem for path in files)
    assert sorted([*SWEEPS, *LANGUAGE_SWEEPS]) == sorted(path.stem for path in (FOLDER / "sweeps").iterdir())


def is_sourced(line: str) -> bool:
    """A number in a recipe needs a comment on its line, or on the key that it stands under."""
    value = line.partition("#")[0].partition(":")[2]
    return "#" in line or not re.search(r"\d", value.replace("e1", "").replace("prop2", "").replace("dpo", ""))


@pytest.mark.parametrize("name", [*RECIPES, *(f"sweeps/{name}" for name in (*SWEEPS, *LANGUAGE_SWEEPS))])
def test_every_value_has_its_source(name: str) -> None:
    parent_comment = False
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        listed = line.lstrip().startswith("-")
        parent_comment = ("#" in line) if line.rstrip().partition("#")[0].rstrip().endswith(":") else (
            parent_comment and listed
        )  # fmt: skip
        known = re.sub(r"name: \w+|(objective|baseline): \{.*", "", line)
        assert is_sourced(known) or parent_comment or known.startswith("#") or not known.strip(), line


def train_tiny(recipe: Any, folder: Path) -> dict[str, Any]:
    """One or two seeds of a small version of the world, in both backends; they agree."""
    pytest.importorskip("torch")
    values = recipe.model_dump(exclude_unset=True)
    values["seeds"] = values["seeds"][:2]
    values["world"].setdefault("options", {}).update(TINY[values["world"]["name"]])

    def fault(place: Any, sentence: str) -> UsageError:
        return UsageError(f"{place}: {sentence}")

    small = check_recipe(values, fault)
    prepared = prepare(small, fault, folder)
    found = []
    for name in ("exact", "torch"):
        backend = make_backend(name, "cpu", prepared.world.build(small.seeds))
        make, plan = small.objective.make, prepared.plan()
        outcome: Any
        if prepared.algorithm is None:
            outcome = single_round(backend, make(), kind=prepared.kind, flip=small.data.flip, plan=plan)
        else:
            outcome = prepared.algorithm.run(backend, make, DataSource(prepared.kind, small.data.flip), plan, None)
        found.append((backend.dump(outcome.policy)["theta"], outcome))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-8)
    metrics = found[0][1].metrics
    assert all(np.all(np.isfinite(values)) for values in metrics.values())
    assert np.all(metrics["kl"] > 0)
    return dict(metrics)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(name: str) -> None:
    recipe, fault = load_recipe(FOLDER / f"{name}.yaml")
    prepare(recipe, fault, FOLDER)
    assert recipe.name == name
    train_tiny(recipe, FOLDER)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_of_every_sweep_runs(name: str) -> None:
    sweep = load_sweep(FOLDER / "sweeps" / f"{name}.yaml")
    assert sweep.name == name and len(sweep.cells) > 3
    for cell in sweep.cells[:: max(1, len(sweep.cells) // 4)]:
        train_tiny(cell.prepared.recipe, FOLDER)


def test_a_recipe_is_plain_yaml() -> None:
    """No file of the project uses tags or anchors, which other readers may not know."""
    for name in RECIPES:
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert not any(type(token).__name__ in ("TagToken", "AnchorToken", "AliasToken") for token in yaml.scan(text))
