"""The sequence world as text for language models: responses to imitate, ranked pairs, prompts, and the gold judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bandits.worlds.simulated.sequence_options import SequenceOptions
from bandits.worlds.simulated.sequence_sampling import PAD, responses_from_tokens, sample_tokens
from bandits.worlds.simulated.sequence_text import SequenceText
from bandits.worlds.simulated.sequence_world import SequenceWorld
from geometry.pairs import IntArray
from llm_backend.data import PreferenceRow, Preferences, ResponseSet


@dataclass(frozen=True)
class Verdict:
    """What the world says of one text."""

    gold: float
    facts: int
    length: int


@dataclass(frozen=True)
class TextWorld:
    """One run of the sequence world, whose base policy is the hand-written writer of the texts."""

    world: SequenceWorld
    text: SequenceText

    @classmethod
    def make(cls, seed: int, options: SequenceOptions) -> TextWorld:
        """The world of one seed. Raises ``SimulationError`` where there are no words for it."""
        return cls(SequenceWorld.make(seed, options), SequenceText(options.grammar))

    def supervised(self, n: int) -> list[ResponseSet]:
        """Responses of the base policy to imitate, each a set of its own.

        Of ``n`` draws, those that hit the length limit are left out: they have no end to learn.
        """
        classes = self._rng("lm supervised classes").integers(self.world.grammar.n_classes, size=n)
        tokens = self._draw(classes, "lm supervised")
        return [
            ResponseSet(i, self.text.prompt(c), (self.say(tokens[i], c),), 0)
            for i, c in enumerate(classes.tolist())
            if self.ends(tokens[i])
        ]

    def pairs(self, n: int, purpose: str, *, ranked_by: str = "gold") -> Preferences:
        """``n`` prompts of random class, each with the best and the worst of N candidates of the base policy.

        ``ranked_by`` gold, or the world's noisy proxy that likes length. Left out, and counted: pairs with one score,
        with one text, or with a response that was cut off.
        """
        options, rewards = self.world.options, self.world.options.rewards
        rng = self._rng("lm candidates", purpose)
        classes = rng.integers(self.world.grammar.n_classes, size=n)
        tokens = self._draw(np.repeat(classes, options.n_candidates), "lm responses", purpose)
        found = responses_from_tokens(self.world.grammar, np.repeat(classes, options.n_candidates), tokens)
        gold = rewards.gold(found.facts, found.length)
        scores = gold if ranked_by == "gold" else rewards.proxy(found.facts, found.length, rng=rng)
        by_prompt, golds = scores.reshape(n, -1), gold.reshape(n, -1)
        rows: list[PreferenceRow] = []
        left_out = {"one score": 0, "one text": 0, "cut off at the length limit": 0}
        for i, c in enumerate(classes.tolist()):
            ends = int(by_prompt[i].argmax()), int(by_prompt[i].argmin())
            both = [tokens[i * options.n_candidates + end] for end in ends]
            good, bad = (self.say(each, c) for each in both)
            if not all(self.ends(each) for each in both):
                left_out["cut off at the length limit"] += 1
            elif good == bad:
                left_out["one text"] += 1
            elif by_prompt[i, ends[0]] == by_prompt[i, ends[1]]:
                left_out["one score"] += 1
            else:
                row = PreferenceRow(i, self.text.prompt(c), good, bad, category=f"class {c}")
                rows.append(_scored(row, *(float(golds[i, end]) for end in ends)))
        return Preferences(tuple(rows), "world", left_out)

    def prompts(self, n: int) -> list[str]:
        """``n`` prompts, the classes in turn."""
        return [self.text.prompt(i % self.world.grammar.n_classes) for i in range(n)]

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Gold reward, facts and length (words and the end) of each response."""
        verdicts = []
        for prompt, response in zip(prompts, responses, strict=True):
            c = self.text.prompt_class(prompt)
            facts, length = self.text.facts_and_length(response, prompt_class=c)
            gold = self.text.gold(response, prompt_class=c, rewards=self.world.options.rewards)
            verdicts.append(Verdict(gold, facts, length))
        return verdicts

    def _draw(self, classes: IntArray, *purpose: str) -> IntArray:
        table = self.world.table(self.world.base_log_choices)[0]
        return sample_tokens(self.world.grammar, table, classes, rng=self._rng(*purpose))

    def _rng(self, *purpose: str) -> np.random.Generator:
        return self.world.streams.generators(*purpose)[0]

    def ends(self, tokens: IntArray) -> bool:
        """Whether a response was not cut off at the length limit."""
        return bool((tokens == self.world.grammar.eos).any())

    def say(self, tokens: IntArray, prompt_class: int) -> str:
        """The response with the space that parts it from its prompt; nothing at all for an empty one."""
        words = self.text.render(tokens[tokens != PAD], prompt_class=prompt_class)
        return f" {words}" if words else ""


def _scored(row: PreferenceRow, chosen: float, rejected: float) -> PreferenceRow:
    """The row with its gold scores; without, where they tie, as a proxy may rank what gold does not."""
    return row if chosen == rejected else replace(row, score_chosen=chosen, score_rejected=rejected)
