"""The recipes of real runs: parsed, every value with its source, and run with a tiny model of the same architecture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefgeo.language.recipe import check_language_recipe, load_language_recipe
from prefgeo.sweep_recipes import load_sweep
from prefgeo.yaml_reading import read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
OBJECTIVES, SMALL = ("dpo", "ipo", "dpop", "auxdpo"), ("llama32_1b", "qwen3_06b")
NAMES = (
    *(f"{model}_{objective}" for model in ("llama31_8b", *SMALL) for objective in OBJECTIVES),
    "llama31_8b_dpo_fsdp",
    *(f"{model}_{name}_{part}" for name in ("dpo", "auxdpo") for model in SMALL for part in ("lora", "last_block")),
)
FROM_SCRATCH = ("mmlu_pro_small", "hh_small")  # run by test_language_recipes_small.py
ALPHA_DPO = (
    "llama3_8b_alpha_dpo",
    "llama3_8b_v02_alpha_dpo",
    "mistral_7b_alpha_dpo",
)  # test_language_recipes_papers.py
OUT_OF_DOMAIN = tuple(f"llama32_1b_auxdpo_{where}" for where in ("categories", "ultrafeedback"))
BLOCKS = 4


def test_the_list_names_every_file() -> None:
    assert sorted([*NAMES, *ALPHA_DPO, *OUT_OF_DOMAIN, *FROM_SCRATCH]) == sorted(
        path.stem for path in (FOLDER / "lm").iterdir()
    )


@pytest.mark.parametrize(
    "name", ["quickstart_lm", *(f"lm/{name}" for name in (*NAMES, *ALPHA_DPO, *OUT_OF_DOMAIN, *FROM_SCRATCH))]
)
def test_every_recipe_is_right_and_says_where_its_values_are_from(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe, _ = load_language_recipe(path)
    assert recipe.name == path.stem
    for line in path.read_text(encoding="utf-8").splitlines():
        value = re.sub(r"^name: .*|^description: .*|world: \{name: e3\}", "", line).partition(":")[2]
        assert line.startswith("#") or "#" in value or not re.search(r"\d", value), line


def questions(path: Path) -> Path:
    """40 sums as MMLU-Pro has its questions."""
    rows = []
    for i in range(40):
        options = [str(i + shift) for shift in (1, 0, 2, 3)]
        row = {"question_id": i, "category": ("math", "law")[i % 2], "question": f"{i} + 1?", "options": options}
        rows.append(json.dumps(row | {"answer_index": 0}))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def conversations(path: Path) -> Path:
    """40 pairs of conversations, as UltraFeedback has them."""
    rows = []
    for i in range(40):
        sides = {side: [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{side} {i}"}]
                 for side in ("chosen", "rejected")}  # fmt: skip
        rows.append(json.dumps(sides))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", (*NAMES, *OUT_OF_DOMAIN))
def test_every_recipe_runs_with_a_tiny_model(tmp_path: Path, name: str) -> None:
    """What the recipe says of data, objective and trainable parts holds; model, tokenizer, file and steps are small."""
    pytest.importorskip("transformers")
    from prefgeo.language.run import run_checked

    document = read_yaml(FOLDER / "lm" / f"{name}.yaml")
    values: dict[str, Any] = document.values
    architecture = "qwen3" if "Qwen3" in values["model"]["name"] else "llama"
    sizes = {"architecture": architecture, "width": 16, "layers": BLOCKS, "heads": 2, "context": 256, "tied": False}
    values["model"] |= {"name": "tiny", "sizes": sizes}
    values["tokenizer"] = {"name": "embedded", "vocab_size": 280}
    make = conversations if values["data"]["format"] == "pairs" else questions
    values["data"] |= {"path": str(make(tmp_path / "rows.jsonl"))}
    if "out_of_domain" in values["data"]:
        values["data"]["out_of_domain"] = ["law"]
    if make is conversations:
        values["data"]["test_fraction"] = 0.2
    del values["data"]["split"], values["training"]["epochs"]
    values["training"] |= {"steps": 2, "learning_rate": 0.01, "log_every": 1}
    recipe = check_language_recipe(values, document.fault)
    done = run_checked(
        recipe, document.fault, tmp_path, tmp_path / "out", resume=False, device="cpu", seconds=60.0
    )  # fmt: skip
    after = done.result["stages"]["preference"]
    assert done.result["data"]["train"]["kept"] + sum(split["rows"] for split in after["pairs"].values()) == 40
    assert ("out_of_domain" in after["pairs"]) == name.endswith("categories")
    if name in NAMES:
        assert set(after["pairs"]["held_out"]["by_category"]) <= {"math", "law"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    at_reference = 25.0 if name.endswith("ipo") else np.log(2)  # margin 0: (1 / 2 tau)^2 for IPO
    assert lines[0]["loss"] == pytest.approx(at_reference, rel=1e-2)  # bfloat16
    assert lines[1]["loss"] != lines[0]["loss"]
    tokenizer = json.loads((tmp_path / "out" / "model" / "tokenizer.json").read_text())
    vocabulary = len(tokenizer["model"]["vocab"])
    check_parts(name, after["trained_parameters"], after["parameters"], vocabulary)


def check_parts(name: str, trained: int, total: int, vocabulary: int) -> None:
    """The trained parameters are those of the parts that the recipe names, by hand."""
    width, kv, inner, head = 16, 8, 42, 8
    block = 2 * width * width + 2 * width * kv + 3 * width * inner + 2 * width
    block += 2 * head if "qwen3" in name else 0  # norms of queries and keys
    if name.endswith("lora"):
        assert trained == 4 * (2 * (width + width) + 2 * (width + kv))  # q and o, k and v, of rank 4
    elif name.endswith("last_block") or (name.startswith("llama31") and not name.endswith("fsdp")):
        assert trained == block + width  # and the final norm
    else:
        assert trained == BLOCKS * block + width == total - 2 * vocabulary * width  # not embeddings and head


@pytest.mark.parametrize(("name", "cells"), [("llama32_1b_blocks", 8), ("llama32_1b_data", 8)])
def test_every_cell_of_a_sweep_is_a_recipe(name: str, cells: int) -> None:
    sweep = load_sweep(FOLDER / "sweeps" / f"{name}.yaml")
    assert sweep.name == name and len(sweep.cells) == cells
    objectives = [cell.prepared.recipe.objective.name for cell in sweep.cells]
    assert objectives.count("dpo") == objectives.count("auxdpo") == cells // 2
