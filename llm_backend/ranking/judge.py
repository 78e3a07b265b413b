"""A language model behind an HTTP endpoint as a judge of pairs, asked in both orders."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.data.hashing import digest
from llm_backend.data.rows import Content
from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.judge_cache import AnswerCache
from llm_backend.ranking.judge_client import Client, Endpoint
from llm_backend.ranking.judge_texts import JUDGE_TEMPLATE, read_verdict
from llm_backend.ranking.protocol import Scores, candidate_count
from llm_backend.ranking.texts import check_template, fill, plain_text

COUNTS = ("questions", "cached", "requests", "retries", "malformed", "comparisons", "identical", "wins", "ties",
          "inconsistent", "undecided", "no_verdict")  # fmt: skip


class JudgeRanker:
    """A candidate's score is the mean over the others of 1 for a win, 1/2 for a tie and 0 for a loss.

    Each two candidates are compared in both orders (N (N - 1) questions to a prompt). The first wins where both answers
    prefer it; where the answers contradict one another, as those of a judge that prefers a place do, or one says tie,
    it is a tie. Identical texts tie unasked. An answer without a verdict on its last line is ``malformed``, is not
    guessed and not asked again: the comparison is ``undecided``, and both candidates get NaN (``no_verdict``), since a
    mean over other rivals would not compare.
    Source: Zheng et al. 2023, arXiv:2306.05685, Sec. 3.4; the wording is ours.

    Answers are kept in ``cache`` (JSON lines) as they come, by endpoint, model, parameters and question: an interrupted
    ranking asks nothing twice. At most ``concurrency`` questions are under way. ``counts`` has what happened.
    Raises: RankingError for a template without its parts; on ranking, with how many answers are kept, for an endpoint
    that does not recover or refuses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: str | Path | None = None,
        concurrency: int = 4,
        template: str = JUDGE_TEMPLATE,
    ) -> None:
        check_template(template, ("prompt", "first", "second"))
        if concurrency < 1:
            raise RankingError(f"concurrency must be at least 1, got {concurrency}")
        self.endpoint, self.template, self.concurrency = endpoint, template, concurrency
        self._answers = AnswerCache(None if cache is None else Path(cache))
        self._counts, self._lock = Counter(dict.fromkeys(COUNTS, 0)), threading.Lock()

    @property
    def name(self) -> str:
        """``judge MODEL``."""
        return f"judge {self.endpoint.model}"

    @property
    def counts(self) -> Mapping[str, int]:
        """``questions`` that scores needed, the ``cached`` among them, HTTP ``requests`` and ``retries``, ``malformed``
        answers; ``comparisons`` of two candidates = ``identical`` + ``wins`` + ``ties`` + ``inconsistent`` +
        ``undecided``; candidates with ``no_verdict``."""
        with self._lock:
            return dict(self._counts)

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N) in [0, 1]; NaN for no verdict."""
        width = candidate_count(self.name, prompts, candidates)
        if prompts and width < 2:
            raise RankingError(f"{self.name} compares candidates, so it needs at least 2 for each prompt, got {width}")
        pairs = [(row, i, j) for row in range(len(prompts)) for i in range(width) for j in range(i + 1, width)]
        texts = [plain_text(prompt) for prompt in prompts]
        questions = {
            (row, a, b): self._question(texts[row], candidates[row][a], candidates[row][b])
            for row, i, j in pairs
            if candidates[row][i] != candidates[row][j]
            for a, b in ((i, j), (j, i))
        }
        self._ask_all(list(dict.fromkeys(questions.values())))
        found = np.zeros((len(prompts), width))
        for row, i, j in pairs:
            same = (row, i, j) not in questions
            share = 0.5 if same else self._compared(questions[row, i, j], questions[row, j, i])
            self._count("comparisons")
            if same:
                self._count("identical")
            found[row, i] += share / (width - 1)
            found[row, j] += (1.0 - share) / (width - 1)
        self._count("no_verdict", int(np.isnan(found).sum()))
        return found

    def _compared(self, forward: str, backward: str) -> float:
        """What the first gets: 1, 1/2 or 0; NaN for no verdict."""
        one, two = (read_verdict(self._answers[self._key(question)]) for question in (forward, backward))
        self._count("malformed", (one is None) + (two is None))
        if one is None or two is None:
            self._count("undecided")
            return float("nan")
        if (one, two) in (("first", "second"), ("second", "first")):
            self._count("wins")
            return float(one == "first")
        self._count("ties" if one == two == "tie" else "inconsistent")
        return 0.5

    def _ask_all(self, questions: Sequence[str]) -> None:
        missing = [question for question in questions if self._key(question) not in self._answers]
        self._count("questions", len(questions))
        self._count("cached", len(questions) - len(missing))
        if not missing:
            return
        client = Client(self.endpoint, connections=self.concurrency, count=self._count)
        failures: list[RankingError] = []

        def work(question: str) -> None:
            try:
                if not client.stop.is_set():
                    self._answers.add(self._key(question), client.ask(question))
            except RankingError as problem:
                failures.append(problem)
                client.stop.set()

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            for done in [pool.submit(work, question) for question in missing]:
                done.result()
        finally:
            client.stop.set()
            pool.shutdown(cancel_futures=True)
            client.close()
        if failures:
            kept = sum(self._key(question) in self._answers for question in questions)
            where = "in memory" if self._answers.path is None else f"in {self._answers.path}"
            raise RankingError(f"{failures[0]}; {kept} of {len(questions)} answers are kept {where}")

    def _question(self, prompt: str, first: str, second: str) -> str:
        return fill(self.template, {"prompt": prompt, "first": first, "second": second})

    def _key(self, question: str) -> str:
        settings: dict[str, Any] = {"url": self.endpoint.address, "model": self.endpoint.model}
        settings["parameters"] = dict(self.endpoint.parameters)
        return digest(json.dumps(settings, sort_keys=True), question).hex()

    def _count(self, name: str, more: int = 1) -> None:
        with self._lock:
            self._counts[name] += more
