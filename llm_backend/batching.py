"""From rows of token ids to tensors: the prompt of a pair once, its responses behind it, and batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_backend.errors import BatchingError

PADDING = -1
NUMBERS = ("win_chosen", "win_rejected", "weight")
"""Numeric columns that go along with a row, besides every ``reference_*``."""


@dataclass(frozen=True)
class Collator:
    """Rows (``prompt_ids``, ``chosen_ids``, ...) to one batch of tensors.

    With ``shared`` a line of the batch is [prompt | response 1 | response 2 | ...], the responses at the same positions
    and invisible to one another; otherwise there is one line [prompt | response] for every response. ``segments`` is 0
    in the prompt, k in the k-th response of the line, and -1 in padding, which stands on the right. With ``packed``
    the shared lines of all pairs are laid end to end in one, without padding, and ``spans`` (n, 1 + sides) are the
    lengths of prompt and responses.

    The batch: ``input_ids``, ``position_ids``, ``segments`` (lines, T); ``places`` (N,), where in the flattened lines
    the N response tokens are predicted; ``targets`` (N,), those tokens; ``owners`` (N,), side * n + pair; ``lengths``
    (sides, n); ``row`` and ``index`` (n,), -1 where the rows have none; and numbers of each row that objectives read.
    Raises: BatchingError for a missing column, an empty prompt or an empty response.
    """

    sides: tuple[str, ...] = ("chosen", "rejected")
    pad_id: int = 0
    shared: bool = True
    packed: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of these rows."""
        if self.packed and not self.shared:
            raise BatchingError("packed lines share their prompts: use shared=True")
        lines = _lines(rows, self.sides, self.shared)
        width = sum(line.width for line in lines) if self.packed else max(line.width for line in lines)
        shape = (1 if self.packed else len(lines), width)
        ids = np.full(shape, self.pad_id, dtype=np.int64).ravel()
        positions, segments = np.zeros_like(ids), np.full_like(ids, PADDING)
        places, targets, owners, begin = [], [], [], 0
        for line in lines:
            start = begin + len(line.prompt)
            ids[begin:start], positions[begin:start], segments[begin:start] = line.prompt, np.arange(start - begin), 0
            for segment, (owner, response) in enumerate(line.responses, 1):
                span, length = slice(start, start + len(response)), len(response)
                ids[span], segments[span], positions[span] = response, segment, len(line.prompt) + np.arange(length)
                # the first token is predicted at the end of the prompt, each other one at the token before it
                places.append(np.concatenate([[begin + len(line.prompt) - 1], np.arange(start, start + length - 1)]))
                targets.append(np.asarray(response))
                owners.append(np.full(length, owner))
                start += length
            begin = start if self.packed else begin + width
        flat = {"input_ids": ids, "position_ids": positions, "segments": segments}
        batch: dict[str, np.ndarray] = {name: values.reshape(shape) for name, values in flat.items()}
        batch |= {"places": _join(places), "targets": _join(targets), "owners": _join(owners)}
        batch["lengths"] = np.array([[len(row[f"{side}_ids"]) for row in rows] for side in self.sides], dtype=np.int64)
        if self.packed:
            spans = [[len(line.prompt), *(len(response) for _, response in line.responses)] for line in lines]
            batch["spans"] = np.array(spans, dtype=np.int64)
        for name in ("row", "index"):
            batch[name] = np.array([int(row.get(name, PADDING)) for row in rows])
        for name in rows[0]:
            if name in NUMBERS or name.startswith("reference_"):
                batch[name] = np.array([row[name] for row in rows], dtype=np.float64)
        return {name: torch.from_numpy(value) for name, value in batch.items()}


@dataclass(frozen=True)
class _Line:
    prompt: Sequence[int]
    responses: list[tuple[int, Sequence[int]]]  # (side * n + pair, token ids)

    @property
    def width(self) -> int:
        return len(self.prompt) + sum(len(response) for _, response in self.responses)


def _lines(rows: Sequence[Mapping[str, Any]], sides: Sequence[str], shared: bool) -> list[_Line]:
    if not rows:
        raise BatchingError("a batch needs at least one row, got none")
    lines = []
    for pair, row in enumerate(rows):
        responses = [(k * len(rows) + pair, _ids(row, f"{side}_ids")) for k, side in enumerate(sides)]
        prompt = _ids(row, "prompt_ids")
        lines += [_Line(prompt, responses)] if shared else [_Line(prompt, [one]) for one in responses]
    return lines


def _ids(row: Mapping[str, Any], column: str) -> Sequence[int]:
    if column not in row:
        raise BatchingError(f"the rows have no column {column!r}; they have {sorted(row)}")
    if len(row[column]) == 0:
        what = "its first response token has nothing to be predicted from" if column == "prompt_ids" else "drop the row"
        raise BatchingError(f"{column} of row {row.get('row', '?')} is empty: {what}")
    ids: Sequence[int] = row[column]
    return ids


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64)


def line_length(row: Mapping[str, Any], sides: Sequence[str], shared: bool = True) -> int:
    """Tokens that a row takes in a batch."""
    responses = sum(len(row[f"{side}_ids"]) for side in sides)
    return len(row["prompt_ids"]) * (1 if shared else len(sides)) + responses


class LengthSampler(torch.utils.data.Sampler[int]):
    """Row numbers of an epoch: shuffled, and sorted by length within windows of ``window`` optimizer steps.

    The order depends on (seed, epoch, step_size) alone, so any split of a step into micro-batches sees the same rows.
    ``multiple`` drops the last few rows of the epoch where several processes must get equally many.
    """

    def __init__(
        self, lengths: Sequence[int], step_size: int, *, seed: int, window: int = 32, multiple: int = 1
    ) -> None:
        if len(lengths) < multiple:
            raise BatchingError(f"{len(lengths)} rows are too few for {multiple} in each round of the processes")
        self.lengths, self.step_size, self.seed = np.asarray(lengths), step_size, seed
        self.window, self.multiple, self.epoch = window, multiple, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.multiple * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))[: len(self)]
        size = self.step_size * self.window
        steps: list[np.ndarray] = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            steps += [part[i : i + self.step_size] for i in range(0, len(part), self.step_size)]
        short = [steps.pop()] if len(steps[-1]) < self.step_size else []  # a short step stays last
        steps = [steps[k] for k in generator.permutation(len(steps))] + short
        return iter([int(index) for step in steps for index in step])
