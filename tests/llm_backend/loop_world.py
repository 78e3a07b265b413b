"""A tiny world of loops on language models, for tests.

The gold reward is a checksum of the text: nothing to learn, but hardly a tie, and the same everywhere.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.data import Candidate, FusionPrompt, PreferenceRow, Preferences
from llm_backend.generation import Sampling
from llm_backend.loops import (
    CandidateSource,
    FixedSource,
    FusionSource,
    LanguageBackend,
    LoopEvaluator,
    LoopTraining,
    PolicyStore,
)
from llm_backend.models import new_model, tiny_config
from llm_backend.pairing import PairRule
from llm_backend.prompts import FixedPrompts
from llm_backend.toy import make_tokenizer
from objectives import make_objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.iterative import Rules, iterate
from prefgeo.algorithms.tpmm import Weighting, tpmm
from prefgeo.algorithms.tr_dpo import Update, tr_dpo
from prefgeo.backend import FitPlan
from prefgeo.run_folder import RunFolder
from prefgeo.run_journal import RunJournal

gc.freeze()  # each trainer collects garbage: it need not look at everything that was ever imported
WORDS = ("red", "blue", "green", "sun", "moon", "star")
PROMPTS = [f"say {one} {two}" for one in WORDS for two in WORDS]
SAMPLING = Sampling(candidates=3, max_new_tokens=5)
RULE = PairRule(drop_cut_off=False, drop_empty=False)
DPO = partial(make_objective, "dpo", beta=0.1)
PAIRS = DataSource("candidates", 0.2)
PLAN = FitPlan("adam", rate=lambda rows: 3e-3, epochs=1, batch_size=4)


class Checksum:
    """Scores of texts between 0 and 1; ``calls`` counts how often it was asked."""

    name = "checksum"

    def __init__(self) -> None:
        self.calls = 0

    def scores(self, prompts: Any, candidates: Any) -> np.ndarray:
        self.calls += 1
        return np.array([[(sum(text.encode()) % 97) / 97.0 for text in each] for each in candidates])


def tokenizer() -> Any:
    return make_tokenizer([f"{prompt} {word}" for prompt in PROMPTS for word in WORDS], 280)


def model(words: Any, architecture: str = "llama", *, seed: int = 0, dtype: str = "float32", width: int = 16) -> Any:
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = tiny_config(architecture, vocab_size=len(words), width=width, layers=1, heads=2, context=48, **ids)
    return new_model(config, seed=seed, dtype=dtype)


def candidates(ranker: Any = None, **options: Any) -> CandidateSource:
    judge = ranker or Checksum()
    settings: dict[str, Any] = {
        "prompts": FixedPrompts(PROMPTS, rounds="same", heldout_share=0.4), "n_prompts": 12, "n_held_out": 8,
        "sampling": SAMPLING, "rule": RULE, "ranker": lambda store, policy: judge, "chunk": 5,
    }  # fmt: skip
    return CandidateSource(**(settings | options))


def recorded(n: int = 12) -> list[FusionPrompt]:
    """Prompts with responses of two sources and of a target."""
    found = []
    for place in range(n):
        one, two, three = (f" {WORDS[(place + shift) % 6]} {WORDS[place % 6]}" for shift in range(3))
        sources = (Candidate("a", one + " a", 1.0), Candidate("b", two + " b", 0.5 + place))
        found.append(
            FusionPrompt(PROMPTS[place], sources, (Candidate("t", one, 0.75), Candidate("t", three + " c", 0.25)))
        )
    return found


def dataset(n: int = 12) -> Preferences:
    rows = [PreferenceRow(i, PROMPTS[i], f" {WORDS[i % 6]} sun", f" {WORDS[(i + 1) % 6]} moon") for i in range(n)]
    return Preferences(tuple(rows), "dataset", {"different prompts": 2})


def fixed(**options: Any) -> FixedSource:
    return FixedSource(train=dataset(), held_out=dataset(6), **options)


def fusion(**options: Any) -> FusionSource:
    return FusionSource(preferences=recorded(), supervised=recorded(6), **options)


def backend(
    root: Path,
    architecture: str = "llama",
    source: Any = None,
    *,
    dtype: str = "float32",
    seed: int = 3,
    **training: Any,
) -> LanguageBackend:
    words = tokenizer()
    store = PolicyStore(root, dtype=dtype)
    base = store.add(model(words, architecture, dtype=dtype), words)
    evaluator = LoopEvaluator(store, base, prompts=PROMPTS[:3], sampling=Sampling(max_new_tokens=4), gold=Checksum())
    options = LoopTraining(**({"micro_batch_size": 4} | training))
    return LanguageBackend(store, base, source or candidates(), options, evaluator, seed=seed)


def journal(folder: Path, seconds: float = 0.0) -> RunJournal:
    """The journal of a run, checkpointing at every step unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    return RunJournal(RunFolder(folder, -1), [3], reference="base", seconds=seconds, what="test")


LOOPS = {
    "iterative": lambda world, **options: iterate(world, DPO, rules=Rules(2), data=PAIRS, plan=PLAN, **options),
    "tpmm": lambda world, **options: tpmm(
        world, DPO, rounds=3, data=PAIRS, plan=PLAN, weighting=Weighting(beta=0.1, budget_divisor=2), **options
    ),
    "tr_dpo": lambda world, **options: tr_dpo(
        world, DPO, update=Update("soft", 0.5, 2), data=PAIRS, plan=PLAN, **options
    ),
}
