"""The ranker that a recipe's ``ranking`` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm_backend.data.rows import Content
from llm_backend.generation import Sampling
from llm_backend.loops import PolicyStore, StoredPolicy, model_generator
from llm_backend.ranking import (
    Endpoint,
    GoldRanker,
    JudgeRanker,
    PairRanker,
    Ranker,
    RewardModelRanker,
    SelfJudgeRanker,
    SelfRewardRanker,
)
from prefgeo.language.data import HELD_OUT, OUT_OF_DOMAIN, TRAIN, LanguageTexts, find_source
from prefgeo.language.loop_spec import JudgeRanking, ModelRanking, SelfRanking
from prefgeo.language.loop_world import WorldRanker
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.language.tokens import token_options
from prefgeo.language.word_reward import word_reward

STATED = re.compile(r"answer is:?\s*\(?([A-P])\b")
FIRST = re.compile(r"\s*\(?([A-P])\b")
JUDGED = "draws/judge-answers.jsonl"


@dataclass(frozen=True)
class LoopRanker:
    """Makes the ranker of a draw from the store and the policy that drew. A model is loaded when it first ranks."""

    recipe: LanguageRecipe
    texts: LanguageTexts
    options: Any
    home: Path
    base: StoredPolicy
    _loaded: dict[str, Ranker] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, store: PolicyStore, policy: StoredPolicy) -> Ranker:
        """The ranker."""
        name, options = self.recipe.ranking.name, self.options
        if isinstance(options, SelfRanking):
            return self._self(store, policy, options)
        if isinstance(options, ModelRanking):
            if name not in self._loaded:
                self._loaded[name] = self._model(store, options)
            return self._loaded[name]
        if isinstance(options, JudgeRanking):
            given = options.model_dump(exclude={"parameters"} if options.parameters is None else set())
            return JudgeRanker(Endpoint(**given), cache=store.root / JUDGED)
        if name == "proxy":
            assert self.texts.world is not None  # checked with the recipe
            return WorldRanker(self.texts.world, biased=True)
        gold = gold_ranker(self.recipe, self.texts)
        assert gold is not None  # checked with the recipe
        return gold

    def _model(self, store: PolicyStore, options: ModelRanking) -> Ranker:
        kind: Any = RewardModelRanker if self.recipe.ranking.name == "reward_model" else PairRanker
        path = find_source(options.path, self.home)
        found = kind.load(path, batch_size=options.batch_size, max_length=options.max_length)
        found.model.to(store.device)
        ranker: Ranker = found
        return ranker

    def _self(self, store: PolicyStore, policy: StoredPolicy, options: SelfRanking) -> Ranker:
        tokens = token_options(self.recipe.data)
        if options.kind == "judge":
            sampling = Sampling(temperature=0.0, max_new_tokens=options.max_new_tokens)
            return SelfJudgeRanker(model_generator(store, policy, tokens), sampling=sampling, seed=self.recipe.seed)
        models = store.model(policy), store.model(self.base)
        return SelfRewardRanker(*models, store.tokenizer(policy), options=tokens)


def gold_ranker(recipe: LanguageRecipe, texts: LanguageTexts) -> Ranker | None:
    """What a program can say is good: a world's reward, 1 for a right answer, or the rule ``words`` that ranks."""
    if texts.world is not None:
        return WorldRanker(texts.world)
    if recipe.ranking.name == "words":
        return GoldRanker(word_reward, name="words")
    if recipe.data.format != "mmlu_pro":
        return None
    options = (texts.splits[name] for name in (TRAIN, HELD_OUT, OUT_OF_DOMAIN) if name in texts.splits)
    rows = (row for split in options for row in split.rows)
    right = {repr(row.prompt): _text(row.chosen) for row in rows}
    return GoldRanker(partial(right_answer, right))


def right_answer(right: Mapping[str, str], prompt: Content, response: str) -> float:
    """1 for a response that gives the right answer to its prompt, else 0. ``right``: a right response by prompt.

    Where right responses begin with a letter, as ' (C) Paris', the last 'answer is (X)' of a response counts, else the
    letter that it begins with; without letters a response must begin with the right one.
    """
    chosen = right[repr(prompt)]
    letter = FIRST.match(chosen)
    if letter is None:
        return float(response.strip().startswith(chosen.strip()))
    stated, first = STATED.findall(response), FIRST.match(response)
    given = stated[-1] if stated else first.group(1) if first else None
    return float(given == letter.group(1))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else content[-1]["content"]
