"""Questions that both kinds of runs answer, and whether the answers have one sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from figures.paired import Difference

Rounds = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Rounds]
"""Case -> the metrics of the base policy and after each round, arrays over seeds."""


@dataclass(frozen=True)
class Question:
    """``metric`` of ``case`` at ``at`` (a round; -1: the last) minus that of ``other`` at ``since``.

    ``what`` says it in words.
    """

    study: str
    what: str
    metric: str
    case: str
    other: str
    at: int = -1
    since: int = -1

    def answer(self, runs: Runs) -> Difference:
        """Mean paired difference over seeds, with its 95% t interval."""
        one, two = runs[self.case][self.at][self.metric], runs[self.other][self.since][self.metric]
        return Difference.of(np.asarray(one), np.asarray(two))


ITERATIVE, FRESH = "inherited, 30%: iterative", "fresh, 30%: iterative"
DPO, NLL, AIPO = "b = .06: DPO", "b = .06: DPO + NLL", "b = .06: AIPO"
ON = "on-policy DPO"
QUESTIONS = (
    Question("noise", "labels inherited, no flips: round 3 - round 1", "gold", "inherited, 0%: iterative",
             "inherited, 0%: iterative", since=1),
    Question("noise", "labels inherited, 30% flips: round 3 - round 1", "gold", ITERATIVE, ITERATIVE, since=1),
    Question("noise", "fresh labels, 30% flips: round 3 - round 1", "gold", FRESH, FRESH, since=1),
    Question("noise", "inherited, 30%: TPMM - iterative", "gold", "inherited, 30%: TPMM", ITERATIVE),
    Question("noise", "fresh, 30%: TPMM - iterative", "gold", "fresh, 30%: TPMM", FRESH),
    Question("length", "unbiased ranking: growth of length", "length", "b = 0: DPO", "b = 0: DPO", since=0),
    Question("length", "proxy with b = .06: growth of length", "length", DPO, DPO, since=0),
    Question("length", "b = .06: NLL shortens DPO", "length", NLL, DPO),
    Question("length", "b = .06: AIPO shortens DPO", "length", AIPO, DPO),
    Question("length", "b = .06: LC win rate, AIPO - DPO", "lc_win_rate", AIPO, DPO),
    Question("length", "b = .06: LC win rate, AIPO - (DPO + NLL)", "lc_win_rate", AIPO, NLL),
    Question("sources", "hybrid - on-policy", "win_rate", "hybrid DPO", ON),
    Question("sources", "static .1 - on-policy", "win_rate", "static .1", ON),
    Question("sources", "static .9 - on-policy", "win_rate", "static .9", ON),
    Question("sources", "dynamic .5 - on-policy", "win_rate", "dynamic .5", ON),
    Question("sources", "dynamic .5 - static .9", "win_rate", "dynamic .5", "static .9"),
    Question("sources", "after SFT: dynamic .5 - on-policy", "win_rate", "SFT, dynamic .5", "SFT, on-policy"),
    Question("sources", "share in the sources' style, after SFT: dynamic .5 - on-policy", "marked", "SFT, dynamic .5",
             "SFT, on-policy"),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A question with the answers of the language models and of the simulator."""

    question: Question
    language: Difference
    exact: Difference

    @property
    def agrees(self) -> bool:
        """Whether the means have one sign."""
        return bool(np.sign(self.language.mean) == np.sign(self.exact.mean))

    @property
    def verdict(self) -> str:
        """Same or other sign, and whether both intervals leave out 0."""
        if self.language.mean == 0.0:
            return "nothing in language models"
        clear = all(each.is_up or each.is_down for each in (self.language, self.exact))
        return ("same sign" if self.agrees else "other sign") + ("" if clear else ", unclear")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = {"study": self.question.study, "question": self.question.what}
        found |= {"metric": self.question.metric, "verdict": self.verdict}
        for name, each in (("language", self.language), ("exact", self.exact)):
            found[name] = {"mean": each.mean, "half": each.half}
        return found


def answers(language: Runs, exact: Runs) -> list[Answer]:
    """All questions whose cases are there."""
    return [
        Answer(each, each.answer(language), each.answer(exact))
        for each in QUESTIONS
        if each.case in language and each.other in language
    ]


def table(found: Sequence[Answer]) -> str:
    """Markdown: a line for each question."""
    lines = ["| question | metric | language models | simulator | verdict |", "|---|---|---|---|---|"]
    for each in found:
        numbers = (f"{value.mean:+.3f} ± {value.half:.3f}" for value in (each.language, each.exact))
        lines.append(f"| {each.question.what} | {each.question.metric} | {' | '.join(numbers)} | {each.verdict} |")
    return "\n".join(lines)
