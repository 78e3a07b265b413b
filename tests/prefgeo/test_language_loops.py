"""Loops of language-model recipes: every algorithm runs, tells who was who, and sees the data that its recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.language.run import run_language_recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "tiny", "sizes": {"architecture": "gpt2", "width": 16, "layers": 2, "heads": 2, "context": 64}},
    "tokenizer": {"name": "embedded", "vocab_size": 300},
    "data": {
        "format": "world", "world": {"name": "e3", "options": {"grammar": {"max_length": 12}}},
        "supervised": 60, "rows": 20, "held_out": 10,
    },
    "sft": {"learning_rate": 0.01, "steps": 6, "batch_size": 8, "log_every": 3},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.003, "epochs": 1, "batch_size": 4, "log_every": 2},
    "prompts": {"name": "world", "per_round": 12},
    "generation": {"candidates": 3, "max_new_tokens": 10},
    "pairing": {"drop_cut_off": False, "drop_empty": False},
    "evaluate": {"generations": 6, "max_new_tokens": 10},
}  # fmt: skip
SOURCES = {
    "models": [
        {"name": "better", "style": {"good": 1.0}, "mark": "indeed"},
        {"name": "longer", "style": {"eos": -5.0}},
    ]
}  # fmt: skip
LOOPS: dict[str, dict[str, Any]] = {
    "iterative": {"algorithm": {"name": "iterative", "options": {"rounds": 2, "reference": "ema"}}},
    "tpmm": {
        "algorithm": {"name": "tpmm", "options": {"rounds": 2, "budget_divisor": 2}},
        "data": SMALL["data"] | {"flip": 0.3, "flip_mode": "persistent"},
    },
    "aipo": {
        "algorithm": {"name": "aipo", "options": {"rounds": 2}}, "ranking": {"name": "proxy"},
        "objective": {"name": "aipo", "options": {"alpha": 0.3}},
    },
    "sppo": {
        "algorithm": {"name": "sppo", "options": {"rounds": 2}}, "ranking": {"win_scale": 2.0},
        "objective": {"name": "sppo"},
    },
    "sdpo": {
        "algorithm": {"name": "sdpo", "options": {"chunks": 2}}, "pairing": {"kind": "fixed"}, "prompts": None,
        "generation": None,
    },
    "tr_dpo": {"algorithm": {"name": "tr_dpo", "options": {"every": 2, "mix": 0.5}}},
    "wrpo": {
        "algorithm": {"name": "wrpo", "options": {"sft_learning_rate": 0.001, "sft_batch_size": 2}},
        "objective": {"name": "wrpo"}, "sources": SOURCES, "prompts": {"name": "world", "per_round": 18},
    },
    "hybrid": {
        "algorithm": {"name": "wrpo", "options": {"supervised": False}}, "sources": SOURCES,
        "pairing": {"kind": "hybrid", "drop_cut_off": False, "drop_empty": False},
    },
}  # fmt: skip


def recipe(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    values = {name: each for name, each in (SMALL | changes).items() if each is not None}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LOOPS)
def test_every_algorithm_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_language_recipe(recipe(tmp_path, LOOPS[name]), out).result
    roles = json.loads((out / "manifest.json").read_text())["roles"]
    assert [each["roles"] for each in result["rounds"]] == roles["rounds"]
    metrics = [result["base"], *(each["metrics"] for each in result["rounds"])]
    assert {"gold", "facts", "length", "kl", "accuracy", "win_rate"} <= set(metrics[0])
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6) and metrics[0]["win_rate"] == pytest.approx(0.5)
    for each in metrics[1:]:
        assert each["rows_kept"] > 0 and each["kl"] > 0 and np.isfinite(list(each.values())).all()
    logged = [json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged[0] == "sft" and len(set(logged)) >= len(result["rounds"])
    assert (out / "curve.png").read_bytes()[:4] == b"\x89PNG" and (out / "model" / "model.safetensors").is_file()
    assert set(result["stages"]) == {"start", "sft", "preference"}
    if name == "tpmm":
        (shares, none) = [each.get("shares") for each in result["rounds"]]
        assert none is None and sum(shares) == pytest.approx(1.0) and len(shares) == 2
        assert all(each["rows_flipped"] > 0 for each in metrics[1:])
