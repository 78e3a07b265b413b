"""Products with the reference's scores g(s, a) = grad log pi_theta0(a|s), never one gradient for each example."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_backend.auxiliary.differences import CentralDifference, coarsest
from llm_backend.auxiliary.directions import Direction, norm, wide
from llm_backend.auxiliary.errors import AuxiliaryError

Product: TypeAlias = Literal["forward", "double_backward", "difference"]
LogProbs = Callable[[nn.Module, Any], Tensor]
"""(module, responses) -> log-probs of the k responses, (k,)."""


class ReferenceScores:
    """A (d, k) for the k responses of a batch, as a linear map, at the parameters that ``module`` has now (theta0).

    ``log_probs(module, responses)`` must be differentiable; over finite response sets with weights D it must be
    normalised over the sets (``set_log_probs``). Only trainable parameters count; they are copied, so that training may
    go on (``parameters`` gives theta0 instead, by name). ``product`` says how ``push`` is computed: "forward" mode
    (attention then runs on torch's plain kernel, the only one that has it), "double_backward" (two backward passes), or
    the central "difference" of two forward passes, which any module allows and which is good to about 1e-3 of the
    largest value in float32 (in which it is taken, autocast or not). ``n_pull`` and ``n_push`` count the passes.
    ``reduce`` sums a tensor over the processes that share a step (default: there is one); an ``Auxiliary`` uses it, so
    that all processes move delta alike.
    Raises AuxiliaryError for a module without trainable parameters, for theta0 that does not fit, and for differences
    in half precision.
    """

    def __init__(
        self,
        module: nn.Module,
        log_probs: LogProbs,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        product: Product = "forward",
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not trainable:
            raise AuxiliaryError("the module has no trainable parameter: the scores, and so the constraint, are empty")
        given = trainable if parameters is None else parameters
        for name, value in trainable.items():
            if name not in given or given[name].shape != value.shape:
                found = tuple(given[name].shape) if name in given else "absent"
                raise AuxiliaryError(f"the reference's parameter {name} should be {tuple(value.shape)}, but is {found}")
        if product not in get_args(Product):
            raise AuxiliaryError(f"product must be one of {', '.join(get_args(Product))}, got {product!r}")
        self.parameters: Direction = {name: given[name].detach().clone() for name in trainable}
        half = [name for name, value in self.parameters.items() if wide(value.dtype) != value.dtype]
        if product == "difference" and half:
            raise AuxiliaryError(
                f"a difference needs reference parameters in float32, but {half[0]} is in half precision"
            )
        _warm_up()
        self.n_pull = self.n_push = 0
        self.reduce: Callable[[Tensor], Tensor] = reduce or (lambda value: value)
        self._bound, self._product = _Bound(module, log_probs), product
        self.difference = CentralDifference(coarsest(self.parameters)) if product == "difference" else None

    @property
    def n_parameters(self) -> int:
        """d."""
        return sum(value.numel() for value in self.parameters.values())

    @property
    def noise(self) -> float:
        """Size of the errors of ``push``, relative to its largest value."""
        single = any(wide(value.dtype) != torch.float64 for value in self.parameters.values())
        if self._product == "difference":
            return 1e-3 if single else 1e-9
        return 1e-5 if single else 1e-12

    def log_probs(self, responses: Any) -> Tensor:
        """log pi_theta0 of the responses, (k,)."""
        with torch.no_grad(), _evaluating(self._bound):
            return self._call(self.parameters, responses)

    def pull(self, responses: Any, cotangent: Tensor) -> Direction:
        """A cotangent = sum_i cotangent_i g_i, (k,) -> (d,): one backward pass.

        Plain autograd rather than ``torch.func.vjp``, so that gradient checkpointing inside the module keeps working.
        """
        self.n_pull += 1
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad(), _evaluating(self._bound):
            values = self._call(leaves, responses)
            return self._backward(values, leaves, cotangent)

    def push(self, responses: Any, direction: Direction) -> Tensor:
        """A^T direction = <g_i, direction> for each response, (d,) -> (k,): one forward-mode product."""
        self.n_push += 1
        tangent = {name: direction[name].to(value.dtype) for name, value in self.parameters.items()}
        with _evaluating(self._bound):
            if self.difference is not None:
                return self._push_difference(responses, tangent, self.difference)
            with sdpa_kernel(SDPBackend.MATH):
                if self._product == "double_backward":
                    return self._push_backward(responses, tangent)
                return jvp(lambda leaves: self._call(leaves, responses), (self.parameters,), (tangent,))[1].detach()

    def each(self, responses: Any) -> Iterator[Direction]:
        """g of one response after the other, one backward pass each.  Not counted."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad(), _evaluating(self._bound):
            for value in self._call(leaves, responses):
                yield self._backward(value, leaves, torch.ones_like(value), keep=True)

    def rows(self, responses: Any) -> Tensor:
        """A^T, (k, d): only for small d.  Not counted."""
        return torch.stack([torch.cat([part.flatten() for part in g.values()]) for g in self.each(responses)])

    def _call(self, parameters: Direction, responses: Any) -> Tensor:
        named = {f"module.{name}": value for name, value in parameters.items()}
        return functional_call(self._bound, named, (responses,))

    def _backward(self, values: Tensor, leaves: Direction, cotangent: Tensor, keep: bool = False) -> Direction:
        found = torch.autograd.grad(
            values, list(leaves.values()), cotangent.to(values), retain_graph=keep, allow_unused=True
        )
        # a parameter that these responses do not touch has no gradient, which is a zero
        return {
            name: (torch.zeros_like(leaf) if part is None else part).to(wide(leaf.dtype))
            for (name, leaf), part in zip(leaves.items(), found, strict=True)
        }

    @torch.no_grad()
    def _push_difference(self, responses: Any, tangent: Direction, difference: CentralDifference) -> Tensor:
        """<g_i, v> from log pi at theta0 + h v and theta0 - h v."""

        def values(size: float) -> Tensor:
            moved = {name: torch.add(p, tangent[name], alpha=size) for name, p in self.parameters.items()}
            return self._call(moved, responses)

        with _full_precision(self._bound):
            return difference(values, norm(tangent))

    def learn(self, along: Sequence[Tensor], direction: Direction) -> None:
        """What ``push`` has found along ``direction``, for the next difference; all processes call it together."""
        if self.difference is not None:
            count = torch.tensor([float(sum(value.numel() for value in along)), 0.0], dtype=torch.float64)
            count[1] = sum(float(value.double().square().sum()) for value in along)
            total = self.reduce(count)
            self.difference.learn(float(total[1]), float(total[0]), norm(direction))

    def _push_backward(self, responses: Any, tangent: Direction) -> Tensor:
        """d/du <d/dtheta (u . log pi), tangent>: the transpose of a transpose."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad():
            values = self._call(leaves, responses)
            probe = torch.zeros_like(values, requires_grad=True)
            found = torch.autograd.grad(values, list(leaves.values()), probe, create_graph=True, allow_unused=True)
            parts = zip(found, tangent.values(), strict=True)
            total = torch.stack([(part * along).sum() for part, along in parts if part is not None]).sum()
            return torch.autograd.grad(total, probe)[0]


@cache
def _warm_up() -> None:
    """The first forward-mode product of a process makes torch compile helpers with a deprecated function of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.exp, (torch.zeros(1),), (torch.ones(1),))


class _Bound(nn.Module):
    """The module with its log-probs as ``forward``, which is what functional_call can call."""

    def __init__(self, module: nn.Module, log_probs: LogProbs) -> None:
        super().__init__()
        self.module, self._log_probs = module, log_probs

    def forward(self, responses: Any) -> Tensor:
        return self._log_probs(self.module, responses)


@contextmanager
def _full_precision(bound: nn.Module) -> Iterator[None]:
    """No autocast: accelerate wraps the model's forward pass in it, and keeps the plain one beside it."""
    wrapped: list[tuple[Any, Any]] = [(m, m.forward) for m in bound.modules() if "_original_forward" in vars(m)]
    for part, _ in wrapped:
        part.forward = part._original_forward
    try:
        with torch.autocast(next(bound.parameters()).device.type, enabled=False):
            yield
    finally:
        for part, forward in wrapped:
            part.forward = forward


@contextmanager
def _evaluating(bound: nn.Module) -> Iterator[None]:
    """No dropout: the scores are those of one fixed function.  Modes are restored one by one."""
    active = [part for part in bound.modules() if part.training]
    bound.eval()
    try:
        yield
    finally:
        for part in active:
            part.training = True
