"""How a policy sees the pairs that it is trained on: implicit rewards, accuracy, displacement."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from objectives.base import Objective, shares
from objectives.batch import PairLogProbs
from objectives.margin_base import dpo_reward

Array = Any
LEVEL = 1e-12  # relative difference of rewards that are called equal


def pair_metrics(
    objective: Objective, batch: PairLogProbs, weights: Array | None = None, *, beta: float = 1.0
) -> dict[str, Array]:
    """Weighted means over the pairs, one value per leading index; the batch needs reference log-probabilities.

    chosen_reward, rejected_reward: the objective's own implicit reward; reward_accuracy: share of pairs whose own
    chosen reward is higher (a tie counts 1/2, also one up to rounding); dpo_chosen_reward, dpo_rejected_reward:
    beta log pi/ref; chosen_displacement, rejected_displacement: log pi - log ref in nats (likelihood displacement is a
    negative chosen_displacement: Razin et al. 2024, arXiv:2410.08847).

    Raises: BatchError for a field that the batch lacks, and for weights of another shape.
    """
    xp = array_namespace(batch.policy_chosen)
    chosen, rejected = objective.implicit_reward(batch)
    gap = chosen - rejected
    # rewards that differ by rounding alone are level: at the reference every reward is 0 but for its last bits
    gap = xp.where(xp.abs(gap) <= LEVEL * (1.0 + xp.abs(chosen)), xp.zeros_like(gap), gap)
    dpo_chosen, dpo_rejected = dpo_reward(batch, beta)
    up, down = dpo_reward(batch, 1.0)
    columns = {
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "reward_accuracy": 0.5 * (1.0 + xp.sign(gap)),
        "dpo_chosen_reward": dpo_chosen,
        "dpo_rejected_reward": dpo_rejected,
        "chosen_displacement": up,
        "rejected_displacement": down,
    }
    share = shares(batch, weights)
    return {name: xp.sum(share * column, axis=-1) for name, column in columns.items()}
