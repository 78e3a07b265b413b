"""How delta is constrained and moved: five modes, their numbers, and what each may be combined with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llm_backend.auxiliary.errors import AuxiliaryError

DUAL_EVERY = 4  # a step of dual then costs about 1.5 of DPO's: benchmarks/bench_lm_dual.py
Mode: TypeAlias = Literal["dual", "exact", "batch_penalty", "cross_batch", "official_compat"]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryOptions:
    """With c = A W delta, c_B its unbiased estimate from a batch, and L the mean loss over the training rows:

        dual             L + <y, c> + (penalty / 2) |c|^2, and y += penalty c on every ``dual_every``-th step: the
                         method of multipliers, which has the constraint itself as its limit
        exact            L over delta = N z, N a basis of the null space of A W: the constraint at every step; small d
        batch_penalty    L + penalty |c_B|^2, the paper's: biased towards a ridge on delta, most of all in small batches
        cross_batch      L + penalty <c_B1, c_B2> of two independent batches: unbiased for |c|^2
        official_compat  the published notebook's loss; see ``official``.  For study: it is no estimator

    ``ridge`` >= 0 adds ridge |delta|^2 (when untied, its mean over the rows). delta moves by ``learning_rate`` times
    the mean gradient over the rows in which it takes part ("sgd" with ``momentum``, or "adam").
    ``every`` = k: in dual the variables of a prompt move on every k-th visit (``Turns``), so that each step takes its
    products for 1/k of its rows only; in the other modes, whose penalty is that of the batch, all move on every k-th
    step. The limit is the same. k = 4 (dual's default) takes about three times the epochs of k = 1 for the same
    distance to it, each at half the cost: docs/auxdpo_at_scale.md has the numbers.
    ``gauge`` (exact, tied) also holds delta's W-mean in each prompt at zero.
    Source: AuxDPO, arXiv:2510.20413, Eq. 7 and Sec. 5; dual and cross_batch are ours. Raises AuxiliaryError.
    """

    mode: Mode = "dual"
    penalty: float = 1.0
    dual_every: int = 100  # long enough for delta to settle in between (about an epoch); 0: y stays zero
    ridge: float = 0.0
    learning_rate: float = 5e-3  # the published notebook's aux_lr
    optimiser: Literal["sgd", "adam"] = "adam"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    every: int | None = None  # None: 4 for dual, else 1
    gauge: bool = False
    cap: float | None = None  # official_compat: |delta| <= cap, inside beta
    anti_ridge: float = 0.0  # official_compat: rewards large delta
    beta: float | None = None  # official_compat: delta stands inside beta there

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise AuxiliaryError(f"unknown mode {self.mode!r}; known: {', '.join(get_args(Mode))}")
        if self.optimiser not in ("sgd", "adam"):
            raise AuxiliaryError(f"the optimiser of delta must be 'sgd' or 'adam', got {self.optimiser!r}")
        for name in ("penalty", "ridge", "momentum", "anti_ridge"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value >= 0):
                raise AuxiliaryError(f"{name} is {value!r}; it must be finite and at least 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise AuxiliaryError(f"the learning rate of delta must be a number > 0, got {self.learning_rate!r}")
        if self.period < 1:
            raise AuxiliaryError(f"every is {self.every!r}; delta moves on every k-th visit or step, k >= 1")
        if self.dual_every < 0:
            raise AuxiliaryError(f"dual_every is {self.dual_every!r}; it counts steps (0: no dual vector)")
        self._check_mode()

    @property
    def period(self) -> int:
        """``every``, or the mode's own."""
        return (DUAL_EVERY if self.mode == "dual" else 1) if self.every is None else self.every

    def _check_mode(self) -> None:
        official = self.mode == "official_compat"
        if not official and (self.cap is not None or self.anti_ridge or self.beta is not None):
            raise AuxiliaryError(
                "cap, anti_ridge and beta belong to mode 'official_compat' (AuxiliaryOptions.official); "
                "elsewhere delta stands outside beta and large delta is never rewarded"
            )
        if official and not (self.cap and self.cap > 0 and math.isfinite(self.cap) and self.beta and self.beta > 0):
            raise AuxiliaryError(
                f"official_compat needs beta > 0 and a finite cap > 0 (without one its loss has no lower bound), "
                f"got beta={self.beta!r}, cap={self.cap!r}"
            )
        if official and self.ridge:
            raise AuxiliaryError("official_compat has no ridge but its opposite, anti_ridge")
        if self.gauge and self.mode != "exact":
            raise AuxiliaryError(f"gauge rows are for mode 'exact', not {self.mode!r}")

    @classmethod
    def official(
        cls,
        beta: float,
        *,
        penalty: float = 1e-4,  # the notebook's run; its class default is 1
        anti_ridge: float = 1.0,  # the run; the class default is 0.01
        cap: float = 1.0,
        learning_rate: float = 5e-3,
        optimiser: Literal["sgd", "adam"] = "adam",
    ) -> AuxiliaryOptions:
        """The published notebook: delta = beta cap tanh(raw), penalty |sum_B delta' g|^2 - anti_ridge mean delta'^2."""
        return cls(
            mode="official_compat",
            penalty=penalty,
            anti_ridge=anti_ridge,
            cap=cap,
            beta=beta,
            learning_rate=learning_rate,
            optimiser=optimiser,
        )
