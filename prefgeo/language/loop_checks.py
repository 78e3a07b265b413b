"""Whether the sections of a loop fit each other and the rest of a language-model recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefgeo.algorithm_settings import ALGORITHMS, AlgorithmSettings, TPMMSettings, WRPOSettings
from prefgeo.errors import UsageError
from prefgeo.language.loop_spec import RANKINGS
from prefgeo.recipes import Section, validated
from prefgeo.yaml_reading import Fault, Path_

if TYPE_CHECKING:
    from objectives import Objective
    from prefgeo.language.recipe import LanguageRecipe

SECTIONS = ("prompts", "generation", "ranking", "pairing", "sources", "keep_policies")
"""Keys of a loop alone."""


def check_loop(recipe: LanguageRecipe, objective: Objective, fault: Fault) -> None:
    """Everything between the sections. Raises ``UsageError`` with line and key for what does not fit or is ignored."""
    given = recipe.model_fields_set
    if recipe.algorithm is None:
        if recipe.data.merge_fraction:
            raise fault(("data", "merge_fraction"), "one round of training merges nothing; leave it out")
        if "merge_precision" in recipe.training.model_fields_set:
            raise fault(("training", "merge_precision"), "one round of training merges nothing; leave it out")
        for name in SECTIONS:
            if name in given:
                raise fault((name,), "would be ignored: one round of training has no loop; add an algorithm section")
        return
    if "reference" in given:
        raise fault(("reference",), "the algorithm says who is the reference in each round; leave it out")
    if "ranked_by" in recipe.data.model_fields_set:
        raise fault(("data", "ranked_by"), "in a loop the section ranking says who ranks; leave it out")
    if recipe.model.lora is not None and recipe.model.lora.blocks is not None:
        raise fault(("model", "lora", "blocks"), "a loop adapts all blocks; leave it out, or name targets")
    settings = loop_settings(recipe, fault)
    learns = isinstance(settings, TPMMSettings) and settings.weights == "learned"
    if "merge_precision" in recipe.training.model_fields_set and not learns:
        raise fault(("training", "merge_precision"), "only tpmm with learned weights reads it; leave it out")
    if recipe.data.merge_fraction and not (recipe.pairing.kind == "fixed" and _weighs_held_out(settings)):
        told = "only tpmm with pairing: {kind: fixed} and weights learned on held-out pairs reads it; leave it out"
        raise fault(("data", "merge_fraction"), told)
    _check_data(recipe, objective, fault)
    _check_ranking(recipe, objective, fault)
    _check_sources(recipe, settings, objective, fault)


def loop_settings(recipe: LanguageRecipe, fault: Fault) -> AlgorithmSettings:
    """The settings of the algorithm. Raises ``UsageError`` for wrong options."""
    assert recipe.algorithm is not None
    settings = validated(ALGORITHMS[recipe.algorithm.name], recipe.algorithm.options, _within(fault, "algorithm"))
    place = ("algorithm", "options")
    if (
        isinstance(settings, WRPOSettings)
        and settings.supervised
        and "sft_learning_rate" not in settings.model_fields_set
    ):
        raise fault(place, "give sft_learning_rate: its default is one for finite policies")
    sampled = _weighs_held_out(settings) and getattr(settings, "weight_data", None) == "heldout_sft"
    if recipe.pairing.kind == "fixed" and sampled:
        raise fault((*place, "weight_data"), "fixed pairs are nobody's samples; say heldout or train")
    return settings


def _weighs_held_out(settings: AlgorithmSettings) -> bool:
    return isinstance(settings, TPMMSettings) and settings.reads_held_out


def ranking_options(recipe: LanguageRecipe, fault: Fault) -> Any:
    """The options of the ranking as its section. Raises ``UsageError`` for wrong ones."""
    found: Section = validated(RANKINGS[recipe.ranking.name], recipe.ranking.options, _within(fault, "ranking"))
    return found


def _check_data(recipe: LanguageRecipe, objective: Objective, fault: Fault) -> None:
    given, kind, world = recipe.model_fields_set, recipe.pairing.kind, recipe.data.format == "world"
    if kind == "fixed":
        for name in ("prompts", "generation", "ranking"):
            if name in given:
                raise fault((name,), "fixed pairs need no candidates, so this would be ignored; leave it out")
        return
    if recipe.generation.responses != "own" and (
        recipe.prompts is None or recipe.prompts.name != "data" or recipe.sources is not None
    ):
        raise fault(
            ("generation", "responses"),
            "the data have responses to their own prompts only, none of source models; say prompts: {name: data, ..}",
        )
    if recipe.prompts is None:
        if not world and recipe.sources is None:
            raise fault((), "say which prompts a round answers: prompts: {name: data, per_round: ..}")
        return
    if recipe.prompts.name == "world" and not world:
        raise fault(("prompts", "name"), f"format: {recipe.data.format} is no world; say name: data or self_instruct")
    _check_seeds(recipe, fault)
    if recipe.prompts.name == "self_instruct" and world:
        raise fault(("prompts", "name"), "a world can only judge answers to its own prompts; say name: world")
    if recipe.prompts.name == "data" and world:
        raise fault(("prompts", "name"), "a world has its own prompts; say name: world")


def _check_seeds(recipe: LanguageRecipe, fault: Fault) -> None:
    """Where the tasks of self-instruct are from: a file, or the data; and of seed tasks as data, chats are made."""
    spec, tasks = recipe.prompts, recipe.data.format == "seed_tasks"
    assert spec is not None
    if spec.name != "self_instruct":
        return
    if spec.seeds is None and not tasks:
        raise fault(("prompts",), "name: self_instruct needs seeds: a file of seed tasks")
    if spec.seeds is not None and tasks:
        raise fault(("prompts", "seeds"), "the seed tasks are those of the data; leave it out")
    if tasks and spec.options.get("heldout_share"):
        raise fault(("prompts", "options", "heldout_share"), "data.test_fraction says what is held out; leave it out")
    if tasks and spec.options.get("chat") is not True:
        raise fault(("prompts", "options"), "format: seed_tasks makes messages of a chat; say chat: true")


def _check_ranking(recipe: LanguageRecipe, objective: Objective, fault: Fault) -> None:
    kind, ranking = recipe.pairing.kind, recipe.ranking
    reads_wins = any(name.startswith("win_") for name in objective.fields)
    if reads_wins and kind == "fixed":
        raise fault(("objective", "name"), f"{objective.name} needs win rates, which fixed pairs do not have")
    if reads_wins and ranking.win_scale is None:
        raise fault(("ranking",), f"{objective.name} reads win rates: give win_scale, in 1 / (units of the scores)")
    if not reads_wins and ranking.win_scale is not None:
        raise fault(("ranking", "win_scale"), f"{objective.name} reads no win rates; leave it out")
    assert recipe.algorithm is not None
    if recipe.algorithm.name == "sppo" and not reads_wins:
        raise fault(
            ("objective", "name"), f"sppo iterates on win rates, which {objective.name} does not read; say sppo"
        )
    if kind == "fixed":
        return
    if ranking.win_scale is not None and recipe.pairing.first_round == "data":
        raise fault(("pairing", "first_round"), "pairs of a dataset have no win rates; leave it out, or win_scale")
    options = ranking_options(recipe, fault)
    if getattr(options, "kind", None) == "implicit" and recipe.pairing.first_round != "data":
        told = "in round 1 the policy is the base, whose implicit rewards are all 0: say pairing: {first_round: data}"
        raise fault(("ranking",), told)
    if ranking.name == "words" and recipe.data.format == "world":
        raise fault(("ranking", "name"), "a world has rewards of its own; say gold or proxy")
    known = {"gold": ("world", "mmlu_pro"), "proxy": ("world",)}.get(ranking.name)
    if known is not None and recipe.data.format not in known:
        raise fault(
            ("ranking", "name") if "ranking" in recipe.model_fields_set else ("data", "format"),
            f"format: {recipe.data.format} has no {ranking.name} reward; rank by a model: reward_model, pair_ranker, "
            "judge or self, or by the rule words",
        )


def _check_sources(recipe: LanguageRecipe, settings: AlgorithmSettings, objective: Objective, fault: Fault) -> None:
    reads = any(name.startswith("policy_source") for name in objective.fields)
    needed = reads or recipe.pairing.kind == "hybrid" or (isinstance(settings, WRPOSettings) and settings.supervised)
    if recipe.pairing.kind == "hybrid" and recipe.sources is None:
        raise fault(("pairing", "kind"), "hybrid pairs need responses of source models: add a section sources")
    if needed and recipe.sources is None:
        raise fault((), f"{objective.name} or its fine-tuning reads responses of source models: add a section sources")
    if recipe.sources is None:
        return
    if not isinstance(settings, WRPOSettings):
        raise fault(("sources",), "only the algorithm wrpo reads responses of source models; leave it out")
    if recipe.pairing.kind == "fixed":
        raise fault(("pairing", "kind"), "wrpo ranks the responses of target and sources; say candidates or hybrid")
    for place, model in enumerate(recipe.sources.models):
        if model.style is not None and recipe.data.format != "world":
            raise fault(("sources", "models", place, "style"), "only a world has a writer with a style; give a path")
        if model.responses is not None and recipe.data.format != "mmlu_pro":
            raise fault(("sources", "models", place, "responses"), "recorded responses are those of format: mmlu_pro")
    if any(model.target for model in recipe.sources.models):
        _check_recorded(recipe, fault)


def _check_recorded(recipe: LanguageRecipe, fault: Fault) -> None:
    """What recorded responses of target and sources leave nothing to do for."""
    told = "the target's responses are recorded, and a right answer is worth 1, so this would be ignored; leave it out"
    for section in ("generation", "ranking"):
        if section in recipe.model_fields_set:
            raise fault((section,), told)
    for name in sorted(recipe.pairing.model_fields_set - {"kind"}):
        raise fault(("pairing", name), told)
    if recipe.prompts is not None and "reuse" in recipe.prompts.model_fields_set:
        raise fault(("prompts", "reuse"), "one draw is all that wrpo takes, so this would be ignored; leave it out")


def _within(fault: Fault, section: str) -> Fault:
    def inner(place: Path_, sentence: str) -> UsageError:
        return fault((section, "options", *place), sentence)

    return inner
