"""AuxDPO in language-model recipes: every mode trains, tells its dimensions, continues bit for bit; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.language.run import run_language_recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "tiny", "sizes": {"width": 8, "layers": 2, "heads": 2, "context": 128, "tied": False},
        "lora": {"r": 1, "alpha": 1, "targets": ["q_proj"], "blocks": 1},
    },
    "tokenizer": {"name": "embedded", "vocab_size": 280},
    "data": {"format": "pairs", "path": "pairs.jsonl", "test_fraction": 0.2},
    "objective": {"name": "auxdpo", "options": {"beta": 0.5}},
    "training": {"learning_rate": 0.01, "epochs": 2, "batch_size": 4, "accumulation": 2, "log_every": 2},
    "auxiliary": {"learning_rate": 0.05},
}  # fmt: skip


def pairs(folder: Path) -> None:
    """Three answers to each of 12 questions, each compared with the others once: sets of three."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        answers = [f" {word} {i}" for word in rng.permutation(["one", "two or", "three times"])]
        for good, bad in ((0, 1), (1, 2), (0, 2)):
            rows.append({"prompt": f"question {i}:", "chosen": answers[good], "rejected": answers[bad]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def recipe(folder: Path, **sections: Any) -> Path:
    pairs(folder)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **sections}, sort_keys=False), encoding="utf-8")
    return path


MODES: dict[str, dict[str, Any]] = {
    "dual": {}, "dual, no weights": {"weights": "none", "dual_every": 2, "every": 2}, "exact": {"gauge": True},
    "batch_penalty": {"tied": False, "ridge": 0.1}, "official_compat": {"tied": False, "cap": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_each_mode_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spec = {"mode": name.split(",")[0], "learning_rate": 0.05, **MODES[name]}
    done = run_language_recipe(recipe(tmp_path, auxiliary=spec), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]["loss"]
    assert first == pytest.approx(np.log(2.0), abs=2e-3 if name == "official_compat" else 1e-6)
    found = done.result["stages"]["preference"]["auxiliary"]
    n_rows = done.result["data"]["train"]["kept"]
    assert found["variables"] == (2 * n_rows if "tied" in spec else n_rows)  # three responses to three rows
    assert found["parameters"] == 8 + 8 and found["rank"] == [8, 8]  # the other half of LoRA is multiplied by zero
    assert found["delta_rms"] == lines[-1]["delta_rms"] > 0.01 and np.isfinite(lines[-1]["loss"])
    if name.split(",")[0] in ("dual", "exact"):
        assert found["delta_residual"] < 0.05 * found["delta_rms"] and (name != "exact" or not found["delta_residual"])
    said = capsys.readouterr().out
    assert f"AuxDPO: {found['variables']} auxiliary variables, 16 trainable parameters, rank" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["auxiliary"]
    assert manifest["verdict"] == found["verdict"] and found["verdict"] in said
