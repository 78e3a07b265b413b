"""The recipes and sweeps that train a small model from scratch on real files: each cell runs, on a made-up file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.sweep import run_sweep
from prefgeo.sweep_recipes import load_sweep

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
SMALLER: dict[str, Any] = {
    "model": {"sizes": {"width": 16, "layers": 2, "heads": 2, "context": 256}},
    "tokenizer": {"vocab_size": 270},
    "data": {"rows": 20},
    "sft": {"epochs": 1, "batch_size": 8},
    "training": {"epochs": 2, "batch_size": 8},
}


def make_questions(folder: Path) -> None:
    kinds = ("math", "history", "philosophy", "physics", "biology")
    rows = [
        {"question_id": i, "category": kinds[i % 5], "question": f"{i} + 1?", "options": [f"{i + 1}", f"{i}", "no"],
         "answer_index": 0} for i in range(60)
    ]  # fmt: skip
    (folder / "mmlu_pro_questions.jsonl.gz").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def make_dialogues(folder: Path) -> None:
    rows = []
    for i in range(60):
        asked = f"\n\nHuman: How is {i}?\n\nAssistant:"
        rows.append({"chosen": f"{asked} Fine, {i}.", "rejected": f"{asked} Go away."})
    (folder / "hh_rlhf_harmless_base_test.jsonl.gz").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def smaller(name: str, folder: Path) -> Path:
    """The sweep with its recipe cut down; what a case or the grid sets stays."""
    sweep = yaml.safe_load((FOLDER / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((FOLDER / "sweeps" / sweep["recipe"]).read_text(encoding="utf-8"))
    for section, values in SMALLER.items():
        recipe[section] |= values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump(sweep | {"recipe": "recipe.yaml", "seeds": [0]}), encoding="utf-8"
    )
    return folder / "sweep.yaml"


@pytest.mark.parametrize("name", ["mmlu_pro_small", "mmlu_pro_small_lora", "hh_small"])
def test_every_cell_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lies in the folder that PREFGEO_DATA names, as for users."""
    (tmp_path / "data").mkdir()
    (make_dialogues if name == "hh_small" else make_questions)(tmp_path / "data")
    monkeypatch.setenv("PREFGEO_DATA", str(tmp_path / "data"))
    whole = load_sweep(FOLDER / "sweeps" / f"{name}.yaml")
    assert whole.name == name and whole.seeds == (0, 1, 2) and whole.cells[0].settings["case"] == "dpo"
    done = run_sweep(smaller(name, tmp_path), "torch", tmp_path / "out")
    assert not done.failures
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert all(0.0 <= value <= 1.0 for value in table["held_out/accuracy_by_margin"])
    for case, moved in zip(table["case"], table["auxiliary/delta_rms"], strict=True):
        assert (moved is None) == (not case.startswith("auxdpo"))
        assert moved is None or moved > 0.0 or "exact" in case  # whose null space may be empty on so few rows
