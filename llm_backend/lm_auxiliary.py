"""AuxDPO's delta for language models: what joins ``llm_backend.auxiliary`` to the preference trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llm_backend.auxiliary import (
    Auxiliary,
    AuxiliaryError,
    AuxiliaryOptions,
    AuxiliaryRows,
    DimensionReport,
    ReferenceScores,
    Slots,
    dimensions,
    plain_weights,
    reference_weights,
    sampled_dimensions,
)
from llm_backend.auxiliary.directions import Direction
from llm_backend.auxiliary.scores import Product
from llm_backend.auxiliary.slots import response_key
from llm_backend.lm_fields import step_weights
from llm_backend.processes import count_and_rank, from_first, summed
from llm_backend.slot_responses import PAIR, SlotResponses, slot_log_probs

Rows = Sequence[Mapping[str, Any]]
EXACT_SLOTS, EXACT_NUMBERS, SAMPLE = 2000, 2 * 10**7, 1000


def row_slots(rows: Rows, *, tied: bool = True) -> Slots:
    """One delta for each (prompt, response) by ``prompt_key`` and ``SIDE_key`` of the rows (or else by token ids), or,
    not ``tied``, two for each row. Column ``weight`` counts trials."""
    weights = torch.tensor([float(row.get("weight", 1.0)) for row in rows], dtype=torch.float64)
    if not tied:
        return Slots.untied(len(rows), weights=weights)
    prompts = [_key(row, "prompt") for row in rows]
    sides = [torch.tensor([[p, _key(row, side)] for p, row in zip(prompts, rows, strict=True)]) for side in PAIR]
    return Slots.tied(*sides, weights=weights)


class LMAuxiliary:
    """delta of every training row, for ``PreferenceTrainer(auxiliary=)``; constrained as ``options`` say.

    Make it before training: the model's present weights are theta0, where the scores are taken. With ``reference``
    (columns ``reference_SIDE`` of these rows, ``ReferenceLogProbs.columns``) W is D, the reference's probabilities over
    the responses that the rows have to a prompt, with rho uniform over prompts; the scores are then those of log-probs
    renormalised over the same sets, so that A W B = 0. Without it there are no weights (``plain_weights``).
    ``product`` says how the scores' products are taken (``ReferenceScores``; left out: differences where parameters are
    in float32, else forward mode). ``seed`` draws the second batches of cross_batch and official_compat's start.
    Raises: AuxiliaryError.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        options: AuxiliaryOptions,
        *,
        tied: bool = True,
        reference: Mapping[str, np.ndarray] | None = None,
        product: Product | None = None,
        pad_id: int = 0,
        seed: int = 0,
    ) -> None:
        if reference is not None and not tied:
            raise AuxiliaryError("weights D are of (prompt, response) slots; untied delta takes none, as in the paper")
        slots = row_slots(rows, tied=tied)
        self.responses = SlotResponses(model, rows, slots, centred=reference is not None, pad_id=pad_id)
        how = product or usual_product(model)
        self.scores, self._seed = ReferenceScores(model, slot_log_probs, product=how, reduce=summed), seed
        weights = plain_weights(slots) if reference is None else _weights(slots, reference)
        self._all = self._all_scores() if options.mode == "exact" else None
        generator = torch.Generator().manual_seed(seed)
        self.auxiliary = Auxiliary(slots, options, weights=weights, rows=self._all, generator=generator)
        if self.auxiliary.basis is not None:  # unique up to a rotation only, which all processes must share
            self.auxiliary.basis = from_first(self.auxiliary.basis)

    def to(self, device: torch.device) -> None:
        """Take the scores there, where the model has gone."""
        self.scores.parameters = {name: value.to(device) for name, value in self.scores.parameters.items()}
        self.responses.to(device)

    def fields(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``delta_chosen`` and ``delta_rejected`` (n,)."""
        index = inputs["index"]
        both = (("chosen", self.auxiliary.slots.chosen), ("rejected", self.auxiliary.slots.rejected))
        like = index.device
        return {f"delta_{side}": self.auxiliary.values(places[index.cpu()]).to(like) for side, places in both}

    def after_step(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the constraint's gradient to the loss's, and move delta. All processes of a step call it together."""
        raw = self.auxiliary.raw
        if raw.grad is not None:
            # the trainer multiplies its loss by it, as gradients of weights are averaged
            raw.grad /= count_and_rank()[0]
        weights = [step_weights(inputs).double().cpu() for inputs in batches]
        total = summed(torch.stack([weight.sum() for weight in weights]).sum())
        index, shares = torch.cat([inputs["index"].cpu() for inputs in batches]), torch.cat(weights) / total
        slots, sizes = self.auxiliary.slots, [weight.numel() for weight in weights]
        moving = self.auxiliary.moves(slots.chosen[index])  # both sides of a row are of one prompt
        parts = self._parts(index[moving], shares[moving], max(sizes))
        met = torch.cat([slots.chosen[index], slots.rejected[index]])
        second = None
        if self.auxiliary.options.mode == "cross_batch":
            second = self.second_batch(int(summed(torch.tensor(sum(sizes)))), max(sizes))
        self.auxiliary.step(self.scores, parts, second, met=met)

    def second_batch(self, n: int, size: int) -> list[AuxiliaryRows]:
        """This process's part of the second batch of the coming step, in micro-batches of ``size`` rows.

        ``n`` rows of the whole data, drawn with replacement in proportion to their weights, by seed and step alone: so
        it is independent of the step's own rows, and the mean of its c_B is c whatever the weights. (Two halves of one
        batch are not independent: no row is in both, and E <c_B1, c_B2> falls short of |c|^2 by (mean |x_i|^2 -
        |c|^2) / (N - 1), x_i the terms of the N rows.) A step of all rows or more meets all rows again.
        """
        slots = self.auxiliary.slots
        law = (slots.row_weights / slots.total).numpy()
        if n >= slots.n_rows:
            drawn, shares = np.arange(slots.n_rows), law
        else:
            drawn = np.random.default_rng([self._seed, self.auxiliary.n_steps]).choice(slots.n_rows, n, p=law)
            shares = np.full(n, 1.0 / n)
        count, rank = count_and_rank()
        return self._parts(torch.as_tensor(drawn[rank::count]), torch.as_tensor(shares[rank::count]), size)

    def report(self, how: Literal["auto", "exact", "estimate"] = "auto") -> DimensionReport:
        """Rank, nullity and reachable margins, before training: "exact" from all scores (m, d), or "estimate" from all
        responses of random prompts, ``SAMPLE`` at most.

        "auto" counts exactly in mode exact, which has the scores, and where m <= ``EXACT_SLOTS`` and m d <=
        ``EXACT_NUMBERS``: each of the m scores is a backward pass, their singular values cost O(m d min(m, d)).
        """
        slots, weights = self.auxiliary.slots, self.auxiliary.weights
        small = slots.size <= EXACT_SLOTS and slots.size * self.scores.n_parameters <= EXACT_NUMBERS
        if how == "exact" or (how == "auto" and (small or self._all is not None)):
            rows, self._all = self._all_scores() if self._all is None else self._all, None
            return dimensions(slots, rows, weights)
        return sampled_dimensions(
            slots, self.scores.parameters, self._scores_of, weights, most=SAMPLE, centred=self.responses.centred
        )

    def metrics(self) -> dict[str, float]:
        """Numbers to log: the root mean square of delta, and |A W delta| where it is followed."""
        found = {"delta_rms": float(self.auxiliary.delta.square().mean().sqrt())}
        residual = self.auxiliary.residual_norm
        return found if residual is None else found | {"delta_residual": residual}

    def state_dict(self) -> dict[str, Any]:
        """All of delta's state, and what differences remember."""
        slope = 0.0 if self.scores.difference is None else self.scores.difference.slope
        return self.auxiliary.state_dict() | {"slope": torch.tensor(slope, dtype=torch.float64)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; vectors over the model's parameters go to where these are."""
        there, vectors = self.responses.device, ("residual.", "dual.")
        placed = {name: value.to(there) if name.startswith(vectors) else value for name, value in saved.items()}
        self.auxiliary.load_state_dict(placed)
        if self.scores.difference is not None:
            self.scores.difference.slope = float(saved["slope"])

    def _parts(self, index: Tensor, shares: Tensor, size: int) -> list[AuxiliaryRows]:
        """Rows ``index`` in micro-batches of ``size``; none where there are none."""
        if not index.numel():
            return []
        return [self._part(*part) for part in zip(index.split(size), shares.split(size), strict=True)]

    def _part(self, index: Tensor, shares: Tensor) -> AuxiliaryRows:
        slots = self.auxiliary.slots
        places = torch.cat([slots.chosen[index], slots.rejected[index]])
        reads = self.auxiliary.due and self.auxiliary.basis is None  # exact never reads the scores again
        return AuxiliaryRows(places, shares.repeat(2), self.responses.of(places) if reads else None)

    def _scores_of(self, wanted: Tensor) -> Iterator[Direction]:
        """g of slots that are sorted by slot, a prompt at a time: prompts are sorted, too."""
        for members in wanted.split(torch.unique(self.responses.slots.prompt[wanted], return_counts=True)[1].tolist()):
            yield from self.scores.each(self.responses.of(members))

    def _all_scores(self) -> Tensor:
        """The scores of all slots (m, d), a prompt at a time: for small d."""
        found: Tensor | None = None
        for members in self.responses.prompts():
            own = self.scores.rows(self.responses.of(members)).cpu()
            if found is None:
                found = torch.zeros(self.responses.slots.size, self.scores.n_parameters, dtype=own.dtype)
            found[members] = own
        assert found is not None
        return found


def usual_product(model: nn.Module) -> Product:
    """Differences where they are exact enough, which cost less than forward mode; they are lost in half precision."""
    wide = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters() if p.requires_grad)
    return "difference" if wide else "forward"


def _weights(slots: Slots, reference: Mapping[str, np.ndarray]) -> Tensor:
    """D from log ref of the rows: (m,)."""
    log_pi = torch.zeros(slots.size, dtype=torch.float64)
    for side, places in zip(PAIR, (slots.chosen, slots.rejected), strict=True):
        log_pi[places] = torch.as_tensor(reference[f"reference_{side}"], dtype=torch.float64)
    return reference_weights(slots, log_pi)


def _key(row: Mapping[str, Any], part: str) -> int:
    given = row.get(f"{part}_key")
    return response_key(given if given is not None else row[f"{part}_ids"])
