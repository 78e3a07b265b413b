"""The reference by name, and its log-probabilities: computed once, kept in a cache, tried before they are trusted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from llm_backend.batching import line_length
from llm_backend.errors import ReferenceLogProbsError
from llm_backend.log_probs import at_places, best_collator, response_log_probs, unwrap
from llm_backend.models import load_model
from llm_backend.progress import Advance, long_work
from llm_backend.sequential_kl import HeadInput

Rows = Sequence[Mapping[str, Any]]
TOKENS_PER_BATCH = 8192
PROBED = 4
PROBE_TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Relative: other batches round otherwise; a wrong model or wrong rows are off by far more."""


@dataclass(frozen=True)
class ReferenceLogProbs:
    """log ref of every row: ``columns`` maps ``reference_SIDE`` to (n_rows,); ``key`` says what they were made from."""

    name: str
    key: str
    columns: dict[str, np.ndarray]
    is_start: bool  # the policy equals this reference before its first step


@dataclass(frozen=True)
class Reference:
    """A frozen model to compare the policy with, under a name that a run's manifest can state."""

    name: str
    model: Any
    is_start: bool = False
    without_adapter: bool = False

    @staticmethod
    def initial(model: nn.Module) -> Reference:
        """The policy itself as it is now, before its first step: take its log-probabilities before training."""
        return Reference("initial", model, is_start=True)

    @staticmethod
    def adapter_off(model: Any) -> Reference:
        """The model under a PEFT adapter; the start of the policy where the adapter is still no change."""
        if not hasattr(model, "disable_adapter"):
            raise ReferenceLogProbsError(f"adapter_off needs a PEFT model, got {type(model).__name__}")
        touched = any(bool(value.any()) for name, value in model.named_parameters() if "lora_B" in name)
        return Reference("adapter_off", model, is_start=not touched, without_adapter=True)

    @staticmethod
    def path(folder: str | Path, *, dtype: str = "float32", attention: str = "sdpa") -> Reference:
        """The model in a folder, or of that name on the hub."""
        return Reference(f"path:{folder}", load_model(folder, dtype=dtype, attention=attention))

    @staticmethod
    def named(name: str, model: nn.Module) -> Reference:
        """A model in memory: the previous round's, a merged one."""
        return Reference(name, model)

    def log_probs(
        self,
        rows: Rows,
        sides: Sequence[str] = ("chosen", "rejected"),
        *,
        cache: str | Path | None = None,
        identity: Mapping[str, str] | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        pad_id: int = 0,
    ) -> ReferenceLogProbs:
        """log ref of every response of ``rows``, from the cache where its key is there and a few rows agree.

        The key is a hash of the weights and their dtype, the token ids of the rows, the sides, and ``identity``: what
        else made the ids (tokenizer, template, truncation), so that a cache can say what has changed.
        Raises: ReferenceLogProbsError for an empty data set, a damaged file, or cached numbers that the model denies.
        """
        if len(rows) == 0:
            raise ReferenceLogProbsError("there are no rows to compute a reference for")
        parts = {
            "weights": weights_hash(self.model, skip_adapters=self.without_adapter),
            "dtype": str(unwrap(self.model).dtype).removeprefix("torch."),
            "rows": rows_hash(rows, sides),
            "sides": ",".join(sides),
            **dict(identity or {}),
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        file = None if cache is None else Path(cache) / f"reference-{key[:32]}.safetensors"
        with self._scoring() as model:
            if file is not None and file.is_file():
                columns = _load(file, len(rows), sides)
                _probe(model, rows, sides, columns, parts["dtype"], pad_id, file)
            else:
                with long_work(f"scoring rows ({self.name})", len(rows)) as advance:
                    columns = _compute(model, rows, sides, range(len(rows)), tokens_per_batch, pad_id, advance)
                if file is not None:
                    _store(file, columns, parts)
        return ReferenceLogProbs(self.name, key, columns, self.is_start)

    def head_input(self, batch: Mapping[str, Tensor]) -> HeadInput:
        """What the reference's head gets at the response tokens of a batch, for ``response_log_probs(reference=)``."""
        found: list[HeadInput] = []

        def keep(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            found.append(HeadInput(hidden, weight, bias))
            return hidden

        with self._scoring() as model:
            at_places(model, batch, keep)
        return found[0]

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[Any]:
        training = self.model.training
        off = self.model.disable_adapter() if self.without_adapter else contextlib.nullcontext()
        self.model.eval()
        try:
            with off, torch.no_grad():
                yield self.model
        finally:
            self.model.train(training)


def weights_hash(model: Any, *, skip_adapters: bool = False) -> str:
    """SHA-256 of all parameters and buffers by name, the same on any device; adapters aside if asked."""
    digest = hashlib.sha256()
    for name, value in sorted(unwrap(model).state_dict().items()):
        plain = name.replace(".base_layer.", ".")
        if skip_adapters and "lora_" in plain:
            continue
        digest.update(f"{plain}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_hash(rows: Rows, sides: Sequence[str]) -> str:
    """SHA-256 of the token ids of the rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        for column in ("prompt_ids", *(f"{side}_ids" for side in sides)):
            ids = np.asarray(row[column], dtype=np.int64)
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()


def _compute(
    model: Any, rows: Rows, sides: Sequence[str], chosen: Sequence[int], tokens_per_batch: int, pad_id: int,
    advance: Advance | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    collate, device = best_collator(model, sides, pad_id), unwrap(model).device
    places = list(chosen)
    lengths = np.array([line_length(rows[i], sides, collate.shared) for i in places])
    columns = {f"reference_{side}": np.zeros(len(places)) for side in sides}
    for batch in batches_by_length(lengths, tokens_per_batch):
        inputs = {name: value.to(device) for name, value in collate([rows[places[i]] for i in batch]).items()}
        for side, value in response_log_probs(model, inputs, sides).log_probs.items():
            columns[f"reference_{side}"][batch] = value.double().cpu().numpy()
        if advance is not None:
            advance(len(batch))
    for name, values in columns.items():
        if not np.isfinite(values).all():
            bad = [places[i] for i in np.flatnonzero(~np.isfinite(values))[:5]]
            raise ReferenceLogProbsError(f"{name} is not finite in rows {bad}; the reference or these rows are broken")
    return columns


def batches_by_length(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Longest first, so that a batch that does not fit into memory shows at once."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens_per_batch // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _load(file: Path, n_rows: int, sides: Sequence[str]) -> dict[str, np.ndarray]:
    names = [f"reference_{side}" for side in sides]
    try:
        columns = load_file(file)
        if sorted(columns) == sorted(names) and all(columns[name].shape == (n_rows,) for name in names):
            return {name: columns[name] for name in names}
    except (SafetensorError, OSError, ValueError):
        pass
    raise ReferenceLogProbsError(f"the reference cache {file} is damaged; delete it, and it is computed again")


def _probe(
    model: Any, rows: Rows, sides: Sequence[str], columns: dict[str, np.ndarray], dtype: str, pad_id: int, file: Path
) -> None:
    """Score a few rows again: the shortest, the longest, the first, the last."""
    lengths = [line_length(row, sides) for row in rows]
    chosen = sorted({int(np.argmin(lengths)), int(np.argmax(lengths)), 0, len(rows) - 1})[:PROBED]
    tolerance = PROBE_TOLERANCE.get(dtype, 1e-2)
    for name, values in _compute(model, rows, sides, chosen, TOKENS_PER_BATCH, pad_id).items():
        off = np.abs(values - columns[name][chosen])
        if np.any(off > tolerance * np.maximum(1.0, np.abs(values))):
            raise ReferenceLogProbsError(
                f"the reference cache {file} is off by {off.max():.3g} nats in {name} (rows {chosen} were tried); "
                "delete it, and it is computed again"
            )


def _store(file: Path, columns: dict[str, np.ndarray], parts: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    save_file(columns, temporary)
    temporary.replace(file)
    file.with_suffix(".json").write_text(json.dumps(dict(parts), indent=1, sort_keys=True))
