"""The ranker that a recipe's ``ranking`` names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.data.rows import Content
from llm_backend.loops import PolicyStore, StoredPolicy
from llm_backend.ranking import Ranker, Scores
from prefgeo.language.data import LanguageTexts
from prefgeo.language.loop_checks import ranking_options
from prefgeo.language.loop_world import WorldRanker
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.yaml_reading import Fault

STATED = re.compile(r"answer is:?\s*\(?([A-P])\b")
FIRST = re.compile(r"\s*\(?([A-P])\b")


@dataclass(frozen=True)
class RightAnswerRanker:
    """1 for a response that gives the right answer, else 0. ``right``: the right response to each prompt.

    Where right responses begin with a letter, as ' (C) Paris', the last 'answer is (X)' of a response counts, else the
    letter that it begins with; without letters a response must begin with the right one.
    """

    right: Mapping[str, str]
    name: str = "gold"

    @classmethod
    def of(cls, texts: LanguageTexts) -> RightAnswerRanker:
        """Of questions whose chosen responses are right."""
        rows = (row for split in texts.splits.values() for row in split.rows)
        return cls({repr(row.prompt): _text(row.chosen) for row in rows})

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N), 0 or 1."""
        rows = [
            [self._right(self.right[repr(prompt)], text) for text in texts]
            for prompt, texts in zip(prompts, candidates, strict=True)
        ]
        return np.array(rows, dtype=np.float64)

    @staticmethod
    def _right(right: str, text: str) -> bool:
        letter = FIRST.match(right)
        if letter is None:
            return text.strip().startswith(right.strip())
        stated = STATED.findall(text)
        first = FIRST.match(text)
        given = stated[-1] if stated else first.group(1) if first else None
        return given == letter.group(1)


def gold_ranker(recipe: LanguageRecipe, texts: LanguageTexts) -> Ranker | None:
    """What the data themselves say is good, where they do."""
    if texts.world is not None:
        return WorldRanker(texts.world)
    return RightAnswerRanker.of(texts) if recipe.data.format == "mmlu_pro" else None


def ranker_maker(recipe: LanguageRecipe, texts: LanguageTexts, fault: Fault, home: Path, base: StoredPolicy) -> Any:
    """(store, policy that drew) -> the ranker."""
    _, name = ranking_options(recipe, fault), recipe.ranking.name
    gold = gold_ranker(recipe, texts)

    def make(store: PolicyStore, policy: StoredPolicy) -> Ranker:
        if name == "proxy":
            assert texts.world is not None  # checked with the recipe
            return WorldRanker(texts.world, biased=True)
        assert gold is not None
        return gold

    return make


def _text(content: Content) -> str:
    return content if isinstance(content, str) else content[-1]["content"]
