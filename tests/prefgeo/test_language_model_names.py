"""A model, tokenizer or reference that a recipe names and that is nowhere: file, line and key, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

import huggingface_hub

from llm_backend.hub import _asked
from prefgeo.cli import main
from tests.prefgeo.small_language_recipe import RECIPE

LOOP = """algorithm: {name: iterative, options: {rounds: 1}}
prompts: {name: world, per_round: 4}
ranking: {name: reward_model, options: {path: no/ranker}}
"""
OWN = ("tokenizer: {name: embedded, vocab_size: 300}\n", "")
TINY = "model: {name: tiny, sizes: {width: 16, layers: 1, heads: 2, context: 64}}"
CASES = {
    "model": ([OWN, (TINY, "model: {name: owner/nmae}")], "line 2, model.name: 'owner/nmae' leads nowhere: "),
    "tokenizer": (
        [(TINY, "model: {name: HERE}"), ("{name: embedded, vocab_size: 300}", "{name: no/words}")],
        "line 3, tokenizer.name: 'no/words' leads nowhere: ",
    ),
    "reference": (
        [("evaluate:", "reference: {name: path, path: no/reference}\nevaluate:")],
        "line 12, reference.path: 'no/reference' leads nowhere: ",
    ),
    "ranker": ([("evaluate:", f"{LOOP}evaluate:")], "line 14, ranking.options.path: 'no/ranker' leads nowhere: "),
    "no model folder": (
        [OWN, (TINY, "model: {name: HERE}")],
        "line 2, model.name: the folder HERE holds no tokeni",
    ),
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that cannot be reached; the addresses that were asked for."""
    asked: list[str] = []

    def metadata(url: str, *, timeout: float) -> None:
        asked.append(url)
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    _asked.cache_clear()
    return asked


@pytest.mark.parametrize("case", CASES)
def test_a_name_that_leads_nowhere_is_told_with_its_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], nobody: list[str]
) -> None:
    changes, sentence = CASES[case]
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yaml").write_text(text.replace("HERE", str(tmp_path / "empty")), encoding="utf-8")
    arguments = ["run", str(tmp_path / "recipe.yaml"), "--backend", "torch", "--out", str(tmp_path / "out")]
    status = main(arguments)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("prefgeo: ") and err.count("\n") == 1
    assert f"recipe.yaml, {sentence}".replace("HERE", str(tmp_path / "empty")) in err
    assert len(nobody) == (case != "no model folder")
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_told_before_its_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "name: many\nrecipe: recipe.yaml\ngrid:\n  reference.path: [no/one]\n"
    recipe = RECIPE.replace("evaluate:", "reference: {name: path, path: x}\nevaluate:")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    sweep = str(tmp_path / "sweep.yaml")
    assert main(["sweep", sweep, "--backend", "torch", "--out", str(tmp_path / "out")]) == 2
    assert "sweep.yaml, line 4, grid.reference.path.0: 'no/one' leads nowhere: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
