"""recipes/lm_loops: every recipe is right, says where its values are from, and runs with small sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.algorithm_settings import ALGORITHMS
from prefgeo.cli import main
from prefgeo.language.cells import named_numbers
from prefgeo.language.recipe import load_language_recipe
from prefgeo.language.run import run_language_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "lm_loops"
TINY = sorted(path.stem for path in FOLDER.glob("tiny_*.yaml"))
SMALLER: dict[str, Any] = {
    "model.sizes.width": 16, "model.sizes.layers": 1, "model.sizes.heads": 2, "model.sizes.context": 64,
    "tokenizer.vocab_size": 300, "data.world.options.grammar.max_length": 16, "data.supervised": 60, "data.rows": 18,
    "data.held_out": 12, "sft.steps": 8, "training.batch_size": 4, "prompts.per_round": 18,
    "generation.max_new_tokens": 10, "evaluate.generations": 6, "evaluate.max_new_tokens": 10,
    "pairing.drop_cut_off": False,
}  # fmt: skip
ROUNDS = {"algorithm.options.rounds": 2, "algorithm.options.every": 2, "algorithm.options.sft_batch_size": 2}


def smaller(path: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """The recipe with other sizes; a key that it does not have is left out."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.get(section, {})
        added = sections in (["generation"], ["evaluate"]) or (sections == ["pairing"] and "kind" not in place)
        if last in place or (added and place):
            place[last] = value
    (folder / path.name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return folder / path.name


def test_there_is_one_for_every_algorithm() -> None:
    used = [load_language_recipe(FOLDER / f"{name}.yaml")[0].algorithm for name in TINY]
    assert {each.name for each in used if each is not None} == set(ALGORITHMS)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_recipe_is_right_and_says_where_its_values_are_from(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe, _ = load_language_recipe(path)
    assert recipe.name == path.stem and recipe.algorithm is not None
    for line in path.read_text(encoding="utf-8").splitlines():
        value = re.sub(r"^name: .*|^description: .*|name: e3$|^ +kind: fixed", "", line).partition(":")[2]
        assert line.startswith("#") or "#" in value or not re.search(r"\d", value), line


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_recipe_runs_in_small(name: str, tmp_path: Path) -> None:
    path = smaller(FOLDER / f"{name}.yaml", tmp_path, SMALLER | ROUNDS)
    result = run_language_recipe(path, tmp_path / "out").result
    assert result["rounds"][-1]["metrics"]["kl"] > 0.0
    assert named_numbers(result)[f"round_{len(result['rounds'])}/gold"] == result["rounds"][-1]["metrics"]["gold"]
    assert named_numbers(result)["round_0/kl"] == result["base"]["kl"]


def test_the_command_prints_the_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = smaller(FOLDER / "tiny_tpmm.yaml", tmp_path, SMALLER | ROUNDS)
    assert main(["run", str(path), "--backend", "torch", "--out", str(tmp_path / "out")]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    (first,) = [line for line in lines if line[:2] == ["policy", "1"]]
    (second,) = [line for line in lines if line[:2] == ["policy", "2"]]
    assert first[2] == "base" and second[2:4] == ["merged", "1"]
    assert float(first[-1]) + float(first[-2]) == pytest.approx(1.0, abs=0.02)  # the shares of the merge
