"""The sections that make a language-model recipe a loop: prompts, generation, ranking, pairs, source models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefgeo.recipes import Count, Positive, Section

Part = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


class PromptsSpec(Section):
    """Which prompts a round answers, ``per_round`` of them.

    ``world``: of random class; ``data``: those of the training rows, other ones in each round (``reuse``: the same
    ones); ``self_instruct``: the policy writes them, shown tasks of the file ``seeds`` (left out with ``format:
    seed_tasks``: those of training), with ``options`` of ``llm_backend.prompts.SelfInstruct``."""

    name: Literal["world", "data", "self_instruct"]
    per_round: Count
    reuse: bool = False
    seeds: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> PromptsSpec:
        ignored = self.model_fields_set & ({"seeds", "options"} if self.name != "self_instruct" else {"reuse"})
        if self.name == "world":
            ignored |= self.model_fields_set & {"reuse"}
        if ignored:
            raise ValueError(f"name: {self.name} would ignore {', '.join(sorted(ignored))}; leave it out")
        return self


class GenerationSpec(Section):
    """How a policy writes: ``candidates`` responses to each prompt, sampled at ``temperature`` from the ``top_k`` (0:
    all) likeliest tokens that hold ``top_p`` of the probability, of up to ``max_new_tokens`` (left out: as many as the
    longest response of the data), ``batch_size`` at once. ``engine``: hf (transformers), or vllm where installed.
    ``responses``: the policy's ``own``, those ``recorded`` in the data (ranked anew), or ``both``."""

    responses: Literal["own", "recorded", "both"] = "own"
    candidates: Annotated[int, Field(ge=2)] = 4
    temperature: Positive = 1.0
    top_p: Part = 1.0
    top_k: Whole = 0
    max_new_tokens: Count | None = None
    batch_size: Count = 64
    engine: Literal["hf", "vllm"] = "hf"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> GenerationSpec:
        ignored = self.model_fields_set - {"responses"}
        if self.responses == "recorded" and ignored:
            raise ValueError(f"responses: recorded would ignore {', '.join(sorted(ignored))}; leave it out")
        return self


class RankingSpec(Section):
    """Who says which candidate is better: ``gold`` or ``proxy``, the rewards of a world (and ``gold`` the right answers
    of MMLU-Pro), ``words``, a rule that reads no meaning (``word_reward``), or a model, with the ``options`` of
    ``RANKINGS``. ``win_scale``, for SPPO: P(i beats j) = sigma(win_scale (score_i - score_j))."""

    name: Literal["gold", "proxy", "words", "reward_model", "pair_ranker", "judge", "self"] = "gold"
    options: dict[str, Any] = Field(default_factory=dict)
    win_scale: Positive | None = None


class PairingSpec(Section):
    """How rows come about. ``kind``: ``candidates`` of the policy, ranked; ``fixed``, the pairs of ``data`` (``parts``:
    round t takes part t of them, else each takes all); ``hybrid``, the sources' best over the policy's worst.
    ``first_round`` data: round 1 takes the pairs of ``data``. The rest is ``llm_backend.pairing.PairRule``: which
    candidates make a pair, and what is dropped."""

    kind: Literal["candidates", "fixed", "hybrid"] = "candidates"
    parts: bool = False
    first_round: Literal["policy", "data"] = "policy"
    select: Literal["best_worst", "best_random", "all_pairs"] = "best_worst"
    stage: Literal["pairs", "responses"] = "pairs"
    drop_empty: bool = True
    drop_cut_off: bool = True
    shortest: Whole = 0
    longest: Count | None = None
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    forbidden_in_chosen: str | None = None

    @model_validator(mode="after")
    def _nothing_ignored(self) -> PairingSpec:
        ignored = self.model_fields_set - ({"kind", "parts"} if self.kind == "fixed" else set(PairingSpec.model_fields))
        ignored |= self.model_fields_set & ({"parts"} if self.kind != "fixed" else set())
        ignored |= self.model_fields_set & ({"first_round"} if self.kind == "hybrid" else set())
        if ignored:
            raise ValueError(f"kind: {self.kind} would ignore {', '.join(sorted(ignored))}; leave it out")
        return self

    def rule(self) -> dict[str, Any]:
        """The keys of ``PairRule``."""
        return self.model_dump(exclude={"kind", "parts", "first_round"})


class SourceModel(Section):
    """Who else answered the prompts, for WRPO: a ``style`` of the world's writer (fields of BaseStyle; ``mark`` is a
    word before all that it says), a language model at ``path`` that answers, or a file of recorded ``responses`` (of
    MMLU-Pro). Recorded responses of the model that is trained have ``target: true``."""

    name: str
    style: dict[str, float] | None = None
    mark: str | None = None
    path: str | None = None
    responses: str | None = None
    target: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> SourceModel:
        if sum(each is not None for each in (self.style, self.path, self.responses)) != 1:
            raise ValueError("a source is either a style, a path or a file of responses; give one of them")
        if self.mark is not None and self.style is None:
            raise ValueError("mark is what a writer with a style begins with; leave it out")
        if self.target and self.responses is None:
            raise ValueError("target is for recorded responses: a model that is trained answers by itself")
        return self


class SourcesSpec(Section):
    """The source ``models``; ``supervised_share`` of the prompts is for fine-tuning on their best responses."""

    models: Annotated[list[SourceModel], Field(min_length=1)]
    supervised_share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1.0 / 3.0

    @model_validator(mode="after")
    def _names(self) -> SourcesSpec:
        names = [each.name for each in self.models]
        if len(set(names)) != len(names):
            raise ValueError("models: a name stands twice; each source needs its own")
        if all(each.target for each in self.models):
            raise ValueError("models: all are the target; name at least one source")
        return self


class NoOptions(Section):
    """A ranking that needs to be told nothing."""


class ModelRanking(Section):
    """A model that scores: ``path`` is its folder or its name on the hub."""

    path: str
    batch_size: Count = 16
    max_length: Count | None = None


class JudgeRanking(Section):
    """A language model at an OpenAI-compatible ``url``; ``key_variable`` names the environment variable of its key;
    ``parameters`` go into each request (left out: temperature 0, 512 tokens)."""

    url: str
    model: str
    key_variable: str | None = None
    timeout: Positive = 60.0
    retries: Whole = 3
    parameters: dict[str, Any] | None = None


class SelfRanking(Section):
    """The policy ranks itself: as a ``judge`` that reads and gives points, in up to ``max_new_tokens``, or by its
    ``implicit`` reward log(pi/base), which is 0 in round 1 and so needs ``first_round: data``."""

    kind: Literal["implicit", "judge"] = "judge"
    max_new_tokens: Count = 256


RANKINGS: dict[str, type[Section]] = {
    "gold": NoOptions,
    "proxy": NoOptions,
    "words": NoOptions,
    "reward_model": ModelRanking,
    "pair_ranker": ModelRanking,
    "judge": JudgeRanking,
    "self": SelfRanking,
}
