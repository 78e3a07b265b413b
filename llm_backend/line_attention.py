"""A way of attention for pairs laid end to end in one line, which transformers calls while a plan holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from transformers import AttentionInterface

P = TypeVar("P")


class LineAttention(Generic[P]):
    """``attend`` (query, key, value, plan, scale), on (T, heads, D) each -> (T, heads, D), registered as ``name``.

    ``outside`` is said where the model attends while no plan holds.
    """

    def __init__(
        self, name: str, outside: str, attend: Callable[[Tensor, Tensor, Tensor, P, float | None], Tensor]
    ) -> None:
        self._name, self._outside, self._attend = name, outside, attend
        self._current: ContextVar[P | None] = ContextVar(f"plan of {name}", default=None)
        AttentionInterface.register(name, self.interface)

    @property
    def plan(self) -> P:
        """The plan that holds. Raises: RuntimeError where there is none."""
        plan = self._current.get()
        if plan is None:
            raise RuntimeError(self._outside)
        return plan

    @contextlib.contextmanager
    def following(self, causal: Any, plan: P) -> Iterator[None]:
        """Within, the model's attention is this one, by ``plan``."""
        before = causal.config._attn_implementation
        token = self._current.set(plan)
        causal.config._attn_implementation = self._name
        try:
            yield
        finally:
            causal.config._attn_implementation = before
            self._current.reset(token)

    def interface(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """transformers' attention interface: query (1, heads, T, D) -> (1, T, heads, D)."""
        plan = self.plan
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        return self._attend(rows[0], rows[1], rows[2], plan, scaling)[None], None
