"""Which recipe is another one: what an upgrade adds with its default is no change, what somebody changed is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefgeo.errors import UsageError
from prefgeo.language.cells import plain_recipe
from prefgeo.language.recipe import check_language_recipe
from prefgeo.preparation import digest
from prefgeo.recipe_changes import changes, check_unchanged, filled
from prefgeo.runs import run_recipe
from prefgeo.sweep import run_sweep
from prefgeo.yaml_reading import parse_yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
EXACT = """name: small
world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
objective: {name: dpo}
training: {optimiser: world, steps: 3}
"""
SWEEP = """name: grid
recipe: recipe.yaml
grid: {data.flip: [0.0, 0.3]}
"""


def language(name: str) -> dict[str, Any]:
    text = (RECIPES / name).read_text(encoding="utf-8")
    return plain_recipe(check_language_recipe(yaml.safe_load(text), parse_yaml(text, name).fault))


def without(config: dict[str, Any], *place: str) -> dict[str, Any]:
    """As a version wrote it that did not know the key."""
    found = copy.deepcopy(config)
    section = found
    for part in place[:-1]:
        section = section[part]
    del section[place[-1]]
    return found


@pytest.mark.parametrize("name", ["quickstart_lm.yaml", "lm_loops/tiny_tpmm.yaml", "lm_loops/tiny_wrpo.yaml"])
def test_any_key_that_has_its_default_may_be_new(name: str) -> None:
    """Every key of every section in turn, also of options whose defaults depend on the section's name."""
    config = language(name)
    full = filled(config)
    tried = 0
    for section in (key for key, value in config.items() if isinstance(value, dict)):
        for key in config[section]:
            before = without(config, section, key)
            is_default = filled(before).get(section, {}).get(key) == full[section][key]
            assert (not list(changes(before, config))) == is_default
            tried += is_default
    assert tried > 20
    for key in ("evaluate", "tokenizer", "seed"):
        expected = [f"{key}."] if filled(without(config, key))[key] != full[key] else []
        found = [each for each, _, _ in changes(without(config, key), config)]
        assert [each[: len(key) + 1] for each in found[:1]] == expected, key


def test_what_is_changed_is_named_with_both_values() -> None:
    before = language("lm_loops/tiny_tpmm.yaml")
    now = copy.deepcopy(before)
    now["objective"]["options"]["beta"] = 0.25
    now["algorithm"]["options"]["entropy"] = 0.5
    now["data"]["world"]["options"]["grammar"] = {"max_length": 7}
    now["description"] = "other words"
    found = {key: (there, here) for key, there, here in changes(before, now)}
    beta = before["objective"]["options"]["beta"]
    assert found["objective.options.beta"] == (beta, 0.25)
    assert found["algorithm.options.entropy"] == (before["algorithm"]["options"]["entropy"], 0.5)
    assert found["data.world.options.grammar.max_length"][1] == 7
    assert "description" not in found
    with pytest.raises(UsageError) as caught:
        check_unchanged(Path("out"), before, now)
    assert str(caught.value).startswith("out belongs to another run: ")
    assert f"objective.options.beta is {beta} there and 0.25 here; " in str(caught.value)
    assert [key for key, _, _ in changes(before, before | {"unheard_of": 3})] == ["unheard_of"]


def test_a_run_goes_on_after_an_upgrade_that_added_a_key(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(EXACT, encoding="utf-8")
    out = tmp_path / "out"
    run_recipe(tmp_path / "recipe.yaml", "exact", out)
    config = json.loads((out / "config.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    old = without(without(config, "training", "warmup"), "data", "flip")
    (out / "config.json").write_text(json.dumps(old))
    (out / "manifest.json").write_text(json.dumps(manifest | {"config_sha256": digest(old)}))
    (out / "result.json").unlink()
    assert not run_recipe(tmp_path / "recipe.yaml", "exact", out, resume=True).was_finished
    (tmp_path / "recipe.yaml").write_text(EXACT + "data: {flip: 0.25}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"another run: data.flip is 0.0 there and 0.25 here; undo that, or choose"):
        run_recipe(tmp_path / "recipe.yaml", "exact", out, resume=True)


def test_a_sweep_goes_on_after_an_upgrade_that_added_a_key(tmp_path: Path) -> None:
    """Cells are kept under hashes of their recipes, which were others then."""
    (tmp_path / "recipe.yaml").write_text(EXACT, encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    out = tmp_path / "out"
    done = run_sweep(tmp_path / "sweep.yaml", "exact", out)
    stored = json.loads((out / "sweep.json").read_text())
    stored["recipes"] = {f"old{key}": without(each, "training", "warmup") for key, each in stored["recipes"].items()}
    stored["sweep"]["cells"] = {f"old{key}": each for key, each in stored["sweep"]["cells"].items()}
    (out / "sweep.json").write_text(json.dumps(stored))
    for file in list((out / "cells").iterdir()):
        file.rename(file.with_name(f"old{file.name}"))
    again = run_sweep(tmp_path / "sweep.yaml", "exact", out, resume=True)
    assert (again.computed, again.results) == (0, done.results)
    (tmp_path / "recipe.yaml").write_text(EXACT.replace("n_prompts: 4", "n_prompts: 5"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"another sweep: world.options.n_prompts is 4 there and 5 here; undo that"):
        run_sweep(tmp_path / "sweep.yaml", "exact", out, resume=True)
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("0.3", "0.4"), encoding="utf-8")
    with pytest.raises(UsageError, match="belongs to another sweep: its cells are others; choose another --out"):
        run_sweep(tmp_path / "sweep.yaml", "exact", out, resume=True)
