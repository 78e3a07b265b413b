"""How far AuxDPO's ``dual`` gets in some epochs when prompts take turns: distance to the exact answer by ``every``.

    python benchmarks/auxdpo_turns.py [--seeds N] [--prompts N]

Random log-linear problems with three responses a prompt, every pair compared with soft labels, batches of 6 comparisons
in random order, theta and delta by stochastic descent. The exact answer is theta_loc (``geometry.rlhf_local``); printed
is |theta - theta_loc| over |theta0 - theta_loc|, the geometric mean over seeds, for the best of four settings (rate of
theta, penalty in units of 1 / (rate of delta * curvature)) of each ``every`` after each number of epochs.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch
from report import publish

from bandits.preference_pairs import PreferencePairs
from bandits.responses import Responses
from bandits.worlds.random_problems import RandomLogLinear
from geometry.problem import Problem
from geometry.rlhf import rlhf_local
from llm_backend.auxiliary import AuxiliaryOptions, ReferenceScores
from llm_backend.auxiliary.finite import train_auxdpo
from llm_backend.errors import BackendError
from llm_backend.finite import FinitePolicy

EPOCHS, EVERY, BATCH, RATE = (3, 10, 30), (1, 2, 3, 4), 6, 0.3
GRID = tuple(itertools.product((0.3, 1.0), (0.3, 1.0)))


def main() -> None:
    """Train with each ``every`` and publish the distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problems = [RandomLogLinear(seed=s, prompts=given.prompts, responses=3, features=10).build()
                for s in range(given.seeds)]  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for every in EVERY:
        logs = np.array([
            [[np.log(distance(problem, every, *setting, epochs)) for epochs in EPOCHS] for problem in problems]
            for setting in GRID
        ])  # fmt: skip
        best = np.exp(logs.mean(axis=1).min(axis=0))
        found[f"every_{every}"] = {f"epochs_{e}": float(f"{value:.2g}") for e, value in zip(EPOCHS, best, strict=True)}
    publish("auxdpo_turns", {**vars(given), "distance": found})


def distance(problem: Problem, every: int, rate: float, penalty: float, epochs: int) -> float:
    """Relative distance of theta to theta_loc after training; infinite where it diverges."""
    data, p = problem.comparisons, problem.preference
    first, second = np.concatenate([data.first, data.second]), np.concatenate([data.second, data.first])
    weights = np.concatenate([data.count * p, data.count * (1 - p)])
    pairs = PreferencePairs(chosen=Responses(first[None]), rejected=Responses(second[None]), weights=weights[None])
    policy = FinitePolicy(problem.layout.sizes, problem.reference_theta, problem.policy.features)
    n = data.n_comparisons

    def order(epoch: int) -> np.ndarray:
        drawn = np.random.default_rng(epoch).permutation(n)  # both directions of a comparison, one after the other
        return np.stack([drawn, drawn + n], axis=1).reshape(1, -1)

    options = AuxiliaryOptions(
        penalty=penalty / (RATE * stiffness(problem)), dual_every=0, learning_rate=RATE, optimiser="sgd", every=every
    )
    try:
        run = train_auxdpo(
            policy, pairs, beta=problem.beta, options=options, learning_rate=rate, steps=epochs * -(-n // BATCH),
            momentum=0.5, prompt_weights=torch.as_tensor(problem.prompt_distribution), batch_size=2 * BATCH,
            order=order,
        )  # fmt: skip
    except BackendError:
        return float("inf")
    wanted = rlhf_local(problem).theta
    return float(np.linalg.norm(run.theta - wanted) / np.linalg.norm(problem.reference_theta - wanted))


def stiffness(problem: Problem) -> float:
    """Largest eigenvalue of the curvature that the constraint's steps see."""
    policy = FinitePolicy(problem.layout.sizes, problem.reference_theta, problem.policy.features)
    scores = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices])  # type: ignore[operator]
    rows, data = scores.rows(torch.arange(problem.layout.n_pairs)).numpy(), problem.comparisons
    count = np.bincount(data.first, data.count, len(rows)) + np.bincount(data.second, data.count, len(rows))
    weights = problem.pair_prompt_weight * np.exp(problem.log_reference)
    return float(np.linalg.eigvalsh((rows.T * (weights**2 * data.total / count)) @ rows)[-1])


if __name__ == "__main__":
    main()
