"""Mistakes in language-model recipes that show only when a part is made: one line with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from prefgeo.cli import main
from tests.prefgeo.small_language_recipe import RECIPE

LOOP = """evaluate: {generations: 0}
algorithm: {name: iterative, options: {rounds: 1}}
prompts: {name: world, per_round: 4}
"""
NONE = "evaluate: {generations: 0}\n"
PAIRS = [{"prompt": f"say {i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(30)]
WORLD = RECIPE[RECIPE.index("  format: world") : RECIPE.index("objective:")]
FILE = "  format: pairs\n  path: pairs.jsonl\n"
JUDGE = "ranking: {name: judge, options: {model: x, url: "
MISTAKES = {
    "heads": ("heads: 2", "heads: 3", "line 2, model.sizes: there is no llama of these sizes: The hidden size (16)"),
    "attention": (
        "tiny, sizes", "tiny, attention: flash_attention_2, sizes",
        "line 2, model.attention: attention flash_attention_2 cannot be used: FlashAttention2",
    ),
    "layers of LoRA": (
        "tiny, sizes", "tiny, lora: {targets: [v_proj, q_prjo]}, sizes",
        "line 2, model.lora.targets.1: no linear layer is called 'q_prjo'. Did you mean 'q_proj'? Known: down_proj, ",
    ),
    "blocks of LoRA": (
        "tiny, sizes", "tiny, lora: {blocks: 2}, sizes",
        "line 2, model.lora.blocks: the model has 1; give at most that, or leave it out for all",
    ),
    "columns of an objective": ("name: dpo}", "name: wrpo}", "line 4, data: wrpo needs a column 'source_chosen',"),
    "nothing left": (WORLD, f"{FILE}  max_length: 2\n", "line 4, data: no row is left to train on; of "),
    "option of a reader": (
        WORLD, f"{FILE}  options: {{promt: extract}}\n",
        "line 4, data: pairs.jsonl: this format has no option 'promt'; it takes prompt",
    ),
    "tokens of generations": (
        "generations: 0", "generations: 5, max_new_tokens: 5000",
        "line 12, evaluate.max_new_tokens: prompt 0 has",
    ),
    "tokens of candidates": (
        NONE, LOOP + "generation: {max_new_tokens: 5000}\n", "line 15, generation: prompt 0 has 10 tokens; with 5,000"
    ),
    "engine": (
        NONE, LOOP + "generation: {engine: vllm}\n",
        "line 15, generation.engine: vllm is not installed: pip install vllm, or say engine: hf",
    ),
    "address of a judge": (
        NONE, f"{LOOP}{JUDGE}nohost}}}}\n", "line 15, ranking.options: the address of a judge begins with http:// or"
    ),
    "key of a judge": (
        NONE, f"{LOOP}{JUDGE}'http://127.0.0.1:9/v1', key_variable: NO_SUCH_KEY}}}}\n",
        "line 15, ranking.options: the environment variable NO_SUCH_KEY is not set",
    ),
    "ranker": (
        NONE, f"{LOOP}ranking: {{name: reward_model, options: {{path: .}}}}\n",
        "line 15, ranking: no sequence classifier can be loaded from",
    ),
    "hybrid pairs": (
        NONE, f"{LOOP}pairing: {{kind: hybrid}}\n",
        "line 15, pairing.kind: hybrid pairs need responses of source models: add a section sources",
    ),
    "text for a section": (
        "model: {name: tiny, sizes: {width: 16, layers: 1, heads: 2, context: 64}}", "model: tiny",
        "line 2, model: must be a section with keys (name, sizes, trainable, lora, dtype, attention), got 'tiny'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, sentence = MISTAKES[case]
    assert old in RECIPE
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status = main(["run", "recipe.yaml", "--backend", "torch", "--out", "out"])
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert told.err.count("\n") == 1
    assert told.err.startswith(f"prefgeo: recipe.yaml, {sentence}")


def test_a_sweep_of_neither_a_file_nor_a_recipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text("name: s\nrecipe: [1]\ngrid: {training.steps: [1]}\n", encoding="utf-8")
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    told = capsys.readouterr().err
    assert "sweep.yaml, line 2, recipe: must be the name of a recipe file, or a recipe written in place, got" in told
