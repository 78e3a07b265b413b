"""Instruction and response sources composed as in AIPO's Table 1, and what cannot be composed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llm_backend.data import PreferenceRow, Preferences
from llm_backend.data.rows import Content
from llm_backend.generation import Response, Sampling
from llm_backend.pairing import (
    GeneratedResponses,
    JoinedResponses,
    LabelRanker,
    PairingError,
    PairRule,
    RecordedResponses,
    make_pairs,
    ranked,
)
from llm_backend.prompts import FixedPrompts, InstructionFilters, PromptBatch, SelfInstruct, SelfInstructOptions
from llm_backend.ranking import RankingError

LETTERS = "abcdefghij"
DATASET = Preferences(
    tuple(
        PreferenceRow(k, f"Tell me about the letter {x}.", f"{x} good", f"{x} {x} bad") for k, x in enumerate(LETTERS)
    ),
    "dataset",
)
TWO = Sampling(candidates=2)


class Policy:
    """Continues lists with tasks about numbers, and answers everything else with its key and draw."""

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        assert keys is not None
        found = []
        for prompt, key in zip(prompts, keys, strict=True):
            text = f" Count from {key} to {key + seed % 7} and back in {LETTERS[key % 10] * 3} steps."
            if not str(prompt).endswith("Task 3:"):
                text = f"answer {key}"
            found.append([Response(text + " more" * draw, (1,) * 4, True) for draw in range(sampling.candidates)])
        return found


class Longest:
    """Ranks by characters."""

    name = "longest"

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Any:
        return np.array([[float(len(text)) for text in texts] for texts in candidates])


def rows(prompts: Any, responses: Any, ranker: Any, n: int = 3) -> Preferences:
    batch = prompts.prompts(1, n, generator=Policy(), seed=0)
    return make_pairs(ranked(batch, responses.responses(batch, generator=Policy(), seed=0), ranker), PairRule())


UF = FixedPrompts([row.prompt for row in DATASET.rows])
ALIKE = InstructionFilters(similarity=None)  # the policy's tasks are much alike
SI = SelfInstruct([str(row.prompt) for row in DATASET.rows], SelfInstructOptions(examples=2, calls=2, filters=ALIKE))


def test_the_four_rows_of_table_1() -> None:
    original = rows(UF, RecordedResponses.of(DATASET), LabelRanker(DATASET))
    assert all(row.chosen == DATASET.rows[row.row].chosen for row in original.rows) and len(original) == 3
    reranked = rows(UF, RecordedResponses.of(DATASET), Longest())
    assert all(row.chosen == DATASET.rows[row.row].rejected for row in reranked.rows) and len(reranked) == 3
    generated = rows(UF, GeneratedResponses(TWO), Longest())
    assert [(row.chosen, row.rejected) for row in generated.rows] == [
        (f"answer {row.row} more", f"answer {row.row}") for row in generated.rows
    ]
    assert {row.prompt for row in generated.rows} == {row.prompt for row in original.rows}
    instructed = rows(SI, GeneratedResponses(TWO), Longest())
    assert len(instructed) == 3 and all(str(row.prompt).startswith("Count from") for row in instructed.rows)


def test_a_datasets_and_the_policys_responses_together() -> None:
    made = rows(UF, JoinedResponses((RecordedResponses.of(DATASET), GeneratedResponses(TWO))), Longest())
    assert all(str(row.chosen).endswith("more") and str(row.rejected).endswith("good") for row in made.rows)


def test_labels_are_the_scores_that_rows_carry() -> None:
    scored = Preferences((PreferenceRow(0, "p", "a", "b", score_chosen=4.5, score_rejected=-2.0),), "scored")
    assert LabelRanker(scored).scores(["p"], [["b", "a"]]).tolist() == [[-2.0, 4.5]]
    assert LabelRanker(DATASET).scores([DATASET.rows[0].prompt], [["a good", "a a bad"]]).tolist() == [[1.0, 0.0]]


def test_prompts_may_have_different_numbers_of_responses() -> None:
    more = Preferences((*DATASET.rows[:2], PreferenceRow(9, DATASET.rows[1].prompt, "b best", "b good")), "more")
    batch = PromptBatch(tuple(row.prompt for row in DATASET.rows[:2]), (4, 5))
    found = ranked(batch, RecordedResponses.of(more).responses(batch), Longest())
    assert [len(each.responses) for each in found] == [2, 3] and [each.key for each in found] == [4, 5]
    assert [row.chosen for row in make_pairs(found, PairRule()).rows] == ["a a bad", "b b bad"]


def test_messages_are_recorded_too_and_lengths_need_an_encoder() -> None:
    prompt = [{"role": "user", "content": "p"}]
    said = [[{"role": "assistant", "content": text}] for text in ("one two", "three")]
    chat = Preferences((PreferenceRow(0, prompt, *said),), "chat")
    batch = PromptBatch((prompt,), (0,))
    plain = ranked(batch, RecordedResponses.of(chat).responses(batch), LabelRanker(chat))
    assert make_pairs(plain, PairRule()).rows[0].chosen == said[0]
    with pytest.raises(PairingError, match="has no token ids"):
        make_pairs(plain, PairRule(shortest=2))
    counted = RecordedResponses.of(chat, lambda text: range(len(text.split()))).responses(batch)
    assert make_pairs(ranked(batch, counted, LabelRanker(chat)), PairRule(shortest=2)).left_out["too_short"] == 1


def test_new_prompts_have_no_recorded_responses_and_new_responses_no_labels() -> None:
    with pytest.raises(
        PairingError, match=r"prompt 0 \('Count from .* has no recorded responses; recorded responses go"
    ):
        rows(SI, RecordedResponses.of(DATASET), Longest())
    with pytest.raises(RankingError, match=r"labels: row 0 has a response without a label \('answer"):
        rows(UF, GeneratedResponses(TWO), LabelRanker(DATASET))
