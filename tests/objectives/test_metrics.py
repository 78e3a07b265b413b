"""How a policy sees its pairs: by hand on every array library, ties, independent runs, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from objectives import BatchError, PairLogProbs, make_objective
from objectives.metrics import pair_metrics


def test_weighted_means_by_hand(xp, two_pairs):
    """Log-ratios 1/2 and -1/4 with share 3/4, -1 and 1 with share 1/4."""
    weights = xp.array([3.0, 1.0], dtype=xp.namespace.float64)
    found = pair_metrics(make_objective("dpo", beta=2.0), xp.batch(two_pairs), weights, beta=4.0)
    expected = {
        "chosen_reward": 0.25, "rejected_reward": 0.125, "reward_accuracy": 0.75, "dpo_chosen_reward": 0.5,
        "dpo_rejected_reward": 0.25, "chosen_displacement": 0.125, "rejected_displacement": 0.0625,
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(xp.numpy(found[name]), value, rtol=1e-14, err_msg=name)


def test_the_objectives_own_reward_decides_the_accuracy(xp, two_pairs):
    """SimPO's 2 log pi / length: -2 against -3/2, and -2 against -2, a tie."""
    found = pair_metrics(make_objective("simpo", beta=2.0), xp.batch(two_pairs))
    np.testing.assert_allclose(xp.numpy(found["chosen_reward"]), -2.0, rtol=1e-14)
    np.testing.assert_allclose(xp.numpy(found["rejected_reward"]), -1.75, rtol=1e-14)
    np.testing.assert_allclose(xp.numpy(found["reward_accuracy"]), 0.25, rtol=1e-14)
    np.testing.assert_allclose(xp.numpy(found["chosen_displacement"]), -0.25, rtol=1e-14)


def test_rewards_that_differ_by_rounding_are_level(xp, two_pairs):
    level = {**two_pairs, "reference_chosen": [-2.0 - 4e-16, -4.0], "reference_rejected": [-3.0, -1.0 - 2e-16]}
    found = pair_metrics(make_objective("dpo", beta=1.0), xp.batch(level))
    assert float(found["chosen_displacement"]) > 0.0
    assert float(found["reward_accuracy"]) == 0.5


def test_runs_do_not_mix(random_fields):
    fields = random_fields((3, 5), 1)
    weights = np.random.default_rng(2).uniform(0.1, 1.0, (3, 5))
    objective = make_objective("dpo", beta=0.3)
    together = pair_metrics(objective, PairLogProbs(**fields), weights)
    for run in range(3):
        alone = pair_metrics(objective, PairLogProbs(**{k: v[run] for k, v in fields.items()}), weights[run])
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][run], value, rtol=1e-12)


def test_a_missing_reference_is_an_error():
    batch = PairLogProbs(
        policy_chosen=np.array([-1.0]), policy_rejected=np.array([-2.0]),
        chosen_length=np.array([1]), rejected_length=np.array([1]),
    )  # fmt: skip
    with pytest.raises(BatchError, match="needs reference_chosen"):
        pair_metrics(make_objective("simpo"), batch)
