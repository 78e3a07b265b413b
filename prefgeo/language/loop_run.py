"""The loop of a language-model run: a backend over the run's folder, the recipe's algorithm, and what it ended with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bandits.schedules import Schedule
from llm_backend.generation import Sampling
from llm_backend.generation.errors import GenerationError
from llm_backend.loops import LanguageBackend, LoopTraining, PolicyStore, StoredPolicy
from llm_backend.models import Lora
from llm_backend.ranking.errors import RankingError
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.outcome import LoopOutcome, Round
from prefgeo.backend import FitPlan
from prefgeo.language.data import HELD_OUT
from prefgeo.language.folder import PREFERENCE, SFT, STORE, LanguageFolder
from prefgeo.language.loop_checks import loop_settings
from prefgeo.language.loop_journal import LoopJournal
from prefgeo.language.loop_measures import LoopMeasures
from prefgeo.language.loop_rankers import gold_ranker
from prefgeo.language.loop_sources import LoopParts
from prefgeo.language.models import start_model, stored_model
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.language.tokens import TokenRows, token_options
from prefgeo.language.training_spec import SupervisedTraining
from prefgeo.run_folder import MANIFEST

BASE = "base_policy"


@dataclass(frozen=True)
class LoopRun:
    """Everything that the rounds need. A stage of theirs that is in the folder is not done again."""

    parts: LoopParts
    rows: TokenRows
    tokenizer: Any
    folder: LanguageFolder
    device: str
    seconds: float

    @property
    def recipe(self) -> LanguageRecipe:
        """The recipe."""
        return self.parts.recipe

    def run(self) -> dict[str, Any]:
        """All rounds; then the last policy is the folder's model. The rounds, as result.json tells them."""
        recipe, store = self.recipe, self._store()
        base = self._base(store)
        backend = LanguageBackend(
            store, base, self.parts.source(store, base), loop_training(recipe), self.measures(store, base),
            tokens=token_options(recipe.data), seed=recipe.seed,
        )  # fmt: skip
        journal = LoopJournal(
            store, recipe.keep_policies, self.folder, [recipe.seed], reference=base.digest, seconds=self.seconds,
            what=recipe.name,
        )  # fmt: skip
        journal.logged = self.folder.earlier_metrics()
        data = DataSource(recipe.pairing.kind, recipe.data.flip)
        settings = loop_settings(recipe, self.parts.fault)
        try:
            outcome = settings.run(backend, recipe.objective.make, data, fit_plan(recipe.training), journal)
        except GenerationError as problem:
            raise self.parts.fault(("generation",), str(problem)) from None
        except RankingError as problem:
            raise self.parts.fault(("ranking",), str(problem)) from None
        finally:
            journal.close()
        self.folder.write_model(PREFERENCE, lambda part: copied(outcome.policy, part))
        return told(outcome)

    def measures(self, store: PolicyStore, base: StoredPolicy) -> LoopMeasures:
        """What is measured of each policy."""
        recipe, texts = self.recipe, self.parts.texts
        spec = recipe.evaluate
        n = spec.generations
        if texts.world is not None:
            prompts: list[Any] = list(texts.world.prompts(n))
        else:
            fits = {row["row"] for row in self.rows.splits[HELD_OUT]}
            rows = [row for row in texts.splits[HELD_OUT].rows if row.row in fits]
            prompts = list({repr(row.prompt): row.prompt for row in rows}.values())[:n]
        most = spec.max_new_tokens or self.rows.longest_response
        sampling = Sampling(temperature=spec.temperature, max_new_tokens=most, batch_size=spec.batch_size)
        return LoopMeasures(
            base=lambda: store.model(base), tokenizer=self.tokenizer,
            tests={name: self.rows.splits[name] for name in texts.tests}, prompts=prompts, sampling=sampling,
            seed=recipe.seed, world=texts.world, gold=gold_ranker(recipe, texts), marks=self._marks(),
            tokens=token_options(recipe.data),
        )  # fmt: skip

    def _marks(self) -> tuple[str, ...]:
        models = self.recipe.sources.models if self.recipe.sources else []
        return tuple(each.mark for each in models if each.mark is not None)

    def _store(self) -> PolicyStore:
        spec = self.recipe.model
        root = self.folder.path / STORE
        return PolicyStore(root, dtype=spec.dtype, attention=spec.attention, device=self.device)

    def _base(self, store: PolicyStore) -> StoredPolicy:
        """The model after SFT, or the one that the recipe names, as it was when the loop began."""
        manifest = self.folder.read_json(MANIFEST)
        if BASE in manifest:
            return store.get(manifest[BASE])
        if self.recipe.sft is None:
            model = start_model(self.recipe, self.tokenizer, self.parts.fault)
        else:
            model = stored_model(self.folder.model(SFT), self.recipe.model)
        base = store.add(model, self.tokenizer)
        self.folder.write_json(MANIFEST, manifest | {BASE: base.digest})
        return base


def loop_training(recipe: LanguageRecipe) -> LoopTraining:
    """What the recipe says of training beside the plan."""
    training, lora = recipe.training, recipe.model.lora
    trainable: Any = recipe.model.trainable
    if lora is not None:
        trainable = Lora(lora.r, lora.alpha, None if lora.targets is None else tuple(lora.targets))
    return LoopTraining(
        micro_batch_size=training.batch_size,
        max_grad_norm=training.max_grad_norm,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        trainable=trainable,
        merge_precision=training.merge_precision,
    )


def fit_plan(training: SupervisedTraining) -> FitPlan:
    """The training section as algorithms take it."""
    return FitPlan(
        "adam",
        rate=lambda rows: training.learning_rate,
        steps=training.steps,
        epochs=training.epochs,
        batch_size=training.batch_size * training.accumulation,
        weight_decay=training.weight_decay,
        schedule=Schedule(training.schedule, training.warmup),
        log_every=training.log_every,
    )


def told(outcome: LoopOutcome[StoredPolicy]) -> dict[str, Any]:
    """The rounds for result.json: who was what, plain numbers, the shares of a merge; and the base policy's numbers."""
    return {"base": numbers(outcome.base_metrics), "rounds": [_round(each) for each in outcome.rounds]}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of one run as plain numbers."""
    return {name: float(np.asarray(value).reshape(-1)[0]) for name, value in metrics.items()}


def copied(policy: StoredPolicy, part: Path) -> None:
    """A stored policy as a model folder."""
    shutil.copytree(policy.path, part)


def _round(finished: Round[StoredPolicy]) -> dict[str, Any]:
    found = {"roles": dict(finished.roles), "policy": finished.policy.digest, "metrics": numbers(finished.metrics)}
    return found if finished.shares is None else found | {"shares": np.asarray(finished.shares)[0].tolist()}
