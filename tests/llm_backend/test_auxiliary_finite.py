"""Every mode of AuxDPO on finite policies against the geometry's exact answers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bandits.preference_pairs import PreferencePairs  # noqa: E402
from bandits.responses import Responses  # noqa: E402
from bandits.worlds.prop2 import Prop2  # noqa: E402
from bandits.worlds.random_problems import RandomLogLinear, RandomQuadratic  # noqa: E402
from geometry.auxdpo import auxdpo  # noqa: E402
from geometry.penalised import auxdpo_penalised, untied_penalised  # noqa: E402
from geometry.projection import dpo  # noqa: E402
from geometry.rlhf import rlhf_local  # noqa: E402
from llm_backend.auxiliary import (  # noqa: E402
    Auxiliary,
    AuxiliaryError,
    AuxiliaryOptions,
    ReferenceScores,
    Slots,
    largest_curvature,
    reference_weights,
    rows_of,
)
from llm_backend.auxiliary.finite import train_auxdpo  # noqa: E402
from llm_backend.finite import FinitePolicy  # noqa: E402
from objectives import PairLogProbs, make_objective  # noqa: E402

SETTLED = 1e-6  # first-order descent, a few hundred steps


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def population(problem):
    """Two rows for each comparison, (a, b) with weight n p and (b, a) with weight n (1 - p): the population loss."""
    data, p = problem.comparisons, problem.preference
    first, second = np.concatenate([data.first, data.second]), np.concatenate([data.second, data.first])
    weights = np.concatenate([data.count * p, data.count * (1 - p)])
    return PreferencePairs(chosen=Responses(first[None]), rejected=Responses(second[None]), weights=weights[None])


def torch_policy(problem):
    return FinitePolicy(problem.layout.sizes, problem.reference_theta, problem.policy.features)


def stiffness(problem):
    """Largest eigenvalue that the constraint's steps see: the scale of the penalty."""
    scores = ReferenceScores(torch_policy(problem), lambda p, choices: p.log_choices()[0, choices])
    rows, data = scores.rows(torch.arange(problem.layout.n_pairs)).numpy(), problem.comparisons
    count = np.bincount(data.first, data.count, len(rows)) + np.bincount(data.second, data.count, len(rows))
    weights = problem.pair_prompt_weight * np.exp(problem.log_reference)
    return float(np.linalg.eigvalsh((rows.T * (weights**2 * data.total / count)) @ rows)[-1])


def fit(problem, mode, *, steps=400, rate=1.0, delta_rate=1.0, pairs=None, **keywords):
    options = {k: keywords.pop(k) for k in ("penalty", "dual_every", "ridge", "gauge", "every") if k in keywords}
    if mode == "dual":
        scale = delta_rate * stiffness(problem)
        options = {"penalty": 1.0 / scale, "dual_every": 200, "every": 1} | options
    if "prompt_weights" not in keywords and keywords.get("weights", "D") == "D" and keywords.get("tied", True):
        keywords["prompt_weights"] = torch.as_tensor(problem.prompt_distribution)
    return train_auxdpo(
        torch_policy(problem),
        population(problem) if pairs is None else pairs,
        beta=problem.beta,
        options=AuxiliaryOptions(mode=mode, learning_rate=delta_rate, optimiser="sgd", momentum=0.8, **options),
        learning_rate=rate / problem.beta**2,  # in units of beta theta the loss does not know beta
        steps=steps,
        momentum=0.9,
        **keywords,
    )


@pytest.mark.parametrize("mode", ["dual", "exact"])
@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_proposition_2_is_repaired(mode, beta) -> None:
    """theta_aux = -1 / (2 beta) whatever the counts; DPO goes to +0.4006 / beta. AuxDPO, Prop. 2 and 9."""
    problem = Prop2(n31=10.0, beta=beta).build()
    found = fit(problem, mode, steps=600 if mode == "dual" else 400)
    assert found.theta[0] == pytest.approx(-0.5 / beta, rel=SETTLED)
    assert found.residual_norm < 1e-6
    assert found.report.reachable == (1, 1) and found.report.verdict == "partly free"
    margins = found.delta - found.delta.mean()
    np.testing.assert_allclose(margins, [0.5, 0.5, -1.0], rtol=1e-5)
    assert float(dpo(problem).theta[0]) > 0.4 / beta


@pytest.mark.parametrize("mode", ["dual", "exact"])
@pytest.mark.parametrize("seed", range(3))
def test_random_problems_reach_theta_loc(mode, seed) -> None:
    problem = RandomLogLinear(seed=seed, features=3, max_responses=5 if seed == 2 else 0).build()
    found = fit(problem, mode, steps=600 if mode == "dual" else 400)
    wanted = rlhf_local(problem).theta
    np.testing.assert_allclose(found.theta, wanted, rtol=0, atol=SETTLED)
    assert found.residual_norm < 1e-7
    assert np.linalg.norm(dpo(problem).theta - wanted) > 0.01  # there is something to repair
    assert found.losses[-1] < found.losses[0]


def test_minibatches_reach_theta_loc_too() -> None:
    """Small batches in random order that hold both directions of a comparison, so that the noise dies out."""
    problem = RandomLogLinear(seed=0, features=3).build()
    n = problem.comparisons.n_comparisons

    def order(epoch):
        drawn = np.random.default_rng(epoch).permutation(n)
        return np.stack([drawn, drawn + n], axis=1).reshape(1, -1)

    found = fit(problem, "dual", steps=600, rate=0.3, delta_rate=0.5, batch_size=12, order=order, dual_every=0)
    np.testing.assert_allclose(found.theta, rlhf_local(problem).theta, rtol=0, atol=1e-4)
    assert found.residual_norm < 1e-5


def test_moving_delta_on_every_third_step_changes_nothing_but_the_time() -> None:
    """One prompt: its turn is every third step."""
    problem = Prop2(n31=10.0).build()
    found = fit(problem, "dual", steps=1500, every=3, dual_every=600)
    assert found.theta[0] == pytest.approx(-0.5, rel=SETTLED)
    assert (found.scores.n_pull, found.scores.n_push) == (500, 499)  # before the first move c = y = 0


@pytest.mark.parametrize("seed", [0, 2])
def test_random_problems_reach_theta_loc_when_prompts_take_turns(seed) -> None:
    """The default: each prompt on every fourth step, in turn. Half the penalty, as turns and momentum add up."""
    problem = RandomLogLinear(seed=seed, features=3, max_responses=5 if seed == 2 else 0).build()
    found = fit(problem, "dual", steps=1600, every=None, dual_every=800, penalty=0.5 / stiffness(problem))
    # a quarter of the moves: what is left falls with the number of steps
    np.testing.assert_allclose(found.theta, rlhf_local(problem).theta, rtol=0, atol=1e-4)
    assert found.residual_norm < 1e-5
    visits = found.auxiliary.turns.visits
    assert found.auxiliary.options.period == 4 and visits.tolist() == [1600] * problem.layout.n_prompts


def test_the_dual_vector_is_needed_where_the_loss_pulls_against_the_constraint() -> None:
    """With a ridge the constraint has a price (y != 0): dual reaches the constrained optimum, a penalty alone not."""
    problem = RandomLogLinear(seed=2, features=3).build()
    ridge = 0.02
    wanted = fit(problem, "exact", ridge=ridge, steps=700)
    penalty = 2.0 / stiffness(problem)
    found = fit(problem, "dual", ridge=ridge, steps=1300, penalty=penalty, dual_every=50)
    np.testing.assert_allclose(found.theta, wanted.theta, rtol=0, atol=SETTLED)
    np.testing.assert_allclose(found.delta, wanted.delta, rtol=0, atol=10 * SETTLED)
    alone = fit(problem, "dual", ridge=ridge, steps=300, penalty=penalty, dual_every=0)
    assert np.abs(alone.theta - wanted.theta).max() > 1e-2
    assert alone.residual_norm > 1e3 * found.residual_norm
    huge = auxdpo_penalised(problem, lam_null=1e7, lam_amp=ridge)  # the geometry's penalty, so large that it binds
    np.testing.assert_allclose(wanted.theta, huge.theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["batch_penalty", "cross_batch"])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_penalties_on_the_full_batch_are_the_geometrys(mode, ridge) -> None:
    problem = RandomLogLinear(seed=3, features=2).build()
    scale = stiffness(problem)
    found = fit(problem, mode, penalty=1.0 / scale, ridge=ridge, steps=500)
    wanted = auxdpo_penalised(problem, lam_null=1.0 / scale, lam_amp=ridge)
    np.testing.assert_allclose(found.theta, wanted.theta, rtol=0, atol=SETTLED)
    if ridge == 0.0:  # the loss and the penalty reach their minima together: any penalty gives theta_loc
        np.testing.assert_allclose(found.theta, rlhf_local(problem).theta, rtol=0, atol=SETTLED)
    else:
        assert np.abs(found.theta - rlhf_local(problem).theta).max() > 1e-3


def test_without_weights_gauge_rows_make_the_other_answer_unique() -> None:
    problem = RandomLogLinear(seed=1, features=2).build()
    found = fit(problem, "exact", weights="none", gauge=True, steps=700)
    np.testing.assert_allclose(found.theta, auxdpo(problem, weights="none", gauge=True).theta, rtol=0, atol=SETTLED)
    assert np.abs(found.theta - rlhf_local(problem).theta).max() > 1e-3
    assert found.report.level_rank[0] > 0 and "unidentified along" in str(found.report)
    with_d = fit(problem, "exact", gauge=True)
    np.testing.assert_allclose(with_d.theta, rlhf_local(problem).theta, rtol=0, atol=SETTLED)


def examples(problem, n, rng):
    """Hard labels: n rows with the winner first."""
    data = problem.comparisons
    which = rng.choice(data.n_comparisons, n, p=data.count / data.total)
    won = rng.random(n) < problem.preference[which]
    chosen = np.where(won, data.first[which], data.second[which])
    rejected = np.where(won, data.second[which], data.first[which])
    return PreferencePairs(chosen=Responses(chosen[None]), rejected=Responses(rejected[None]))


def test_untied_with_many_parameters_is_dpo_step_for_step() -> None:
    """d >= 2n: nullity 0, delta = 0. The 4 prompts have one row each: all 8 scores are independent."""
    problem = RandomLogLinear(seed=0, prompts=4, responses=3, features=8).build()
    pairs = PreferencePairs(chosen=Responses(np.array([[0, 4, 8, 9]])), rejected=Responses(np.array([[1, 5, 6, 10]])))
    found = fit(problem, "exact", tied=False, weights="none", pairs=pairs, steps=60, rate=0.5)
    assert found.report.nullity == (0, 0) and found.report.verdict == "equals DPO"
    assert found.delta.shape == (4, 2) and not found.delta.any()
    other = torch_policy(problem)
    start = other.theta.detach().clone()
    engine = torch.optim.SGD([other.theta], lr=0.5, momentum=0.9)
    for _ in range(60):
        log_pi, reference = other.log_choices()[0], other.log_choices(start).detach()[0]
        won, lost = torch.tensor([0, 4, 8, 9]), torch.tensor([1, 5, 6, 10])
        batch = PairLogProbs(
            policy_chosen=log_pi[won], policy_rejected=log_pi[lost],
            reference_chosen=reference[won], reference_rejected=reference[lost],
        )  # fmt: skip
        engine.zero_grad()
        make_objective("dpo", beta=problem.beta).mean_loss(batch).backward()
        engine.step()
    np.testing.assert_allclose(found.theta, other.theta.detach()[0], rtol=1e-12)
    assert np.abs(found.theta - problem.reference_theta).max() > 0.1


def test_untied_with_few_parameters_fits_everything_at_any_theta() -> None:
    """d <= n: the loss goes to 0, and where theta stops depends on the rates."""
    problem = Prop2(n31=10.0).build()
    pairs = examples(problem, 60, np.random.default_rng(0))
    thetas = []
    for delta_rate in (0.05, 2.0):
        found = fit(problem, "exact", tied=False, weights="none", pairs=pairs, delta_rate=delta_rate, rate=0.3)
        thetas.append(found.theta[0])
        assert found.report.verdict == "theta unidentified" and found.report.reachable == (60, 60)
        assert "delta fits all 60 margin dimensions at every theta" in str(found.report)
    assert found.losses[-1] < 0.01
    assert abs(thetas[0] - thetas[1]) > 0.05


def test_untied_penalties_on_the_full_batch_are_the_geometrys() -> None:
    problem = Prop2(n31=10.0).build()
    pairs = examples(problem, 40, np.random.default_rng(1))
    found = fit(
        problem, "batch_penalty", tied=False, weights="none", pairs=pairs, penalty=0.7, ridge=0.05, steps=500, rate=1.0
    )
    wanted = untied_penalised(problem, pairs.chosen.choices[0], pairs.rejected.choices[0], lam_null=0.7, lam_amp=0.05)
    np.testing.assert_allclose(found.theta, wanted.theta, rtol=SETTLED)
    np.testing.assert_allclose(found.delta[:, 0], wanted.delta_chosen, rtol=0, atol=SETTLED)
    np.testing.assert_allclose(found.delta[:, 1], wanted.delta_rejected, rtol=0, atol=SETTLED)


@pytest.mark.parametrize(("penalty", "anti_ridge"), [(1e-4, 1.0), (1.0, 0.01)])
def test_the_published_settings_do_not_repair_proposition_2(penalty, anti_ridge) -> None:
    """Run and class defaults: theta stays on DPO's side of 0, where the worse response is preferred."""
    problem = Prop2(n31=10.0).build()
    pairs = examples(problem, 240, np.random.default_rng(2))
    rng = np.random.default_rng(3)
    found = train_auxdpo(
        torch_policy(problem), pairs, beta=1.0, learning_rate=0.03, steps=600, tied=False, weights="none",
        options=AuxiliaryOptions.official(1.0, penalty=penalty, anti_ridge=anti_ridge, learning_rate=0.02),
        batch_size=4, order=lambda epoch: rng.permutation(240)[None],
    )  # fmt: skip
    assert found.theta[0] > 0.05
    assert np.abs(found.delta).max() <= 1.0


def test_a_nonlinear_module_reaches_the_geometrys_answer() -> None:
    """A torch module of its own, not a FinitePolicy: logits phi theta + theta^T Q theta / 2; AuxDPO at theta0."""
    problem = RandomQuadratic(seed=2, features=2, prompts=2, curvature_scale=0.3, beta=2.0).build()
    layout, curvature = problem.layout, torch.as_tensor(problem.policy.curvature)
    features, prompt = torch.as_tensor(problem.policy.features), torch.as_tensor(layout.prompt_index)

    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.as_tensor(problem.reference_theta).clone())

        def forward(self):
            logits = features @ self.theta + 0.5 * torch.einsum("i,mij,j->m", self.theta, curvature, self.theta)
            return torch.cat([logits[prompt == s].log_softmax(0) for s in range(layout.n_prompts)])

    model, index = Quadratic(), torch.arange(layout.n_pairs)
    scores = ReferenceScores(model, lambda module, choices: module()[choices])
    keys, data = torch.stack([prompt, index], dim=1), problem.comparisons
    p, first, second = torch.as_tensor(problem.preference), torch.as_tensor(data.first), torch.as_tensor(data.second)
    chosen, rejected = torch.cat([first, second]), torch.cat([second, first])
    trials = torch.cat([torch.as_tensor(data.count) * p, torch.as_tensor(data.count) * (1 - p)])
    slots = Slots.tied(keys[chosen], keys[rejected], weights=trials)
    reference = scores.log_probs(index)
    weights = reference_weights(slots, reference, prompt_weights=torch.as_tensor(problem.prompt_distribution))
    often = slots.total / slots.count
    scale = largest_curvature(scores, [(index, index)], weights**2 * often)
    options = AuxiliaryOptions(
        penalty=1.0 / scale, learning_rate=1.0, optimiser="sgd", momentum=0.9, dual_every=0, every=1
    )
    auxiliary = Auxiliary(slots, options, weights=weights)
    objective = make_objective("auxdpo", beta=problem.beta)
    engine = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(500):
        log_pi, delta = model(), auxiliary.values(index)
        batch = PairLogProbs(
            policy_chosen=log_pi[chosen], policy_rejected=log_pi[rejected],
            reference_chosen=reference[chosen], reference_rejected=reference[rejected],
            delta_chosen=delta[chosen], delta_rejected=delta[rejected],
        )  # fmt: skip
        engine.zero_grad()
        objective.mean_loss(batch, trials).backward()
        engine.step()
        auxiliary.step(scores, rows_of(chosen, rejected, torch.cat([chosen, rejected]), trials))
    wanted = auxdpo(problem)
    np.testing.assert_allclose(model.theta.detach(), wanted.theta, rtol=0, atol=SETTLED)
    assert np.abs(wanted.theta - rlhf_local(problem).theta).max() > 1e-3  # the policy is not log-linear


def test_bad_input_is_refused() -> None:
    problem = Prop2().build()
    pairs = population(problem)

    def train(policy=None, pairs=pairs, mode="dual", **keywords):
        given = {"beta": 1.0, "options": AuxiliaryOptions(mode=mode), "learning_rate": 0.1, "steps": 1} | keywords
        return train_auxdpo(policy or torch_policy(problem), pairs, **given)

    for keywords, message in (
        ({"batch_size": 2}, "both batch_size and order"),
        ({"tied": False}, "untied delta takes weights='none'"),
        ({"weights": "E"}, "weights must be 'D', or 'none' without prompt_weights, got 'E'"),
        ({"learning_rate": -1.0}, "learning rate of theta must be a number > 0, got -1.0"),
        ({"optimiser": "lion"}, "'sgd' or 'adam', got 'lion'"),
        ({"policy": FinitePolicy([3], np.zeros((2, 3)))}, "theta is for 2 runs"),
        ({"prompt_weights": torch.tensor([0.4])}, "1 numbers >= 0 that sum to 1"),
    ):
        with pytest.raises(AuxiliaryError, match=message):
            train(**keywords)
    longer = Responses(np.zeros((1, 2, 2), dtype=int), np.ones((1, 2, 2)))
    with pytest.raises(AuxiliaryError, match="responses of one choice, not sequences"):
        train(pairs=PreferencePairs(chosen=longer, rejected=longer))
    alone = PreferencePairs(
        chosen=Responses(np.array([[0, 1]])), rejected=Responses(np.array([[1, 2]])), weights=np.array([[1.0, 0.0]])
    )
    with pytest.raises(AuxiliaryError, match="no row with positive weight; use larger batches"):
        train(pairs=alone, batch_size=1, order=lambda epoch: np.array([[1, 0]]))
    with pytest.raises(AuxiliaryError, match="loss is not finite: lower the learning rates"):
        train(steps=5, learning_rate=1e308, beta=100.0, mode="exact")
