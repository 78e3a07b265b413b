"""`generation.responses` of a loop's recipe: the policy's own responses, the data's, or both (AIPO's Table 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.errors import UsageError
from prefgeo.language.recipe import load_language_recipe
from prefgeo.language.run import run_language_recipe

WORDS = ("red", "blue", "green", "sun", "moon", "star")
PAIRS = [
    {"prompt": f"say {one} or {two}:", "chosen": f" {one} and {two}", "rejected": f" {two}"}
    for one in WORDS
    for two in WORDS
]
RECIPE: dict[str, Any] = {
    "name": "responses",
    "model": {"name": "tiny", "sizes": {"architecture": "gpt2", "width": 16, "layers": 1, "heads": 2, "context": 64}},
    "tokenizer": {"name": "embedded", "vocab_size": 280},
    "data": {"format": "pairs", "path": "pairs.jsonl", "test_fraction": 0.2},
    "sft": {"learning_rate": 0.01, "steps": 4, "batch_size": 8},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.003, "epochs": 1, "batch_size": 4},
    "algorithm": {"name": "aipo", "options": {"rounds": 2}},
    "prompts": {"name": "data", "per_round": 10},
    "ranking": {"name": "self", "options": {"kind": "implicit"}},
    "pairing": {"first_round": "data"},
}  # fmt: skip


def write(folder: Path, changes: dict[str, Any]) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in PAIRS), encoding="utf-8")
    path = folder / "recipe.yaml"
    values = {name: each for name, each in (RECIPE | changes).items() if each is not None}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def test_a_loop_on_recorded_responses_generates_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_language_recipe(write(tmp_path, {"generation": {"responses": "recorded"}}), out).result
    assert all(each["metrics"]["rows_kept"] > 0 for each in result["rounds"])
    folders = {path.name.split("-")[0] for path in out.rglob("*.jsonl")}
    assert "scores" in folders and "responses" not in folders


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generation": {"responses": "recorded", "candidates": 3}},
            "generation: responses: recorded would ignore candidates; leave it out",
        ),
        (
            {
                "generation": {"responses": "both"},
                "prompts": {"name": "self_instruct", "per_round": 4, "seeds": "s.jsonl"},
            },
            "generation.responses: the data have responses to their own prompts only",
        ),
        (
            {"generation": {"responses": "others"}},
            "generation.responses: unknown responses 'others'.* Known: own, recorded, both",
        ),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_language_recipe(write(tmp_path, changes))
