"""The training sections of a language-model recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefgeo.recipes import Count, Positive, Section


class SupervisedTraining(Section):
    """How a stage is trained, by AdamW. ``batch_size`` rows at once, ``accumulation`` of them a step; ``warmup`` is a
    share of all steps; ``precision`` that of the forward pass (the weights keep the model's dtype)."""

    learning_rate: Positive
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 8
    accumulation: Count = 1
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Positive = 1.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    log_every: Count = 10

    @model_validator(mode="after")
    def _one_duration(self) -> SupervisedTraining:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say how long to train: give either steps or epochs, and not both")
        return self


class PreferenceTraining(SupervisedTraining):
    """The same for the preference stage. ``merge_precision`` is that of the margins on which TPMM-DPO learns weights:
    float32 takes half the memory and few evaluations, and finds weights whose KKT residual is below 1e-4."""

    merge_precision: Literal["float64", "float32"] = "float64"
