"""What is measured of every policy of a loop, each time in the same way, and beside the base policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geometry.pairs import FloatArray
from llm_backend.data.rows import Content
from llm_backend.generation import ModelGenerator, Response, Sampling
from llm_backend.loops.evaluator import sample_kl
from llm_backend.ranking import Ranker, checked_scores
from llm_backend.token_options import TokenOptions
from prefgeo.language.evaluation import pair_accuracy
from prefgeo.language.tokens import Rows
from prefgeo.language.world_text import TextWorld

LATER = 1_000_003
"""Added to the seed: responses that are judged are not those that a round is trained on."""


@dataclass(frozen=True)
class LoopMeasures:
    """A function of a model, for ``LanguageBackend``.

    ``accuracy`` on each test split: how often chosen is likelier than rejected. Of one response to each of ``prompts``:
    ``length`` in tokens, ``cut_off`` (share), ``kl`` to the base policy in nats (where sampled at temperature 1), and
    in a world ``gold`` reward, ``facts``, ``length`` in words and the end, and win rates against the base policy's
    responses to the same prompts by the world's judge, ``lc_win_rate`` without its taste for length. Elsewhere ``gold``
    is the mean score of the ranker ``gold``. ``marked``: the share that begins with one of ``marks``. Every model draws
    with the same random numbers.
    """

    base: Callable[[], Any]
    tokenizer: Any
    tests: dict[str, Rows]
    prompts: Sequence[Content]
    sampling: Sampling
    seed: int
    world: TextWorld | None = None
    gold: Ranker | None = None
    marks: tuple[str, ...] = ()
    tokens: TokenOptions = field(default_factory=TokenOptions)
    _first: dict[str, list[Response]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, model: Any) -> dict[str, float]:
        """The numbers of one model."""
        found: dict[str, float] = {}
        for name, rows in self.tests.items():
            suffix = "" if name == "held_out" else f"_{name}"
            found[f"accuracy{suffix}"] = float(pair_accuracy(model, rows)["accuracy"])
        if not self.prompts:
            return found
        said = self.responses(model)
        found["length"] = float(np.mean([len(each.token_ids) for each in said]))
        found["cut_off"] = float(np.mean([not each.finished for each in said]))
        if self.marks:
            begun = [each.text.split()[:1] for each in said]
            found["marked"] = float(np.mean([bool(words) and words[0] in self.marks for words in begun]))
        if self.sampling.temperature == 1.0 and self.sampling.top_p == 1.0 and self.sampling.top_k == 0:
            each = [[one] for one in said]
            found["kl"] = sample_kl(model, self.base(), self.prompts, each, self.tokenizer, self.tokens)
        if self.world is not None:
            found |= self._judged(self.world, said)
        elif self.gold is not None:
            scores = checked_scores(self.gold, self.prompts, [[each.text] for each in said])
            found["gold"] = float(np.nanmean(scores))
        return found

    def responses(self, model: Any) -> list[Response]:
        """One to each prompt."""
        written = ModelGenerator(model, self.tokenizer, self.tokens).generate(
            self.prompts, self.sampling, seed=self.seed + LATER
        )
        return [each[0] for each in written]

    def _judged(self, world: TextWorld, said: Sequence[Response]) -> dict[str, float]:
        gold, facts, length = self._verdicts(world, said)
        gold_0, _, length_0 = self._verdicts(world, self._base_responses)
        judge = world.world.options.judge
        return {
            "gold": float(gold.mean()),
            "facts": float(facts.mean()),
            "length": float(length.mean()),
            "win_rate": float(judge.prefers(gold - gold_0, length - length_0).mean()),
            "lc_win_rate": float(judge.prefers(gold - gold_0).mean()),
        }

    def _verdicts(self, world: TextWorld, said: Sequence[Response]) -> tuple[FloatArray, FloatArray, FloatArray]:
        found = world.judge([str(prompt) for prompt in self.prompts], [each.text for each in said])
        columns = ([getattr(each, name) for each in found] for name in ("gold", "facts", "length"))
        gold, facts, length = (np.array(column, dtype=np.float64) for column in columns)
        return gold, facts, length

    @property
    def _base_responses(self) -> list[Response]:
        if "base" not in self._first:
            self._first["base"] = self.responses(self.base())
        return self._first["base"]
