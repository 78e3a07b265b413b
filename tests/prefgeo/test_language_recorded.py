"""Recorded responses in a recipe: which questions a loop takes, what SFT imitates, and what held-out ones test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefgeo.errors import UsageError
from prefgeo.language.data import load_texts
from prefgeo.language.loop_recorded import recorded_prompts, with_recorded
from prefgeo.language.recipe import LanguageRecipe, check_language_recipe

KINDS = ("biology", "law", "math", "physics")
MODELS = {"poor": True, "fair": True, "strong": False}


def fault(place: tuple[Any, ...], sentence: str) -> UsageError:
    return UsageError(f"{place}: {sentence}")


@pytest.fixture
def recipe(tmp_path: Path) -> LanguageRecipe:
    """120 questions, sorted by category; "poor" is always wrong, "fair" half of the time, "strong" never."""
    questions = [
        {"question_id": i, "category": KINDS[i // 30], "question": f"{i} and 1?", "options": [f"{i + 1}", "no"],
         "answer_index": 0} for i in range(120)
    ]  # fmt: skip
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    for name in MODELS:
        right = {"poor": lambda i: 1, "fair": lambda i: i % 2, "strong": lambda i: 0}[name]
        said = [{"question_id": i, "response": f"{name} says {i}", "predicted_index": right(i)} for i in range(120)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, said)), encoding="utf-8")
    models = [{"name": name, "responses": f"{name}.jsonl", "target": target} for name, target in MODELS.items()]
    values = {
        "name": "recorded", "model": {"name": "tiny", "sizes": {}}, "tokenizer": {"name": "embedded"},
        "data": {"format": "mmlu_pro", "path": "questions.jsonl", "test_fraction": 0.3},
        "objective": {"name": "wrpo"}, "training": {"learning_rate": 0.01, "epochs": 1},
        "algorithm": {"name": "wrpo", "options": {"sft_learning_rate": 0.01}},
        "prompts": {"name": "data", "per_round": 20}, "sources": {"models": models},
    }  # fmt: skip
    return check_language_recipe(values, fault)


def test_questions_are_of_all_categories(recipe: LanguageRecipe, tmp_path: Path) -> None:
    found = recorded_prompts(recipe, fault, tmp_path)
    counts = Counter(prompt.category for prompt in found.train)
    assert sum(counts.values()) == 20 and set(counts) == set(KINDS) and max(counts.values()) <= 8
    assert not {repr(each.prompt) for each in found.train} & {repr(each.prompt) for each in found.held_out}


def test_sft_imitates_the_target_alone_and_both_sides_are_tested(recipe: LanguageRecipe, tmp_path: Path) -> None:
    texts = with_recorded(recipe, load_texts(recipe.data, 0, fault, tmp_path), fault, tmp_path)
    assert texts.supervised is not None and len(texts.supervised) == 2 * 20
    assert {str(each.responses[0]).split()[0] for each in texts.supervised} == {"poor", "fair"}
    target, sources = texts.splits["target"], texts.splits["sources"]
    assert len(target) == len(sources) > 5  # those that "fair" has right and "poor" wrong
    assert all(str(row.chosen).startswith(" fair") and str(row.rejected).startswith(" poor") for row in target.rows)
    assert all(str(row.chosen).startswith(" strong") and row.source_chosen is None for row in sources.rows)
    assert {"target", "sources", "held_out"} == set(texts.tests)
    assert set(texts.inputs or {}) == {"questions.jsonl", *(f"{name}.jsonl" for name in MODELS)}


def test_a_file_that_is_not_there_is_named_with_its_source(recipe: LanguageRecipe, tmp_path: Path) -> None:
    (tmp_path / "strong.jsonl").unlink()
    with pytest.raises(UsageError, match=r"'models', 2, 'responses'.*strong\.jsonl"):
        recorded_prompts(recipe, fault, tmp_path)
