"""Where candidates come from: the policy, a dataset, or both. With a prompt source and a ranker, AIPO's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from llm_backend.data.rows import Content, Preferences
from llm_backend.generation import Generator, Response, Sampling
from llm_backend.pairing.candidates import Candidates
from llm_backend.pairing.errors import PairingError
from llm_backend.prompts.fixed import prompt_text
from llm_backend.prompts.source import PromptBatch
from llm_backend.ranking import Ranker, RankingError, Scores, checked_scores


class ResponseSource(Protocol):
    """Gives some responses to each prompt."""

    def responses(self, batch: PromptBatch, *, generator: Generator, seed: int) -> list[tuple[Response, ...]]:
        """The responses to each prompt of the batch, in order. ``generator`` is the newest policy's."""
        ...


@dataclass(frozen=True)
class GeneratedResponses:
    """Responses that the policy writes: Gen(x) of AIPO's Table 1."""

    sampling: Sampling

    def responses(self, batch: PromptBatch, *, generator: Generator, seed: int) -> list[tuple[Response, ...]]:
        """See ``ResponseSource.responses``; the draws depend on the seed and each prompt's key."""
        written = generator.generate(batch.prompts, self.sampling, seed=seed, keys=batch.keys)
        return [tuple(each) for each in written]


@dataclass(frozen=True)
class RecordedResponses:
    """Responses that a dataset has, by the prompt's text (messages as ``prompt_text`` writes them).

    ``encode`` gives their token ids, which a rule with ``shortest`` or ``longest`` looks at. All count as finished.
    """

    texts: Mapping[str, Sequence[str]]
    encode: Callable[[str], Sequence[int]] | None = None

    @classmethod
    def of(cls, preferences: Preferences, encode: Callable[[str], Sequence[int]] | None = None) -> RecordedResponses:
        """Chosen and rejected of every row; of a prompt with several rows, all of them, each text once."""
        found: dict[str, dict[str, None]] = {}
        for row in preferences.rows:
            mine = found.setdefault(prompt_text(row.prompt), {})
            mine.update(dict.fromkeys((_words(row.chosen), _words(row.rejected))))
        # a row of two equal texts stays two responses, so that it counts as identical
        return cls({prompt: tuple(texts) * (2 if len(texts) == 1 else 1) for prompt, texts in found.items()}, encode)

    def responses(
        self, batch: PromptBatch, *, generator: Generator | None = None, seed: int = 0
    ) -> list[tuple[Response, ...]]:
        """See ``ResponseSource.responses``. Raises PairingError for a prompt that the dataset does not have."""
        return [self._of(prompt, key) for prompt, key in zip(batch.prompts, batch.keys, strict=True)]

    def _of(self, prompt: Content, key: int) -> tuple[Response, ...]:
        texts = self.texts.get(prompt_text(prompt))
        if texts is None:
            raise PairingError(
                f"prompt {key} ({prompt_text(prompt)!r:.50}) has no recorded responses; recorded responses go with the "
                "prompts of the same dataset, new prompts need a policy that answers them"
            )
        encode = self.encode or (lambda text: ())
        return tuple(Response(text, tuple(encode(text)), True) for text in texts)


@dataclass(frozen=True)
class JoinedResponses:
    """The responses of several sources, one after the other: a dataset's and the policy's, say."""

    sources: tuple[ResponseSource, ...]

    def responses(self, batch: PromptBatch, *, generator: Generator, seed: int) -> list[tuple[Response, ...]]:
        """See ``ResponseSource.responses``."""
        each = [source.responses(batch, generator=generator, seed=seed) for source in self.sources]
        return [tuple(one for part in parts for one in part) for parts in zip(*each, strict=True)]


@dataclass(frozen=True)
class LabelRanker:
    """A dataset's own labels as scores: those that its rows carry, else 1 for chosen and 0 for rejected."""

    preferences: Preferences
    name: str = "labels"

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """See ``Ranker.scores``. Raises RankingError for a response that has no label."""
        return np.array(
            [
                [self._label(place, prompt_text(prompt), text) for text in texts]
                for place, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True))
            ]
        )

    @cached_property
    def _known(self) -> dict[tuple[str, str], float]:
        """The label of each prompt's response, by their texts."""
        known: dict[tuple[str, str], float] = {}
        for row in self.preferences.rows:
            one, two = row.score_chosen, row.score_rejected
            if one is None or two is None:
                one, two = 1.0, 0.0
            prompt = prompt_text(row.prompt)
            known[prompt, _words(row.chosen)], known[prompt, _words(row.rejected)] = float(one), float(two)
        return known

    def _label(self, place: int, prompt: str, text: str) -> float:
        if (prompt, text) not in self._known:
            raise RankingError(
                f"{self.name}: row {place} has a response without a label ({text!r:.50}); labels rank the dataset's "
                "own responses only, so rank generated ones with another ranker"
            )
        return self._known[prompt, text]


def scored(ranker: Ranker, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> list[Scores]:
    """The scores of each prompt's candidates, of which prompts may have different numbers.

    Raises: RankingError for scores that do not fit.
    """
    found: list[Scores] = [np.zeros(0)] * len(prompts)
    for width in sorted({len(each) for each in candidates}):  # a ranker takes rows of one length
        places = [place for place, each in enumerate(candidates) if len(each) == width]
        part = checked_scores(ranker, [prompts[place] for place in places], [candidates[place] for place in places])
        for place, row in zip(places, part, strict=True):
            found[place] = row
    return found


def ranked(batch: PromptBatch, responses: Sequence[Sequence[Response]], ranker: Ranker) -> list[Candidates]:
    """Each prompt's responses with their scores. Prompts may differ in their number of responses.

    Raises: RankingError for scores that do not fit, PairingError for a prompt with fewer than two responses.
    """
    scores = scored(ranker, batch.prompts, [[one.text for one in each] for each in responses])
    return [
        Candidates(prompt, key, tuple(each), row)
        for prompt, key, each, row in zip(batch.prompts, batch.keys, responses, scores, strict=True)
    ]


def _words(content: Content) -> str:
    """The text of a response: itself, or that of its one message."""
    return content if isinstance(content, str) else content[0]["content"]
