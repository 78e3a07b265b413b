"""The study of loops on tiny language models: its cases are right, it runs in small, and it tells what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("transformers")

from figures.tiny_lm.__main__ import study
from figures.tiny_lm.cases import CASES
from figures.tiny_lm.runs import exact_rounds, recipe_values
from figures.tiny_lm.signs import QUESTIONS, answers, table
from prefgeo.language.recipe import check_language_recipe
from prefgeo.yaml_reading import parse_yaml

SMALLER: dict[str, Any] = {
    "model.sizes": {"architecture": "gpt2", "width": 16, "layers": 1, "heads": 2, "context": 96},
    "data.supervised": 80, "data.rows": 24, "data.held_out": 12, "sft.steps": 6, "training.batch_size": 8,
    "evaluate": {"generations": 6, "max_new_tokens": 12},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_recipe_and_a_run_of_the_simulator_that_say_the_same(case: Any) -> None:
    document = parse_yaml(yaml.safe_dump(recipe_values(case, 7), sort_keys=False), case.name)
    recipe = check_language_recipe(document.values, document.fault)
    assert recipe.seed == 7 and recipe.data.world is not None and recipe.algorithm is not None
    assert (recipe.objective.name, recipe.objective.options) == (case.objective, dict(case.options))
    exact = case.exact
    assert recipe.algorithm.name == exact.algorithm
    assert recipe.algorithm.options.items() >= exact.settings.items()  # and how language models are fine-tuned
    assert recipe.data.flip == exact.flip
    if exact.world == "e3":
        assert recipe.data.world.options["grammar"] == exact.options["grammar"]
        prompts = recipe.data.rows if recipe.prompts is None else recipe.prompts.per_round
        assert prompts == exact.options["n_prompts"]
        assert (recipe.pairing.kind == "fixed") == exact.options.get("reuse", False)
        if recipe.prompts is not None:
            assert recipe.generation.candidates == exact.options["n_candidates"]
    else:
        assert recipe.pairing.kind == exact.kind


def test_every_question_is_about_cases_that_there_are() -> None:
    names = {case.name for case in CASES}
    assert {each.case for each in QUESTIONS} | {each.other for each in QUESTIONS} <= names


def test_signs_are_told_with_their_doubt() -> None:
    def runs(last: list[float]) -> Any:
        first = {"length": np.array([10.0, 10.0, 10.0])}
        return {"b = 0: DPO": [first, {"length": np.array(last)}]}

    clear, unclear = [12.0, 12.1, 11.9], [12.0, 9.0, 10.5]
    (same,) = answers(runs(clear), runs(clear))
    (other,) = answers(runs(clear), runs([8.0, 8.1, 7.9]))
    (vague,) = answers(runs(unclear), runs(clear))
    assert (same.verdict, other.verdict, vague.verdict) == ("same sign", "other sign", "same sign, unclear")
    assert "| +2.000 ± 0.248 | -2.000 ± 0.248 | other sign |" in table([other])


def test_the_simulator_answers_with_the_names_of_language_models() -> None:
    case = next(case for case in CASES if case.study == "length")
    rounds = exact_rounds(case, [1, 2])
    assert len(rounds) == 4 and {"gold", "length", "lc_win_rate"} <= set(rounds[-1])
    assert rounds[0]["kl"] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_study_in_small_is_written_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [next(case for case in CASES if case.name == name) for name in ("on-policy DPO", "hybrid DPO")]
    smaller = SMALLER | {"prompts.per_round": 12, "generation.max_new_tokens": 12, "pairing.drop_cut_off": False}
    record = study(tmp_path, [1], [1, 2], cases, smaller)
    assert "| hybrid - on-policy | win_rate |" in capsys.readouterr().out
    assert (tmp_path / "tiny_lm.png").is_file()
    (first,) = json.loads((tmp_path / "tiny_lm.json").read_text())["answers"]
    assert first == record["answers"][0]
    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(results) == 2
    assert study(tmp_path, [1], [1, 2], cases, smaller)["answers"] == record["answers"]
    assert {path: path.stat().st_mtime_ns for path in results} == results  # nothing was run again
