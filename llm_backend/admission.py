"""Which tokenised rows can be trained on, why the others cannot, and the count of what was done to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_backend.data.errors import DataError
from llm_backend.token_ids import EncodedRow
from llm_backend.token_options import TokenOptions
from llm_backend.truncation import Fitted, fit


class NoRowsError(DataError):
    """No row can be trained on; ``counts`` tell why, for those who can go on without."""

    def __init__(self, message: str, counts: TokenCounts) -> None:
        super().__init__(message)
        self.counts = counts


@dataclass
class TokenCounts:
    """What happened, in rows, of those that were kept (``tokens_cut``: in tokens).

    ``dropped`` lists the rows left out, by reason; ``merged`` all rows where prompt and response met in a merge.
    """

    rows: int = 0
    kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    merged: list[int] = field(default_factory=list)
    prompts_cut: int = 0
    responses_cut: Counter[str] = field(default_factory=Counter)
    tokens_cut: int = 0
    eos_added: int = 0
    bos_removed: int = 0

    def add(self, row: int, names: Sequence[str], ids: EncodedRow, fitted: Fitted) -> None:
        """Count one row."""
        if ids.merged:
            self.merged.append(row)
        if fitted.refused is not None:
            self.dropped.setdefault(fitted.refused, []).append(row)
            return
        cut = fitted.response_cut or [0] * len(names)
        self.kept += 1
        self.eos_added += ids.eos_added > 0
        self.bos_removed += ids.bos_removed > 0
        self.prompts_cut += fitted.prompt_cut > 0
        self.responses_cut.update(name for name, number in zip(names, cut, strict=True) if number)
        self.tokens_cut += fitted.prompt_cut + sum(cut)

    def check_left(self) -> None:
        """Raises ``NoRowsError`` when no row was kept, with the reasons."""
        if not self.kept:
            why = ", ".join(f"{len(rows)} {reason}" for reason, rows in self.dropped.items())
            raise NoRowsError(f"no row is left to train on; of {self.rows}: {why}", self)

    def to_json(self) -> dict[str, Any]:
        """Plain types; dropped rows as {reason: [row, ...]}."""
        return asdict(self) | {"responses_cut": dict(self.responses_cut)}


def admit(
    row: int,
    ids: EncodedRow,
    options: TokenOptions,
    bos_id: int | None,
    *,
    differ: Sequence[tuple[int, int]],
    tied: bool = False,
) -> Fitted:
    """The row within its limits, or why it cannot be trained on. ``differ``: which responses must not be the same.

    Raises: DataError with the row, the reason and what to do, under ``bad_rows="error"``.
    """
    fitted = _refusal(ids, options, tied) or fit(ids.prompt, ids.responses, options.limits(), bos_id)
    if fitted.refused is None:
        _refuse_identical(fitted, ids.responses, differ)
    if fitted.refused is not None and options.bad_rows == "error":
        raise DataError(f"row {row} cannot be trained on ({fitted.refused}): {fitted.detail}")
    return fitted


def _refusal(ids: EncodedRow, options: TokenOptions, tied: bool) -> Fitted | None:
    if not ids.prompt:
        why = "the prompt has no tokens and the tokenizer no BOS, so the first token has no context; give it a prompt"
        return Fitted([], ids.responses, refused="empty prompt", detail=why)
    if not all(ids.responses) or (any(ids.empty) and not options.keep_empty):
        why = "a response is empty; remove the row, or keep it with keep_empty if to end at once is an answer"
        return Fitted(ids.prompt, ids.responses, refused="empty response", detail=why)
    if tied and options.drop_ties:
        why = "its two scores are equal, so nothing is preferred; remove the row, or keep it with drop_ties=False"
        return Fitted(ids.prompt, ids.responses, refused="equal scores", detail=why)
    return None


def _refuse_identical(fitted: Fitted, before: list[list[int]], differ: Sequence[tuple[int, int]]) -> None:
    for one, two in differ:
        if fitted.responses[one] != fitted.responses[two]:
            continue
        if before[one] == before[two]:
            fitted.refused = "identical responses"
            fitted.detail = "two of its responses are the same, so nothing is preferred; remove the row"
            return
        fitted.refused = "identical after truncation"
        fitted.detail = "two of its responses are the same once they are cut; raise max_length or remove the row"
