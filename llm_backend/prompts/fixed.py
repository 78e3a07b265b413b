"""Prompts from a list, parted by hash into those to train on and those held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from llm_backend.data.hashing import digest, uniform
from llm_backend.data.rows import Content
from llm_backend.prompts.errors import PromptError
from llm_backend.prompts.source import PromptBatch, check_request

if TYPE_CHECKING:
    from llm_backend.generation import Generator

Rounds = Literal["disjoint", "same"]


@dataclass(frozen=True)
class FixedPrompts:
    """Prompts of a list, text or messages. A prompt that occurs again is left out and counted as ``repeats``.

    A prompt is held out iff uniform("held out", seed, prompt) < ``heldout_share`` (``data.hashing``), so that equal
    prompts are always on the same side. Both sides are in the order of their hashes with ``seed``. With ``rounds``
    ``disjoint``, round t takes places (t - 1) n to t n - 1 of its side (ask for the same n in every round); with
    ``same``, every round takes the first n. A prompt's key is its place in the list.
    Raises: PromptError for a share outside [0, 1), an unknown ``rounds``, or an empty list.
    """

    pool: Sequence[Content]
    rounds: Rounds = "disjoint"
    heldout_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds not in get_args(Rounds):
            raise PromptError(f"rounds must be 'disjoint' or 'same', got {self.rounds!r}")
        if not 0.0 <= self.heldout_share < 1.0:
            raise PromptError(f"the held-out share must be in [0, 1), got {self.heldout_share}")
        if not self.pool:
            raise PromptError("there are no prompts in the list; give at least one")

    def prompts(
        self, round_index: int, n: int, *, generator: Generator | None = None, seed: int = 0, split: str = "train"
    ) -> PromptBatch:
        """n prompts of the round; neither ``generator`` nor ``seed`` is looked at. Raises PromptError for too few."""
        check_request(round_index, n, split)
        side = self.side(split)
        begin = (round_index - 1) * n if self.rounds == "disjoint" else 0
        if begin + n > len(side):
            raise PromptError(self._too_few(round_index, n, begin, len(side), split))
        keys = tuple(side[begin : begin + n])
        return PromptBatch(tuple(self.pool[key] for key in keys), keys, {"repeats": len(self.pool) - self.distinct()})

    def side(self, split: str) -> list[int]:
        """The places in the list of the prompts of a split, in the order in which rounds take them."""
        first: dict[str, int] = {}
        for place, prompt in enumerate(self.pool):
            first.setdefault(prompt_text(prompt), place)
        held_out = split == "heldout"
        mine = [
            (digest("order of prompts", self.seed, text), place)
            for text, place in first.items()
            if (uniform("held out", self.seed, text) < self.heldout_share) == held_out
        ]
        return [place for _, place in sorted(mine)]

    def distinct(self) -> int:
        """How many different prompts the list has."""
        return len({prompt_text(prompt) for prompt in self.pool})

    def _too_few(self, round_index: int, n: int, begin: int, there: int, split: str) -> str:
        which = {"train": "training", "heldout": "held-out"}[split]
        repeats = len(self.pool) - self.distinct()
        given = f"{len(self.pool)} given, {repeats} of them repeats" if repeats else f"{len(self.pool)} given"
        if split == "heldout" and self.heldout_share == 0.0:
            return f"{n} held-out prompts are asked for but none are held out; set heldout_share above 0"
        if self.rounds == "same":
            return f"{n} prompts are asked for but there are {there} {which} prompts ({given}); ask for fewer"
        return (
            f"round {round_index} needs the {which} prompts {begin} to {begin + n - 1} but there are {there} ({given})"
            "; ask for fewer a round, or use the same ones in every round (rounds='same')"
        )


def prompt_text(prompt: Content) -> str:
    """What identifies a prompt: its text, or its messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)
