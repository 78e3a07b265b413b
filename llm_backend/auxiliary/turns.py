"""Who moves when: each prompt's variables on every k-th of its visits, so that a step pays for 1/k of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_backend.auxiliary.slots import Slots


class Turns:
    """A step that meets prompt s for the v-th time (v = 0, 1, ...) moves its slots if (v + s) mod ``period`` is 0.

    ``visits`` (S,) counts the steps that met each prompt. Every prompt has its turn once in ``period`` visits, and at
    any time about 1/``period`` of the prompts have theirs. Slots of one prompt move together: their gradient is that of
    all the rows in the step which they take part in, as without turns. Untied, a row is a prompt of its own.
    """

    def __init__(self, slots: Slots, period: int) -> None:
        self.period, self._prompt = period, slots.prompt
        self.visits = torch.zeros(int(slots.prompt.max()) + 1, dtype=torch.int64)

    def of(self, slots: Tensor) -> Tensor:
        """Which of the slots (k,) move in the coming step, if it meets them: (k,) bool."""
        prompt = self._prompt[slots]
        return (self.visits[prompt] + prompt) % self.period == 0

    def count(self, met: Tensor) -> None:
        """A step has met slots (k,), all different."""
        self.visits[torch.unique(self._prompt[met])] += 1
