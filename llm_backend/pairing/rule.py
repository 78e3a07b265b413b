"""Which two responses become a pair, and which pairs are left out: a rule with named filters in a fixed order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from geometry.errors import nearest_name
from llm_backend.pairing.errors import PairingError

Selection = Literal["best_worst", "best_random", "all_pairs"]
Stage = Literal["pairs", "responses"]

FILTERS = (
    "no_verdict", "empty", "cut_off", "too_short", "too_long", "identical", "ties", "margin", "chosen_text",
)  # fmt: skip
"""The filters, in the order in which they are asked."""

RESPONSE_FILTERS = FILTERS[1:5]
"""Those that look at one response alone."""

WEB_ADDRESS = r"https?://|\bwww\."


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRule:
    """How a prompt's candidates become rows. The defaults are AIPO's, without its PairRM margin.

    ``select``: ``best_worst`` (AIPO, arXiv:2409.08845, Algorithm 1; SPPO, TPMM-DPO), ``best_random`` (the best against
    one of the others, as UltraFeedback was binarised; the draw depends on ``seed`` and the prompt's key), or
    ``all_pairs`` (RRHF: every pair of different score, a row each).

    Filters, in order; 'chosen' and 'rejected' are the two responses of a pair:

        no_verdict   a score is NaN
        empty        a response is empty or white space             (``drop_empty``)
        cut_off      a response did not end before the limit        (``drop_cut_off``)
        too_short    a response has fewer tokens than ``shortest``  (EOS included)
        too_long     a response has more tokens than ``longest``
        identical    the two are equal up to white space
        ties         the two scores are equal
        margin       the scores differ by less than ``margin``
        chosen_text  ``forbidden_in_chosen``, a regular expression, is found in chosen (AIPO's code: web addresses)

    ``stage`` says what the filters empty to too_long drop: ``pairs``, a pair once it was selected (AIPO's code:
    a prompt whose best or worst response is cut off gives no pair), or ``responses``, single ones before the selection.
    Responses without a verdict never take part in the selection.
    Raises: PairingError for a value outside its range.
    """

    select: Selection = "best_worst"
    stage: Stage = "pairs"
    drop_empty: bool = True
    drop_cut_off: bool = True
    shortest: int = 0
    longest: int | None = None
    margin: float = 0.0
    forbidden_in_chosen: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("select", get_args(Selection)), ("stage", get_args(Stage))):
            value = getattr(self, name)
            if value not in known:
                raise PairingError(
                    f"unknown {name} {value!r} of a pair rule.{nearest_name(str(value), known)} Known: "
                    f"{', '.join(known)}"
                )
        if self.shortest < 0:
            raise PairingError(f"shortest must be at least 0 tokens, got {self.shortest}")
        if self.longest is not None and self.longest < max(1, self.shortest):
            raise PairingError(
                f"longest must be at least {max(1, self.shortest)} token(s), or None, got {self.longest}"
            )
        if not 0.0 <= self.margin < float("inf"):
            raise PairingError(f"margin must be a score difference >= 0, got {self.margin}")
        if self.forbidden_in_chosen is not None:
            try:
                re.compile(self.forbidden_in_chosen)
            except re.error as error:
                raise PairingError(
                    f"forbidden_in_chosen is no regular expression ({error}): {self.forbidden_in_chosen!r}"
                ) from None
