"""Exact metrics against sums written out, against sampling, and what pairs look like to a policy."""

from __future__ import annotations

import numpy as np
import pytest

from bandits.blocks import block_log_softmax
from bandits.errors import SimulationError
from bandits.judge import Judge, value_against
from bandits.metrics import BanditMetrics
from geometry.pairs import PairLayout

LAYOUT = PairLayout.from_sizes([2, 3])
RHO = np.array([0.25, 0.75])


def policies(seed, runs=2):
    return block_log_softmax(LAYOUT, np.random.default_rng(seed).normal(size=(runs, 5)))


def test_all_metrics_by_loops():
    log_pi, log_base = policies(0), policies(1)
    rng = np.random.default_rng(2)
    gold, length = rng.integers(0, 3, size=(2, 5)).astype(float), rng.integers(1, 9, size=(1, 5)).astype(float)
    judge = Judge(temperature=0.5, verbosity=0.5)
    odd = (np.arange(5) % 2 == 1)[None]
    metrics = BanditMetrics.of(
        LAYOUT, gold, log_base, prompt_distribution=RHO, judge=judge, length=length, classes={"odd": odd}
    )
    found = metrics(log_pi)
    for run in range(2):
        expected = dict.fromkeys(found, 0.0)
        for prompt, arms in ((0, (0, 1)), (1, (2, 3, 4))):
            for y in arms:
                p = RHO[prompt] * np.exp(log_pi[run, y])
                expected["expected_reward"] += p * gold[run, y]
                expected["mean_length"] += p * length[0, y]
                expected["entropy"] -= p * log_pi[run, y]
                expected["kl"] += p * (log_pi[run, y] - log_base[run, y])
                expected["mass_odd"] += p * odd[0, y]
                for other in arms:
                    q = p * np.exp(log_base[run, other])
                    margin = (gold[run, y] - gold[run, other]) / 0.5
                    tilt = 0.5 * np.tanh((length[0, y] - length[0, other]) / 10.0)
                    expected["win_rate"] += q / (1.0 + np.exp(-margin - tilt))
                    expected["lc_win_rate"] += q / (1.0 + np.exp(-margin))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][run], value, rtol=1e-12, err_msg=name)


def test_a_win_rate_counts_ties_one_half_and_is_one_half_against_oneself():
    gold = np.array([[1.0, 1.0, 0.0, 2.0, 2.0]])
    log_pi = np.log(np.array([[0.5, 0.5, 0.25, 0.25, 0.5]]))
    value = value_against(LAYOUT, Judge(), log_pi, gold)
    np.testing.assert_allclose(value, [[0.5, 0.5, 0.125, 0.625, 0.625]], rtol=1e-14)  # .25/2; .25 + .75/2
    for judge in (Judge(), Judge(temperature=0.3)):
        own = BanditMetrics.of(LAYOUT, gold, log_pi, judge=judge)(log_pi)
        np.testing.assert_allclose(own["win_rate"], 0.5, rtol=1e-13)
        np.testing.assert_allclose(own["kl"], 0.0, atol=1e-15)


def test_the_win_rate_is_that_of_samples():
    """200,000 independent draws; the tolerance is 4 standard errors."""
    log_pi, log_base, gold = policies(3, 1), policies(4, 1), np.random.default_rng(5).normal(size=(1, 5))
    exact = BanditMetrics.of(LAYOUT, gold, log_base, prompt_distribution=RHO)(log_pi)["win_rate"][0]
    rng, n = np.random.default_rng(6), 200_000
    prompts = rng.choice(2, size=n, p=RHO)
    score = np.zeros(n)
    for prompt, arms in ((0, np.arange(2)), (1, np.arange(2, 5))):
        where = np.flatnonzero(prompts == prompt)
        mine = rng.choice(arms, size=where.size, p=np.exp(log_pi[0, arms]))
        theirs = rng.choice(arms, size=where.size, p=np.exp(log_base[0, arms]))
        score[where] = 0.5 * (1 + np.sign(gold[0, mine] - gold[0, theirs]))
    assert abs(score.mean() - exact) < 4 * score.std() / np.sqrt(n)


def test_bad_judges_say_what_is_wrong():
    with pytest.raises(SimulationError, match="temperature must be > 0"):
        Judge(temperature=0.0)
    with pytest.raises(SimulationError, match="give a temperature as well"):
        Judge(verbosity=0.5)
