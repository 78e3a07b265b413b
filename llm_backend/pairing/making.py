"""Rows of preferences out of ranked candidates; every prompt gives a row or is counted under one filter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm_backend.data.hashing import pick
from llm_backend.data.rows import Content, PreferenceRow, Preferences
from llm_backend.pairing.candidates import Candidates
from llm_backend.pairing.errors import PairingError
from llm_backend.pairing.rule import FILTERS, RESPONSE_FILTERS, PairRule

if TYPE_CHECKING:
    from llm_backend.generation import Response

Pair = tuple[int, int]
"""Places of chosen and rejected among the candidates."""


def make_pairs(candidates: Sequence[Candidates], rule: PairRule, *, source: str = "candidates") -> Preferences:
    """Pairs by the rule, in the order of the candidates, with the scores of both responses.

    ``left_out`` has every filter of ``FILTERS``. A prompt without a row counts once, under the filter that took its
    last pair, so that the counts and the number of prompts with rows add up to ``len(candidates)``. A row's number is
    the prompt's key; with ``all_pairs`` it is key * M + number of the pair, M = N (N - 1) / 2 for the largest N here.
    Raises: PairingError for keys that repeat, or a limit of tokens where a response has no tokens.
    """
    seen: set[int] = set()
    for each in candidates:
        if each.key in seen:
            raise PairingError(f"key {each.key} belongs to two prompts; give each prompt a key of its own")
        seen.add(each.key)
    most = max((len(each.responses) for each in candidates), default=0)
    stride = most * (most - 1) // 2 if rule.select == "all_pairs" else 1
    left_out = dict.fromkeys(FILTERS, 0)
    rows: list[PreferenceRow] = []
    for each in candidates:
        kept, reason = _selected(each, rule)
        if reason is not None:
            left_out[reason] += 1
        rows += [_row(each, pair, each.key * stride + number) for number, pair in enumerate(kept)]
    return Preferences(tuple(rows), source, left_out)


def require_pairs(preferences: Preferences) -> Preferences:
    """The preferences themselves. Raises ``PairingError`` where not one row is left, with what took them."""
    if preferences.rows:
        return preferences
    taken = {name: count for name, count in preferences.left_out.items() if count}
    if not taken:
        raise PairingError(f"{preferences.source}: there are no prompts to make pairs of")
    worst = max(taken, key=lambda name: taken[name])
    raise PairingError(
        f"{preferences.source}: no pair is left of {sum(taken.values())} prompts "
        f"({', '.join(f'{name} {count}' for name, count in taken.items())}); {_ADVICE[worst]}"
    )


_ADVICE = {
    "no_verdict": "the ranker gave too few verdicts, so look at its own counts",
    "empty": "the policy writes nothing, so look at its prompts and its end-of-sequence token",
    "cut_off": "let the policy write more tokens, or train it until it ends its responses",
    "too_short": "lower the rule's shortest",
    "too_long": "raise the rule's longest",
    "identical": "draw more candidates, or at a higher temperature",
    "ties": "draw more candidates, or use a ranker that tells them apart",
    "margin": "lower the rule's margin",
    "chosen_text": "look at forbidden_in_chosen and at what the policy writes",
}


@dataclass(frozen=True)
class _View:
    """One prompt's candidates with what the filters ask of them."""

    candidates: Candidates
    rule: PairRule

    def response(self, place: int) -> Response:
        return self.candidates.responses[place]

    def score(self, place: int) -> float:
        return float(self.candidates.scores[place])

    def same(self, one: int, two: int) -> bool:
        return self.response(one).text.split() == self.response(two).text.split()

    def spoils(self, name: str, place: int) -> bool:
        """Whether a filter of single responses takes this one."""
        response, rule = self.response(place), self.rule
        if name == "empty":
            return rule.drop_empty and not response.text.strip()
        if name == "cut_off":
            return rule.drop_cut_off and not response.finished
        if name == "too_short":
            return rule.shortest > 0 and self._length(place) < rule.shortest
        return rule.longest is not None and self._length(place) > rule.longest

    def takes(self, name: str, pair: Pair) -> bool:
        """Whether a filter takes the pair."""
        chosen, rejected = pair
        if name in RESPONSE_FILTERS:
            return self.spoils(name, chosen) or self.spoils(name, rejected)
        if name == "identical":
            return self.same(chosen, rejected)
        if name == "ties":
            return self.score(chosen) == self.score(rejected)
        if name == "margin":
            return self.score(chosen) - self.score(rejected) < self.rule.margin
        pattern = self.rule.forbidden_in_chosen
        return pattern is not None and re.search(pattern, self.response(chosen).text) is not None

    def _length(self, place: int) -> int:
        length = len(self.response(place).token_ids)
        if length == 0:
            raise PairingError(
                f"prompt {self.candidates.key}: response {place} has no token ids, so shortest and longest cannot be "
                "applied; leave them out of the rule, or give responses with their tokens"
            )
        return length


def _selected(candidates: Candidates, rule: PairRule) -> tuple[list[Pair], str | None]:
    """The pairs that pass every filter, or none and the filter that took the last one."""
    view = _View(candidates, rule)
    places = [int(place) for place in np.flatnonzero(~np.isnan(candidates.scores))]
    if len(places) < 2:
        return [], "no_verdict"
    if rule.stage == "responses":
        for name in RESPONSE_FILTERS:
            places = [place for place in places if not view.spoils(name, place)]
            if len(places) < 2:
                return [], name
    pairs = _SELECT[rule.select](view, places)
    for name in FILTERS[1:]:
        pairs = [pair for pair in pairs if not view.takes(name, pair)]
        if not pairs:
            return [], name
    return pairs, None


def _best(view: _View, places: Sequence[int]) -> int:
    return max(places, key=view.score)  # the first of equal ones


def _others(view: _View, best: int, places: Sequence[int]) -> list[int]:
    """The candidates with another text than the best one; all others where there is none ('identical' takes them)."""
    rest = [place for place in places if place != best]
    return [place for place in rest if not view.same(best, place)] or rest


def _best_worst(view: _View, places: Sequence[int]) -> list[Pair]:
    best = _best(view, places)
    return [(best, min(_others(view, best, places), key=view.score))]


def _best_random(view: _View, places: Sequence[int]) -> list[Pair]:
    best = _best(view, places)
    others = _others(view, best, places)
    return [(best, others[pick(len(others), "best against random", view.rule.seed, view.candidates.key)])]


def _all_pairs(view: _View, places: Sequence[int]) -> list[Pair]:
    """Every two, the better first; of texts that occur twice, only the first occurrence."""
    distinct = [place for i, place in enumerate(places) if not any(view.same(place, other) for other in places[:i])]
    ordered = sorted(distinct if len(distinct) > 1 else places, key=lambda place: -view.score(place))
    return [(one, two) for i, one in enumerate(ordered) for two in ordered[i + 1 :]]


_SELECT: dict[str, Callable[[_View, Sequence[int]], list[Pair]]] = {
    "best_worst": _best_worst,
    "best_random": _best_random,
    "all_pairs": _all_pairs,
}


def _row(candidates: Candidates, pair: Pair, number: int) -> PreferenceRow:
    prompt = candidates.prompt
    chosen, rejected = (_content(prompt, candidates.responses[place]) for place in pair)
    best, worst = (float(candidates.scores[place]) for place in pair)
    return PreferenceRow(number, prompt, chosen, rejected, score_chosen=best, score_rejected=worst)


def _content(prompt: Content, response: Response) -> Content:
    """A response of the prompt's kind: text, or one message of the assistant."""
    return response.text if isinstance(prompt, str) else [{"role": "assistant", "content": response.text}]
