"""What is measured of a policy between rounds: what it writes, how far it is from the base, and held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_backend.data import Preferences
from llm_backend.data.rows import Content
from llm_backend.evaluation.encoding import TokenSet
from llm_backend.evaluation.kl import token_kl
from llm_backend.generation import ModelGenerator, Response, Sampling
from llm_backend.generation.texts import prompt_encoder, prompt_ids
from llm_backend.loops.errors import LoopError
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import RoundText, loop_rows
from llm_backend.loops.store import PolicyStore
from llm_backend.ranking import Ranker, checked_scores
from llm_backend.reference import Reference
from llm_backend.token_options import TokenOptions


class LoopEvaluator:
    """Calls with a model give numbers by name. Each is there where it was asked for.

    ``prompts``: ``length`` (tokens, EOS included) and ``finished`` (share that ended by itself) of
    ``sampling.candidates`` responses to each; with ``gold``, its mean score; with ``kl``, KL(pi || base) by the exact
    KL of every next token along them (``evaluation.kl``), which needs temperature 1 and nothing cut. ``pairs``:
    ``accuracy``, the share with log pi(chosen) > log pi(rejected), a tie counting one half, and ``margin_accuracy``,
    the same of log(pi / base). All models answer the same prompts with the same random numbers.
    Raises: LoopError for a KL of samples that are not the policy's own, and for a gold reward without a verdict.
    """

    def __init__(
        self,
        store: PolicyStore,
        base: StoredPolicy,
        *,
        prompts: Sequence[Content] = (),
        sampling: Sampling | None = None,
        gold: Ranker | None = None,
        kl: bool = True,
        pairs: Preferences | None = None,
        tokens: TokenOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.base, self.prompts, self.seed = store, base, list(prompts), seed
        self.sampling, self.gold, self.kl = sampling or Sampling(), gold, kl and bool(prompts)
        if self.kl and not (self.sampling.temperature == 1.0 == self.sampling.top_p and self.sampling.top_k == 0):
            raise LoopError(
                "the KL is that of samples at temperature 1 with top_p 1 and top_k 0; sample so, or leave kl out"
            )
        self.tokens = tokens or TokenOptions()
        self.rows: list[dict[str, Any]] = []
        if pairs is not None:
            self.rows = loop_rows(RoundText(pairs), store.tokenizer(base), self.tokens).rows
            if not self.rows:
                raise LoopError("no held-out pair is left to evaluate on; give longer limits, or other pairs")

    def __call__(self, model: Any) -> dict[str, float]:
        """The metrics of a model."""
        return {**self._of_pairs(model), **self._of_samples(model)}

    def _of_samples(self, model: Any) -> dict[str, float]:
        if not self.prompts:
            return {}
        tokenizer = self.store.tokenizer(self.base)
        written = ModelGenerator(model, tokenizer, self.tokens).generate(self.prompts, self.sampling, seed=self.seed)
        flat = [one for each in written for one in each]
        found = {
            "length": float(np.mean([len(one.token_ids) for one in flat])),
            "finished": float(np.mean([one.finished for one in flat])),
        }
        if self.gold is not None:
            scores = checked_scores(self.gold, self.prompts, [[one.text for one in each] for each in written])
            if np.isnan(scores).any():
                raise LoopError(f"{self.gold.name} gave no verdict on {int(np.isnan(scores).sum())} responses")
            found["gold"] = float(scores.mean())
        if self.kl:
            base = self.store.model(self.base)
            found["kl"] = sample_kl(model, base, self.prompts, written, tokenizer, self.tokens)
        return found

    def _of_pairs(self, model: Any) -> dict[str, float]:
        if not self.rows:
            return {}
        pad = int(self.store.tokenizer(self.base).pad_token_id)
        gaps = []
        for each in (model, self.store.model(self.base)):
            columns = Reference.named("evaluated", each).log_probs(self.rows, pad_id=pad).columns
            gaps.append(columns["reference_chosen"] - columns["reference_rejected"])
        return {"accuracy": _share(gaps[0]), "margin_accuracy": _share(gaps[0] - gaps[1])}


def sample_kl(
    model: Any,
    base: Any,
    prompts: Sequence[Content],
    written: Sequence[Sequence[Response]],
    tokenizer: Any,
    tokens: TokenOptions,
) -> float:
    """The mean of sum_t KL(model || base) along the responses that the model wrote to each prompt, in nats."""
    ids = prompt_ids(prompt_encoder(tokenizer, tokens), prompts, range(len(prompts)))
    sets = [
        TokenSet(i, before, [list(one.token_ids) for one in each], (), "", "", "")
        for i, (before, each) in enumerate(zip(ids, written, strict=True))
    ]
    return float(token_kl(model, base, sets, pad_id=int(tokenizer.pad_token_id)).mean())


def _share(gap: np.ndarray) -> float:
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))
