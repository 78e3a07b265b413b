"""A ranker that compares candidates two at a time, in both orders, as PairRM does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from llm_backend.data.rows import Content
from llm_backend.models import context_of
from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.pair_model import PairModel, load_pair_model
from llm_backend.ranking.protocol import Scores, candidate_count
from llm_backend.ranking.texts import plain_text
from llm_backend.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
REMEMBERED = 512  # tokenised texts
Aggregation = Literal["mean", "bubble"]
Pair = tuple[int, int, int]
"""Row, and the two candidates to compare."""


class PairRanker:
    """Scores from m(x, a, b) = (M(x, a, b) - M(x, b, a)) / 2, where M is a ``PairModel``: both orders, so that a
    preference for a place cancels.

    ``mean``: a candidate's mean of m over all others, N (N - 1) readings of a prompt. ``bubble``: the best by passing
    once over the candidates and keeping the better of two, then the worst of the rest likewise, about 4 N readings;
    scores are 1 (best), -1 (worst) and 0. Prompt and candidates are read as [CLS] mark text [SEP] each, one after the
    other, cut at their ends to ``source_length`` tokens and half of what then remains of ``source_length + 2
    candidate_length``, the published lengths, or of ``max_length`` or the encoder's context where that is less (the
    prompt's share stays the same). ``cut`` counts how often a text that is read was. Marks and special tokens inside
    texts become spaces.
    Raises: RankingError for a tokenizer without the marks, or lengths beyond the encoder's context.
    """

    def __init__(
        self,
        model: PairModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        aggregation: Aggregation = "mean",
        source_length: int = 1224,
        candidate_length: int = 412,
        name: str = "pair ranker",
    ) -> None:
        if aggregation not in get_args(Aggregation):
            raise RankingError(f"{name}: aggregation must be mean or bubble, got {aggregation!r}")
        if batch_size < 1:
            raise RankingError(f"{name}: batch_size must be at least 1, got {batch_size}")
        vocabulary = tokenizer.get_vocab()
        for mark in MARKS:
            if mark not in vocabulary:
                raise RankingError(f"{name}: the tokenizer has no token {mark}; take the tokenizer of the pair ranker")
        whole, context = source_length + 2 * candidate_length, context_of(model.encoder)
        if max_length is not None and context is not None and max_length > context:
            raise RankingError(f"{name}: max_length is {max_length}, but the encoder reads {context} tokens")
        most = min(each for each in (whole, max_length, context) if each is not None)
        if most < whole:  # the same shares of a shorter line
            source_length, whole = source_length * most // whole, most
        if min(source_length, (whole - source_length) // 2) < 4:
            raise RankingError(f"{name}: {whole} tokens leave no room for a prompt and two candidates")
        self.model, self.tokenizer, self.batch_size, self.aggregation = model, tokenizer, batch_size, aggregation
        self.source_length, self.whole, self._name, self.cut = source_length, whole, name, 0
        self._mark_ids = [vocabulary[mark] for mark in MARKS]
        self._part = lru_cache(REMEMBERED)(self._tokenised)  # a text is read once for each rival and place

    @classmethod
    def load(cls, folder: str | Path, **settings: Any) -> PairRanker:
        """From a folder of ``save_pair_model`` or of the published layout, with its tokenizer; ``settings`` as above.

        Raises: RankingError or DataError where there is none.
        """
        path = Path(folder)
        return cls(load_pair_model(path), load_tokenizer(path), **{"name": f"pair ranker {path}"} | settings)

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N)."""
        width = candidate_count(self.name, prompts, candidates)
        found = np.zeros((len(prompts), width))
        if width < 2:
            return found
        if self.aggregation == "mean":
            pairs = [(row, i, j) for row in range(len(prompts)) for i in range(width) for j in range(i + 1, width)]
            for (row, i, j), margin in zip(pairs, self.margins(prompts, candidates, pairs), strict=True):
                found[row, i] += margin / (width - 1)
                found[row, j] -= margin / (width - 1)
            return found
        best = self._pass(prompts, candidates, [list(range(width)) for _ in prompts], sign=1.0)
        rest = [[place for place in range(width) if place != best[row]] for row in range(len(prompts))]
        worst = self._pass(prompts, candidates, rest, sign=-1.0)
        rows = np.arange(len(prompts))
        found[rows, best], found[rows, worst] = 1.0, -1.0
        return found

    def margins(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]], pairs: Sequence[Pair]) -> Scores:
        """m of each pair, (len(pairs),); above 0 where the first is better."""
        both = [pair for row, i, j in pairs for pair in ((row, i, j), (row, j, i))]
        lines = [self._line(plain_text(prompts[row]), candidates[row][i], candidates[row][j]) for row, i, j in both]
        order = sorted(range(len(lines)), key=lambda place: -len(lines[place][0]))
        found = np.zeros(len(lines))
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                found[part] = self._read([lines[place] for place in part])
        margins: Scores = (found[0::2] - found[1::2]) / 2.0
        return margins

    def _pass(
        self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]], places: list[list[int]], *, sign: float
    ) -> list[int]:
        """The best (sign 1) or worst (sign -1) of some candidates of each row; the earlier one where two tie."""
        kept = [each[0] for each in places]
        for step in range(1, len(places[0]) if places else 0):
            pairs = [(row, kept[row], each[step]) for row, each in enumerate(places)]
            for (row, _, rival), margin in zip(pairs, self.margins(prompts, candidates, pairs), strict=True):
                if sign * margin < 0.0:
                    kept[row] = rival
        return kept

    def _line(self, prompt: str, first: str, second: str) -> tuple[list[int], list[int]]:
        """Token ids of one reading, and the places of the three marks."""
        ids: list[int] = []
        marks, limit = [], self.source_length
        for mark, mark_id, text in zip(MARKS, self._mark_ids, (prompt, first, second), strict=True):
            part, was_cut = self._part(mark, text, limit)
            self.cut += was_cut
            marks.append(len(ids) + part.index(mark_id))
            ids += part
            if mark == MARKS[0]:
                limit = (self.whole - len(part)) // 2
        return ids, marks

    def _tokenised(self, mark: str, text: str, limit: int) -> tuple[list[int], bool]:
        """Token ids of a mark and a text, at most ``limit``, and whether that cut them."""
        plain = mark + self._plain(text)
        ids: list[int] = self.tokenizer(plain, verbose=False).input_ids
        if len(ids) <= limit:
            return ids, False
        cut: list[int] = self.tokenizer(plain, truncation=True, max_length=limit, verbose=False).input_ids
        return cut, True

    def _plain(self, text: str) -> str:
        for token in (*MARKS, *self.tokenizer.all_special_tokens):
            text = text.replace(token, " ")
        return text

    def _read(self, lines: Sequence[tuple[list[int], list[int]]]) -> Scores:
        longest, pad = max(len(ids) for ids, _ in lines), int(self.tokenizer.pad_token_id or 0)
        device = next(self.model.parameters()).device
        ids = torch.tensor([each + [pad] * (longest - len(each)) for each, _ in lines], device=device)
        lengths = torch.tensor([len(each) for each, _ in lines], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        marks = torch.tensor([each for _, each in lines], device=device)
        found: Scores = self.model(ids, mask, marks).double().cpu().numpy()
        return found
