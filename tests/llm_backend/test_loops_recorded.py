"""Recorded responses in a loop: instead of the policy's own, or before them; ranked anew, and kept like others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from llm_backend.data import PreferenceRow, Preferences
from llm_backend.loops import Draw, LoopError
from llm_backend.pairing import PairingError, PairRule, RecordedResponses
from llm_backend.prompts import FixedPrompts
from tests.llm_backend import loop_world

DATASET = Preferences(
    tuple(
        PreferenceRow(k, prompt, f" {'sun' * (k % 3 + 1)} red", f" {'moon ' * (k % 4 + 1)}blue")
        for k, prompt in enumerate(loop_world.PROMPTS)
    ),
    "dataset",
)
RECORDED = RecordedResponses.of(DATASET)


class Longest:
    """Ranks by characters."""

    name = "longest"

    def scores(self, prompts: Any, candidates: Any) -> Any:
        return np.array([[float(len(text)) for text in texts] for texts in candidates])


def no_generator(*_: Any) -> Any:
    raise AssertionError("nothing is to be generated")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loop_world.backend(tmp_path_factory.mktemp("recorded"))


def rows(world: Any, **options: Any) -> Any:
    source = loop_world.candidates(Longest(), **options)
    return source.rows(world.store, Draw(policy=world.base, kind="candidates", seed=world.seed)).preferences


def test_recorded_responses_are_ranked_anew_and_nothing_is_generated(world: Any) -> None:
    made = rows(world, recorded=RECORDED, own=False, generator=no_generator)
    by_prompt = {row.prompt: {row.chosen, row.rejected} for row in DATASET.rows}
    for row in made.rows:
        assert {row.chosen, row.rejected} == by_prompt[row.prompt] and len(row.chosen) > len(row.rejected)
    assert len(made) + sum(made.left_out.values()) == 12
    again = rows(world, recorded=RECORDED, own=False, generator=no_generator)
    assert again.fingerprint() == made.fingerprint()


def test_own_responses_join_recorded_ones_and_stay_what_they_were(world: Any) -> None:
    own = rows(world)
    both = rows(world, recorded=RECORDED, rule=PairRule(select="all_pairs", drop_cut_off=False, drop_empty=False))
    alone = {(row.prompt, row.chosen) for row in own.rows}
    texts = {(row.prompt, text) for row in both.rows for text in (row.chosen, row.rejected)}
    assert alone <= texts
    known = {(row.prompt, text) for row in DATASET.rows for text in (row.chosen, row.rejected)}
    assert texts & known and texts - known


def test_a_row_of_equal_texts_counts_as_identical(world: Any) -> None:
    flat = Preferences(tuple(PreferenceRow(k, p, "same", "same") for k, p in enumerate(loop_world.PROMPTS)), "flat")
    made = rows(world, recorded=RecordedResponses.of(flat), own=False, generator=no_generator)
    assert not made.rows and made.left_out["identical"] == 12


def test_limits_of_length_count_the_tokenizer_s_tokens(world: Any) -> None:
    words = world.store.tokenizer(world.base)
    lengths = {row.prompt: 1 + min(len(words.encode(text, add_special_tokens=False)) for text in texts)
               for row in DATASET.rows for texts in [(row.chosen, row.rejected)]}  # fmt: skip
    given = {"recorded": RECORDED, "own": False, "generator": no_generator}
    middle = sorted({lengths[row.prompt] for row in rows(world, **given).rows})[1]
    made = rows(world, **given, rule=PairRule(shortest=middle))
    assert made.left_out["too_short"] > 0 and made.rows
    assert min(lengths[row.prompt] for row in made.rows) == middle  # the end token counts


def test_what_does_not_fit_is_said(world: Any) -> None:
    with pytest.raises(LoopError, match="without responses of its own the policy needs recorded ones"):
        loop_world.candidates(own=False)
    other = FixedPrompts(["say nothing", "say less"], rounds="same")
    with pytest.raises(
        PairingError, match="has no recorded responses; recorded responses go with the prompts of the same"
    ):
        rows(world, recorded=RECORDED, own=False, prompts=other, n_prompts=2)
