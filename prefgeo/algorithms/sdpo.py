"""sDPO: the data in chunks, one after the other, each against the policy that the last one made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from objectives import Objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.journal import Journal, NoJournal, fitted
from prefgeo.algorithms.outcome import LoopOutcome, Roles, Round, outcome
from prefgeo.backend import Backend, Data, FitPlan, Policy


def sdpo_roles(chunks: int) -> list[Roles]:
    """Who plays which part for each chunk: the data are always the base policy's."""
    before = ["base", *(f"policy {t}" for t in range(1, chunks))]
    return [
        {"data": f"base, part {t} of {chunks}", "start": name, "reference": name, "policy": f"policy {t}"}
        for t, name in enumerate(before, start=1)
    ]


def sdpo(
    backend: Backend[Policy, Data],
    objective: Callable[[], Objective],
    *,
    chunks: int,
    data: DataSource,
    plan: FitPlan,
    journal: Journal | None = None,
) -> LoopOutcome[Policy]:
    """One draw of data from the base policy, dealt out to ``chunks`` parts (row i to part i mod chunks).

    Part t is trained from policy t - 1, which is its reference too; one part is plain DPO. The plan holds for each
    part. Source: Kim et al. 2024, arXiv:2403.19270 (there parts may be sorted from easy to hard; here they are not).
    """
    if chunks < 1:
        raise AlgorithmError(f"chunks must be at least 1, got {chunks}")
    journal = journal or NoJournal()
    base = policy = reference = backend.load()
    rounds: list[Round[Policy]] = []
    for t, roles in enumerate(sdpo_roles(chunks)):
        draw = partial(data.draw, backend, base, 1, part=(t, chunks))
        reference = policy
        policy, notes = fitted(
            backend, journal, f"chunk-{t + 1}", draw, objective(), start=reference, reference=reference, plan=plan,
            later=[base],
        )  # fmt: skip
        rounds.append(Round(roles, policy, notes))
    return outcome(backend, base, reference, rounds)
