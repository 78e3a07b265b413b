"""Recipes for language models: the sections, their checks, and how a recipe file is known to be one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from objectives import Objective, ObjectiveError, UnknownObjectiveError
from prefgeo.language.auxiliary_spec import AuxiliarySpec, check_auxiliary
from prefgeo.language.loop_checks import SECTIONS, check_loop
from prefgeo.language.loop_spec import GenerationSpec, PairingSpec, PromptsSpec, RankingSpec, SourcesSpec
from prefgeo.language.training_spec import PreferenceTraining, SupervisedTraining
from prefgeo.recipes import AlgorithmSpec, Count, ObjectiveSpec, Section, Seed, WorldSpec, validated
from prefgeo.yaml_reading import Fault, read_yaml

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TRAINABLE = ("all", "last_block")


class TinySizes(Section):
    """Sizes of a ``tiny`` model, made from a configuration with random weights."""

    architecture: Literal["llama", "qwen3", "gpt2", "mistral"] = "llama"
    width: Count = 64
    layers: Count = 2
    heads: Count = 4
    context: Count = 512
    tied: bool = True


class LoraSpec(Section):
    """Low-rank adapters: rank ``r``, ``alpha``, the layers called ``targets`` (left out: all linear ones) of the last
    ``blocks`` blocks (left out: of all). No dropout: policy and reference must agree before the first step."""

    r: Count = 8
    alpha: Count = 16
    targets: list[str] | None = None
    blocks: Count | None = None


class ModelSpec(Section):
    """``name``: a folder, a name on the hub, or ``tiny`` with its ``sizes``. ``trainable`` (in preference training):
    all, last_block, or the share of the last blocks; or give ``lora``."""

    name: str
    sizes: TinySizes | None = None
    trainable: str | float = "all"
    lora: LoraSpec | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    @field_validator("trainable", mode="before")
    @classmethod
    def _known_part(cls, value: Any) -> Any:
        share = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= 1.0
        if not share and value not in TRAINABLE:
            raise ValueError(f"must be all, last_block, or a share of the blocks above 0 and up to 1, got {value!r}")
        return value

    @model_validator(mode="after")
    def _one_choice(self) -> ModelSpec:
        if (self.name == "tiny") != (self.sizes is not None):
            raise ValueError("sizes belong to name: tiny, which needs them ({} takes the default ones)")
        if self.lora is not None and "trainable" in self.model_fields_set:
            raise ValueError("give either lora or trainable, and not both")
        return self


class TokenizerSpec(Section):
    """``name``: a folder or hub name; ``model`` is that of the model; ``embedded`` is trained on the data themselves,
    with up to ``vocab_size`` tokens."""

    name: str = "model"
    vocab_size: Annotated[int, Field(ge=262)] = 1000

    @model_validator(mode="after")
    def _nothing_ignored(self) -> TokenizerSpec:
        if self.name != "embedded" and "vocab_size" in self.model_fields_set:
            raise ValueError("vocab_size is that of name: embedded; leave it out for a tokenizer that exists")
        return self


class LanguageData(Section):
    """Where the rows come from and how they become tokens.

    ``format: world`` draws texts from a simulated sequence ``world``: ``supervised`` responses of its base policy to
    imitate, ``rows`` pairs (the best of N over the worst, ``ranked_by`` gold or the world's biased proxy), ``held_out``
    further ones. Other formats read the file, folder or hub name ``path`` with the reader's ``options``; a row is held
    out for what its prompt is, with probability ``test_fraction``; ``rows``: train on so many, evenly spaced.
    ``merge_fraction`` of the prompts are kept apart for the weights of TPMM-DPO's merges, where pairs are fixed.
    ``out_of_domain`` names categories of MMLU-Pro that are only tested on; ``seed_tasks`` (``seed_task_text``) are
    tasks with one answer. ``flip`` turns labels of training around.
    """

    format: Literal["world", "auto", "pairs", "hh", "mmlu_pro", "seed_tasks"]
    world: WorldSpec | None = None
    ranked_by: Literal["gold", "proxy"] = "gold"
    supervised: Count = 2000
    held_out: Count = 200
    path: str | None = None
    split: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    test_fraction: Share = 0.2
    merge_fraction: Share | None = None
    out_of_domain: list[str] = Field(default_factory=list)
    rows: Count | None = None
    flip: Rate = 0.0
    flip_mode: Literal["iid", "persistent"] = "iid"
    max_length: Count | None = None
    max_prompt_length: Count | None = None
    truncation: Literal["drop", "cut_prompt_left", "cut_response"] = "drop"
    eos: Literal["append_if_missing", "template", "never"] = "append_if_missing"
    boundary: Literal["refuse", "joint", "separate"] = "refuse"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> LanguageData:
        worldly = {"world", "ranked_by", "supervised", "held_out"}
        filed = {"path", "split", "options", "test_fraction", "merge_fraction"}
        ignored = self.model_fields_set & ((filed | {"out_of_domain"}) if self.format == "world" else worldly)
        if ignored:
            raise ValueError(f"format: {self.format} would ignore {', '.join(sorted(ignored))}; leave it out")
        if self.format == "world" and (self.world is None or self.world.file is not None):
            raise ValueError("format: world needs a world by name, as in 'world: {name: e3}'")
        if self.format != "world" and self.path is None:
            raise ValueError(f"format: {self.format} needs a path: a file, a folder, or a name on the hub")
        if self.merge_fraction and self.format not in ("auto", "pairs", "hh"):
            raise ValueError(f"merge_fraction parts a dataset of pairs, not format: {self.format}; leave it out")
        if self.merge_fraction and self.test_fraction + self.merge_fraction >= 1.0:
            raise ValueError("test_fraction and merge_fraction leave nothing to train on; their sum must be below 1")
        if self.format == "seed_tasks" and self.split is not None:
            raise ValueError("split is of datasets of the hub, and seed tasks are a file; leave it out")
        if self.out_of_domain and self.format != "mmlu_pro":
            raise ValueError("out_of_domain names categories, which only format: mmlu_pro has")
        return self


class ReferenceSpec(Section):
    """Who the policy is compared with: the ``initial`` model of preference training (after SFT), the model under the
    adapters (``adapter_off``), or the one at ``path``."""

    name: Literal["initial", "adapter_off", "path"] = "initial"
    path: str | None = None

    @model_validator(mode="after")
    def _path_where_needed(self) -> ReferenceSpec:
        if (self.name == "path") != (self.path is not None):
            raise ValueError("path belongs to name: path, which needs it")
        return self


class EvaluateSpec(Section):
    """What is measured before and after each stage, besides accuracy on the held-out pairs: ``generations`` responses
    (of a world, judged by its gold reward; 0: none), greedy at ``temperature`` 0, of up to ``max_new_tokens`` tokens
    (left out: as many as the longest response of the data). ``batch_size`` is for generation."""

    generations: Annotated[int, Field(ge=0)] = 120
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    max_new_tokens: Count | None = None
    batch_size: Count = 64


class LanguageRecipe(Section):
    """One run: a model, its data, optionally SFT, then one objective, once or in the loop of an ``algorithm``, for one
    seed. The sections from ``prompts`` to ``sources`` are a loop's (``loop_spec``). ``keep_policies`` of a loop:
    ``all``, or those that are ``needed`` by what is still to be done."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str = ""
    model: ModelSpec
    tokenizer: TokenizerSpec = TokenizerSpec()
    data: LanguageData
    sft: SupervisedTraining | None = None
    objective: ObjectiveSpec
    training: PreferenceTraining
    auxiliary: AuxiliarySpec | None = None
    reference: ReferenceSpec = ReferenceSpec()
    algorithm: AlgorithmSpec | None = None
    prompts: PromptsSpec | None = None
    generation: GenerationSpec = GenerationSpec()
    ranking: RankingSpec = RankingSpec()
    pairing: PairingSpec = PairingSpec()
    sources: SourcesSpec | None = None
    keep_policies: Literal["all", "needed"] = "all"
    evaluate: EvaluateSpec = EvaluateSpec()
    seed: Seed = 0

    @model_serializer(mode="wrap")
    def _what_is_read(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the sections that this run does not read."""
        unread = SECTIONS if self.algorithm is None else ("reference",)
        return {name: value for name, value in whole(self).items() if name not in unread}


def is_language_recipe(path: Path) -> bool:
    """Whether the recipe has a ``model`` section. Raises ``UsageError`` for what is no recipe at all."""
    return "model" in read_yaml(path).values


def load_language_recipe(path: Path) -> tuple[LanguageRecipe, Fault]:
    """A checked recipe, and how to tell of later faults in it. Raises ``UsageError`` with file, line and key."""
    document = read_yaml(path)
    return check_language_recipe(document.values, document.fault), document.fault


def check_language_recipe(values: Any, fault: Fault) -> LanguageRecipe:
    """The recipe in plain values; ``fault`` makes the errors."""
    recipe = validated(LanguageRecipe, values, fault)
    try:
        objective = recipe.objective.make()
    except ObjectiveError as error:
        part = "name" if isinstance(error, UnknownObjectiveError) else "options"
        raise fault(("objective", part), str(error)) from None
    _check_supplies(objective, recipe, fault)
    check_loop(recipe, objective, fault)
    check_auxiliary(recipe, objective, fault)
    if recipe.tokenizer.name == "model" and recipe.model.name == "tiny":
        raise fault(("tokenizer",), "a tiny model has no tokenizer of its own; say tokenizer: {name: embedded}")
    if recipe.tokenizer.name == "embedded" and recipe.model.name != "tiny":
        raise fault(("tokenizer", "name"), "an embedded tokenizer fits no model but a tiny one; say name: model")
    if recipe.reference.name == "adapter_off" and recipe.model.lora is None:
        raise fault(("reference", "name"), "adapter_off needs adapters; give model.lora, or say name: initial")
    return recipe


def _check_supplies(objective: Objective, recipe: LanguageRecipe, fault: Fault) -> None:
    """Objectives that language-model runs have no data for."""
    lacking: dict[str, str] = {}
    if recipe.algorithm is None:
        lacking |= {"win_": "win rates, which only the candidates of an algorithm have"}
    for prefix, what in lacking.items():
        if any(name.startswith(prefix) for name in objective.fields):
            raise fault(("objective", "name"), f"{objective.name} needs {what}")
