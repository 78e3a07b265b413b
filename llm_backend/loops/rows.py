"""The data of a round on language models: rows of token ids, and what became of every prompt on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llm_backend.admission import NoRowsError
from llm_backend.data import PreferenceRow, Preferences, ResponseSet
from llm_backend.token_options import TokenOptions
from llm_backend.tokenization import tokenize_preferences, tokenize_sets

KEPT, FLIPPED = "kept", "flipped"
Wins = Mapping[int, tuple[float, float]]
"""Number of the row -> the probabilities with which chosen and rejected beat what the policy that drew them writes."""


@dataclass(frozen=True)
class RoundText:
    """What a source gives: preference rows as text (or, with ``supervised``, demonstrations as chosen), win rates for
    SPPO where it knows them, and how many prompts or pairs were left out, by name."""

    preferences: Preferences
    wins: Wins | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    supervised: bool = False


@dataclass(frozen=True)
class LoopRows:
    """``rows`` as the trainers take them. ``tally``: kept, flipped, and everything that was left out, by name."""

    rows: list[dict[str, Any]]
    tally: Mapping[str, int]

    @property
    def n_rows(self) -> int:
        """How many rows there are to train on."""
        return len(self.rows)

    def counts(self) -> dict[str, np.ndarray]:
        """The tally as arrays (1,), as algorithms read it."""
        return {name: np.array([number]) for name, number in self.tally.items()}


def loop_rows(text: RoundText, tokenizer: Any, options: TokenOptions) -> LoopRows:
    """The rows as token ids. A pool that filters left empty gives no rows, which is the algorithm's to judge."""
    preferences = text.preferences
    left_out = {**preferences.left_out, **text.left_out}
    numbered = [replace(row, row=place) for place, row in enumerate(preferences.rows)]  # a prompt may give several
    dropped: dict[str, list[int]] = {}
    rows: list[dict[str, Any]] = []
    if numbered:
        rows, dropped = _tokenised(numbered, tokenizer, options, supervised=text.supervised)
    kept = [preferences.rows[row["row"]] for row in rows]
    done = [_finished(row, source, text) for row, source in zip(rows, kept, strict=True)]
    tally = {KEPT: len(done)} | {_plain(name): int(number) for name, number in left_out.items()}
    for reason, which in dropped.items():
        tally[_plain(reason)] = tally.get(_plain(reason), 0) + len(which)
    tally[FLIPPED] = sum(row.flipped for row in kept)
    return LoopRows(done, tally)


def _tokenised(
    rows: Sequence[PreferenceRow], tokenizer: Any, options: TokenOptions, *, supervised: bool
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """Rows of ids, and which were left out, by reason."""
    try:
        if supervised:
            sets = [ResponseSet(row.row, row.prompt, (row.chosen,), 0, row.category) for row in rows]
            found = tokenize_sets(sets, tokenizer, options)
        else:
            found = tokenize_preferences(rows, tokenizer, options)
    except NoRowsError as nothing:
        return [], nothing.counts.dropped
    return found.dataset.to_list(), found.counts.dropped


def _finished(row: Mapping[str, Any], source: PreferenceRow, text: RoundText) -> dict[str, Any]:
    """The row under its own number, with win rates where there are any."""
    if text.supervised:
        return {"row": source.row, "prompt_ids": row["prompt_ids"], "chosen_ids": row["response_ids"][0]}
    found = dict(row) | {"row": source.row}
    if text.wins is not None:
        found["win_chosen"], found["win_rejected"] = text.wins[source.row]
    return found


def _plain(name: str) -> str:
    """A reason as a name of a column: "identical after truncation" -> "identical_after_truncation"."""
    return name.replace(" ", "_").replace("'", "")
