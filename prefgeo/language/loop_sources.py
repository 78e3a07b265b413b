"""From the sections of a loop to where its rows come from: prompts, generator, ranker, pair rule, source models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_backend.data.errors import DataError
from llm_backend.data.rows import Preferences
from llm_backend.errors import BackendError
from llm_backend.generation import Sampling
from llm_backend.loops import CandidateSource, FixedSource, FusionSource, PolicyStore, RoundSource, StoredPolicy
from llm_backend.pairing import PairRule, RecordedResponses
from llm_backend.prompts import FixedPrompts, PromptSource, SelfInstruct, SelfInstructOptions, load_seed_tasks
from llm_backend.ranking import Endpoint
from prefgeo.language.data import HELD_OUT, MERGE, TRAIN, LanguageTexts, find_source
from prefgeo.language.loop_checks import ranking_options
from prefgeo.language.loop_fusion import FusionParts, check_writer
from prefgeo.language.loop_rankers import LoopRanker
from prefgeo.language.loop_world import WorldPrompts
from prefgeo.language.model_names import at
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.language.seed_task_text import instruction
from prefgeo.yaml_reading import Fault

Made = TypeVar("Made")


@dataclass(frozen=True)
class LoopParts:
    """What a loop's sources are made of: the recipe, its texts, how to tell of faults, where file names start."""

    recipe: LanguageRecipe
    texts: LanguageTexts
    fault: Fault
    home: Path
    longest_response: int

    def checked(self) -> LoopParts:
        """Itself. Raises ``UsageError`` for what can be known to be wrong before the loop begins."""
        self._rule(), self._parts(), self.sampling()
        if self.recipe.generation.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise self.fault(("generation", "engine"), "vllm is not installed: pip install vllm, or say engine: hf")
        options = self.recipe.ranking.options if self.recipe.pairing.kind != "fixed" else {}
        if self.recipe.ranking.name == "judge" and options:
            with at(self.fault, ("ranking", "options")):
                Endpoint(**{name: value for name, value in options.items() if value is not None}).key()
        for place, model in enumerate(self.recipe.sources.models if self.recipe.sources else ()):
            if model.style is not None and self.texts.world is not None:
                check_writer(self.texts.world, model, place, self.fault)
        spec = self.recipe.prompts
        if spec is not None and spec.name == "self_instruct":
            self._self_instruct(None)
        return self

    def source(self, store: PolicyStore, base: StoredPolicy) -> RoundSource:
        """Where the rows of all rounds come from. Raises ``UsageError`` for what does not fit."""
        recipe = self.recipe
        fixed = FixedSource(
            train=self.texts.splits[TRAIN], held_out=self.texts.splits.get(MERGE, self.texts.splits[HELD_OUT]),
            rounds=self._parts(), flip_mode=recipe.data.flip_mode,
        )  # fmt: skip
        if recipe.pairing.kind == "fixed":
            return fixed
        candidates = self._candidates(store, base, fixed)
        if recipe.sources is None:
            return candidates
        prompts = FusionParts(recipe, self.texts, self.fault, self.home).prompts(candidates, store, base)
        return FusionSource(
            preferences=prompts.preferences,
            supervised=prompts.supervised,
            target=None if prompts.recorded else candidates,
            source_rejected="policy_source_rejected" in recipe.objective.make().fields,
            flip_mode=recipe.data.flip_mode,
            seed=recipe.seed,
        )

    def sampling(self) -> Sampling:
        """How candidates are drawn."""
        spec = self.recipe.generation
        found = spec.model_dump(exclude={"engine", "responses"})
        return Sampling(**found | {"max_new_tokens": spec.max_new_tokens or self.longest_response})

    def _parts(self) -> int | None:
        options = self.recipe.algorithm.options if self.recipe.algorithm else {}
        if not self.recipe.pairing.parts:
            return None
        if "rounds" not in options:
            raise self.fault(
                ("pairing", "parts"), "to deal pairs out to rounds, say how many: algorithm.options.rounds"
            )
        return int(options["rounds"])

    def _candidates(self, store: PolicyStore, base: StoredPolicy, fixed: FixedSource) -> CandidateSource:
        recipe = self.recipe
        engine: dict[str, Any] = {}
        if recipe.generation.engine == "vllm":
            from llm_backend.loops import vllm_generator

            engine = {"generator": vllm_generator}
        if recipe.generation.responses != "own":
            splits = [*self.texts.splits[TRAIN].rows, *self.texts.splits[HELD_OUT].rows]
            recorded = RecordedResponses.of(Preferences(tuple(splits), "the data"))
            engine |= {"recorded": recorded, "own": recipe.generation.responses == "both"}
        return CandidateSource(
            prompts=self._prompts(store),
            n_prompts=self.per_round,
            n_held_out=self._held_out_prompts(),
            sampling=self.sampling(),
            rule=self._rule(),
            ranker=LoopRanker(recipe, self.texts, ranking_options(recipe, self.fault), self.home, base),
            first=fixed if recipe.pairing.first_round == "data" else None,
            flip_mode=recipe.data.flip_mode,
            win_scale=recipe.ranking.win_scale,
            **engine,
        )

    @property
    def per_round(self) -> int:
        """Prompts in a round."""
        spec = self.recipe.prompts
        return spec.per_round if spec is not None else len(self.texts.splits[TRAIN])

    def _held_out_prompts(self) -> int | None:
        """As many as a round has, or all that there are."""
        if self.texts.world is not None:
            return None
        return min(self.per_round, len(distinct(self.texts, HELD_OUT)))

    def _prompts(self, store: PolicyStore) -> PromptSource:
        spec = self.recipe.prompts
        if self.texts.world is not None:
            return WorldPrompts(self.texts.world)
        if spec is None or spec.name == "data":
            return SplitPrompts(self.texts, "same" if spec is None or spec.reuse else "disjoint", self.recipe.seed)
        return self._self_instruct(store.root / "prompts")

    def _self_instruct(self, folder: Path | None) -> PromptSource:
        spec = self.recipe.prompts
        assert spec is not None

        def make() -> PromptSource:
            options = SelfInstructOptions.of(spec.options)
            held_out = FixedPrompts(distinct(self.texts, HELD_OUT), rounds="same", seed=self.recipe.seed)
            if spec.seeds is None:
                tasks = list(dict.fromkeys(instruction(prompt) for prompt in distinct(self.texts, TRAIN)))
            else:
                tasks = [each.prompt for each in load_seed_tasks(find_source(spec.seeds, self.home))]
            kept_apart = None if options.heldout_share else HeldOut(held_out)
            return SelfInstruct(tasks, options, folder=folder, heldout=kept_apart)

        return self._checked(("prompts",), make)

    def _rule(self) -> PairRule:
        spec = self.recipe.pairing
        return self._checked(("pairing",), lambda: PairRule(**spec.rule(), seed=self.recipe.seed))

    def _checked(self, place: tuple[str, ...], make: Callable[[], Made]) -> Made:
        """What is made. Raises ``UsageError`` with the place for what the part itself refuses."""
        try:
            return make()
        except (BackendError, DataError, TypeError) as problem:
            raise self.fault(place, str(problem)) from None


class SplitPrompts:
    """The prompts of the training rows; for ``heldout`` those of the held-out rows, the same in every round."""

    def __init__(self, texts: LanguageTexts, rounds: Any, seed: int) -> None:
        self.train = FixedPrompts(distinct(texts, TRAIN), rounds=rounds, seed=seed)
        self.held_out = HeldOut(FixedPrompts(distinct(texts, HELD_OUT), rounds="same", seed=seed))

    def prompts(self, round_index: int, n: int, *, generator: Any = None, seed: int = 0, split: str = "train") -> Any:
        """n prompts of the round and the split."""
        side: Any = self.train if split == "train" else self.held_out
        return side.prompts(round_index, n, generator=generator, seed=seed)


@dataclass(frozen=True)
class HeldOut:
    """A list that holds nothing but held-out prompts, whatever split is asked for."""

    pool: FixedPrompts

    def prompts(self, round_index: int, n: int, *, generator: Any = None, seed: int = 0, split: str = "train") -> Any:
        """n prompts of the list."""
        return self.pool.prompts(round_index, n, generator=generator, seed=seed)


def distinct(texts: LanguageTexts, split: str) -> list[Any]:
    """The prompts of a split, each once, in order."""
    found: dict[str, Any] = {}
    for row in texts.splits[split].rows:
        found.setdefault(repr(row.prompt), row.prompt)
    return list(found.values())
