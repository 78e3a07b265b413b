"""The runs of the study: for each case a recipe with changes, and the same question asked of the exact simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEQUENCES = {"grammar": {"max_length": 32}, "n_candidates": 4}
"""The world of the noise cases. Labels are gold's, so the exact proxy is gold."""
NOISE_WORLD = SEQUENCES | {
    "n_prompts": 160,
    "rewards": {"length_bias": 0.0, "noise_sd": 0.0},
    "flip_mode": "persistent",
}
FIXED: dict[str, Any] = {
    "pairing": {"kind": "fixed"}, "prompts": None, "generation": None, "ranking": None,
    "data.rows": 160, "data.world.options": SEQUENCES,
}  # fmt: skip
TPMM = {"rounds": 3, "start": "merged", "entropy": 0.05, "weight_data": "heldout", "budget_divisor": 4}
BETA = {"beta": 0.1}


@dataclass(frozen=True)
class Exact:
    """A run of the simulator: world, its options, the kind of data, label noise, the algorithm, and Adam's rate, which
    is chosen so that the first round moves about as many nats as that of the language model."""

    world: str
    options: Mapping[str, Any]
    algorithm: str
    settings: Mapping[str, Any]
    rate: float
    flip: float = 0.0
    kind: str = "candidates"


@dataclass(frozen=True)
class Case:
    """``recipe`` of recipes/lm_loops with ``changes`` (keys with dots; None: without the section)."""

    study: str
    name: str
    recipe: str
    objective: str
    options: Mapping[str, Any]
    exact: Exact
    changes: Mapping[str, Any] = field(default_factory=dict)


def _noise(name: str, algorithm: str, settings: dict[str, Any], flip: float, *, inherited: bool) -> Case:
    world = NOISE_WORLD | {"reuse": inherited}
    changes = {"data.flip": flip, "algorithm": {"name": algorithm, "options": settings}}
    changes |= {"data.world.options": SEQUENCES} | (FIXED if inherited else {})
    exact = Exact("e3", world, algorithm, settings, rate=0.3, flip=flip)
    return Case("noise", name, "tiny_iterative_dpo", "dpo", BETA, exact, changes)


def _length(name: str, bias: float, objective: str, options: dict[str, Any]) -> Case:
    rewards = {"length_bias": bias}
    grammar = {"max_length": 48}
    world = {"grammar": grammar, "rewards": rewards, "n_prompts": 120, "n_candidates": 5, "drop_cut_off": True}
    settings = {"rounds": 3}
    exact = Exact("e3", world, "aipo", settings, rate=0.3)
    changes = {"data.world.options": {"grammar": grammar, "rewards": rewards}, "prompts.per_round": 120}
    changes |= {"algorithm": {"name": "aipo", "options": settings}, "evaluate.generations": 160}
    return Case("length", name, "tiny_aipo", objective, options, exact, changes)


def _sources(
    name: str, objective: str, options: dict[str, Any], kind: str = "candidates", *, tuned: bool = False
) -> Case:
    exact = Exact("e6", {}, "wrpo", {"supervised": tuned}, rate=0.1, kind=kind)
    settings = {"supervised": tuned} | ({"sft_learning_rate": 1e-3} if tuned else {})
    changes: dict[str, Any] = {"algorithm": {"name": "wrpo", "options": settings}, "prompts.per_round": 240}
    changes["pairing.kind"] = kind
    return Case("sources", name, "tiny_wrpo", objective, options, exact, changes)


ITERATIVE = {"rounds": 3}
CASES = (
    _noise("inherited, 0%: iterative", "iterative", ITERATIVE, 0.0, inherited=True),
    _noise("inherited, 30%: iterative", "iterative", ITERATIVE, 0.3, inherited=True),
    _noise("inherited, 30%: TPMM", "tpmm", TPMM, 0.3, inherited=True),
    _noise("fresh, 30%: iterative", "iterative", ITERATIVE, 0.3, inherited=False),
    _noise("fresh, 30%: TPMM", "tpmm", TPMM, 0.3, inherited=False),
    _length("b = 0: DPO", 0.0, "dpo", BETA),
    _length("b = .06: DPO", 0.06, "dpo", BETA),
    _length("b = .06: DPO + NLL", 0.06, "dpo_nll", BETA | {"nll_weight": 0.2}),
    _length("b = .06: AIPO", 0.06, "aipo", BETA | {"alpha": 0.3, "nll_weight": 0.2}),
    _sources("on-policy DPO", "dpo", {"beta": 1.0}),
    _sources("hybrid DPO", "dpo", {"beta": 1.0}, "hybrid"),
    _sources("static .1", "wrpo", {"beta": 1.0, "alpha": 0.1, "schedule": "static"}),
    _sources("static .9", "wrpo", {"beta": 1.0, "alpha": 0.9, "schedule": "static"}),
    _sources("dynamic .5", "wrpo", {"beta": 1.0, "alpha": 0.5, "schedule": "linear"}),
    _sources("SFT, on-policy", "dpo", {"beta": 1.0}, tuned=True),
    _sources("SFT, dynamic .5", "wrpo", {"beta": 1.0, "alpha": 0.5, "schedule": "linear"}, tuned=True),
)
