"""Pairs of the policy's own responses: prompts, N candidates to each, a ranking, and a rule that makes pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from llm_backend.data.noise import FlipMode
from llm_backend.data.rows import Content
from llm_backend.generation import Generator, ModelGenerator, Response, Sampling, VLLMGenerator
from llm_backend.loops.chunk_log import ChunkLog
from llm_backend.loops.errors import LoopError
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import RoundText, Wins
from llm_backend.loops.sources import HELD_OUT, TRAIN, Draw, FixedSource, check_kind, counted, flipped
from llm_backend.loops.store import PolicyStore, key_of
from llm_backend.pairing import Candidates, PairRule, RecordedResponses, make_pairs, scored
from llm_backend.progress import long_work
from llm_backend.prompts import PromptBatch, PromptSource
from llm_backend.ranking import Ranker
from llm_backend.token_options import TokenOptions

DRAWS = "draws"
MakeGenerator = Callable[[PolicyStore, StoredPolicy, TokenOptions], Generator]
MakeRanker = Callable[[PolicyStore, StoredPolicy], Ranker]


def model_generator(store: PolicyStore, policy: StoredPolicy, tokens: TokenOptions) -> Generator:
    """Generation by the model in memory (transformers)."""
    return ModelGenerator(store.model(policy), store.tokenizer(policy), tokens)


def vllm_generator(store: PolicyStore, policy: StoredPolicy, tokens: TokenOptions) -> Generator:
    """Generation by vLLM from the policy's folder."""
    store.release()  # vLLM takes what memory it finds
    return VLLMGenerator(policy.path, tokens, dtype=store.dtype)


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """Kind ``candidates``: each round's prompts are answered by the policy that draws, ranked, and paired by ``rule``.

    ``n_prompts`` prompts a round from ``prompts`` (a part of a draw takes a part of them, so that nothing is
    generated in vain), of the split ``heldout`` ``n_held_out`` (left out: as many). ``ranker`` is made for each
    draw, as a policy may rank itself. ``recorded`` responses of a dataset stand before the policy's own, or, with
    ``own`` false, in their place: then nothing is generated, and the policy's only part is to be trained. ``chunk``
    prompts are generated, ranked and written down at once. ``first``: pairs for round 1, drawn from a dataset.
    ``win_scale``: for SPPO the scores are logits of a Bradley-Terry model, divided by that scale; then

        P(y beats pi) = mean over the N candidates y' of sigmoid(win_scale (score(y) - score(y')))

    as in the simulator; None, for scores of another kind, gives no win rates.
    """

    prompts: PromptSource
    n_prompts: int
    sampling: Sampling
    rule: PairRule
    ranker: MakeRanker
    generator: MakeGenerator = model_generator
    n_held_out: int | None = None
    recorded: RecordedResponses | None = None
    own: bool = True
    first: FixedSource | None = None
    flip_mode: FlipMode = "iid"
    win_scale: float | None = None
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise LoopError(f"a chunk needs at least 1 prompt, got {self.chunk}")
        if not self.own and self.recorded is None:
            raise LoopError(
                "without responses of its own the policy needs recorded ones; give recorded, or leave own on"
            )
        if self.win_scale is not None and self.first is not None:
            raise LoopError("pairs of a dataset have no win rates; leave first out, or win_scale")
        if self.win_scale is not None and not 0.0 < self.win_scale < float("inf"):
            raise LoopError(f"win_scale must be a number > 0, or None for no win rates, got {self.win_scale}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Pairs of candidates."""
        return ("candidates",)

    def rows(self, store: PolicyStore, draw: Draw) -> RoundText:
        """The round's pairs, with the label noise of the draw."""
        check_kind(self, draw)
        if self.first is not None and draw.round_index == 1 and draw.split == TRAIN:
            return self.first.rows(store, replace(draw, kind="fixed"))
        batch = self.batch(store, draw)
        candidates, judged = self.candidates(store, draw, draw.pick(batch.prompts), draw.pick(batch.keys))
        pairs = make_pairs(candidates, self.rule, source=f"round {draw.round_index}, {draw.split}")
        rows = flipped(pairs, draw, self.flip_mode)
        told = counted("prompts_", batch.counts) if draw.part[0] == 0 else {}  # of the whole draw, so counted once
        wins = None if self.win_scale is None else self._wins(candidates, rows.rows, self.win_scale)
        return RoundText(rows, wins, told | counted("ranking_", judged))

    def batch(self, store: PolicyStore, draw: Draw) -> PromptBatch:
        """The prompts of the whole draw; those that a model wrote are kept in the store."""
        n = self.n_held_out if draw.split == HELD_OUT and self.n_held_out is not None else self.n_prompts
        name = {"policy": draw.policy.digest, "round": draw.round_index, "split": draw.split, "n": n, "seed": draw.seed}
        key = key_of(**name, source=type(self.prompts).__name__)
        known = store.recall(f"{DRAWS}/prompts", key)
        if known is not None:
            return PromptBatch(tuple(known["prompts"]), tuple(known["keys"]), known["counts"])
        writer = _OnDemand(lambda: self.generator(store, draw.policy, draw.tokens))
        found = self.prompts.prompts(draw.round_index, n, generator=writer, seed=draw.seed, split=draw.split)
        if writer.used:
            plain = {"prompts": list(found.prompts), "keys": list(found.keys), "counts": dict(found.counts)}
            store.remember(f"{DRAWS}/prompts", key, name | plain)
        return found

    def candidates(
        self, store: PolicyStore, draw: Draw, prompts: Sequence[Content], keys: Sequence[int]
    ) -> tuple[list[Candidates], dict[str, int]]:
        """N ranked responses to each prompt, and what the ranker counted; what is in the store is not made again."""
        if not prompts:
            return [], {}
        asked = hashlib.sha256(json.dumps([list(prompts), list(keys)]).encode()).hexdigest()
        writer = _OnDemand(lambda: self.generator(store, draw.policy, draw.tokens))
        header = {
            "policy": draw.policy.digest, "prompts": asked, "seed": draw.stream, "sampling": asdict(self.sampling),
            "chunk": self.chunk, "tokens": repr(draw.tokens),
            "generator": getattr(self.generator, "__name__", "generator"),
        }  # fmt: skip
        written = ChunkLog(_place(store, "responses", header), header)
        starts = range(0, len(prompts), self.chunk)
        spans = [slice(start, start + self.chunk) for start in starts]
        responses: list[list[Response]] = []
        stage = f"round {draw.round_index}, {draw.split}"
        with long_work(f"{stage}: writing candidates", len(prompts)) as advance:
            for number, span in enumerate(spans if self.own else ()):
                lines = written.chunk(number, partial(self._generate, writer, draw, prompts[span], keys[span]))
                responses += [[_response(one) for one in line] for line in lines]
                advance(len(lines))
        ranker = self.ranker(store, draw.policy)
        header |= {"ranker": ranker.name}
        if self.recorded is not None:
            given = self._recorded(store, draw, prompts, keys)
            responses = [[*one, *own] for one, own in zip(given, responses or [[]] * len(given), strict=True)]
            header |= {"own": self.own, "recorded": key_of(texts=[[one.text for one in each] for each in given])}
        ranked = ChunkLog(_place(store, "scores", header), header)
        found: list[Candidates] = []
        judged: dict[str, int] = {}
        with long_work(f"{stage}: ranking candidates", len(prompts)) as advance:
            for number, span in enumerate(spans):
                texts = [[one.text for one in each] for each in responses[span]]
                line = ranked.chunk(number, partial(_rank, ranker, prompts[span], texts))
                scores = [[np.nan if value is None else value for value in row] for row in line["scores"]]
                for prompt, key, each, row in zip(prompts[span], keys[span], responses[span], scores, strict=True):
                    found.append(Candidates(prompt, key, tuple(each), np.array(row)))
                for name, count in line["counts"].items():
                    judged[name] = judged.get(name, 0) + count
                advance(len(texts))
        return found, judged

    def _recorded(
        self, store: PolicyStore, draw: Draw, prompts: Sequence[Content], keys: Sequence[int]
    ) -> list[tuple[Response, ...]]:
        """The dataset's responses, with token ids (and the end token) where the rule counts tokens."""
        assert self.recorded is not None
        recorded = self.recorded
        if self.rule.shortest > 0 or self.rule.longest is not None:
            words = store.tokenizer(draw.policy)
            recorded = replace(
                recorded, encode=lambda text: [*words.encode(text, add_special_tokens=False), words.eos_token_id]
            )
        return recorded.responses(PromptBatch(tuple(prompts), tuple(keys)))

    def _generate(self, writer: _OnDemand, draw: Draw, prompts: Sequence[Content], keys: Sequence[int]) -> list[Any]:
        made = writer.generate(prompts, self.sampling, seed=draw.stream, keys=keys)
        return [[[one.text, list(one.token_ids), one.finished] for one in each] for each in made]

    def _wins(self, candidates: Sequence[Candidates], rows: Sequence[Any], scale: float) -> Wins:
        most = max((len(each.responses) for each in candidates), default=0)
        stride = most * (most - 1) // 2 if self.rule.select == "all_pairs" else 1
        scores = {each.key: each.scores[~np.isnan(each.scores)] for each in candidates}

        def rate(row: Any, score: float) -> float:
            return float(np.mean(expit(scale * (score - scores[row.row // stride]))))

        return {row.row: (rate(row, row.score_chosen), rate(row, row.score_rejected)) for row in rows}


class _OnDemand:
    """A generator that is made when it is first needed: a round that is finished loads no model."""

    def __init__(self, make: Callable[[], Generator]) -> None:
        self._make = make
        self._made: Generator | None = None
        self.used = False

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        """As the generator does."""
        self.used = True
        if self._made is None:
            self._made = self._make()
        return self._made.generate(prompts, sampling, seed=seed, keys=keys)


def _rank(ranker: Ranker, prompts: Sequence[Content], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Scores of a chunk, None for no verdict, and what the ranker counted on the way."""
    before = dict(getattr(ranker, "counts", {}))
    scores = scored(ranker, prompts, texts)
    after: Mapping[str, int] = getattr(ranker, "counts", {})
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in scores]
    return {"scores": rows, "counts": {name: int(count) - int(before.get(name, 0)) for name, count in after.items()}}


def _place(store: PolicyStore, what: str, header: Mapping[str, Any]) -> Any:
    return store.root / DRAWS / f"{what}-{key_of(**header)[:32]}.jsonl"


def _response(line: Sequence[Any]) -> Response:
    text, ids, finished = line
    return Response(text, tuple(ids), finished)
