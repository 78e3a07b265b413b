"""The sections of a loop in a language-model recipe: what is refused, with the key and the reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefgeo.errors import UsageError
from prefgeo.language.recipe import load_language_recipe

BASE: dict[str, Any] = {
    "name": "loop",
    "model": {"name": "tiny", "sizes": {"width": 16}},
    "tokenizer": {"name": "embedded"},
    "data": {"format": "world", "world": {"name": "e3"}},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.01, "epochs": 1},
    "algorithm": {"name": "iterative", "options": {"rounds": 2}},
    "prompts": {"name": "world", "per_round": 20},
}
PAIRS = {"format": "pairs", "path": "pairs.jsonl"}
WRITER = {"models": [{"name": "other", "style": {"good": 0.5}}]}
WRPO = {"name": "wrpo", "options": {"sft_learning_rate": 0.001}}
TASKS = {"format": "seed_tasks", "path": "tasks.jsonl"}
WORDS = {"name": "words"}
OWN = {"name": "self_instruct", "per_round": 4}
RECORDED = {
    "data": {"format": "mmlu_pro", "path": "q.jsonl"}, "algorithm": WRPO, "objective": {"name": "wrpo"},
    "prompts": {"name": "data", "per_round": 4},
    "sources": {
        "models": [{"name": "a", "responses": "a.jsonl", "target": True}, {"name": "b", "responses": "b.jsonl"}]
    },
}  # fmt: skip
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "prompts: .*would be ignored: one round": ({"algorithm": None}, "prompts"),
    "reference: the algorithm says who": ({"reference": {"name": "initial"}}, "reference"),
    "data.ranked_by: in a loop the section ranking": (
        {"data": {**BASE["data"], "ranked_by": "proxy"}}, "ranked_by",
    ),
    "model.lora.blocks: a loop adapts all blocks": (
        {"model": {"name": "m", "lora": {"blocks": 1}}, "tokenizer": {}}, "blocks",
    ),
    "algorithm.options.round: unknown key 'round'": (
        {"algorithm": {"name": "tpmm", "options": {"round": 2}}}, "round",
    ),
    "algorithm.options: give sft_learning_rate": (
        {"algorithm": {"name": "wrpo"}, "sources": WRITER, "objective": {"name": "wrpo"}}, "algorithm",
    ),
    "prompts: fixed pairs need no candidates": ({"pairing": {"kind": "fixed"}}, "prompts"),
    "prompts.name: format: pairs is no world": ({"data": PAIRS, "ranking": {"name": "self"}}, "name"),
    "prompts.name: a world can only judge": (
        {"prompts": {"name": "self_instruct", "per_round": 4, "seeds": "tasks.jsonl"}}, "name",
    ),
    "prompts: name: world would ignore reuse": (
        {"prompts": {"name": "world", "per_round": 4, "reuse": True}}, "prompts",
    ),
    "prompts: name: self_instruct needs seeds": ({"prompts": {"name": "self_instruct", "per_round": 4}}, "prompts"),
    "ranking.name: format: pairs has no gold": (
        {"data": PAIRS, "prompts": {"name": "data", "per_round": 4}, "ranking": {"name": "gold"}}, "name",
    ),
    "ranking.options.path: this key is missing": ({"ranking": {"name": "reward_model"}}, "ranking"),
    "ranking.options.bath: unknown key 'bath'. Did you mean 'path'": (
        {"ranking": {"name": "reward_model", "options": {"bath": "x"}}}, "bath",
    ),
    "ranking: sppo reads win rates: give win_scale": (
        {"algorithm": {"name": "sppo"}, "objective": {"name": "sppo"}}, "",
    ),
    "ranking: in round 1 the policy is the base": (
        {"ranking": {"name": "self", "options": {"kind": "implicit"}}}, "ranking",
    ),
    "pairing.first_round: pairs of a dataset have no": (
        {
            "algorithm": {"name": "sppo"}, "objective": {"name": "sppo"}, "ranking": {"win_scale": 2.0},
            "pairing": {"first_round": "data"},
        }, "first_round",
    ),
    "ranking.win_scale: dpo reads no win rates": ({"ranking": {"win_scale": 2.0}}, "win_scale"),
    "objective.name: sppo iterates on win rates, which dpo": ({"algorithm": {"name": "sppo"}}, "name"),
    "objective.name: sppo needs win rates, which fixed": (
        {"objective": {"name": "sppo"}, "pairing": {"kind": "fixed"}, "prompts": None}, "name",
    ),
    "objective.name: sppo needs win rates, which only the candidates": (
        {"objective": {"name": "sppo"}, "algorithm": None, "prompts": None}, "name",
    ),
    "pairing: kind: fixed would ignore margin": ({"pairing": {"kind": "fixed", "margin": 1.0}}, "pairing"),
    "add a section sources": ({"algorithm": WRPO, "objective": {"name": "wrpo"}}, ""),
    "sources: only the algorithm wrpo": ({"sources": WRITER}, "sources"),
    "pairing.kind: wrpo ranks": (
        {"sources": WRITER, "algorithm": WRPO, "pairing": {"kind": "fixed"}, "prompts": None}, "kind",
    ),
    "sources.models.0: a source is either": (
        {"sources": {"models": [{"name": "a"}]}, "algorithm": WRPO}, "- name",
    ),
    "sources.models.0.styl: unknown key 'styl'. Did you mean 'style'": (
        {"sources": {"models": [{"name": "a", "styl": {}}]}, "algorithm": WRPO}, "styl",
    ),
    "sources: models: a name stands twice": (
        {"sources": {"models": WRITER["models"] * 2}, "algorithm": WRPO}, "sources",
    ),
    "sources.models.0.responses: recorded responses are those": (
        {"sources": {"models": [{"name": "a", "responses": "x.jsonl"}]}, "algorithm": WRPO}, "responses",
    ),
    "prompts.seeds: the seed tasks are those of the data": (
        {"data": TASKS, "ranking": WORDS, "prompts": OWN | {"seeds": "tasks.jsonl"}}, "seeds",
    ),
    "prompts.options: format: seed_tasks makes messages": (
        {"data": TASKS, "ranking": WORDS, "prompts": OWN | {"options": {"examples": 3}}}, "options",
    ),
    "prompts.options.heldout_share: data.test_fraction says": (
        {"data": TASKS, "ranking": WORDS, "prompts": OWN | {"options": {"heldout_share": 0.2}}}, "heldout_share",
    ),
    "ranking.name: a world has rewards of its own": ({"ranking": WORDS}, "name"),
    "data.merge_fraction: only tpmm with pairing": (
        {"data": PAIRS | {"merge_fraction": 0.1}, "pairing": {"kind": "fixed"}, "prompts": None}, "merge_fraction",
    ),
    "data.merge_fraction: one round of training merges": (
        {"data": PAIRS | {"merge_fraction": 0.1}, "algorithm": None, "prompts": None}, "merge_fraction",
    ),
    "training.merge_precision: only tpmm with learned": (
        {"training": {"learning_rate": 0.01, "epochs": 1, "merge_precision": "float32"}}, "merge_precision",
    ),
    "data: merge_fraction parts a dataset of pairs": (
        {"data": {"format": "mmlu_pro", "path": "q.jsonl", "merge_fraction": 0.1}, "prompts": None}, "data",
    ),
    "data: test_fraction and merge_fraction leave nothing": (
        {"data": PAIRS | {"test_fraction": 0.5, "merge_fraction": 0.5}, "prompts": None}, "data",
    ),
    "data: split is of datasets of the hub": ({"data": TASKS | {"split": "train"}, "prompts": None}, "data"),
    "generation: the target's responses are recorded": (RECORDED | {"generation": {"top_p": 0.9}}, "generation"),
    "ranking: the target's responses are recorded": (RECORDED | {"ranking": {"name": "gold"}}, "ranking"),
    "pairing.drop_empty: the target's responses are recorded": (
        RECORDED | {"pairing": {"kind": "hybrid", "drop_empty": False}}, "drop_empty",
    ),
    "prompts.reuse: one draw is all that wrpo takes": (
        RECORDED | {"prompts": {"name": "data", "per_round": 4, "reuse": True}}, "reuse",
    ),
    "algorithm.options.weight_data: fixed pairs are nobody's": (
        {
            "algorithm": {"name": "tpmm", "options": {"weight_data": "heldout_sft"}}, "pairing": {"kind": "fixed"},
            "prompts": None,
        }, "weight_data",
    ),
}  # fmt: skip


def written(folder: Path, changes: dict[str, Any]) -> Path:
    values = {name: each for name, each in (copy.deepcopy(BASE) | changes).items() if each is not None}
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("sentence", FAULTS)
def test_what_does_not_fit_is_refused_with_its_key(sentence: str, tmp_path: Path) -> None:
    changes, key = FAULTS[sentence]
    path = written(tmp_path, changes)
    with pytest.raises(UsageError) as caught:
        load_language_recipe(path)
    told = str(caught.value).partition(", ")[2].partition(", ")[2] if key else str(caught.value)
    assert sentence.split("*")[-1] in told, str(caught.value)
    lines = path.read_text(encoding="utf-8").splitlines()
    line = int(str(caught.value).partition(", line ")[2].split(",")[0].split(":")[0])
    assert not key or f"{key}:" in lines[line - 1], (line, lines[line - 1])


def test_the_resolved_recipe_holds_only_what_is_read(tmp_path: Path) -> None:
    loop = load_language_recipe(written(tmp_path, {}))[0].model_dump()
    once = load_language_recipe(written(tmp_path, {"algorithm": None, "prompts": None}))[0].model_dump()
    sections = {"prompts", "generation", "ranking", "pairing", "sources"}
    assert sections <= set(loop) and "reference" not in loop
    assert not sections & set(once) and "reference" in once
    assert loop["generation"]["candidates"] == 4
