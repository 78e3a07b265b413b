"""Rankers without a model of their own: the policy itself, a gold reward; and the check of all scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_backend.data.rows import PreferenceRow  # noqa: E402
from llm_backend.generation import Response  # noqa: E402
from llm_backend.log_probs import response_log_probs  # noqa: E402
from llm_backend.ranking import (  # noqa: E402
    GoldRanker,
    RankingError,
    SelfJudgeRanker,
    SelfRewardRanker,
    checked_scores,
)
from llm_backend.ranking.self_reward import read_points  # noqa: E402
from llm_backend.tokenization import tokenize_preferences  # noqa: E402
from llm_backend.toy import make_model  # noqa: E402
from tests.llm_backend.cat_and_dog import CANDIDATES, CHAT, PROMPTS, TOKENIZER  # noqa: E402


# --------------------------------------------------------------------------------------------------------- self reward
@pytest.mark.parametrize("prompts", [PROMPTS, CHAT], ids=["text", "chat"])
def test_the_implicit_reward_is_that_of_training_rows(prompts) -> None:
    """beta (log pi - log ref) of the tokens that tokenisation for training gives."""
    from llm_backend.batching import Collator

    policy, reference = (make_model(len(TOKENIZER), seed).double().eval() for seed in (1, 2))
    found = SelfRewardRanker(policy, reference, TOKENIZER, beta=0.5).scores(prompts, CANDIDATES)
    for row, prompt in enumerate(prompts):
        several = CANDIDATES[row]
        answers = [[{"role": "assistant", "content": text}] for text in several] if prompts is CHAT else several
        rows = tokenize_preferences([PreferenceRow(0, prompt, answers[0], answers[k]) for k in (1, 2)], TOKENIZER)
        batch = Collator(("chosen", "rejected"), 0)(list(rows.dataset))
        with torch.no_grad():
            log_p, log_q = (response_log_probs(model, batch).log_probs for model in (policy, reference))
        for side, places in (("chosen", (0, 0)), ("rejected", (1, 2))):
            expected = 0.5 * (log_p[side] - log_q[side]).numpy()
            np.testing.assert_allclose(found[row, list(places)], expected, rtol=1e-9)
    assert np.ptp(found) > 0.01
    with pytest.raises(RankingError, match="beta must be above 0, got 0"):
        SelfRewardRanker(policy, reference, TOKENIZER, beta=0.0)


class Recorded:
    """A generator that answers by rule, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, prompts, sampling, *, seed, keys=None):
        self.asked += zip(prompts, keys, strict=True)
        return [[Response(text, (1,), True) for text in self.answers(prompt)] for prompt in prompts]


def test_a_self_judge_averages_points_and_guesses_nothing() -> None:
    def answers(prompt):
        text = prompt if isinstance(prompt, str) else prompt[0]["content"]
        if " ran\n" in text:
            return ["no idea", "Score: 12"]
        return ["fine\nScore: 4", "Score: 3.5"] if " sat\n" in text else ["Score: 1", "Score: 5/5"]

    for prompts in (PROMPTS, CHAT):
        generator = Recorded(answers)
        ranker = SelfJudgeRanker(generator)
        found = checked_scores(ranker, prompts, CANDIDATES)
        np.testing.assert_array_equal(found, [[1.0, np.nan, 3.75], [1.0, 1.0, 1.0]])
        assert ranker.counts == {"answers": 12, "malformed": 6, "no_verdict": 1}
        assert len({key for _, key in generator.asked}) == 6
        assert all(isinstance(prompt, str) == isinstance(prompts[0], str) for prompt, _ in generator.asked)
        again = Recorded(answers)
        SelfJudgeRanker(again).scores(prompts[1:], CANDIDATES[1:])
        assert again.asked == generator.asked[3:]  # keys depend on the texts, so that a part draws the same
    with pytest.raises(RankingError, match=r"must have \{response\} once, not 0 times"):
        SelfJudgeRanker(Recorded(answers), template="{prompt}")


@pytest.mark.parametrize(
    ("answer", "points"),
    [("Score: 3", 3.0), ("x Score: 2.5.", 2.5), ("Score: 3\nScore: 3", 3.0), ("Score: 0", 0.0)]
    + [(text, None) for text in ("Score: 6", "Score: -1", "Score: 3/5", "Score: 4.5/5", "Score: 3 Score: 4", "3", "")],
)
def test_reading_points(answer, points) -> None:
    assert read_points(answer) == points


# ------------------------------------------------------------------------------------------------ gold, checked scores
def test_a_gold_reward_is_the_function() -> None:
    ranker = GoldRanker(lambda prompt, response: len(response) - len(prompt), name="length")
    np.testing.assert_array_equal(checked_scores(ranker, ["ab", "c"], [["abc", ""], ["d", "ef"]]), [[1, -2], [0, 1]])
    with pytest.raises(RankingError, match="gold returned None for candidate 0 of row 1; a reward is a number"):
        GoldRanker(lambda prompt, response: None if prompt == "c" else 1.0).scores(["ab", "c"], [["a"], ["b"]])


class Fixed:
    """Returns what it was made with."""

    name = "fixed"

    def __init__(self, returned):
        self.returned = returned

    def scores(self, prompts, candidates):
        return self.returned


class Counting(Fixed):
    counts = {"no_verdict": 1}  # noqa: RUF012


def test_scores_are_checked() -> None:
    rows = [["a", "b"], ["c", "d"]]
    nan, inf = float("nan"), float("inf")
    for ranker, message in (
        (Fixed(np.zeros((2, 3))), r"fixed returned scores of shape \(2, 3\) for 2 prompts with 2 candidates each"),
        (Fixed(np.zeros(4)), r"fixed returned scores of shape \(4,\) .*; a ranker returns one score .* shape \(2, 2\)"),
        (Fixed([[1, 2], [3]]), "fixed returned scores that are no array of numbers"),
        (Fixed("no"), "fixed returned scores that are no array of numbers: 'no'"),
        (Fixed([[1, 2], [nan, nan]]), "fixed gave candidate 0 of row 1 the score nan; 2 of 4 scores are not finite"),
        (Fixed([[1, inf], [0, 0]]), "fixed gave candidate 1 of row 0 the score inf; 1 of 4"),
        (Counting([[1, -inf], [0, nan]]), "fixed gave candidate 1 of row 0 the score -inf; 1 of 4"),
    ):
        with pytest.raises(RankingError, match=message):
            checked_scores(ranker, ["p", "q"], rows)
    assert np.isnan(checked_scores(Counting([[1, nan], [0, 0]]), ["p", "q"], rows)).sum() == 1
    assert json.loads(json.dumps(checked_scores(Fixed([[1, 2], [3, 4]]), ["p", "q"], rows).tolist())) == [
        [1, 2],
        [3, 4],
    ]
    with pytest.raises(RankingError, match="fixed was given 1 prompts but 2 rows of candidates"):
        checked_scores(Fixed([]), ["p"], rows)
    with pytest.raises(RankingError, match="row 0 has 2 candidates but row 1 has 1"):
        checked_scores(Fixed([]), ["p", "q"], [["a", "b"], ["c"]])
