"""What the sequence world does in a loop: it asks, it ranks, and its other writers are the source models of WRPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from bandits.errors import SimulationError
from bandits.worlds.simulated.options import with_options
from bandits.worlds.simulated.sequence_options import BaseStyle
from bandits.worlds.simulated.sequence_sampling import sample_tokens
from bandits.worlds.simulated.sequence_text import FILLERS
from llm_backend.data.hashing import uniform
from llm_backend.data.rows import Content
from llm_backend.prompts import PromptBatch
from prefgeo.language.world_text import TextWorld


@dataclass(frozen=True)
class WorldPrompts:
    """Prompts of random class; a prompt's key is its place, so that equal prompts get different responses."""

    world: TextWorld

    def prompts(
        self, round_index: int, n: int, *, generator: object = None, seed: int = 0, split: str = "train"
    ) -> PromptBatch:
        """n prompts, decided by the world's seed, the round and the split."""
        (rng,) = self.world.world.streams.generators("loop prompts", split, round_index)
        classes = rng.integers(self.world.world.grammar.n_classes, size=n)
        return PromptBatch(tuple(self.world.text.prompt(c) for c in classes.tolist()), tuple(range(n)))


@dataclass(frozen=True)
class WorldRanker:
    """The world's gold reward or, ``biased``, its proxy: gold + length_bias * length + N(0, noise_sd).

    The noise is decided by seed, prompt, all its candidates and the place among them: ranking again, as after a kill,
    gives the same scores, and the same text among other candidates gets another draw.
    """

    world: TextWorld
    biased: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return "proxy" if self.biased else "gold"

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(n, N), in facts."""
        return np.array([self._row(str(prompt), texts) for prompt, texts in zip(prompts, candidates, strict=True)])

    def _row(self, prompt: str, texts: Sequence[str]) -> NDArray[np.float64]:
        verdicts = self.world.judge([prompt] * len(texts), texts)
        gold = np.array([verdict.gold for verdict in verdicts])
        if not self.biased:
            return gold
        rewards, (seed,) = self.world.world.options.rewards, self.world.world.streams.seeds
        draws = [uniform("proxy noise", seed, prompt, place, *texts) for place in range(len(texts))]
        noise = ndtri(np.clip(draws, 2.0**-54, None))  # a draw of 0 would be minus infinity
        length = np.array([float(verdict.length) for verdict in verdicts])
        return np.asarray(gold + rewards.length_bias * length + rewards.noise_sd * noise)


@dataclass(frozen=True)
class Writer:
    """A writer of the world in another ``style`` (fields of BaseStyle), who begins every response with ``mark``.

    Raises: WorldOptionError for a field that a style does not have; SimulationError for a mark that is no filler.
    """

    world: TextWorld
    name: str
    style: Mapping[str, float]
    mark: str | None = None

    def __post_init__(self) -> None:
        if self.mark is not None and self.mark not in FILLERS:
            raise SimulationError(f"the mark {self.mark!r} is no filler word of the world; known: {', '.join(FILLERS)}")
        self._style()

    def responses(self, prompts: Sequence[str], n: int, *purpose: str | int) -> list[list[str]]:
        """n responses to each prompt that are not cut off at the length limit (fewer, where all draws are)."""
        sequence, text = self.world.world, self.world.text
        streams = sequence.streams
        (rng,) = streams.generators("source style", self.name)
        logits = self._style().logits(sequence.grammar, rng=rng).ravel()
        table = sequence.table(sequence.policy.log_choices(logits[None]))[0]
        classes = np.repeat([text.prompt_class(prompt) for prompt in prompts], n)
        (rng,) = streams.generators("source responses", self.name, *purpose)
        tokens = sample_tokens(sequence.grammar, table, classes, rng=rng)
        mark = f" {self.mark}" if self.mark else ""
        found: list[list[str]] = [[] for _ in prompts]
        for place, (row, c) in enumerate(zip(tokens, classes.tolist(), strict=True)):
            if self.world.ends(row):
                found[place // n].append(mark + self.world.say(row, c))
        return found

    def _style(self) -> BaseStyle:
        return with_options(f"source {self.name}", self.world.world.options.style, self.style, ("style",))
