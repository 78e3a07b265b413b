"""WRPO's prompts with what source models answered: writers of a world, language models, or recorded responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandits.errors import SimulationError
from llm_backend.data import Candidate, FusionPrompt
from llm_backend.data.hashing import digest, uniform
from llm_backend.data.rows import Content
from llm_backend.generation import ModelGenerator
from llm_backend.loops import CandidateSource, PolicyStore, StoredPolicy
from llm_backend.loops.store import key_of
from llm_backend.models import load_model
from llm_backend.prompts.fixed import prompt_text
from llm_backend.ranking import Ranker, checked_scores
from llm_backend.tokenizers import load_tokenizer
from prefgeo.language.data import LanguageTexts, find_source
from prefgeo.language.loop_recorded import is_recorded, recorded_prompts
from prefgeo.language.loop_spec import SourceModel
from prefgeo.language.loop_world import Writer
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.language.tokens import token_options
from prefgeo.language.world_text import TextWorld
from prefgeo.yaml_reading import Fault

KEPT = "draws/sources"


@dataclass(frozen=True)
class FusionPrompts:
    """``supervised``: for fine-tuning; ``preferences``: for pairs. ``recorded``: with the target's responses too."""

    supervised: Sequence[FusionPrompt]
    preferences: Sequence[FusionPrompt]
    recorded: bool


@dataclass(frozen=True)
class FusionParts:
    """What source models need to answer the prompts of a loop."""

    recipe: LanguageRecipe
    texts: LanguageTexts
    fault: Fault
    home: Path

    def prompts(self, candidates: CandidateSource, store: PolicyStore, base: StoredPolicy) -> FusionPrompts:
        """The prompts of both stages. Raises ``UsageError`` for sources that cannot be read or do not fit."""
        spec, seed = self.recipe.sources, self.recipe.seed
        assert spec is not None
        everything: Sequence[FusionPrompt]
        if is_recorded(self.recipe):
            everything = recorded_prompts(self.recipe, self.fault, self.home).train
        else:
            asked = candidates.prompts.prompts(1, candidates.n_prompts, generator=_Nobody(), seed=seed).prompts
            everything = self._answered(asked, spec.models, candidates, store, base)
        tuned = [uniform("supervised part", seed, place) < spec.supervised_share for place in range(len(everything))]
        return FusionPrompts(
            [each for each, first in zip(everything, tuned, strict=True) if first],
            [each for each, first in zip(everything, tuned, strict=True) if not first],
            any(each.target for each in spec.models),
        )

    def _answered(
        self,
        prompts: Sequence[Content],
        models: Sequence[SourceModel],
        candidates: CandidateSource,
        store: PolicyStore,
        base: StoredPolicy,
    ) -> list[FusionPrompt]:
        """Every source's N responses to every prompt, scored by the recipe's ranker; kept in the store."""
        ranker = candidates.ranker(store, base)
        answers: list[list[Candidate]] = [[] for _ in prompts]
        for place, model in enumerate(models):
            said = self._say(place, model, prompts, candidates, store)
            for mine, prompt, texts in zip(answers, prompts, said, strict=True):
                mine += _scored(ranker, model.name, prompt, texts)
        return [FusionPrompt(prompt, tuple(mine), ()) for prompt, mine in zip(prompts, answers, strict=True)]

    def _say(
        self,
        place: int,
        model: SourceModel,
        prompts: Sequence[Content],
        candidates: CandidateSource,
        store: PolicyStore,
    ) -> list[list[str]]:
        n, seed, whole = candidates.sampling.candidates, self.recipe.seed, candidates.rule.drop_cut_off
        if model.style is not None:
            assert self.texts.world is not None  # checked with the recipe
            return check_writer(self.texts.world, model, place, self.fault).responses(
                [str(prompt) for prompt in prompts], n
            )
        key = key_of(
            model=model.model_dump(), prompts=digest(*map(prompt_text, prompts)).hex(), n=n, seed=seed, whole=whole
        )
        known = store.recall(KEPT, key)
        if known is None:
            path = str(find_source(str(model.path), self.home))
            opened = load_model(path, dtype=self.recipe.model.dtype, attention=self.recipe.model.attention)
            opened.to(store.device)  # type: ignore[arg-type]  # transformers types it as a function of a model
            writer = ModelGenerator(opened, load_tokenizer(path), token_options(self.recipe.data))
            written = writer.generate(prompts, candidates.sampling, seed=seed)
            known = {"said": [[each.text for each in several if each.finished or not whole] for several in written]}
            store.remember(KEPT, key, known)
        found: list[list[str]] = known["said"]
        return found


def check_writer(world: TextWorld, model: SourceModel, place: int, fault: Fault) -> Writer:
    """The writer of a source. Raises ``UsageError`` for a style or a mark that the world does not have."""
    try:
        return Writer(world, model.name, model.style or {}, model.mark)
    except SimulationError as problem:
        raise fault(("sources", "models", place, *getattr(problem, "place", ())), str(problem)) from None


class _Nobody:
    """No model writes prompts here: they are the world's, or those of the data."""

    def generate(self, *given: Any, **named: Any) -> Any:
        raise NotImplementedError


def _scored(ranker: Ranker, name: str, prompt: Content, texts: Sequence[str]) -> list[Candidate]:
    if not texts:
        return []
    (scores,) = checked_scores(ranker, [prompt], [list(texts)]).tolist()
    said: list[Content] = [text if isinstance(prompt, str) else _message(text) for text in texts]
    return [Candidate(name, each, score) for each, score in zip(said, scores, strict=True) if score == score]


def _message(text: str) -> Content:
    return [{"role": "assistant", "content": text}]
