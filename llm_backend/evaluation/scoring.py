"""Log-probabilities of every response of every set: each prompt computed once where the model allows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geometry.pairs import FloatArray, IntArray
from llm_backend.batching import Collator
from llm_backend.evaluation.encoding import TokenSet, check_context
from llm_backend.evaluation.errors import EvaluationError
from llm_backend.log_probs import response_log_probs, shares_prompts, unwrap
from llm_backend.models import context_of

TOKENS_PER_BATCH = 8192
Piece = tuple[int, int, int]
"""Set, first response, how many responses: what one line of a batch holds."""


@dataclass(frozen=True)
class Scores:
    """Flat over the responses of all sets, in order: sums of log pi over tokens, tokens, and where each set starts."""

    log_probs: FloatArray
    lengths: IntArray
    starts: IntArray  # (sets + 1,)

    def of(self, place: int) -> FloatArray:
        """log pi(y|x) of the responses of one set."""
        found: FloatArray = self.log_probs[self.starts[place] : self.starts[place + 1]]
        return found


def score_sets(
    model: Any,
    sets: Sequence[TokenSet],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    pad_id: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Scores:
    """log pi(y|x) of every response in float32 (float64 for a float64 model); the model is left as it was found.

    Nothing depends on the batches but rounding. ``progress`` is called with the number of responses done.
    Raises: EvaluationError for rows beyond the model's context, and for log-probabilities that are not finite.
    """
    causal = unwrap(model)
    check_context(sets, context_of(causal))
    starts = np.concatenate([[0], np.cumsum([len(each.responses) for each in sets])])
    log_probs = np.zeros(int(starts[-1]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for pieces in _batches(sets, tokens_per_batch, shares_prompts(model)):
                for (number, first, count), values in zip(pieces, _score(model, sets, pieces, pad_id), strict=True):
                    begin = int(starts[number]) + first
                    log_probs[begin : begin + count] = values
                    if progress is not None:
                        progress(count)
    finally:
        model.train(training)
    lengths = np.array([len(response) for each in sets for response in each.responses])
    _check_finite(log_probs, sets, starts)
    return Scores(log_probs, lengths, starts)


def _score(model: Any, sets: Sequence[TokenSet], pieces: Sequence[Piece], pad_id: int) -> FloatArray:
    """(pieces, responses of a piece)."""
    count = pieces[0][2]
    sides = tuple(f"response_{place}" for place in range(count))
    rows = []
    for number, first, _ in pieces:
        each = sets[number]
        row: dict[str, Any] = {"row": each.row, "prompt_ids": each.prompt}
        rows.append(row | {f"{side}_ids": each.responses[first + place] for place, side in enumerate(sides)})
    batch = Collator(sides, pad_id)(rows)
    device = unwrap(model).device
    scores = response_log_probs(model, {name: value.to(device) for name, value in batch.items()}, sides)
    values: FloatArray = torch.stack([scores.log_probs[side] for side in sides], dim=1).double().cpu().numpy()
    return values


def _batches(sets: Sequence[TokenSet], budget: int, shared: bool) -> Iterator[list[Piece]]:
    """Lines with equally many responses, the longest first; a set that is longer than the budget takes several."""
    kinds: dict[int, list[tuple[int, Piece]]] = defaultdict(list)
    for number, each in enumerate(sets):
        for width, piece in _pieces(number, each, budget if shared else 0):
            kinds[piece[2]].append((width, piece))
    for lines in kinds.values():
        lines.sort(key=lambda line: -line[0])
        start = 0
        while start < len(lines):
            size = max(1, budget // lines[start][0])
            yield [piece for _, piece in lines[start : start + size]]
            start += size


def _pieces(number: int, each: TokenSet, budget: int) -> Iterator[tuple[int, Piece]]:
    """(tokens, piece) of one set, each piece within the budget or of one response."""
    first, width = 0, len(each.prompt)
    for place, response in enumerate(each.responses):
        if place > first and width + len(response) > budget:
            yield width, (number, first, place - first)
            first, width = place, len(each.prompt)
        width += len(response)
    yield width, (number, first, len(each.responses) - first)


def _check_finite(log_probs: FloatArray, sets: Sequence[TokenSet], starts: IntArray) -> None:
    bad = np.flatnonzero(~np.isfinite(log_probs))
    if bad.size:
        owners = np.searchsorted(starts, bad, side="right") - 1
        rows = sorted({sets[int(owner)].row for owner in owners})[:5]
        raise EvaluationError(
            f"log-probabilities are not finite in rows {rows}; the model is broken, or too large for its dtype"
        )
