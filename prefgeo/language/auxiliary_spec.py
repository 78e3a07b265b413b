"""The section of a language-model recipe with AuxDPO's auxiliary variables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from objectives import Objective
from prefgeo.recipes import Count, Positive, Section
from prefgeo.yaml_reading import Fault

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PENALTY, OFFICIAL_PENALTY = 1.0, 1e-4
"""Left out: 1; for official_compat that of the published notebook's run, as are its cap and anti_ridge of 1."""
ONLY = {  # options that other modes would ignore
    "penalty": ("dual", "batch_penalty", "cross_batch", "official_compat"),
    "dual_every": ("dual",),
    "ridge": ("dual", "exact", "batch_penalty", "cross_batch"),
    "gauge": ("exact",),
    "cap": ("official_compat",),
    "anti_ridge": ("official_compat",),
    "product": ("dual", "batch_penalty", "cross_batch", "official_compat"),
}


class AuxiliarySpec(Section):
    """delta, how it is constrained (``mode``), and how it moves; docs/auxdpo_at_scale.md has the modes.

    ``tied``: one delta for each prompt and response, else two for each row. ``weights`` of the constraint:
    ``reference``, the reference's probabilities over the responses that the rows have to a prompt (for tied delta, and
    the default there), or ``none``. ``penalty`` is that of the mode; ``dual_every`` counts steps between two moves
    of the dual vector (left out: an epoch; 0: never). ``ridge`` adds ridge |delta|^2. delta moves by ``learning_rate``
    with ``optimiser`` adam or sgd (with ``momentum``). ``every`` = k: in dual a prompt's delta moves on each k-th
    visit, by turns (left out: 4); in other modes all move on each k-th step (left out: 1). ``gauge`` (exact) also holds
    delta's mean in each prompt at zero. ``cap`` and ``anti_ridge`` are official_compat's. ``product``: forward-mode
    derivatives, or a difference of two forward passes in float32 (left out: forward with
    bfloat16 and no gradient checkpointing, which forward mode does not go with; else difference).
    ``dimensions`` says how rank, nullity and reachable margins are counted before training: exact, estimate (from a
    sample of prompts), skip, or auto (exact where it is cheap).
    """

    mode: Literal["dual", "exact", "batch_penalty", "cross_batch", "official_compat"] = "dual"
    tied: bool = True
    weights: Literal["reference", "none"] | None = None
    penalty: NonNegative | None = None
    dual_every: Annotated[int, Field(ge=0)] | None = None
    ridge: NonNegative = 0.0
    learning_rate: Positive = 5e-3
    optimiser: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    every: Count | None = None
    gauge: bool = False
    cap: Positive | None = None
    anti_ridge: NonNegative | None = None
    product: Literal["forward", "difference"] | None = None
    dimensions: Literal["auto", "exact", "estimate", "skip"] = "auto"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> AuxiliarySpec:
        ignored = [name for name, modes in ONLY.items() if getattr(self, name) and self.mode not in modes]
        if ignored:
            raise ValueError(f"mode: {self.mode} would ignore {', '.join(ignored)}; leave it out")
        if self.momentum and self.optimiser == "adam":
            raise ValueError("momentum is that of optimiser: sgd; adam has its own")
        if self.gauge and not self.tied:
            raise ValueError("gauge is for tied delta: untied, each row would be a gauge of its own")
        if self.weights == "reference" and not self.tied:
            raise ValueError("weights: reference are of prompts and responses, and untied delta has none: say none")
        if self.weights == "reference" and self.mode == "official_compat":
            raise ValueError("mode: official_compat has no weights, as the published notebook; leave them out")
        return self

    @property
    def has_weights(self) -> bool:
        """Whether W is D, the reference's probabilities."""
        return (self.tied and self.mode != "official_compat") if self.weights is None else self.weights == "reference"


def check_auxiliary(recipe: Any, objective: Objective, fault: Fault) -> None:
    """The section stands where the objective reads delta and nowhere else, beside what it can be combined with."""
    reads = any(name.startswith("delta_") for name in objective.fields)
    if reads and getattr(recipe, "algorithm", None) is not None:
        raise fault(("objective", "name"), f"{objective.name} has variables of fixed rows; an algorithm draws others")
    if reads and recipe.auxiliary is None:
        raise fault(
            ("objective", "name"),
            f"{objective.name} needs auxiliary variables: give a section auxiliary ({{}} takes the default ones)",
        )
    if not reads and recipe.auxiliary is not None:
        raise fault(("auxiliary",), f"{objective.name} has no auxiliary variables and would ignore this; say auxdpo")
    if recipe.auxiliary is None:
        return
    if recipe.reference.name == "path":
        raise fault(("reference", "name"), "auxiliary variables need the scores of the policy's start: say initial")
    if recipe.model.attention == "flash_attention_2" and recipe.auxiliary.mode != "exact":
        raise fault(
            ("model", "attention"), "flash_attention_2 has no derivative along a direction, which delta needs: say sdpa"
        )
    if recipe.training.precision == "float16":
        raise fault(("training", "precision"), "float16 scales the loss, and with it delta's gradient: say bfloat16")
