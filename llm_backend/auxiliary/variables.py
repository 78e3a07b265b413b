"""The auxiliary variables themselves: what the loss reads, how a step moves them, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_backend.auxiliary import checkpoints, constraints
from llm_backend.auxiliary.batch import AuxiliaryRows, Parts, pull_parts
from llm_backend.auxiliary.directions import Direction, add_, norm, zeros_like
from llm_backend.auxiliary.errors import AuxiliaryError
from llm_backend.auxiliary.null_basis import null_basis
from llm_backend.auxiliary.options import AuxiliaryOptions
from llm_backend.auxiliary.scores import ReferenceScores
from llm_backend.auxiliary.slot_optimiser import SlotOptimiser
from llm_backend.auxiliary.slots import Slots
from llm_backend.auxiliary.turns import Turns
from llm_backend.auxiliary.weighting import plain_weights


class Auxiliary:
    """delta (m,) of AuxDPO for any torch policy, constrained as ``options`` say.

    In every optimiser step: put ``values(slots)`` into the batch's ``delta_chosen`` and ``delta_rejected``, run the
    loss backward, then call ``step``. Delta is in units of reward, outside beta, in all modes (``official_compat``
    converts).

    Args: ``slots``; ``weights`` (m,), the diagonal of W (``reference_weights``; default ``plain_weights``); ``rows``
    (m, d), the scores of all slots, for mode "exact" only; ``generator`` draws official_compat's start.
    Raises AuxiliaryError for weights or rows that do not fit.
    """

    def __init__(
        self,
        slots: Slots,
        options: AuxiliaryOptions,
        *,
        weights: Tensor | None = None,
        rows: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        generator: torch.Generator | None = None,
    ) -> None:
        diagonal = plain_weights(slots) if weights is None else weights.detach().double()
        if diagonal.shape != (slots.size,) or not bool((torch.isfinite(diagonal) & (diagonal >= 0)).all()):
            raise AuxiliaryError(f"weights must be {slots.size} finite numbers >= 0, got shape {tuple(diagonal.shape)}")
        if (rows is not None) != (options.mode == "exact"):
            raise AuxiliaryError("mode 'exact' needs the score rows of all slots, and no other mode does")
        self.slots, self.options = slots, options
        often = slots.total / slots.count.clamp(min=torch.finfo(torch.float64).tiny)
        often[slots.count == 0] = 0.0
        self.weights, self.often = diagonal.to(dtype), often.to(dtype)
        self.rates = self.weights * self.often
        self.basis = None if rows is None else null_basis(slots, rows, diagonal, gauge=options.gauge).to(dtype)
        start = torch.zeros(slots.size if self.basis is None else self.basis.shape[1], dtype=dtype)
        if options.mode == "official_compat":
            start = 1e-3 * torch.randn(slots.size, dtype=dtype, generator=generator)
        self.raw = nn.Parameter(start)
        self.optimiser = SlotOptimiser(self.raw.data, options)
        self.residual: Direction | None = None
        self.dual: Direction | None = None
        self.n_steps = 0
        self.turns = Turns(slots, options.period if options.mode == "dual" else 1)

    # -- what the loss reads ----------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the coming step moves anything (in dual all may, by turns; else every k-th, the first included)."""
        return self.options.mode == "dual" or self.n_steps % self.options.period == 0

    def moves(self, slots: Tensor) -> Tensor:
        """Which of the slots (k,) move in the coming step, if it meets them: (k,) bool."""
        return self.turns.of(slots) & self.due

    def values(self, slots: Tensor) -> Tensor:
        """delta of the slots (k,), outside beta; differentiable in ``raw`` where they move in the coming step."""
        raw = self.raw if self.due else self.raw.detach()
        if self.basis is not None:
            return self.basis[slots] @ raw
        if self.options.mode == "official_compat":
            return (self.options.beta or 1.0) * self._capped(raw[slots])
        return raw[slots] if self.turns.period == 1 else torch.where(self.moves(slots), raw[slots], raw.detach()[slots])

    @property
    def delta(self) -> Tensor:
        """All of delta, (m,), outside beta."""
        with torch.no_grad():
            return self.values(torch.arange(self.slots.size))

    def _capped(self, raw: Tensor) -> Tensor:
        return (self.options.cap or 1.0) * torch.tanh(raw)

    # -- one step ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        scores: ReferenceScores | None,
        parts: AuxiliaryRows | Parts,
        second: Parts | None = None,
        *,
        met: Tensor | None = None,
    ) -> None:
        """Add the constraint's gradient to that of the loss (in ``raw.grad``), move delta, follow the residual.

        ``parts`` are the rows of this optimiser step, whole or in micro-batches; ``second`` an independent batch, for
        cross_batch only. dual needs the rows whose slots move (``moves``) and no others: who leaves the others out
        saves their passes, and gives the slots of all rows as ``met``. dual and batch_penalty cost one ``pull`` and one
        ``push`` of the parts, cross_batch two of each. With several processes (``ReferenceScores(reduce=...)``) each
        gives its own rows and its own part of the loss's gradient, and all make the same step.
        Raises AuxiliaryError for a missing or superfluous second batch, for missing scores, and when delta's gradient
        is absent (the loss did not read ``values``) or not finite.
        """
        due, self.n_steps = self.due, self.n_steps + 1
        if not due:
            return
        if self.raw.grad is None:
            raise AuxiliaryError("delta has no gradient: the loss must read Auxiliary.values and run backward first")
        gradient, self.raw.grad = self.raw.grad, None
        reduce = (lambda value: value) if scores is None else scores.reduce
        if self.basis is not None:
            # N is orthonormal, so |delta|^2 = |z|^2; no slot's own rate fits z: it gets their mean
            ridge = self.options.ridge / (1 if self.slots.is_tied else self.slots.n_rows)
            gradient = (reduce(gradient) + 2.0 * ridge * self.raw) * float(self.often[self.often > 0].mean())
            self.optimiser.step(torch.arange(self.raw.numel()), self._finite(gradient))
            return
        listed = [parts] if isinstance(parts, AuxiliaryRows) else list(parts)
        other = None if second is None else ([second] if isinstance(second, AuxiliaryRows) else list(second))
        if (other is not None) != (self.options.mode == "cross_batch"):
            raise AuxiliaryError("mode 'cross_batch' needs a second, independent batch, and no other mode takes one")
        if scores is None:
            raise AuxiliaryError(f"mode {self.options.mode!r} needs the reference's scores at every step")
        own = [part.slots for part in listed] if met is None else [met]
        both = torch.cat(own + [part.slots for part in other or []])
        times = reduce(torch.bincount(both, minlength=self.slots.size).to(self.raw.dtype))
        present = torch.nonzero(times).flatten()
        touched = present[self.turns.of(present)]
        if touched.numel():
            self._move(scores, listed, other, reduce, gradient, touched, times[touched])
        self.turns.count(present)
        every = self.options.dual_every
        if self.residual is not None and self.dual is not None and every and self.n_steps % every == 0:
            add_(self.dual, self.residual, self.options.penalty)

    def _move(
        self, scores: ReferenceScores, parts: Parts, second: Parts | None, reduce: Callable[[Tensor], Tensor],
        gradient: Tensor, touched: Tensor, times: Tensor,
    ) -> None:  # fmt: skip
        """Move the slots ``touched``, each of which the step has met ``times``; follow the residual."""
        if self.options.mode == "official_compat":
            delta = self._capped(self.raw)
            slope = (self.options.cap or 1.0) - delta**2 / (self.options.cap or 1.0)  # d delta' / d raw
            gradient = reduce(gradient + slope * constraints.official_gradient(scores, parts, delta, self.options))
        else:
            gradient = self.often * reduce(gradient + self._constraint_gradient(scores, parts, second))
        change = self.optimiser.step(touched, self._finite(gradient[touched]))
        if self.options.mode == "dual":
            # c += A W (change of delta), to which only touched slots contribute: c stays exact, without sampling error
            moved = torch.zeros_like(self.raw).index_copy_(0, touched, self.weights[touched] * change / times)
            found = pull_parts(scores, parts, [moved[part.slots] for part in parts])
            if self.residual is None or self.dual is None:
                self.residual, self.dual = zeros_like(scores.parameters), zeros_like(scores.parameters)
            add_(self.residual, found)

    def _constraint_gradient(self, scores: ReferenceScores, parts: Parts, second: Parts | None) -> Tensor:
        options, delta, rates = self.options, self.raw.data, self.rates
        if options.mode == "dual" and (self.residual is None or self.dual is None):
            found = torch.zeros_like(delta)  # before the first move c = y = 0
        elif self.residual is not None and self.dual is not None:
            found = constraints.dual_gradient(scores, parts, rates, self.residual, self.dual, options.penalty)
        elif second is not None:
            found = constraints.cross_gradient(scores, parts, second, rates, delta, options.penalty)
        else:
            found = constraints.batch_gradient(scores, parts, rates, delta, options.penalty)
        if options.ridge:
            found += constraints.ridge_gradient(parts, self.often, delta, options.ridge, is_tied=self.slots.is_tied)
        return found

    def _finite(self, gradient: Tensor) -> Tensor:
        if not bool(torch.isfinite(gradient).all()):
            raise AuxiliaryError(f"the gradient of delta is not finite at step {self.n_steps}; delta was not moved")
        return gradient

    @property
    def residual_norm(self) -> float | None:
        """|A W delta| as followed (mode dual), 0 for exact, None where no step has computed it."""
        if self.basis is not None:
            return 0.0
        return None if self.residual is None else norm(self.residual)

    # -- checkpoints ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as plain tensors: keys, delta, moments, residual, dual vector, steps."""
        return checkpoints.save(self)

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``.  Raises AuxiliaryError for another mode, other data or missing tensors."""
        checkpoints.load(self, saved)
