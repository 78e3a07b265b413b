"""From policies and preference pairs to the numbers that an objective reads, and from its gradient back to theta."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from bandits.blocks import block_spread, block_sum, multiply_by_block
from bandits.errors import SimulationError
from bandits.finite_policies import FinitePolicy
from bandits.preference_pairs import PreferencePairs
from bandits.responses import BoundResponses, Responses, concatenate
from geometry.pairs import FloatArray
from objectives import PairLogProbs
from objectives.batch import SIDES

KL = Callable[[FloatArray, FloatArray], FloatArray]
"""(log_choices (R, M), log_reference (R, M)) -> KL(pi || ref) of whole responses, (R,)."""


@dataclass(frozen=True, eq=False)
class PairFields:
    """The fields of a batch as functions of log pi, with everything that does not depend on it computed once.

    Made by ``PairFields.of``. ``batch(log_choices)`` gives the PairLogProbs of the rows, each field (R, n);
    ``cotangent(log_choices, gradient)`` turns the objective's {field: (R, n)} into d loss / d logits, (R, M).
    """

    policy: FinitePolicy
    fields: tuple[str, ...]
    sides: tuple[str, ...]
    bound: BoundResponses
    n_rows: int
    constants: dict[str, FloatArray]
    log_reference: FloatArray | None
    steps: FloatArray | None  # choices made by each response, (R or 1, sides * n), where they are needed
    kl: KL | None

    @classmethod
    def of(
        cls,
        policy: FinitePolicy,
        pairs: PreferencePairs,
        fields: Iterable[str],
        *,
        n_runs: int,
        log_reference: FloatArray | None = None,
        kl: KL | None = None,
    ) -> PairFields:
        """Prepare the given fields. Raises SimulationError for a field that these data cannot supply."""
        wanted = tuple(dict.fromkeys(["policy_chosen", "policy_rejected", *fields]))
        sides = tuple(side for side in SIDES if f"policy_{side}" in wanted)
        responses = [_on_side(pairs, side) for side in sides]
        widest = max(part.shape[0] for part in responses)
        joint = concatenate([_widen(part, widest) for part in responses])
        bound = BoundResponses.of(joint, n_runs, policy.n_choices)
        steps = joint.length if "weight_chosen" in wanted else None
        constants = _constants(pairs, wanted, n_runs)
        for side in (side for side in SIDES if f"reference_{side}" in wanted):
            if log_reference is None:
                raise SimulationError(f"the objective needs reference_{side}; give a reference policy")
            values = _on_side(pairs, side).total(log_reference)
            constants[f"reference_{side}"] = np.broadcast_to(values, (n_runs, pairs.n_rows))
        return cls(policy, wanted, sides, bound, pairs.n_rows, constants, log_reference, steps, kl)

    def batch(self, log_choices: FloatArray, *, validate: bool = False) -> PairLogProbs:
        """The fields at these log-probabilities of choices, (R, M)."""
        values = dict(self.constants)
        values |= self._by_side("policy_", self.bound.total(log_choices))
        if "weight_chosen" in self.fields:
            values |= self._by_side("weight_", self._own_likelihood(log_choices))
        if "seqkl_chosen" in self.fields:
            values |= self._by_side("seqkl_", self.bound.total(self._block_kl(log_choices)))
        if "mismatched_log_ratio" in self.fields:
            values["mismatched_log_ratio"] = self._exact_kl(log_choices)
        return PairLogProbs(**values, validate=validate)

    def cotangent(self, log_choices: FloatArray, gradient: dict[str, FloatArray]) -> FloatArray:
        """d loss / d logits, (R, M), from d loss / d field, (R, n)."""
        layout = self.policy.layout
        logits = self.bound.scatter(self._joined("policy_", gradient))
        if self.policy.is_normalised:
            logits -= multiply_by_block(layout, np.exp(log_choices), block_sum(layout, logits))
        if "seqkl_chosen" in gradient or "seqkl_rejected" in gradient:
            assert self.log_reference is not None  # the field could not have been computed without it
            probability = np.exp(log_choices)
            visits = block_sum(layout, self.bound.scatter(self._joined("seqkl_", gradient)))
            # d KL(ref || pi) / d logits = pi - ref within a block
            logits += block_spread(layout, visits) * (probability - np.exp(self.log_reference))
        return logits

    def _by_side(self, prefix: str, values: FloatArray) -> dict[str, FloatArray]:
        n = self.n_rows
        named = {f"{prefix}{side}": values[:, i * n : (i + 1) * n] for i, side in enumerate(self.sides)}
        return {name: value for name, value in named.items() if name in self.fields}

    def _joined(self, prefix: str, gradient: dict[str, FloatArray]) -> FloatArray:
        shape = (len(self.bound.index), self.n_rows)
        parts = [gradient.get(f"{prefix}{side}") for side in self.sides]
        return np.concatenate([np.zeros(shape) if part is None else part for part in parts], axis=-1)

    def _own_likelihood(self, log_choices: FloatArray) -> FloatArray:
        """exp(mean over the choices of y of [log pi(choice) - log sum_v pi(v)^2]). WPO: Zhou et al. 2024."""
        layout = self.policy.layout
        collision = np.log(block_sum(layout, np.exp(2.0 * log_choices)))
        return np.exp(self.bound.total(log_choices - block_spread(layout, collision)) / np.asarray(self.steps))

    def _block_kl(self, log_choices: FloatArray) -> FloatArray:
        """KL(ref || pi) of each block, at each of its choices, (R, M). TDPO's sequential KL sums it over positions."""
        if self.log_reference is None:
            raise SimulationError("the objective needs seqkl_chosen; give a reference policy")
        layout, log_ref = self.policy.layout, self.log_reference
        each = block_sum(layout, np.exp(log_ref) * (log_ref - log_choices))
        return block_spread(layout, each)

    def _exact_kl(self, log_choices: FloatArray) -> FloatArray:
        if self.log_reference is None:
            raise SimulationError("the objective needs mismatched_log_ratio; give a reference policy")
        kl = (self.kl or mean_block_kl(self.policy))(log_choices, self.log_reference)
        return np.broadcast_to(kl[:, None], (len(self.bound.index), self.n_rows))


def mean_block_kl(policy: FinitePolicy, block_weights: FloatArray | None = None) -> KL:
    """KL(pi || ref) averaged over the blocks: exact where each block is a prompt. Default: equal weights."""
    layout = policy.layout
    weights = np.full(layout.n_prompts, 1.0 / layout.n_prompts) if block_weights is None else block_weights

    def kl(log_choices: FloatArray, log_reference: FloatArray) -> FloatArray:
        each = block_sum(layout, np.exp(log_choices) * (log_choices - log_reference))
        return each @ weights

    return kl


def _on_side(pairs: PreferencePairs, side: str) -> Responses:
    responses: Responses | None = getattr(pairs, side)
    if responses is None:
        raise SimulationError(f"the objective needs policy_{side}, but these preference data have no {side} responses")
    return responses


def _widen(responses: Responses, n_runs: int) -> Responses:
    if responses.shape[0] == n_runs:
        return responses
    counts = responses.counts
    choices = np.broadcast_to(responses.choices, (n_runs, *responses.choices.shape[1:]))
    return Responses(choices, None if counts is None else np.broadcast_to(counts, choices.shape))


def _constants(pairs: PreferencePairs, wanted: tuple[str, ...], n_runs: int) -> dict[str, FloatArray]:
    values: dict[str, FloatArray] = {}
    for name in wanted:
        if name.endswith("_length"):
            given = getattr(pairs, name)
            array = _on_side(pairs, name.removesuffix("_length")).length if given is None else given
        elif name.startswith(("win_", "delta_")):
            array = getattr(pairs, name, None)
            if array is None:
                raise SimulationError(f"the objective needs {name}, which these preference data do not have")
        else:
            continue
        values[name] = np.broadcast_to(np.asarray(array, dtype=np.float64), (n_runs, pairs.n_rows))
    return values
