"""The examples of docs/simulator.md and docs/recipes.md are executed, and the pages name every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefgeo.language.auxiliary_spec import AuxiliarySpec
from prefgeo.language.recipe import is_language_recipe, load_language_recipe
from prefgeo.preparation import prepare
from prefgeo.recipes import Recipe, TrainingSpec, load_recipe
from prefgeo.run_folder import CHECKPOINT, CONFIG, MANIFEST, METRICS, RESULT, THETA
from prefgeo.sweep_recipes import SweepSpec, load_sweep

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", RECIPES, flags=re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", SIMULATOR, flags=re.DOTALL | re.MULTILINE)
    exec(compile(example.replace('"n_prompts": 50', '"n_prompts": 5'), "docs/simulator.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) >= 8  # a win rate for each seed


def test_the_example_recipe_and_sweep_are_good(tmp_path: Path) -> None:
    recipe, _, _, sweep, cases = EXAMPLES
    (tmp_path / "e1_dpo.yaml").write_text(recipe, encoding="utf-8")
    loaded, fault = load_recipe(tmp_path / "e1_dpo.yaml")
    assert prepare(loaded, fault, tmp_path).kind == "candidates"
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "e1_noise.yaml").write_text(sweep, encoding="utf-8")
    cells = load_sweep(tmp_path / "sweeps" / "e1_noise.yaml").cells
    assert [cell.baseline for cell in cells] == [None, None, None, 0, 1, 2]
    language = "model: {name: m}\ndata: {format: pairs, path: p.jsonl}\ntraining: {learning_rate: 0.1, steps: 1}\n"
    (tmp_path / "language.yaml").write_text(f"name: l\nobjective: {{name: dpo}}\n{language}", encoding="utf-8")
    (tmp_path / "cases.yaml").write_text(f"name: c\nrecipe: language.yaml\n{cases}", encoding="utf-8")
    assert [cell.baseline for cell in load_sweep(tmp_path / "cases.yaml").cells] == [None, 0]


def test_the_example_of_a_language_recipe_is_good(tmp_path: Path) -> None:
    path = tmp_path / "language.yaml"
    path.write_text(EXAMPLES[1], encoding="utf-8")
    assert is_language_recipe(path)
    loaded, _ = load_language_recipe(path)
    assert loaded.objective.make().name
    plain = re.sub(r"^objective: .*\n", "", EXAMPLES[1], flags=re.MULTILINE)
    path.write_text(plain + EXAMPLES[2], encoding="utf-8")  # with the section of AuxDPO's variables
    assert load_language_recipe(path)[0].auxiliary is not None


@pytest.mark.parametrize("name", AuxiliarySpec.model_fields)
def test_every_key_of_auxiliary_variables_is_in_their_table(name: str) -> None:
    assert f"`{name}`" in RECIPES or f"  {name}: " in EXAMPLES[2]


@pytest.mark.parametrize(
    "name",
    [*Recipe.model_fields, *TrainingSpec.model_fields, *SweepSpec.model_fields, CHECKPOINT, CONFIG, MANIFEST, METRICS,
     RESULT, THETA],
)  # fmt: skip
def test_every_key_and_file_is_on_the_page(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", RECIPES), name
