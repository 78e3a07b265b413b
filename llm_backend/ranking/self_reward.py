"""The policy as its own ranker: by its implicit reward, or as a judge that reads and gives points."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_backend.data.hashing import digest
from llm_backend.data.rows import Content
from llm_backend.evaluation.encoding import TextSet, encode_sets
from llm_backend.evaluation.scoring import TOKENS_PER_BATCH, score_sets
from llm_backend.generation import Generator, Sampling
from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.protocol import Scores, candidate_count
from llm_backend.ranking.texts import as_answer, check_template, fill, plain_text
from llm_backend.token_options import TokenOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POINTS = (0.0, 5.0)
POINTS_TEMPLATE = """Read a prompt and a response to it, then say how good the response is, in points from 0 to 5: one \
point each for a response that is on topic, that covers most of what was asked, that answers it usefully, that is \
clear and well ordered, and that an expert could not improve.

[Prompt]
{prompt}

[Response]
{response}

[End]
Explain in a few words, then end with a line "Score: n", where n is the number of points.
"""


class SelfRewardRanker:
    """The implicit reward of a policy: beta * [log pi(y|x) - log ref(y|x)], sums over the tokens of y, EOS included.

    Source: Rafailov et al. 2023, arXiv:2305.18290, Eq. 5 without the term that only depends on the prompt. Prompts and
    candidates get the token ids that training with ``options`` gives them.
    Raises: RankingError for beta <= 0; on ranking, for rows that the options would leave out of training.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        beta: float = 1.0,
        options: TokenOptions | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> None:
        if not 0.0 < beta < float("inf"):
            raise RankingError(f"beta must be above 0, got {beta}; at 0 every reward would be 0")
        self.policy, self.reference, self.tokenizer, self.beta = policy, reference, tokenizer, beta
        self.options, self.tokens_per_batch = options, tokens_per_batch

    @property
    def name(self) -> str:
        """``implicit reward``."""
        return "implicit reward"

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N)."""
        width = candidate_count(self.name, prompts, candidates)
        if not prompts:
            return np.zeros((0, width))
        sets = [
            TextSet(row, prompt, tuple(as_answer(prompt, text) for text in several), ())
            for row, (prompt, several) in enumerate(zip(prompts, candidates, strict=True))
        ]
        encoded, counts = encode_sets(sets, self.tokenizer, self.options)
        if len(encoded) < len(sets):
            reason, rows = next(iter(counts.dropped.items()))
            raise RankingError(f"{self.name}: row {rows[0]} cannot be scored: {reason}; leave it out before ranking")
        policy, reference = (
            score_sets(model, encoded, tokens_per_batch=self.tokens_per_batch).log_probs
            for model in (self.policy, self.reference)
        )
        found: Scores = (self.beta * (policy - reference)).reshape(len(prompts), width)
        return found


class SelfJudgeRanker:
    """A generator as a judge: the mean of the points in [0, 5] that it gives a response, over ``sampling.candidates``.

    Source: Yuan et al. 2024, arXiv:2401.10020, Sec. 2 (the wording is ours). A prompt of messages is judged in a
    message of the user, a prompt of text in text. An answer counts if it names one number within the range after
    "Score:"; others are ``malformed`` and not guessed. NaN (counted ``no_verdict``) where no answer counts.
    What is drawn depends on the seed and the texts alone. Raises: RankingError for a template without its two parts.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        sampling: Sampling | None = None,
        template: str = POINTS_TEMPLATE,
        seed: int = 0,
    ) -> None:
        check_template(template, ("prompt", "response"))
        self.generator, self.template, self.seed = generator, template, seed
        self.sampling = sampling or Sampling(temperature=0.0, max_new_tokens=256)
        self._counts: Counter[str] = Counter(answers=0, malformed=0, no_verdict=0)

    @property
    def name(self) -> str:
        """``self judge``."""
        return "self judge"

    @property
    def counts(self) -> Mapping[str, int]:
        """``answers`` that were read, the ``malformed`` among them, and candidates with ``no_verdict``."""
        return dict(self._counts)

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N); NaN for no verdict."""
        width = candidate_count(self.name, prompts, candidates)
        asked: list[Content] = []
        for prompt, several in zip(prompts, candidates, strict=True):
            for response in several:
                text = fill(self.template, {"prompt": plain_text(prompt), "response": response})
                asked.append(text if isinstance(prompt, str) else [{"role": "user", "content": text}])
        keys = [int.from_bytes(digest(plain_text(each))[:7], "big") for each in asked]
        found = np.full(len(asked), np.nan)
        for place, answers in enumerate(self.generator.generate(asked, self.sampling, seed=self.seed, keys=keys)):
            points = [read_points(answer.text) for answer in answers]
            read = [value for value in points if value is not None]
            self._counts.update(answers=len(points), malformed=len(points) - len(read), no_verdict=int(not read))
            if read:
                found[place] = float(np.mean(read))
        return found.reshape(len(prompts), width)


def read_points(answer: str) -> float | None:
    """The points that an answer gives; None unless it names exactly one number, within the range.

    >>> read_points("Good.\\nScore: 4"), read_points("Score: 9"), read_points("Score: 1 Score: 2")
    (4.0, None, None)
    """
    named = {float(number) for number in re.findall(r"\bScore:\s*(-?\d+(?:\.\d+)?)(?![\w/]|\.\d)", answer)}
    if len(named) != 1 or not POINTS[0] <= min(named) <= POINTS[1]:
        return None
    return named.pop()
