"""The responses behind AuxDPO's variables as batches of token ids, with the rest of their response sets if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_backend.auxiliary import Slots, set_log_probs
from llm_backend.batching import Collator
from llm_backend.log_probs import best_collator, response_log_probs, unwrap

Rows = Sequence[Mapping[str, Any]]
PAIR = ("chosen", "rejected")


@dataclass(frozen=True, eq=False)
class SlotBatch:
    """``batches`` of whole lines with the names of their sides; ``pick`` (k,): where in their log-probs, one after the
    other, the wanted responses are. ``prompt`` of all of them, where log-probs are renormalised over sets; else None.
    """

    batches: list[tuple[dict[str, Tensor], tuple[str, ...]]]
    pick: Tensor
    prompt: Tensor | None


def slot_log_probs(module: nn.Module, wanted: SlotBatch) -> Tensor:
    """log pi of the wanted responses, (k,): of the sequence, or renormalised over the prompt's response set."""
    found = []
    for inputs, sides in wanted.batches:
        values = response_log_probs(module, inputs, sides).log_probs
        found.append(torch.cat([values[side] for side in sides]))
    every = torch.cat(found)
    if wanted.prompt is not None:
        every = set_log_probs(every, wanted.prompt)
    return every[wanted.pick]


class SlotResponses:
    """Token ids of every slot of training rows.

    ``centred``: log-probs are renormalised over the responses that the rows have to a prompt, so that each batch brings
    along all of them, also those that it does not ask for. Otherwise each response stands for itself.
    """

    def __init__(self, model: nn.Module, rows: Rows, slots: Slots, *, centred: bool, pad_id: int = 0) -> None:
        self.slots, self.centred = slots, centred
        self.collate = best_collator(model, PAIR, pad_id)
        self.to(unwrap(model).device)
        self._rows, self._place = rows, [(-1, "")] * slots.size
        for side, places in zip(PAIR, (slots.chosen, slots.rejected), strict=True):
            for row, slot in enumerate(places.tolist()):
                self._place[slot] = (row, side)
        order = torch.argsort(slots.prompt, stable=True)
        self._sets = list(order.split(torch.bincount(slots.prompt).tolist()))

    def to(self, device: torch.device) -> None:
        """Make batches there from now on."""
        self.device = device
        if device.type != "cpu":  # a GPU's packed attention has no forward-mode derivative
            self.collate = replace(self.collate, packed=False)

    def of(self, wanted: Tensor) -> SlotBatch:
        """The responses of slots (k,), which may repeat: each is scored once, and shares its prompt."""
        by_prompt: dict[int, set[int]] = {}
        for slot, prompt in zip(wanted.tolist(), self.slots.prompt[wanted].tolist(), strict=True):
            by_prompt.setdefault(prompt, set()).add(slot)
        if self.centred:
            by_prompt = {prompt: set(self._sets[prompt].tolist()) for prompt in by_prompt}
        sizes: dict[int, list[list[int]]] = {}
        for members in by_prompt.values():
            sizes.setdefault(len(members), []).append(sorted(members))
        batches, found = [], []
        for size, groups in sorted(sizes.items()):
            sides = tuple(f"response_{k}" for k in range(size))
            batch = self._collator(sides)([self._line(group) for group in groups])
            batches.append(({name: value.to(self.device) for name, value in batch.items()}, sides))
            found.append(torch.tensor(groups).T.flatten())  # all first responses, all second ones, ...
        every = torch.cat(found)
        place = torch.empty(self.slots.size, dtype=torch.int64)
        place[every] = torch.arange(every.numel())
        prompt = None
        if self.centred:
            prompt = torch.unique(self.slots.prompt[every], return_inverse=True)[1].to(self.device)
        return SlotBatch(batches, place[wanted].to(self.device), prompt)

    def prompts(self) -> Iterator[Tensor]:
        """The slots of each prompt (untied: of each row)."""
        return iter(self._sets)

    def _collator(self, sides: tuple[str, ...]) -> Collator:
        return Collator(sides, self.collate.pad_id, shared=self.collate.shared, packed=self.collate.packed)

    def _line(self, group: list[int]) -> dict[str, Any]:
        responses = {}
        for k, slot in enumerate(group):
            row, side = self._place[slot]
            responses[f"response_{k}_ids"] = self._rows[row][f"{side}_ids"]
        return {"prompt_ids": self._rows[self._place[group[0]][0]]["prompt_ids"], **responses}
