"""Recorded responses of a target and of source models: what a loop trains on, what SFT imitates, what is tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_backend.data import (
    DataError,
    FusionPrompt,
    PreferenceRow,
    Preferences,
    ResponseSet,
    fusion_rows,
    load_records,
    mmlu_fusion,
    questions_from_records,
    split_questions,
)
from llm_backend.data.records import Record
from prefgeo.language.data import LanguageTexts, evenly, find_source, sha256
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.yaml_reading import Fault

TARGET, SOURCES = "target", "sources"
"""The test splits: y_wt over y_l, and y_ws over y_l, of held-out questions."""


@dataclass(frozen=True)
class RecordedPrompts:
    """Questions with recorded responses: those of the loop, and the held-out ones."""

    train: Sequence[FusionPrompt]
    held_out: Sequence[FusionPrompt]


def is_recorded(recipe: LanguageRecipe) -> bool:
    """Whether the source models' responses are recorded."""
    return recipe.sources is not None and any(each.responses is not None for each in recipe.sources.models)


def recorded_prompts(recipe: LanguageRecipe, fault: Fault, home: Path) -> RecordedPrompts:
    """Questions of MMLU-Pro with recorded responses, a right answer being worth 1; ``prompts.per_round`` of the
    training ones, evenly spaced. Raises ``UsageError`` for files that cannot be read or do not fit."""
    assert recipe.sources is not None
    data = recipe.data
    sides: tuple[dict[str, list[Record]], dict[str, list[Record]]] = ({}, {})
    for place, each in enumerate(recipe.sources.models):
        if each.responses is None:
            raise fault(("sources", "models", place), "recorded and writing sources do not mix; give responses")
        try:
            sides[each.target][each.name] = load_records(find_source(each.responses, home))
        except DataError as problem:
            raise fault(("sources", "models", place, "responses"), str(problem)) from None
    path = str(find_source(str(data.path), home))
    parts = split_questions(
        questions_from_records(load_records(path, split=data.split), path),
        test_fraction=data.test_fraction, out_of_domain=data.out_of_domain, seed=recipe.seed,
    )  # fmt: skip
    kept = evenly(parts.train, None if recipe.prompts is None else recipe.prompts.per_round)
    answer = data.options.get("answer", "letter_text")
    try:
        found = [mmlu_fusion(questions, *sides, answer=answer) for questions in (kept, parts.in_domain)]
    except DataError as problem:
        raise fault(("sources",), str(problem)) from None
    return RecordedPrompts(*found)


def with_recorded(recipe: LanguageRecipe, texts: LanguageTexts, fault: Fault, home: Path) -> LanguageTexts:
    """The texts; where the target's responses are recorded too, ``supervised`` has those to the loop's questions, so
    that SFT makes a model that writes as the target does, and two more test splits have held-out responses.

    Only then are a model's own responses like those that it is trained on as its own. Raises as above.
    """
    if recipe.sources is None or not any(each.target for each in recipe.sources.models):
        return texts
    prompts = recorded_prompts(recipe, fault, home)
    said = [(prompt, each) for prompt in prompts.train for each in prompt.target]
    supervised = [
        ResponseSet(row, prompt.prompt, (each.response,), 0, prompt.category)
        for row, (prompt, each) in enumerate(said)
    ]  # fmt: skip
    tested = fusion_rows(prompts.held_out, "held-out questions", seed=recipe.seed)
    splits = dict(texts.splits)
    for name, make in ((TARGET, _target_pair), (SOURCES, _source_pair)):
        if tested.rows:
            splits[name] = Preferences(tuple(make(row) for row in tested.rows), tested.source, tested.left_out)
    files = [Path(find_source(str(each.responses), home)) for each in recipe.sources.models]
    inputs = (texts.inputs or {}) | {each.name: sha256(each) for each in files if each.is_file()}
    return replace(texts, splits=splits, supervised=supervised, inputs=inputs)


def _target_pair(row: PreferenceRow) -> PreferenceRow:
    return replace(row, source_chosen=None)


def _source_pair(row: PreferenceRow) -> PreferenceRow:
    assert row.source_chosen is not None
    return replace(row, chosen=row.source_chosen, source_chosen=None, score_chosen=None, score_rejected=None)
