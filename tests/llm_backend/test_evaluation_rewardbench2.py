"""RewardBench 2: its format, best of 4, the Ties score by hand and against a plain loop, and the average."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from llm_backend.data import DataError
from llm_backend.evaluation import (
    DataChoice,
    EvaluationError,
    Measured,
    TokenSet,
    read_sets,
    rewardbench2_metrics,
    rewardbench2_sets,
)
from llm_backend.evaluation.rewardbench2 import SUBSETS
from llm_backend.evaluation.ties import WEIGHTS, TieScores


def record(subset="Math", chosen=("right",), rejected=("w1", "w2", "w3"), name="17", **more):
    return {
        "id": name,
        "prompt": "Why?",
        "chosen": list(chosen),
        "rejected": list(rejected),
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "subset": subset,
    } | more


def row(place, subset, scores, right=1, name=""):
    each = TokenSet(place, [1], [[2]] * len(scores), tuple(range(right)), subset, name, str(place))
    return each, np.array(scores, dtype=float)


def measured(rows):
    starts = np.concatenate([[0], np.cumsum([len(scores) for _, scores in rows])])
    return [each for each, _ in rows], Measured({"log_prob": np.concatenate([scores for _, scores in rows])}, starts)


def metrics_of(rows):
    return {(m.group, m.name): m for m in rewardbench2_metrics(*measured(rows))}


def test_the_published_format() -> None:
    sets = rewardbench2_sets([record(), record("Ties", ("a", "b"), ("c",), "tied:3"), record("precise if")], "here")
    assert [each.group for each in sets] == ["Math", "Ties", "Precise IF"]
    assert sets[1].responses == ("a", "b", "c")
    assert (sets[1].best, sets[1].name) == ((0, 1), "tied:3")
    chat = rewardbench2_sets([record()], "here", chat=True)[0]
    assert chat.prompt == [{"role": "user", "content": "Why?"}]
    assert chat.responses[0] == [{"role": "assistant", "content": "right"}]


def test_the_rows_on_the_page_are_of_the_format(tmp_path: Path) -> None:
    """Read as `prefgeo evaluate` reads them, and scored: a policy that likes what is right gets everything."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```jsonl\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "rows.jsonl").write_text(example, encoding="utf-8")
    kind, sets = read_sets(str(tmp_path / "rows.jsonl"), DataChoice())
    assert (kind, [each.name for each in sets]) == ("rewardbench2", ["17", "ref:1", "tied:1"])
    scored = []
    for place, each in enumerate(sets):
        right = [1.0 + 0.1 * k for k in range(len(each.best))]
        scores = right + [0.0] * (len(each.responses) - len(each.best))
        scored.append(row(place, each.group, scores, right=len(each.best), name=each.name))
    found = metrics_of(scored)
    assert found["Math", "best_of_n"].value == 1.0
    assert found["Ties", "score"].value == pytest.approx(1.0 + 0.01 * math.tanh(1.0 / 0.2 - 1.0), rel=1e-12)
    assert found["all", "partial_average"].value == pytest.approx((1.0 + found["Ties", "score"].value) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"chosen": "right"}, r"here: row 1: chosen must be a list of one or more texts, got 'right'"),
        ({"subset": "Maths"}, r"unknown subset 'Maths'. Did you mean 'Math'\? Known: Factuality, Precise IF"),
        ({"num_correct": 2}, r"row 1: num_correct is 2, but chosen and rejected hold 1"),
        ({"chosen": ["a", "b"], "num_correct": 2, "total_completions": 5}, r"a row of Math has one right response"),
        ({"prompt": None}, r"prompt must be text, got None"),
        ({"subset": "Ties", "id": "3"}, r"the id of a row of Ties is ref:NUMBER or tied:NUMBER, got '3'"),
    ],
)
def test_rows_that_are_not_of_the_format(bad, message) -> None:
    with pytest.raises(DataError, match=message):
        rewardbench2_sets([record(), record() | bad], "here")


def test_a_missing_column() -> None:
    with pytest.raises(DataError, match="here has no column 'subset', so it is not RewardBench 2; it has id, prompt"):
        rewardbench2_sets([{key: value for key, value in record().items() if key != "subset"}], "here")


def test_best_of_four_and_the_partial_average() -> None:
    rows = [
        row(0, "Math", [5, 1, 2, 3]),
        row(1, "Math", [5, 5, 5, 3]),  # shared by three
        row(2, "Math", [1, 2, 0, 0]),
        row(3, "Focus", [9, 1, 2, 3]),
    ]
    found = metrics_of(rows)
    assert found["Math", "best_of_n"].value == pytest.approx((1 + 1 / 3) / 3)
    assert (found["Math", "best_of_n"].ties, found["Math", "best_of_n"].n) == (1, 3)
    assert found["all", "partial_average"].value == pytest.approx((4 / 9 + 1) / 2)
    assert ("all", "average") not in found


TIED = [
    # prompt 1: right 5, 4, wrong 1: spread 1, gap 3; its reference: gap 1.5
    row(0, "Ties", [5, 4, 1], 2, "tied:1"),
    row(1, "Ties", [2.5, 1, 0], 1, "ref:1"),
    # prompt 2: spread 3, gap 1; its reference: wrong, gap -1
    row(2, "Ties", [5, 2, 1], 2, "tied:2"),
    row(3, "Ties", [0, 1], 1, "ref:2"),
]


def test_ties_by_hand() -> None:
    found = metrics_of(TIED)
    parts = {name: found["Ties", name].value for name in ("tied_accuracy", "ref_accuracy")}
    assert parts == {"tied_accuracy": 1.0, "ref_accuracy": 0.5}
    assert found["Ties", "correctness_preferred"].value == 0.5  # 3 > 1; 1 < 3
    assert found["Ties", "correctness_preferred_hard"].value == 0.5  # min(1.5, 3) > 1; min(-1, 1) < 3
    term = (math.tanh(1.5 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    assert found["Ties", "margin_term"].value == pytest.approx(term, rel=1e-12)
    expected = 0.3 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * term
    assert found["Ties", "score"].value == pytest.approx(expected, rel=1e-12)
    assert found["Ties", "score"].low <= expected <= found["Ties", "score"].high


def test_ties_against_a_plain_loop() -> None:
    """30 prompts, some of them without a reference row or with nothing but ties."""
    rng, rows = np.random.default_rng(3), []
    for number in range(30):
        right = int(rng.integers(2, 6))
        scores = (
            np.zeros(right + 4) if number == 4 else rng.normal(size=right + 4) + 2.0 * (np.arange(right + 4) < right)
        )
        rows.append(row(2 * number, "Ties", scores, right, f"tied:{number}"))
        if number % 5:
            rows.append(row(2 * number + 1, "Ties", rng.normal(size=5) + 2.0 * (np.arange(5) < 1), 1, f"ref:{number}"))
    stats = {
        each.name: (s[: len(each.best)].min() - s[len(each.best) :].max(), np.ptp(s[: len(each.best)]))
        for each, s in rows
    }
    gaps = {kind: [gap for name, (gap, _) in stats.items() if name.startswith(kind)] for kind in ("ref", "tied")}
    both = [n for n in range(30) if f"ref:{n}" in stats]
    hard = [min(stats[f"ref:{n}"][0], stats[f"tied:{n}"][0]) for n in both]
    spread = [stats[f"tied:{n}"][1] for n in both]
    terms = [
        np.mean([gap > 0 for gap in gaps["tied"]]),
        np.mean([gap > 0 for gap in gaps["ref"]]),
        np.mean([stats[f"tied:{n}"][0] > stats[f"tied:{n}"][1] for n in both]),
        np.mean([h > s for h, s in zip(hard, spread, strict=True)]),
        np.mean(
            [
                0.0 if h == s == 0 else (math.copysign(1, h) if s == 0 else math.tanh(h / s - 1))
                for h, s in zip(hard, spread, strict=True)
            ]
        ),
    ]
    ties = TieScores.of(rows)
    np.testing.assert_allclose(ties.means, terms, rtol=1e-12)
    np.testing.assert_allclose(ties.per_prompt.mean(), WEIGHTS @ terms, rtol=1e-12)
    assert metrics_of(rows)["Ties", "score"].ties == 1


def test_ties_do_not_depend_on_the_order_of_rows_or_on_the_scale_of_rewards() -> None:
    first = TieScores.of(TIED).means
    np.testing.assert_allclose(TieScores.of(TIED[::-1]).means, first, rtol=1e-12)
    scaled = [(each, 0.1 * scores - 7.0) for each, scores in TIED]
    np.testing.assert_allclose(TieScores.of(scaled).means, first, rtol=1e-12)


def test_the_interval_of_ties_covers_as_often_as_it_says() -> None:
    """400 samples of 40 prompts: 95 % +- 3 sd of the simulation. A plain t interval would do; a point would not."""
    rng, covered = np.random.default_rng(0), 0
    truth = 0.3 * 0.6 + 0.3 * 0.5 + 0.2 * 0.6 + 0.2 * 0.3  # P of each term; the margin term is 0
    for _ in range(400):
        tied, ref = rng.random(40) < 0.6, rng.random(40) < 0.5
        terms = np.stack([tied, ref, tied, tied & ref, np.zeros(40)]).astype(float)
        low, high = TieScores(terms, 80, 0).interval()
        covered += low <= truth <= high
    assert 0.95 - 3 * 0.011 < covered / 400 <= 1.0


def test_prompts_that_agree_leave_uncertainty() -> None:
    ties = TieScores(np.array([[1.0] * 10] * 4 + [[0.0] * 10]), 20, 0)
    low, high = ties.interval()
    assert high == pytest.approx(1.0, abs=0.15)
    assert low < 0.8


def test_the_average_weighs_subsets_alike() -> None:
    rows = [row(k, subset, [1, 0]) for k, subset in enumerate(SUBSETS[:4])] + TIED
    rows += [row(100 + k, "Focus", [0, 1]) for k in range(50)]
    found = metrics_of(rows)
    assert found["all", "average"].value == pytest.approx((4 + 0 + found["Ties", "score"].value) / 6)
    parts = [found[subset, "score" if subset == "Ties" else "best_of_n"] for subset in SUBSETS]
    below = np.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / 6
    assert found["all", "average"].low == pytest.approx(found["all", "average"].value - below, rel=1e-12)
    assert found["all", "average"].high > found["all", "average"].value


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*TIED, TIED[0]], "the id 'tied:1' of Ties comes twice"),
        ([row(9, "Ties", [1, 0], 1, "tied:9")], r"row 9 \('tied:9'\) of Ties needs two right answers or more, has one"),
        (TIED[:1], "no prompt of Ties has both its rows"),
    ],
)
def test_ties_that_have_no_score(rows, message) -> None:
    with pytest.raises(EvaluationError, match=message):
        TieScores.of(rows)
