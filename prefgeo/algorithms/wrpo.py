"""WRPO's two stages: supervised fine-tuning on the sources' best responses, then preferences with a weighted reward."""

from __future__ import annotations

from collections.abc import Callable

from bandits.supervised import NegativeLogLikelihood
from objectives import Objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.journal import Journal, NoJournal, fitted
from prefgeo.algorithms.outcome import LoopOutcome, Roles, Round, outcome
from prefgeo.backend import Backend, Data, FitPlan, Policy


def wrpo_roles(*, supervised: bool) -> list[Roles]:
    """Who plays which part in each stage."""
    first = {"data": "the sources' best responses", "start": "base", "reference": "base", "policy": "sft"}
    start = "sft" if supervised else "base"
    second = {"data": f"{start}, with the sources' responses", "start": start, "reference": start, "policy": "wrpo"}
    return [first, second] if supervised else [second]


def wrpo(
    backend: Backend[Policy, Data],
    objective: Callable[[], Objective],
    *,
    data: DataSource,
    plan: FitPlan,
    supervised: FitPlan | None,
    journal: Journal | None = None,
) -> LoopOutcome[Policy]:
    """Fine-tune the target (``supervised`` None: do not), draw pairs from it, and train on them and the sources' y_ws.

    The objective says how: wrpo, wrpo_simpo, wrpo_ipo, with y_ls as well wrpo_rejected; its schedule raises alpha over
    the optimizer steps. Any other objective is a baseline: DPO on the target's own pairs, or with data of the kind
    ``hybrid`` on (y_ws, y_l). Source: WRPO (Yang et al. 2024, arXiv:2412.03187), Sec. 3 and 4.
    """
    journal = journal or NoJournal()
    base = start = backend.load()
    roles = wrpo_roles(supervised=supervised is not None)
    rounds: list[Round[Policy]] = []
    if supervised is not None:
        best = DataSource("supervised")
        start, notes = fitted(
            backend, journal, "sft", lambda: best.draw(backend, base, 1), NegativeLogLikelihood(),
            start=base, reference=base, plan=supervised,
        )  # fmt: skip
        rounds.append(Round(roles[0], start, notes))
    policy, notes = fitted(
        backend, journal, "preferences", lambda: data.draw(backend, start, 1), objective(),
        start=start, reference=start, plan=plan, later=[base],
    )  # fmt: skip
    rounds.append(Round(roles[-1], policy, notes))
    return outcome(backend, base, start, rounds)
