"""What a merged language model says of preferences, and how that changes with the weights of the merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from llm_backend.auxiliary.directions import Direction
from llm_backend.auxiliary.scores import ReferenceScores
from llm_backend.batching import Collator, line_length
from llm_backend.log_probs import response_log_probs, shares_prompts
from llm_backend.merging.errors import MergeError
from llm_backend.models import DTYPES, load_model
from llm_backend.reference import TOKENS_PER_BATCH, batches_by_length

FloatArray = NDArray[np.float64]
Model = str | Path | nn.Module
Rows = Sequence[Mapping[str, Any]]
PAIR = ("chosen", "rejected")


class MergedMargins:
    """Margins log pi_a(y_w|x) - log pi_a(y_l|x) of the model with parameters theta* = sum_t a_t theta_t, without a
    reference, and their slopes d margin / d a_t = <grad margin(theta*), theta_t>.

    A slope is one forward-mode product. It is taken along theta_t - theta_1 and along theta_1, since models of one
    trajectory are near each other and rounding errors go with the length of the direction. Models given as folders are
    loaded one at a time: theta_1, theta* and one direction are in memory, never all. ``rows`` have ``prompt_ids``,
    ``chosen_ids`` and ``rejected_ids``. Weights need not be in the simplex.
    Source: TPMM-DPO, Eqs. 7 and 10.

    Raises: MergeError for no models, no rows, models of different parameters, and margins that are not finite.
    """

    def __init__(
        self,
        models: Sequence[Model],
        rows: Rows,
        *,
        dtype: str = "float32",
        tokens_per_batch: int = TOKENS_PER_BATCH,
        pad_id: int = 0,
        device: str = "cpu",
    ) -> None:
        if not models:
            raise MergeError("merged margins need at least one model, got none")
        if len(rows) == 0:
            raise MergeError("there are no pairs to learn the weights of a merge from")
        if dtype not in ("float32", "float64"):
            raise MergeError(f"margins are computed in float32 or float64, not in {dtype}: iterates differ too little")
        self.models, self.rows, self.dtype, self.device = tuple(models), rows, dtype, device
        self._skeleton = self._load(0).requires_grad_(True).eval()
        self._first: Direction = {name: value.detach() for name, value in self._skeleton.named_parameters()}
        self._collate = Collator(PAIR, pad_id, shared=shares_prompts(self._skeleton))
        self._tokens = tokens_per_batch

    def __call__(
        self, weights: Any, *, progress: Callable[[int], object] | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Weights (k,) -> margins (n,), slopes (n, k). ``progress`` is called after each of the k + 1 passes."""
        shares = self._checked(weights)
        scores = ReferenceScores(self._skeleton, _margins, parameters=self._merged(shares))
        tell = progress or (lambda _: None)
        margins = self._each(scores.log_probs)
        tell(1)
        slopes = np.zeros((len(self.rows), len(self.models)))
        slopes += self._along(scores, self._first)[:, None]
        tell(1)
        for t, change in self._changes():
            slopes[:, t] += self._along(scores, change)
            tell(1)
        return margins, slopes

    @property
    def n_embeddings(self) -> int:
        """Tokens that the models embed."""
        return int(self._skeleton.get_input_embeddings().weight.shape[0])

    def values(self, weights: Any) -> FloatArray:
        """The margins alone, (n,)."""
        scores = ReferenceScores(self._skeleton, _margins, parameters=self._merged(self._checked(weights)))
        return self._each(scores.log_probs)

    def _checked(self, weights: Any) -> FloatArray:
        shares = np.asarray(weights, dtype=np.float64)
        if shares.shape != (len(self.models),) or not np.isfinite(shares).all():
            raise MergeError(f"{len(self.models)} models need as many finite weights, got {shares.tolist()}")
        return shares

    def _merged(self, shares: FloatArray) -> Direction:
        """theta_1 sum_t a_t + sum_t a_t (theta_t - theta_1)."""
        total = float(shares.sum())
        scale = 1.0 if abs(total - 1.0) < 1e-9 else total
        merged = {name: value * scale for name, value in self._first.items()}
        for t, change in self._changes():
            for name, value in merged.items():
                value.add_(change[name], alpha=float(shares[t]))
        return merged

    def _changes(self) -> Iterator[tuple[int, Direction]]:
        """(t, theta_t - theta_1) for every model but the first, one at a time."""
        for t in range(1, len(self.models)):
            found = {name: value.detach() for name, value in self._load(t).named_parameters()}
            for name in sorted(set(found) ^ set(self._first)):
                raise MergeError(f"{name} is a parameter of only one of models 1 and {t + 1} of the merge")
            for name, value in found.items():
                if value.shape != self._first[name].shape:
                    raise MergeError(
                        f"{name} is {tuple(value.shape)} in model {t + 1} but {tuple(self._first[name].shape)} in "
                        "model 1; only models of one shape can be merged"
                    )
                value.sub_(self._first[name])
            yield t, found

    def _load(self, t: int) -> Any:
        """A copy of model t that may be changed."""
        model = self.models[t]
        if isinstance(model, nn.Module):
            return copy.deepcopy(model).to(device=self.device, dtype=DTYPES[self.dtype])
        loaded: Any = load_model(model, dtype=self.dtype)
        try:
            return loaded.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            reason = " ".join(str(error).split())[:120]
            raise MergeError(f"the device {self.device!r} cannot be used ({reason}); try cpu") from None

    def _along(self, scores: ReferenceScores, direction: Direction) -> FloatArray:
        return self._each(lambda batch: scores.push(batch, direction))

    def _each(self, compute: Callable[[Any], Tensor]) -> FloatArray:
        """A number for each row, batch by batch."""
        lengths = np.array([line_length(row, PAIR, self._collate.shared) for row in self.rows])
        found = np.zeros(len(self.rows))
        for chosen in batches_by_length(lengths, self._tokens):
            batch = {
                name: value.to(self.device) for name, value in self._collate([self.rows[i] for i in chosen]).items()
            }
            found[chosen] = compute(batch).double().cpu().numpy()
        if not np.isfinite(found).all():
            bad = np.flatnonzero(~np.isfinite(found))[:5].tolist()
            raise MergeError(f"the merged model's margins are not finite in rows {bad}; a model is broken")
        return found


def merged_margins(models: Sequence[Model], rows: Rows, weights: Any, **options: Any) -> tuple[FloatArray, FloatArray]:
    """Margins (n,) of the model with parameters sum_t a_t theta_t, and their slopes (n, k): ``MergedMargins`` once."""
    return MergedMargins(models, rows, **options)(weights)


def _margins(module: nn.Module, batch: Any) -> Tensor:
    log_probs = response_log_probs(module, batch, PAIR).log_probs
    return log_probs["chosen"] - log_probs["rejected"]
