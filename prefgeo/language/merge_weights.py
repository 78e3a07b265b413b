"""The weights of a merge of model folders, learned from a file of preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.data import load_preferences
from llm_backend.evaluation.loading import without_bars
from llm_backend.merging import MergedMargins
from llm_backend.merging.folders import ADAPTER_CONFIG
from llm_backend.token_options import TokenOptions
from llm_backend.tokenization import tokenize_preferences
from llm_backend.tokenizers import check_vocabulary, load_tokenizer
from prefgeo.algorithms.merge_linearised import linearised_weights
from prefgeo.errors import UsageError

TOLERANCE = {"float32": 1e-4, "float64": 1e-7}  # transformers computes some norms in float32 whatever the model is in


@dataclass(frozen=True)
class Learning:
    """What weights are learned from, and how: argmin of the preference loss at ``beta`` minus ``entropy`` times H."""

    data: str
    beta: float = 0.1
    entropy: float = 0.1
    tokenizer: str | None = None
    max_length: int | None = None
    truncation: str = "drop"
    boundary: str = "refuse"
    limit: int | None = None
    precision: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class LearnedShares:
    """The shares, with the preference loss and entropy there, and how far they are from optimal (KKT residual)."""

    shares: tuple[float, ...]
    loss: float
    loss_of_average: float
    entropy: float
    residual: float
    pairs: int
    dropped: dict[str, int]
    evaluations: int


def learn_shares(
    folders: Sequence[Path], learning: Learning, *, progress: Callable[[int], object] | None = None
) -> LearnedShares:
    """Tokenise the pairs, then Gauss-Newton steps. ``progress`` is called after each pass over the pairs.

    Raises: UsageError for adapters and options; DataError, MergeError, AlgorithmError for what comes of the rest.
    """
    if learning.precision not in TOLERANCE:
        raise UsageError(f"--precision must be one of {', '.join(TOLERANCE)}, got {learning.precision!r}")
    if learning.limit is not None and learning.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {learning.limit}")
    for folder in folders:
        if (folder / ADAPTER_CONFIG).is_file():
            raise UsageError(f"weights of adapters cannot be learned; merge {folder} into its base first (--base)")
    names = ("max_length", "truncation", "boundary")
    tokens: Any = {name: getattr(learning, name) for name in names}
    options = TokenOptions(**tokens)
    preferences = load_preferences(learning.data)
    rows = preferences.rows
    if learning.limit is not None and learning.limit < len(rows):
        rows = tuple(rows[int(i)] for i in np.linspace(0, len(rows) - 1, learning.limit))
    tokenizer = load_tokenizer(learning.tokenizer or folders[0])
    tokenized = tokenize_preferences(rows, tokenizer, options)
    with without_bars():
        margins = MergedMargins(
            folders, tokenized.dataset.to_list(), dtype=learning.precision, device=learning.device,
            pad_id=tokenizer.pad_token_id or 0,
        )  # fmt: skip
    check_vocabulary(tokenizer, margins.n_embeddings)
    n = len(tokenized.dataset)
    losses: list[float] = []

    def evaluated(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, slopes = margins(shares[0], progress=progress)
        losses.append(float(np.logaddexp(0.0, -learning.beta * values).mean()))
        return values[None], slopes[None], np.full((1, n), 1.0 / n)

    with without_bars():
        found = linearised_weights(
            evaluated,
            1,
            len(folders),
            beta=learning.beta,
            entropy=learning.entropy,
            tolerance=TOLERANCE[learning.precision],
        )
    shares = found.shares[0] / found.shares[0].sum()
    loss, spread, residual = (float(each[0]) for each in (found.loss, found.entropy, found.residual))
    dropped = {name: len(places) for name, places in tokenized.counts.dropped.items() if len(places)}
    return LearnedShares(tuple(map(float, shares)), loss, losses[0], spread, residual, n, dropped, len(losses))
