"""The recipes of recipes/lm_loops on real data, cut short: they run from the command line, on the files themselves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.cli import main

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "lm_loops"
TINY: dict[str, Any] = {"architecture": "llama", "width": 16, "layers": 1, "heads": 2, "context": 512}


def short(name: str, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe with a smaller model, fewer rows and steps; its result. Skips where a file is absent."""
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    sources = values.get("sources", {}).get("models", [])
    home = Path(os.environ.get("PREFGEO_DATA", "nowhere"))
    for file in (values["data"]["path"], *(each["responses"] for each in sources)):
        if not (home / file).is_file():
            pytest.skip(f"{file} is in no folder that PREFGEO_DATA names")
    values["model"]["sizes"] = TINY
    values["tokenizer"]["vocab_size"] = 400
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--backend", "torch", "--out", str(folder / "out")]) == 0
    result: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text())
    return result


def test_wrpo_on_the_responses_to_mmlu_pro(tmp_path: Path) -> None:
    changes = {
        "data.rows": 12, "data.test_fraction": 0.003, "data.max_length": 420, "sft.steps": 2, "sft.batch_size": 4,
        "prompts.per_round": 60, "evaluate.generations": 2, "evaluate.max_new_tokens": 6,
    }  # fmt: skip
    result = short("mmlu_pro_wrpo_small", tmp_path, changes)
    assert [each["roles"]["policy"] for each in result["rounds"]] == ["sft", "wrpo"]
    tested = result["stages"]["preference"]["pairs"]
    assert {"held_out", "target", "sources"} <= set(tested)
    last = result["rounds"][-1]["metrics"]
    assert last["rows_kept"] > 0 and 0.0 <= last["accuracy_sources"] <= 1.0 and 0.0 <= last["accuracy_target"] <= 1.0
    assert result["data"]["supervised"]["rows"] > 200  # four responses to each of 60 questions, less empty ones
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["inputs"]) == 11  # the questions, and ten files of responses


def test_tpmm_on_dialogues(tmp_path: Path) -> None:
    changes = {"data.rows": 36, "data.test_fraction": 0.01, "data.merge_fraction": 0.01, "sft.batch_size": 12}
    result = short("hh_tpmm_small", tmp_path, changes)
    rounds = result["rounds"]
    kept = [each["metrics"]["rows_kept"] for each in rounds]
    flipped = [each["metrics"]["rows_flipped"] for each in rounds]
    assert len(rounds) == 3 and 24 <= sum(kept) <= 36  # a third each, less what is identical when cut
    assert 0 < sum(flipped) < sum(kept)
    assert [len(each["shares"]) for each in rounds if "shares" in each][-1] >= 3
    assert set(result["stages"]["preference"]["pairs"]) == {"held_out"}  # the pairs for merging are no test


def test_aipo_from_seed_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model here is too small to write tasks: a script does, in the form that SFT would have taught."""
    from llm_backend.generation import ModelGenerator, Response
    from llm_backend.prompts.task_lists import INTRODUCTION

    truly, asked = ModelGenerator.generate, list[str]()

    def generate(self: Any, prompts: Any, sampling: Any, *, seed: int, keys: Any = None) -> Any:
        if INTRODUCTION not in str(prompts[0]):
            return truly(self, prompts, sampling, seed=seed, keys=keys)
        asked.extend(str(prompt) for prompt in prompts)
        said = [
            " ".join(hashlib.sha256(f"{seed} {key} {i}".encode()).hexdigest()[:6] for i in range(6)) for key in keys
        ]
        return [[Response(f"Task 4: Tell of {words}.", (1,), True)] for words in said]

    monkeypatch.setattr(ModelGenerator, "generate", generate)
    changes = {
        "data.options": {"lists": 8, "shown": 3, "written": 2, "repeats": 1}, "sft.steps": 2, "sft.batch_size": 4,
        "prompts.per_round": 6, "algorithm.options.rounds": 2, "generation.max_new_tokens": 48,
        "evaluate.generations": 3, "evaluate.max_new_tokens": 6,
    }  # fmt: skip
    values = short("self_instruct_aipo_small", tmp_path, changes)
    last = values["rounds"][-1]["metrics"]
    assert len(values["rounds"]) == 2 and last["rows_kept"] > 0
    assert 0.0 <= last["gold"] <= 1.0 and values["data"]["held_out"]["rows"] > 20
    assert asked and all(text.count("Task ") >= 4 for text in asked)
