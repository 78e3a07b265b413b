"""How a loop trains its models: what the plan of an algorithm leaves open, and both as arguments of a trainer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_backend.loops.errors import LoopError
from llm_backend.loops.sources import one_number
from llm_backend.models import Lora
from llm_backend.response_trainer import watched_arguments
from objectives.fitting import Plan, RateSchedule

OPTIMISERS = {"adam": "adamw_torch", "gd": "sgd"}


@dataclass(frozen=True, kw_only=True)
class LoopTraining:
    """What a plan does not say. ``micro_batch_size`` rows are in memory at once and do not change the result but for
    rounding; gradients are clipped to ``max_grad_norm`` (0: not). ``precision`` is that of the forward pass; weights
    have the store's dtype. ``trainable``: all, last_block, a share of the last blocks, or ``Lora``, which is merged
    into the weights at the end of each fit. ``merge_precision``: in which merged margins are computed;
    models of up to ``merge_memory`` bytes together stay in memory meanwhile.
    ``loss_rows``: the final loss is that of so many rows at most (None: all)."""

    micro_batch_size: int = 8
    max_grad_norm: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    trainable: str | float | Lora = "all"
    merge_precision: Literal["float64", "float32"] = "float64"
    merge_memory: int = 2**30
    loss_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "loss_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LoopError(f"{name} must be at least 1, got {value}")
        if not 0.0 <= self.max_grad_norm < float("inf"):
            raise LoopError(f"max_grad_norm must be a number > 0, or 0 for no clipping, got {self.max_grad_norm}")
        for name, known in (
            ("precision", ("float32", "bfloat16", "float16")),
            ("merge_precision", ("float64", "float32")),
        ):
            if getattr(self, name) not in known:
                raise LoopError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Steps:
    """A plan on given rows: how many optimizer steps, of how many rows, at which rate."""

    optimiser: str
    rate: float
    total: int
    n_rows: int
    batch_size: int
    weight_decay: float
    schedule: RateSchedule
    log_every: int

    @staticmethod
    def of(plan: Plan, data: Any) -> Steps:
        """The plan for data of ``data.n_rows`` rows.

        Raises: LoopError for the exact optimiser, an unknown one, and a rate that is not one positive number.
        """
        if plan.optimiser == "exact":
            raise LoopError("a language model has no exact minimiser; train it with the optimiser adam (or gd)")
        if plan.optimiser not in OPTIMISERS:
            raise LoopError(f"the optimiser must be one of {', '.join(OPTIMISERS)}, got {plan.optimiser!r}")
        rate = None if plan.rate is None else one_number(plan.rate(data), "the learning rate")
        if rate is None or rate <= 0.0:
            raise LoopError(f"the learning rate must be a number > 0, got {rate}")
        size = data.n_rows if plan.batch_size is None else min(plan.batch_size, data.n_rows)
        return Steps(
            plan.optimiser, rate, plan.length(data.n_rows), data.n_rows, size, float(plan.weight_decay), plan.schedule,
            plan.log_interval(data.n_rows),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Everything but how long, which the parts of one training differ in."""
        kept = ("optimiser", "rate", "batch_size", "weight_decay")
        return {name: getattr(self, name) for name in kept}

    def micro_batches(self, most: int) -> tuple[int, int]:
        """(rows at once, how many times): an optimizer step's rows, at most ``most`` at once.

        The rows at once divide a step's, so that no step takes rows of the next one; where a step takes all rows, the
        end of the epoch ends it.
        """
        fewest = -(-self.batch_size // most)
        if self.batch_size == self.n_rows:
            return min(most, self.n_rows), fewest
        times = next(n for n in range(fewest, self.batch_size + 1) if self.batch_size % n == 0)
        return self.batch_size // times, times


def arguments(steps: Steps, training: LoopTraining, folder: Path, *, seed: int, device: str) -> Any:
    """What transformers' Trainer is told. Its schedule is not used (``LoopTrainer`` has the plan's)."""
    at_once, times = steps.micro_batches(training.micro_batch_size)
    return watched_arguments(
        folder,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=times,
        max_steps=steps.total,
        optim=OPTIMISERS[steps.optimiser],
        learning_rate=steps.rate,
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        adam_epsilon=training.epsilon,
        weight_decay=steps.weight_decay,
        max_grad_norm=training.max_grad_norm,
        precision=training.precision,
        logging_steps=steps.log_every,
        save_total_limit=2,  # the one that the monitor knows of, and the one that it is being told of
        device=device,
        seed=seed,
    )


def plain_training(training: LoopTraining) -> dict[str, Any]:
    """As plain values, without what does not change the result."""
    values = dataclasses.asdict(training)
    return {
        name: value for name, value in values.items() if name not in ("merge_precision", "merge_memory", "loss_rows")
    }
