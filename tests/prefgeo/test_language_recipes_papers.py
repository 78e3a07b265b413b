"""The papers' real runs, loops and alpha-DPO, each with a tiny model of its architecture, offline."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModel, DebertaV2Config, LlamaConfig, LlamaForSequenceClassification

from llm_backend.generation import ModelGenerator, Response
from llm_backend.prompts.task_lists import INTRODUCTION
from llm_backend.ranking import PairModel, save_pair_model
from llm_backend.toy import make_model, make_tokenizer
from prefgeo.language.recipe import check_language_recipe
from prefgeo.language.run import run_checked
from prefgeo.yaml_reading import read_yaml

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
AIPO = ("aipo_mistral_7b", "aipo_llama3_8b", "aipo_mistral_nemo")
WRPO = ("wrpo_llama3_8b", "wrpo_llama3_8b_five_sources", "wrpo_simpo_llama3_8b", "wrpo_ipo_llama3_8b")
HH = ("tpmm_llama32_3b", "iterative_dpo_llama32_3b", "sdpo_llama32_3b", "tr_dpo_llama32_3b")
LOOPS = (*AIPO, *WRPO, *HH, "sppo_mistral_7b")
SMALL = ("mmlu_pro_wrpo_small", "hh_tpmm_small", "self_instruct_aipo_small")  # test_language_recipes_data.py runs them
ALPHA = ("llama3_8b_alpha_dpo", "llama3_8b_v02_alpha_dpo", "mistral_7b_alpha_dpo")
GREETING = {"system": "", "user": "Say what comes after number"}
MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


def test_the_lists_name_every_file() -> None:
    there = {path.stem for path in (FOLDER / "lm_loops").glob("*.yaml") if not path.stem.startswith("tiny_")}
    assert there == {*LOOPS, *SMALL}
    assert {path.stem for path in (FOLDER / "lm").glob("*alpha*.yaml")} == set(ALPHA)


def test_the_page_lists_every_file_and_no_other() -> None:
    page = (FOLDER.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page.partition("### Recipes that are there")[2].partition("\n### ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name.split("/")[-1] for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    there = [path.stem for kind in ("lm", "lm_loops") for path in (FOLDER / kind).glob("*.yaml")]
    assert not [name for name in there if not any(fnmatch(name, pattern) for pattern in listed)]
    assert not [pattern for pattern in listed if not any(fnmatch(name, pattern) for name in there)]


def dialogues(path: Path) -> None:
    """40 pairs as HH has them."""
    asked = [f"\n\nHuman: {GREETING['user']} {i}.\n\nAssistant:" for i in range(40)]
    rows = [{"chosen": f"{text} It is {i + 1}.", "rejected": f"{text} No."} for i, text in enumerate(asked)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def conversations(path: Path) -> None:
    """40 pairs as UltraFeedback has them; and a file of its instructions."""
    rows = []
    for i in range(40):
        user = {"role": "user", "content": f"{GREETING['user']} {i}."}
        sides = {"chosen": f"It is {i + 1}.", "rejected": "No."}
        rows.append({name: [user, {"role": "assistant", "content": text}] for name, text in sides.items()})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = [{"instruction": f"Name {i} rivers that flow north."} for i in range(12)]
    (path.parent / "ultrafeedback.jsonl").write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")


def tokenizer() -> Any:
    made = make_tokenizer([f"{GREETING['user']} 1234567890. It is No."], 280)
    made.add_tokens(list(MARKS), special_tokens=True)
    return made


def rankers(folder: Path) -> None:
    """A reward model and a pair ranker of the published architecture, with random weights."""
    words = tokenizer()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), num_labels=1, pad_token_id=words.pad_token_id, **small)
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    words.save_pretrained(folder / "reward")
    encoder = DebertaV2Config(
        vocab_size=len(words), position_biased_input=False, relative_attention=True, type_vocab_size=0,
        max_position_embeddings=2048, pos_att_type=["c2p", "p2c"], **small,
    )  # fmt: skip
    pair = PairModel(AutoModel.from_config(encoder))
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(10.0)  # so that texts make a difference
    save_pair_model(pair, folder / "PairRM")
    words.cls_token, words.sep_token = words.bos_token, words.eos_token
    words.save_pretrained(folder / "PairRM")


def smaller(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Small sizes and few rows; what the recipe says of data, objective, algorithm and rules holds."""
    architecture = "mistral" if "istral" in values["model"]["name"] else "llama"
    sizes = {"architecture": architecture, "width": 16, "layers": 1, "heads": 2, "context": 1024}
    values["model"] |= {"name": "tiny", "sizes": sizes}
    values["tokenizer"] = {"name": "embedded", "vocab_size": 300}
    make = dialogues if values["data"]["format"] == "hh" else conversations
    make(folder / "rows.jsonl")
    values["data"] |= {"path": "rows.jsonl", "test_fraction": 0.3}
    values["data"].pop("split", None)
    values["data"].pop("rows", None)
    values["training"] |= {"learning_rate": 0.01, "batch_size": 4, "accumulation": 1, "log_every": 1}
    for section in ("sft", "generation", "prompts", "ranking", "pairing"):
        values.setdefault(section, None)
    if values["sft"]:
        values["sft"] |= {"learning_rate": 0.01, "epochs": 1, "accumulation": 1}
    values["evaluate"] = {"generations": 4, "max_new_tokens": 6} if "algorithm" in values else {"generations": 0}
    if values["generation"]:
        values["generation"] |= {"max_new_tokens": 6, "engine": "hf"}
        values["pairing"] |= {"drop_cut_off": False, "drop_empty": False}
    if values["prompts"]:
        values["prompts"]["per_round"] = 18 if "sources" in values else 6
        if "options" in values["prompts"]:
            values["prompts"] |= {"options": values["prompts"]["options"] | {"calls": 2}}
    if values["ranking"]:
        path = {"pair_ranker": "PairRM", "reward_model": "reward"}[values["ranking"]["name"]]
        values["ranking"]["options"]["path"] = path
    options = values.get("algorithm", {}).get("options", {})
    for name, most in (("rounds", 2), ("every", 3), ("sft_batch_size", 4)):
        if name in options:
            options[name] = most
    for source in values.get("sources", {}).get("models", []):
        source["path"] = "source"
    return {name: each for name, each in values.items() if each is not None}


def run(name: str, folder: Path) -> dict[str, Any]:
    document = read_yaml(FOLDER / f"{name}.yaml")
    values = smaller(document.values, folder)
    recipe = check_language_recipe(values, document.fault)
    done = run_checked(recipe, document.fault, folder, folder / "out", resume=False, device="cpu", seconds=600.0)
    found: dict[str, Any] = dict(done.result)
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return found | {"lines": [line for line in lines if line["stage"] not in ("sft", "supervised")]}


@pytest.fixture
def a_writer_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no task that can be read: for lists of tasks, a script does."""
    truly = ModelGenerator.generate

    def generate(self: Any, prompts: Any, sampling: Any, *, seed: int, keys: Any = None) -> Any:
        if INTRODUCTION not in str(prompts[0]):
            return truly(self, prompts, sampling, seed=seed, keys=keys)
        animals = ("owls", "bears", "moths", "eels", "ants", "crows", "goats", "seals")
        said = [
            f"Task 9: Explain why {animals[key % 8]} sleep for {seed % 97} nights.\n"
            f"Task 10: Write to {animals[(key + 3) % 8]} about {'snow' * (key + 1)} {seed % 89}."
            for key in keys
        ]
        return [[Response(text, (1, 2), True)] for text in said]

    monkeypatch.setattr(ModelGenerator, "generate", generate)


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_runs_with_a_tiny_model(name: str, tmp_path: Path, a_writer_of_tasks: None) -> None:
    rankers(tmp_path)
    if name in WRPO:
        words = tokenizer()
        make_model(len(words), hidden_size=16, num_hidden_layers=1, max_position_embeddings=1024).save_pretrained(
            tmp_path / "source"
        )
        words.save_pretrained(tmp_path / "source")
    result = run(f"lm_loops/{name}", tmp_path)
    rounds = result["rounds"]
    assert rounds[-1]["metrics"]["rows_kept"] > 0 and rounds[-1]["metrics"]["kl"] > 0.0
    assert 0.0 <= rounds[-1]["metrics"]["accuracy"] <= 1.0
    if name in HH:
        assert result["lines"][0]["loss"] == pytest.approx(np.log(2.0), rel=1e-2)  # policy and reference agree
    assert any("shares" in each for each in rounds) == (name == "tpmm_llama32_3b")
    if name in AIPO:
        assert rounds[-1]["metrics"]["rows_prompts_near_duplicates"] >= 0.0
    if name in WRPO:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert len(manifest["roles"]["rounds"]) == 2  # fine-tuning, then preferences


@pytest.mark.parametrize("name", ALPHA)
def test_alpha_dpo_runs_with_a_tiny_model(name: str, tmp_path: Path) -> None:
    result = run(f"lm/{name}", tmp_path)
    assert result["stages"]["preference"]["pairs"]["held_out"]["rows"] > 0
    document = read_yaml(FOLDER / "lm" / f"{name}.yaml")
    options = document.values["objective"]["options"]
    ratio = {"llama3_8b_alpha_dpo": 0.6, "llama3_8b_v02_alpha_dpo": 0.4, "mistral_7b_alpha_dpo": 0.15}[name]
    assert options["gamma"] == pytest.approx(ratio * options["beta"])
    first, last = result["lines"][0]["loss"], result["lines"][-1]["loss"]
    assert np.isfinite(first) and first != last
