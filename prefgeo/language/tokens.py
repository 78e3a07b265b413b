"""From the texts of a recipe to rows of token ids, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_backend.data import DataError, Preferences
from llm_backend.lm_fields import sides_of
from llm_backend.token_options import TokenOptions
from llm_backend.tokenization import tokenize_preferences, tokenize_sets
from llm_backend.tokenizers import load_tokenizer
from llm_backend.toy import make_tokenizer
from objectives import Objective
from prefgeo.language.data import TRAIN, LanguageTexts
from prefgeo.language.recipe import LanguageData, LanguageRecipe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TokenRows:
    """``splits`` and ``supervised`` as rows of ids; ``counts``: what tokenisation dropped and cut, by split."""

    splits: dict[str, Rows]
    supervised: Rows
    counts: dict[str, Any]

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response to imitate or to prefer, EOS included."""
        return max(len(row["chosen_ids"]) for row in [*self.supervised, *self.splits[TRAIN]])


def recipe_tokenizer(recipe: LanguageRecipe, texts: LanguageTexts) -> Any:
    """The tokenizer that the recipe names, with a pad token; or one trained on its texts."""
    if recipe.tokenizer.name == "embedded":
        return make_tokenizer(dict.fromkeys(_all_texts(texts)), recipe.tokenizer.vocab_size)
    name = recipe.model.name if recipe.tokenizer.name == "model" else recipe.tokenizer.name
    tokenizer = load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is told by its place, so EOS is still scored
    return tokenizer


def token_rows(recipe: LanguageRecipe, texts: LanguageTexts, tokenizer: Any, objective: Objective | None) -> TokenRows:
    """Every split tokenised. Raises ``DataError``, also for data without the responses that the objective reads (None:
    it reads others than these)."""
    options, splits, counts = token_options(recipe.data), {}, {}
    for name, preferences in texts.splits.items():
        found = tokenize_preferences(preferences, tokenizer, options)
        splits[name], counts[name] = found.dataset.to_list(), _summary(preferences, found.counts)
    for side in () if objective is None else sides_of(objective):
        if objective is not None and f"{side}_ids" not in splits[TRAIN][0]:
            raise DataError(f"{objective.name} needs a column {side!r}, which these data do not have")
    supervised = splits[TRAIN]
    if texts.supervised is not None and recipe.sft is not None:
        sets = tokenize_sets(texts.supervised, tokenizer, options)
        supervised = [
            {"row": row["row"], "prompt_ids": row["prompt_ids"], "chosen_ids": row["response_ids"][0]}
            for row in sets.dataset.to_list()
        ]
        counts["supervised"] = {"rows": sets.counts.rows, "kept": sets.counts.kept}
    return TokenRows(splits, supervised, counts)


def token_options(data: LanguageData) -> TokenOptions:
    """How rows become ids. In a world an empty response is an answer: the writer stopped at once."""
    return TokenOptions(
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        eos=data.eos,
        boundary=data.boundary,
        keep_empty=data.format == "world",
    )


def _summary(preferences: Preferences, counts: Any) -> dict[str, Any]:
    dropped = {reason: len(rows) for reason, rows in counts.dropped.items()}
    left_out = {reason: n for reason, n in preferences.left_out.items() if n}
    cut = {"prompts_cut": counts.prompts_cut, "responses_cut": dict(counts.responses_cut)}
    return {"rows": counts.rows, "kept": counts.kept, "dropped": dropped, "left_out_before": left_out, **cut}


def _all_texts(texts: LanguageTexts) -> Iterable[str]:
    """What may be trained on: no test text."""
    contents: list[Any] = []
    for row in texts.splits[TRAIN].rows:
        contents += [row.prompt, *row.responses().values()]
    for each in texts.supervised or []:
        contents += [each.prompt, *each.responses]
    for content in contents:
        yield from [content] if isinstance(content, str) else [message["content"] for message in content]
