"""Pairs out of ranked candidates: selection and filters against a slow restatement, counts that add up, messages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_backend.generation import Response
from llm_backend.pairing import FILTERS, WEB_ADDRESS, Candidates, PairingError, PairRule, make_pairs, require_pairs


def response(text: str, *, finished: bool = True, length: int = 3) -> Response:
    return Response(text, tuple(range(length)), finished)


def candidates(texts: Any, scores: Any, *, key: int = 0, prompt: Any = "p") -> Candidates:
    made = tuple(response(each) if isinstance(each, str) else each for each in texts)
    return Candidates(prompt, key, made, np.array(scores, dtype=float))


# few texts, scores and lengths, so that every filter and every tie comes up often
RESPONSES = st.builds(
    lambda text, finished, length: response(text, finished=finished, length=length),
    st.sampled_from(["", " ", "a", "a ", "b", "c c", "see www.x", "c  c"]),
    st.booleans(),
    st.integers(1, 4),
)
SCORED = st.lists(st.tuples(RESPONSES, st.sampled_from([math.nan, -1.0, 0.0, 0.5, 2.0])), min_size=2, max_size=5)
POOLS = st.lists(SCORED, max_size=6).map(
    lambda pool: [candidates([r for r, _ in one], [s for _, s in one], key=key) for key, one in enumerate(pool)]
)
RULES = st.builds(
    PairRule,
    select=st.sampled_from(["best_worst", "best_random", "all_pairs"]),
    stage=st.sampled_from(["pairs", "responses"]),
    drop_empty=st.booleans(),
    drop_cut_off=st.booleans(),
    shortest=st.sampled_from([0, 2]),
    longest=st.sampled_from([None, 3]),
    margin=st.sampled_from([0.0, 1.0]),
    forbidden_in_chosen=st.sampled_from([None, WEB_ADDRESS]),
    seed=st.integers(0, 3),
)


@given(POOLS, RULES)
def test_every_prompt_has_rows_or_counts_once(pool: list[Candidates], rule: PairRule) -> None:
    made = make_pairs(pool, rule)
    assert tuple(made.left_out) == FILTERS
    stride = max((len(each.responses) * (len(each.responses) - 1) // 2 for each in pool), default=1)
    kept = {row.row // stride if rule.select == "all_pairs" else row.row for row in made.rows}
    assert sum(made.left_out.values()) + len(kept) == len(pool)
    assert len({row.row for row in made.rows}) == len(made.rows)


@given(POOLS, RULES)
def test_no_row_breaks_the_rule(pool: list[Candidates], rule: PairRule) -> None:
    """Each filter is restated on the rows that are left; with "all_pairs", on every one of them."""
    by_text = {
        (each.key, r.text): [other for other in each.responses if other.text == r.text]
        for each in pool
        for r in each.responses
    }
    stride = max((len(each.responses) * (len(each.responses) - 1) // 2 for each in pool), default=1)
    for row in make_pairs(pool, rule).rows:
        key = row.row // stride if rule.select == "all_pairs" else row.row
        assert row.score_chosen is not None and row.score_rejected is not None
        assert row.score_chosen > row.score_rejected and row.score_chosen - row.score_rejected >= rule.margin
        assert isinstance(row.chosen, str) and isinstance(row.rejected, str)
        assert row.chosen.split() != row.rejected.split()
        assert rule.forbidden_in_chosen is None or "www" not in row.chosen
        for text in (row.chosen, row.rejected):
            twins = by_text[key, text]
            assert not (rule.drop_empty and not text.strip())
            assert not rule.drop_cut_off or any(twin.finished for twin in twins)
            assert any(len(twin.token_ids) >= rule.shortest for twin in twins)
            assert rule.longest is None or any(len(twin.token_ids) <= 3 for twin in twins)


@given(POOLS, RULES, st.randoms(use_true_random=False))
def test_a_prompt_does_not_depend_on_its_neighbours(pool: list[Candidates], rule: PairRule, random: Any) -> None:
    rule = replace(rule, select="best_random" if rule.select == "all_pairs" else rule.select)
    mixed = list(pool)
    random.shuffle(mixed)
    assert sorted(make_pairs(pool, rule).rows, key=lambda row: row.row) == sorted(
        make_pairs(mixed, rule).rows, key=lambda row: row.row
    )


def spoiled(one: Response, rule: PairRule) -> str | None:
    """The first filter of single responses that takes it."""
    checks = {
        "empty": rule.drop_empty and one.text.strip() == "",
        "cut_off": rule.drop_cut_off and not one.finished,
        "too_short": len(one.token_ids) < rule.shortest,
        "too_long": rule.longest is not None and len(one.token_ids) > rule.longest,
    }
    return next((name for name, taken in checks.items() if taken), None)


@given(SCORED, RULES)
def test_best_against_worst_of_the_remaining_responses(scored: list[Any], rule: PairRule) -> None:
    """With stage "responses": filter first, by hand, then take the largest and the smallest score."""
    rule = replace(rule, select="best_worst", stage="responses", margin=0.0, forbidden_in_chosen=None)
    fit = [(r, s) for r, s in scored if not math.isnan(s) and spoiled(r, rule) is None]
    made = make_pairs([candidates([r for r, _ in scored], [s for _, s in scored])], rule)
    texts = {" ".join(r.text.split()) for r, _ in fit}
    if len(fit) < 2 or len(texts) == 1:
        assert not made.rows
        return
    best = max(fit, key=lambda each: each[1])
    worst = min(s for r, s in fit if r.text.split() != best[0].text.split())
    if best[1] == worst:
        assert made.left_out["ties"] == 1
    else:
        (row,) = made.rows
        assert (row.chosen, row.score_chosen, row.score_rejected) == (best[0].text, best[1], worst)


@pytest.mark.parametrize(
    ("texts", "scores", "options", "reason"),
    [
        (["a", "b"], [math.nan, 1], {}, "no_verdict"),
        (["a", " \n"], [1, 0], {}, "empty"),
        ([response("a", finished=False), "b"], [1, 0], {}, "cut_off"),
        ([response("a", length=1), "b"], [1, 0], {"shortest": 2}, "too_short"),
        ([response("a", length=9), "b"], [1, 0], {"longest": 8}, "too_long"),
        (["a b", "a  b\n"], [1, 0], {}, "identical"),
        (["a", "a", "a"], [1, 1, 1], {}, "identical"),
        (["a", "b"], [1, 1], {}, "ties"),
        (["a", "b"], [1, 0.5], {"margin": 0.6}, "margin"),
        (["see https://x", "b"], [1, 0], {"forbidden_in_chosen": WEB_ADDRESS}, "chosen_text"),
    ],
)
def test_each_filter_counts_under_its_name(texts: Any, scores: Any, options: Any, reason: str) -> None:
    made = make_pairs([candidates(texts, scores)], PairRule(**options))
    assert not made.rows
    assert {name: count for name, count in made.left_out.items() if count} == {reason: 1}


def test_the_first_filter_in_order_takes_a_pair_that_several_would_take() -> None:
    both = candidates([response("", finished=False), response(" ", finished=False)], [1, 1])
    assert make_pairs([both], PairRule()).left_out["empty"] == 1
    assert make_pairs([both], PairRule(drop_empty=False)).left_out["cut_off"] == 1
    assert make_pairs([both], PairRule(drop_empty=False, drop_cut_off=False)).left_out["identical"] == 1


def test_filters_can_be_turned_off_and_forbidden_text_may_be_rejected() -> None:
    cut = candidates([response("a", finished=False), ""], [1, 0])
    (row,) = make_pairs([cut], PairRule(drop_empty=False, drop_cut_off=False)).rows
    assert (row.chosen, row.rejected) == ("a", "")
    rule = PairRule(forbidden_in_chosen=WEB_ADDRESS)
    assert len(make_pairs([candidates(["a", "www.x"], [1, 0])], rule)) == 1


def test_a_cut_off_best_response_costs_the_pair_or_only_itself() -> None:
    three = candidates([response("a", finished=False), "b", "c"], [3, 2, 1])
    assert make_pairs([three], PairRule()).left_out["cut_off"] == 1
    (row,) = make_pairs([three], PairRule(stage="responses")).rows
    assert (row.chosen, row.rejected) == ("b", "c")


def test_best_against_random_takes_every_other_response_about_equally_often() -> None:
    pool = [candidates(["w", "x", "y", "z"], [0, 3, 1, 2], key=key) for key in range(600)]
    made = make_pairs(pool, PairRule(select="best_random"))
    assert {row.chosen for row in made.rows} == {"x"}
    drawn = [row.rejected for row in made.rows]
    assert all(150 < drawn.count(each) < 250 for each in "wyz")  # 200 expected, sd 11.5
    other = make_pairs(pool, PairRule(select="best_random", seed=1))
    assert [row.rejected for row in other.rows] != drawn


def test_all_pairs_of_different_score_are_rows_of_their_own() -> None:
    made = make_pairs([candidates("abc", [1, 3, 1], key=2)], PairRule(select="all_pairs"))
    assert [(row.chosen, row.rejected) for row in made.rows] == [("b", "a"), ("b", "c")]
    assert [row.row for row in made.rows] == [6, 7]  # 3 pairs a prompt, key 2


def test_all_pairs_take_a_text_once() -> None:
    made = make_pairs([candidates(["a", "b", "a "], [1, 3, 1])], PairRule(select="all_pairs"))
    assert [(row.chosen, row.rejected) for row in made.rows] == [("b", "a")]


def test_chat_prompts_get_chat_responses_and_scores_go_along() -> None:
    prompt = [{"role": "user", "content": "p"}]
    (row,) = make_pairs([candidates("ab", [0.25, 0.5], key=7, prompt=prompt)], PairRule()).rows
    assert row.chosen == [{"role": "assistant", "content": "b"}] and row.prompt == prompt
    assert (row.row, row.score_chosen, row.score_rejected) == (7, 0.5, 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: candidates("a", [1]), r"prompt 0 has 1 response\(s\); a pair needs at least 2 candidates"),
        (lambda: candidates("ab", [1, 2, 3]), r"prompt 0 has 2 responses but scores of shape \(3,\)"),
        (lambda: candidates("ab", [1, np.inf]), r"the score of response 1 is inf; scores are finite, or NaN"),
        (lambda: candidates("ab", [1, 0], key=-1), r"must be a whole number >= 0, got -1"),
        (lambda: make_pairs([candidates("ab", [1, 0])] * 2, PairRule()), r"key 0 belongs to two prompts"),
        (
            lambda: make_pairs([candidates([Response("a", (), True), "b"], [1, 0])], PairRule(longest=5)),
            r"prompt 0: response 0 has no token ids, so shortest and longest cannot be applied",
        ),
        (lambda: PairRule(select="best_wort"), r"unknown select 'best_wort' of a pair rule. Did you mean 'best_worst'"),
        (lambda: PairRule(stage="rows"), r"unknown stage 'rows' of a pair rule.* Known: pairs, responses"),
        (lambda: PairRule(shortest=-1), r"shortest must be at least 0 tokens, got -1"),
        (lambda: PairRule(shortest=5, longest=4), r"longest must be at least 5 token\(s\), or None, got 4"),
        (lambda: PairRule(margin=math.nan), r"margin must be a score difference >= 0, got nan"),
        (lambda: PairRule(forbidden_in_chosen="("), r"forbidden_in_chosen is no regular expression .*: '\('"),
        (
            lambda: require_pairs(make_pairs([candidates(["a", "a"], [1, 1], key=k) for k in range(3)], PairRule())),
            r"candidates: no pair is left of 3 prompts \(identical 3\); draw more candidates, or at",
        ),
        (lambda: require_pairs(make_pairs([], PairRule())), r"candidates: there are no prompts to make pairs of"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(PairingError, match=message):
        make()


def test_preferences_with_a_row_pass() -> None:
    made = make_pairs([candidates("ab", [1, 0])], PairRule())
    assert require_pairs(made) is made
