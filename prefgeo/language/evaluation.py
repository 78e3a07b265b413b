"""What is measured of a model between the stages: accuracy on pairs it was not trained on, and judged generations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_backend.evaluation import Scores, TokenSet, measure, pair_metrics
from llm_backend.reference import Reference, ReferenceLogProbs
from prefgeo.language.data import LanguageTexts
from prefgeo.language.generation import generate_texts, judged
from prefgeo.language.recipe import EvaluateSpec
from prefgeo.language.tokens import Rows, TokenRows

SIDES = ("chosen", "rejected")
EXAMPLES = 3


def pair_accuracy(model: Any, rows: Rows, reference: ReferenceLogProbs | None = None) -> dict[str, Any]:
    """The share of pairs with log pi(chosen) > log pi(rejected), over all and by category; a tie counts one half.

    With a ``reference`` of these rows also ``by_margin``: of log(pi/ref), and ``margin``, its mean over pairs in nats.
    Each with its 95% ``interval`` over rows, which those of one prompt widen (``llm_backend.evaluation.metrics``).
    """
    sets = [
        TokenSet(row["row"], row["prompt_ids"], [row[f"{side}_ids"] for side in SIDES], (0,), row["category"], "",
                 str(row["prompt_key"]))
        for row in rows
    ]  # fmt: skip
    scores = _scores(Reference.named("evaluated", model).log_probs(rows, SIDES), sets)
    before = None if reference is None else _scores(reference, sets)
    names = ("log_prob",) if before is None else ("log_prob", "implicit_reward")
    metrics = pair_metrics(sets, measure(scores, before, names))
    found: dict[str, Any] = {"rows": len(rows)}
    for by, name, suffix in (("log_prob", "accuracy", ""), ("implicit_reward", "by_margin", "_by_margin")):
        for metric in (each for each in metrics if (each.by, each.name) == (by, "accuracy")):
            if metric.group == "all":
                found |= {name: metric.value, f"{name}_interval": [metric.low, metric.high]}
            elif metric.group != "(none)":
                found.setdefault(f"by_category{suffix}", {})[metric.group] = metric.value
    if before is not None:
        found["margin"] = next(e.value for e in metrics if (e.by, e.name) == ("implicit_reward", "margin"))
    return found


def evaluate_model(
    model: Any,
    tokenizer: Any,
    texts: LanguageTexts,
    rows: TokenRows,
    spec: EvaluateSpec,
    *,
    seed: int,
    references: dict[str, ReferenceLogProbs] | None = None,
) -> dict[str, Any]:
    """Accuracy on every test split and, in a world, judged generations with a few examples."""
    tests = {name: pair_accuracy(model, rows.splits[name], (references or {}).get(name)) for name in texts.tests}
    result: dict[str, Any] = {"pairs": tests}
    if texts.world is not None and spec.generations:
        prompts = texts.world.prompts(spec.generations)
        most = spec.max_new_tokens or rows.longest_response
        responses = generate_texts(model, tokenizer, prompts, spec, max_new_tokens=most, seed=seed)
        shown = [{"prompt": p, "response": r} for p, r in zip(prompts[:EXAMPLES], responses, strict=False)]
        result["generations"] = judged(texts.world, prompts, responses) | {"examples": shown}
    return result


def _scores(found: ReferenceLogProbs, sets: Sequence[TokenSet]) -> Scores:
    """log pi of every response, the chosen and the rejected one of each row in turn."""
    flat = np.stack([found.columns[f"reference_{side}"] for side in SIDES], axis=1).ravel()
    lengths = np.array([len(response) for each in sets for response in each.responses])
    return Scores(flat, lengths, np.arange(0, 2 * len(sets) + 1, 2))
