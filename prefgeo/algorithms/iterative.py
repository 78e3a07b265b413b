"""Iterative preference optimisation with any objective: who starts each round, and who is its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal

import numpy as np

from objectives import Objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.journal import Entry, Journal, NoJournal, fitted
from prefgeo.algorithms.outcome import LoopOutcome, Roles, Round, outcome
from prefgeo.backend import Backend, Data, FitPlan, Policy

Start = Literal["policy", "merged", "initial"]
Reference = Literal["initial", "previous", "merged", "ema"]
Merger = Callable[[list[Policy], Policy, Policy, Callable[[], Data], int], Any]
"""(what to merge, base policy, policy that drew the round's data, those data, round) -> shares of a merge, (R, k)."""


@dataclass(frozen=True)
class Rules:
    """Who starts round t + 1 and who is its reference, after round t made policy t.

    ``policy`` and ``previous`` are policy t; ``initial`` the base policy; ``merged`` the merge of the trajectory so
    far (with the base policy in it if ``include_sft``); ``ema`` is decay * (its value before) + (1 - decay) * policy t.
    """

    rounds: int
    start: Start = "policy"
    reference: Reference = "previous"
    ema_decay: float = 0.5
    include_sft: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise AlgorithmError(f"rounds must be at least 1, got {self.rounds}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise AlgorithmError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    @property
    def merges(self) -> bool:
        """Whether any round needs a merged policy."""
        return "merged" in (self.start, self.reference)

    def roles(self) -> list[Roles]:
        """Who plays which part in every round, as the manifest tells."""
        found: list[Roles] = []
        for t in range(1, self.rounds + 1):
            before = t - 1
            names = {"initial": "base", "merged": f"merged {before}", "ema": f"ema {before}"}
            names |= {"policy": f"policy {before}", "previous": f"policy {before}"}
            if t == 1:
                names = dict.fromkeys(names, "base")
            found.append(
                {
                    "data": names["policy"],
                    "start": names[self.start],
                    "reference": names[self.reference],
                    "policy": f"policy {t}",
                    **({"merged": f"merged {t}"} if self.merges and t < self.rounds else {}),
                }
            )
        return found


def iterate(
    backend: Backend[Policy, Data],
    objective: Callable[[], Objective],
    *,
    rules: Rules,
    data: DataSource,
    plan: FitPlan,
    journal: Journal | None = None,
    merger: Merger[Policy, Data] | None = None,
) -> LoopOutcome[Policy]:
    """Every round draws data from the newest policy and trains, with a fresh objective and optimiser.

    ``merger`` gives the shares of a merged policy; None takes the simple average. In round 1 every part is played
    by the base policy, so all rules agree there bit for bit. The result is the last round's policy, never a merge.
    Source: Xu et al. 2023 (arXiv:2312.16682) for the plain loop; merged references: TPMM-DPO.
    """
    journal = journal or NoJournal()
    base = backend.load()
    who = _Cast(base)
    rounds: list[Round[Policy]] = []
    for t, roles in enumerate(rules.roles(), start=1):
        speaker = who.policy
        draw = partial(data.draw, backend, speaker, t)
        policy, notes = fitted(
            backend, journal, f"round-{t}", draw, objective(),
            start=who.play(rules.start), reference=who.play(rules.reference), plan=plan,
            later=who.read_from(t, rules),
        )  # fmt: skip
        who.reference = who.play(rules.reference)
        who.advance(policy)
        if rules.reference == "ema" and t < rules.rounds:
            who.ema = backend.merge([who.ema, policy], np.array([rules.ema_decay, 1.0 - rules.ema_decay]))
        shares = None
        if rules.merges and t < rules.rounds:
            trajectory = ([base] if rules.include_sft else []) + who.trajectory
            shares = _shares(journal, f"merge-{t}", merger, trajectory, base, speaker, draw, t)
            who.merged = backend.merge(trajectory, shares)
        rounds.append(Round(roles, policy, notes, shares))
    return outcome(backend, base, who.reference, rounds)


class _Cast(Generic[Policy]):
    """Who is who between two rounds."""

    def __init__(self, base: Policy) -> None:
        self.base = self.policy = self.merged = self.ema = self.reference = base
        self.trajectory: list[Policy] = []

    def play(self, part: str) -> Policy:
        """The policy that plays a part."""
        named = {"policy": self.policy, "previous": self.policy, "initial": self.base}
        return {**named, "merged": self.merged, "ema": self.ema}[part]

    def read_from(self, t: int, rules: Rules) -> list[Policy]:
        """Who is read in round t or later, besides its start and reference."""
        averaged = [self.ema] if rules.reference == "ema" else []
        return [self.base, self.policy, *averaged, *(self.trajectory if rules.merges and t < rules.rounds else [])]

    def advance(self, policy: Policy) -> None:
        """A round made this policy."""
        self.policy = policy
        self.trajectory.append(policy)


def _shares(
    journal: Journal,
    stage: str,
    merger: Merger[Policy, Data] | None,
    trajectory: list[Policy],
    base: Policy,
    speaker: Policy,
    data: Callable[[], Data],
    t: int,
) -> Any:
    if merger is None:
        return np.full((1, len(trajectory)), 1.0 / len(trajectory))
    known = journal.read(stage)
    if known is not None:
        return known.arrays["shares"]
    shares = merger(trajectory, base, speaker, data, t)
    journal.write(stage, Entry({"shares": np.asarray(shares)}))
    return shares
