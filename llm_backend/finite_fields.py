"""From finite torch policies and preference pairs to the numbers that an objective reads; gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_backend.errors import FiniteError
from llm_backend.finite import FinitePolicy, Responses
from objectives import PairLogProbs

KL = Callable[[Tensor, Tensor], Tensor]
"""(log_choices (R, M), log_reference (R, M)) -> KL(pi || ref) of whole responses, (R,)."""


class Pairs(Protocol):
    """Preference rows: responses by side, optional weights, and other arrays (R or 1, n) by field name."""

    @property
    def chosen(self) -> Any: ...
    @property
    def rejected(self) -> Any: ...
    @property
    def weights(self) -> np.ndarray | None: ...
    @property
    def n_rows(self) -> int: ...
    def rows(self, index: np.ndarray) -> Any: ...


def pair_log_probs(
    policy: FinitePolicy,
    pairs: Pairs,
    fields: Iterable[str],
    *,
    theta: Tensor | None = None,
    log_reference: Tensor | None = None,
    kl: KL | None = None,
    validate: bool = False,
) -> PairLogProbs:
    """The batch that an objective with these ``fields`` reads, each (R, n), differentiable in theta.

    ``log_reference`` (R or 1, M) are the reference's log-probabilities of the choices. WPO's weights and KTO's
    divergence are constants; TDPO's sequential KL is differentiated. Raises FiniteError for a field that the data lack.
    """
    wanted = tuple(dict.fromkeys(["policy_chosen", "policy_rejected", *fields]))
    log_pi = policy.log_choices(theta)
    makers: dict[str, Callable[[str], Tensor]] = {
        "policy": lambda side: policy.total(log_pi, _responses(pairs, side)),
        "reference": lambda side: policy.total(_need(log_reference, log_pi, "reference"), _responses(pairs, side)),
        "seqkl": lambda side: _sequential_kl(policy, log_pi, log_reference, _responses(pairs, side)),
        "weight": lambda side: _own_likelihood(policy, log_pi.detach(), _responses(pairs, side)),
    }
    values: dict[str, Tensor] = {}
    for name in wanted:
        kind, _, side = name.partition("_")
        if kind in makers:
            values[name] = makers[kind](side)
        elif name == "mismatched_log_ratio":
            reference = _need(log_reference, log_pi, "mismatched_log_ratio")
            divergence = (kl or _mean_block_kl(policy))(log_pi.detach(), reference)
            values[name] = divergence[:, None].expand(-1, pairs.n_rows)
        else:
            values[name] = _given(pairs, name, log_pi)
    return PairLogProbs(**values, validate=validate)


def row_weights(pairs: Pairs, like: Tensor) -> Tensor | None:
    """The weights of the rows as a tensor (R, n), or None where all are 1."""
    if pairs.weights is None:
        return None
    weights = torch.as_tensor(np.array(pairs.weights), device=like.device, dtype=like.dtype)
    return weights.expand(like.shape[0], -1)


def _responses(pairs: Pairs, side: str) -> Responses:
    found = getattr(pairs, side, None)
    if found is None:
        raise FiniteError(f"the objective needs policy_{side}, but these preference data have no {side} responses")
    return found


def _need(log_reference: Tensor | None, like: Tensor, what: str) -> Tensor:
    if log_reference is None:
        raise FiniteError(f"the objective needs {what} log-probabilities; give a reference policy")
    return log_reference.detach().expand(like.shape[0], -1)


def _given(pairs: Pairs, name: str, like: Tensor) -> Tensor:
    given = getattr(pairs, name, None)
    if given is None and name.endswith("_length"):
        responses = _responses(pairs, name.removesuffix("_length"))
        given = np.ones(responses.choices.shape) if responses.counts is None else responses.counts.sum(axis=-1)
    if given is None:
        raise FiniteError(f"the objective needs {name}, which these preference data do not have")
    return torch.as_tensor(np.array(given), device=like.device, dtype=like.dtype).expand(like.shape[0], -1)


def _sequential_kl(policy: FinitePolicy, log_pi: Tensor, log_reference: Tensor | None, responses: Responses) -> Tensor:
    """sum over the positions of y of KL(ref || pi). TDPO: Zeng et al. 2024, arXiv:2404.11999."""
    reference = _need(log_reference, log_pi, "seqkl")
    each = policy.block_sum(reference.exp() * (reference - log_pi))
    return policy.total(policy.block_spread(each), responses)


def _own_likelihood(policy: FinitePolicy, log_pi: Tensor, responses: Responses) -> Tensor:
    """exp(mean over choices of [log pi(choice) - log sum_v pi(v)^2]). WPO: Zhou et al. 2024, arXiv:2406.11827."""
    collision = policy.block_spread(policy.block_sum((2.0 * log_pi).exp()).log())
    steps = policy.total(torch.ones_like(log_pi), responses)
    return (policy.total(log_pi - collision, responses) / steps).exp()


def _mean_block_kl(policy: FinitePolicy) -> KL:
    def kl(log_pi: Tensor, log_reference: Tensor) -> Tensor:
        return policy.block_sum(log_pi.exp() * (log_pi - log_reference)).mean(dim=-1)

    return kl
