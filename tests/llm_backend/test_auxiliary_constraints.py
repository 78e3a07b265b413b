"""What each mode's gradient is the gradient of, what it is on average over batches, and what a step costs."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from geometry.comparisons import Comparisons  # noqa: E402
from geometry.official_compat import official_compat  # noqa: E402
from geometry.pairs import PairLayout  # noqa: E402
from geometry.policies import LogLinearPolicy  # noqa: E402
from geometry.problem import Problem  # noqa: E402
from llm_backend.auxiliary import (  # noqa: E402
    Auxiliary,
    AuxiliaryError,
    AuxiliaryOptions,
    ReferenceScores,
    Slots,
    rows_of,
)
from llm_backend.auxiliary.batch import batch_residual  # noqa: E402
from llm_backend.auxiliary.directions import inner  # noqa: E402
from llm_backend.finite import FinitePolicy  # noqa: E402
from objectives import PairLogProbs, make_objective  # noqa: E402

SIZES, WIDTH = [4, 3, 5], 3
CHOSEN = torch.tensor([0, 1, 3, 4, 6, 7, 9, 9])
REJECTED = torch.tensor([1, 2, 0, 5, 4, 8, 8, 10])  # row 7 shares 9 with row 6; 11 is never compared


class Toy:
    """A small policy, rows and random delta; ``row(index)`` is a batch."""

    def __init__(self, tied, mode="dual", seed=0, **options):
        rng = np.random.default_rng(seed)
        self.policy = FinitePolicy(SIZES, rng.normal(size=WIDTH), rng.normal(size=(12, WIDTH)))
        self.scores = ReferenceScores(self.policy, lambda p, choices: p.log_choices()[0, choices])
        block = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
        keys = torch.stack([block, torch.arange(12)], dim=1)
        self.slots = Slots.tied(keys[CHOSEN], keys[REJECTED], others=keys) if tied else Slots.untied(len(CHOSEN))
        weights = torch.as_tensor(rng.uniform(0.5, 1.5, size=self.slots.size))
        every = torch.arange(12) if tied else torch.stack([CHOSEN, REJECTED], dim=1).flatten()
        self.rows = self.scores.rows(every)
        self.auxiliary = Auxiliary(
            self.slots,
            AuxiliaryOptions(mode=mode, **{"every": 1} | options),
            weights=weights,
            rows=self.rows if mode == "exact" else None,
        )
        self.delta = torch.as_tensor(rng.normal(size=self.slots.size)) * (self.slots.count > 0)
        if mode != "exact":
            self.auxiliary.raw.data.copy_(self.delta)

    def batch(self, index):
        index = torch.as_tensor(index)
        choices = torch.cat([CHOSEN[index], REJECTED[index]])
        return rows_of(self.slots.chosen[index], self.slots.rejected[index], choices)

    def residual(self, index):
        return batch_residual(self.scores, [self.batch(index)], self.auxiliary.rates, self.delta)["theta"][0]

    def constraint_gradient(self, index, second=None):
        """What a step adds to the gradient of the loss, with delta as it is."""
        second = None if second is None else [self.batch(second)]
        return self.auxiliary._constraint_gradient(self.scores, [self.batch(index)], second)

    @property
    def full(self):
        """A W delta."""
        return self.rows.T @ (self.auxiliary.weights * self.delta)


@pytest.mark.parametrize("tied", [True, False])
def test_the_batch_residual_is_unbiased(tied) -> None:
    toy = Toy(tied)
    every = [toy.residual(pair) for pair in itertools.combinations(range(8), 3)]
    np.testing.assert_allclose(torch.stack(every).mean(0), toy.full, rtol=1e-12)
    np.testing.assert_allclose(toy.residual(range(8)), toy.full, rtol=1e-12)
    assert float(torch.stack(every).std(0).min()) > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_cross_batch_is_unbiased_for_the_squared_norm_and_its_gradient(tied) -> None:
    """Over all pairs of independent rows: E <c_B1, c_B2> = |c|^2, E gradient = 2 penalty W A^T c, exactly."""
    toy = Toy(tied, "cross_batch", penalty=0.7)
    batches = [[row] for row in range(8)]
    values = [float(toy.residual(a) @ toy.residual(b)) for a in batches for b in batches]
    assert np.mean(values) == pytest.approx(float(toy.full @ toy.full), rel=1e-12)
    assert np.min(values) < 0  # a single draw is no squared norm
    gradients = [toy.constraint_gradient(a, b) for a in batches for b in batches]
    wanted = 2 * 0.7 * toy.auxiliary.weights * (toy.rows @ toy.full) * (toy.slots.count > 0)
    np.testing.assert_allclose(torch.stack(gradients).mean(0), wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_bias_of_batch_penalty_is_the_ridge_part(tied, size) -> None:
    """E |c_B|^2 = |c|^2 + (n - b) / (b (n - 1)) (mean |x|^2 - |c|^2), x_i the row's term: sampling without replacement.

    mean |x|^2 / b is a ridge on delta weighted by |g|^2; it fades only as the batch becomes the data.
    """
    toy, n = Toy(tied), 8
    terms = torch.stack([toy.residual([row]) for row in range(n)])
    ridge = float((terms**2).sum(1).mean())
    square = float(toy.full @ toy.full)
    wanted = square + (n - size) / (size * (n - 1)) * (ridge - square)
    found = [toy.residual(batch) for batch in itertools.combinations(range(n), size)]
    assert float((torch.stack(found) ** 2).sum(1).mean()) == pytest.approx(wanted, rel=1e-12)
    assert (size == n) == (wanted == pytest.approx(square))


def test_at_batch_4_of_400_the_ridge_part_is_all_there_is() -> None:
    """Random scores and delta, as in the theory page: the full penalty is 1% of what batches of 4 see."""
    rng = np.random.default_rng(0)
    n, d = 400, 50
    policy = FinitePolicy([2] * n, rng.normal(size=d), rng.normal(size=(2 * n, d)))
    scores, slots = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices]), Slots.untied(n)
    auxiliary, delta = Auxiliary(slots, AuxiliaryOptions()), torch.as_tensor(rng.normal(size=2 * n))

    def residual(index):
        part = rows_of(slots.chosen[index], slots.rejected[index], torch.cat([2 * index, 2 * index + 1]))
        return batch_residual(scores, [part], auxiliary.rates, delta)

    full = inner(residual(torch.arange(n)), residual(torch.arange(n)))
    alone = [residual(torch.tensor([row])) for row in range(n)]
    ridge = np.mean([inner(x, x) for x in alone])
    predicted = full + (n - 4) / (4 * (n - 1)) * (ridge - full)
    seen = [residual(torch.as_tensor(rng.choice(n, 4, replace=False))) for _ in range(400)]
    measured = np.array([inner(x, x) for x in seen])
    assert abs(measured.mean() - predicted) < 4 * measured.std() / np.sqrt(400)  # four standard errors
    assert 50 < predicted / full < 200  # n / b = 100
    assert (ridge / 4) / predicted > 0.98


@pytest.mark.parametrize("tied", [True, False])
def test_batch_penalty_is_the_gradient_of_its_penalty(tied) -> None:
    toy = Toy(tied, "batch_penalty", penalty=0.3, ridge=0.2)
    index = [1, 6, 7]
    found, delta, part = toy.constraint_gradient(index), toy.delta.clone().requires_grad_(), toy.batch(index)
    scale = part.shares * toy.auxiliary.rates[part.slots] * delta[part.slots]
    residual = toy.rows[part.slots].T @ scale
    often = toy.auxiliary.often[part.slots] if tied else 1.0
    ridge = (part.shares * often * delta[part.slots] ** 2).sum()
    (wanted,) = torch.autograd.grad(0.3 * residual @ residual + 0.2 * ridge, delta)
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-14)


def test_the_ridge_is_unbiased_too() -> None:
    toy = Toy(True, "batch_penalty", penalty=0.0, ridge=0.2)
    mean = torch.stack([toy.constraint_gradient([row]) for row in range(8)]).mean(0)
    np.testing.assert_allclose(mean, 0.4 * toy.delta, rtol=1e-12)


def dual_steps(toy, steps, batches):
    for step in range(steps):
        part = toy.batch(batches[step % len(batches)])
        half = part.slots.numel() // 2
        delta = toy.auxiliary.values(part.slots)
        (torch.nn.functional.softplus(-(delta[:half] - delta[half:])).mean()).backward()
        toy.auxiliary.step(toy.scores, part)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_followed_residual_is_the_constraint_of_all_delta(tied, optimiser) -> None:
    """Small batches, responses that share slots: c is A W delta exactly, and y the sum of its past."""
    toy = Toy(tied, penalty=0.01, dual_every=2, learning_rate=0.1, optimiser=optimiser, momentum=0.5)
    toy.auxiliary.raw.data.zero_()
    batches, seen = [[0, 1], [6, 7, 2], [3, 4, 5]], torch.zeros(WIDTH, dtype=torch.float64)
    for step in range(30):
        dual_steps(toy, 1, [batches[step % 3]])
        residual = toy.rows.T @ (toy.auxiliary.weights * toy.auxiliary.delta)
        seen = seen + 0.01 * residual * (step % 2)  # on every second step
        np.testing.assert_allclose(toy.auxiliary.residual["theta"][0], residual, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(toy.auxiliary.dual["theta"][0], seen, rtol=1e-10, atol=1e-13)
    assert toy.auxiliary.residual_norm == pytest.approx(float(residual.norm()), rel=1e-10)
    assert float(residual.norm()) > 1e-3


def test_a_dual_step_is_one_backward_and_one_forward_product() -> None:
    for mode, passes in (("dual", 1), ("batch_penalty", 1), ("exact", 0)):
        toy = Toy(True, mode)
        dual_steps(toy, 5, [[0, 1], [2, 3]])
        first = mode == "dual"  # before the first move c = y = 0: nothing to push
        assert (toy.scores.n_pull, toy.scores.n_push) == (5 * passes, 5 * passes - first)
    toy = Toy(True, "batch_penalty", every=3)
    for step in range(7):
        values = toy.auxiliary.values(toy.batch([0, 1]).slots)
        assert values.requires_grad == toy.auxiliary.due == (step % 3 == 0)
        if values.requires_grad:
            values.sum().backward()
        toy.auxiliary.step(toy.scores, toy.batch([0, 1]))
    assert (toy.scores.n_pull, toy.scores.n_push) == (3, 3)
    toy = Toy(True, "dual", every=3)
    before = toy.auxiliary.delta
    for step in range(7):
        part = toy.batch([0, 1])
        assert toy.auxiliary.moves(part.slots).tolist() == [step % 3 == 0] * 4  # of the first prompt
        values = toy.auxiliary.values(part.slots)
        (values[0] - values[2]).backward()
        assert toy.auxiliary.raw.grad.any() == (step % 3 == 0)
        toy.auxiliary.step(toy.scores, part)
    assert (toy.scores.n_pull, toy.scores.n_push) == (3, 2)
    assert int((toy.auxiliary.delta != before).sum()) == 3  # slots 0, 1, 2; momentum moves nothing else


@pytest.mark.parametrize("mode", ["dual", "batch_penalty", "cross_batch"])
def test_micro_batches_make_the_same_step(mode) -> None:
    found = []
    for split in (False, True):
        toy = Toy(True, mode, learning_rate=0.1, optimiser="sgd")
        whole, second = toy.batch([0, 1, 6, 7]), [toy.batch([2, 3])] if mode == "cross_batch" else None
        half = [toy.batch([0, 1]), toy.batch([6, 7])]
        parts = [type(p)(p.slots, p.shares / 2, p.responses) for p in half] if split else [whole]
        for _ in range(3):
            toy.auxiliary.values(torch.tensor([0, 9])).sum().backward()
            toy.auxiliary.step(toy.scores, parts, second)
        found.append(toy.auxiliary.delta)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    assert float((found[0] - Toy(True).delta).abs().max()) > 1e-3


class Processes:
    """Two threads in lock-step that sum tensors, as processes under all_reduce do.

    Only one computes at a time, and only the sums let the other go on: torch's forward mode has one level for all
    threads of a process, so that two products at once would disturb each other.
    """

    def __init__(self, n):
        self.barrier, self.given, self.turn = threading.Barrier(n, timeout=30), [None] * n, threading.Lock()

    def reduce(self, rank):
        def total(value):
            self.given[rank] = value
            self.turn.release()
            self.barrier.wait()
            result = sum(self.given[1:], self.given[0].clone())
            self.barrier.wait()
            self.turn.acquire()
            return result

        return total


@pytest.mark.parametrize("mode", ["dual", "exact", "batch_penalty", "cross_batch", "official_compat"])
def test_two_processes_make_the_steps_of_one(mode) -> None:
    """Rows 0, 1 and 6, 7 on different processes (row 6 and 7 share a slot, as do 0 and 1): delta and c are the same."""

    def run(rows, second, share, reduce=None):
        options = {"beta": 0.5, "cap": 1.0, "anti_ridge": 0.1} if mode == "official_compat" else {"dual_every": 2}
        toy = Toy(True, mode, learning_rate=0.1, optimiser="sgd", momentum=0.5, **options)
        if reduce is not None:
            toy.scores.reduce = reduce
        for _ in range(4):
            part = toy.batch(rows)
            part = type(part)(part.slots, part.shares * share, part.responses)
            other = toy.batch(second)
            other = type(other)(other.slots, other.shares * share, other.responses)
            half = part.slots.numel() // 2
            delta = toy.auxiliary.values(part.slots)
            (torch.nn.functional.softplus(delta[half:] - delta[:half]) * part.shares[:half]).sum().backward()
            toy.auxiliary.step(toy.scores, part, other if mode == "cross_batch" else None)
        return toy.auxiliary

    processes, found = Processes(2), {}
    work = [([0, 6], [2]), ([1, 7], [3])]

    def one(rank):
        with processes.turn:
            found[rank] = run(*work[rank], 0.5, processes.reduce(rank))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = run([0, 6, 1, 7], [2, 3], 1.0)
    assert torch.equal(found[0].delta, found[1].delta)
    np.testing.assert_allclose(found[0].delta, whole.delta, rtol=1e-11, atol=1e-13)
    if mode == "dual":
        np.testing.assert_allclose(found[1].residual["theta"], whole.residual["theta"], rtol=1e-10, atol=1e-13)
    assert float((whole.delta - run([0, 6], [2], 0.5).delta).abs().max()) > 1e-3


def test_official_compat_is_the_published_descent() -> None:
    """Step for step the same theta and delta as the simulator's version of the notebook, batch 3 of 8, 6 epochs."""
    rng = np.random.default_rng(3)
    layout = PairLayout.from_sizes(SIZES)
    features, theta0, beta = rng.normal(size=(12, WIDTH)), rng.normal(size=WIDTH), 0.7
    problem = Problem.create(
        np.zeros(12), LogLinearPolicy.create(layout, features), Comparisons.all_pairs(layout), beta=beta,
        reference_theta=theta0,
    )  # fmt: skip
    numbers = {"lam_null": 0.01, "lam_amp": 0.5, "cap": 0.8, "delta_rate": 0.3}
    run = official_compat(problem, CHOSEN.numpy(), REJECTED.numpy(), rate=0.2, batch=3, epochs=6, seed=5, **numbers)
    policy = FinitePolicy(SIZES, theta0, features)
    scores, slots = ReferenceScores(policy, lambda p, choices: p.log_choices()[0, choices]), Slots.untied(8)
    options = AuxiliaryOptions.official(beta, penalty=0.01, anti_ridge=0.5, cap=0.8, learning_rate=0.3, optimiser="sgd")
    auxiliary, draws = Auxiliary(slots, options), np.random.default_rng(5)
    auxiliary.raw.data.copy_(torch.as_tensor((1e-3 * draws.standard_normal((2, 8))).T.reshape(-1)))
    reference, objective = policy.log_choices().detach()[0], make_objective("auxdpo", beta=beta)
    for _ in range(6):
        order = torch.as_tensor(draws.permutation(8))
        for start in range(0, 8, 3):
            index = order[start : start + 3]
            won, lost = CHOSEN[index], REJECTED[index]
            part, log_pi = rows_of(2 * index, 2 * index + 1, torch.cat([won, lost])), policy.log_choices()[0]
            batch = PairLogProbs(
                policy_chosen=log_pi[won], policy_rejected=log_pi[lost],
                reference_chosen=reference[won], reference_rejected=reference[lost],
                delta_chosen=auxiliary.values(2 * index), delta_rejected=auxiliary.values(2 * index + 1),
            )  # fmt: skip
            policy.zero_grad()
            objective.mean_loss(batch).backward()
            with torch.no_grad():
                policy.theta -= 0.2 * policy.theta.grad
            auxiliary.step(scores, part)
    np.testing.assert_allclose(policy.theta.detach()[0], run.theta, rtol=1e-10)
    wanted = beta * np.stack([run.delta_chosen, run.delta_rejected], axis=1)
    np.testing.assert_allclose(auxiliary.delta.reshape(8, 2), wanted, rtol=1e-9, atol=1e-12)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "duel"}, "unknown mode 'duel'; known: dual, exact"),
        ({"penalty": -1.0}, "penalty is -1.0; it must be finite and at least 0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"learning_rate": 0.0}, "learning rate of delta must be a number > 0, got 0.0"),
        ({"optimiser": "lion"}, "'sgd' or 'adam', got 'lion'"),
        ({"every": 0}, "every is 0"),
        ({"dual_every": -1}, "dual_every is -1; it counts steps"),
        ({"cap": 1.0}, "belong to mode 'official_compat'"),
        ({"anti_ridge": 1.0}, "large delta is never rewarded"),
        ({"mode": "official_compat"}, "needs beta > 0 and a finite cap > 0"),
        ({"mode": "official_compat", "beta": 1.0, "cap": 1.0, "ridge": 0.1}, "has no ridge"),
        ({"gauge": True}, "gauge rows are for mode 'exact', not 'dual'"),
    ],
)
def test_bad_options_are_refused(options, message: str) -> None:
    with pytest.raises(AuxiliaryError, match=message):
        AuxiliaryOptions(**options)


def test_the_published_values_are_the_notebooks() -> None:
    options = AuxiliaryOptions.official(0.1)
    assert (options.penalty, options.anti_ridge, options.cap, options.learning_rate) == (1e-4, 1.0, 1.0, 5e-3)


def test_bad_steps_are_refused() -> None:
    toy, slots = Toy(True), torch.tensor([0])
    with pytest.raises(AuxiliaryError, match="delta has no gradient: the loss must read"):
        toy.auxiliary.step(toy.scores, toy.batch([0]))
    toy.auxiliary.values(slots).sum().backward()
    with pytest.raises(AuxiliaryError, match="'dual' needs the reference's scores"):
        toy.auxiliary.step(None, toy.batch([0]))
    toy.auxiliary.n_steps = 0
    toy.auxiliary.values(slots).sum().backward()
    with pytest.raises(AuxiliaryError, match="needs a second, independent batch, and no other mode"):
        toy.auxiliary.step(toy.scores, toy.batch([0]), toy.batch([1]))
    before = toy.auxiliary.delta
    (toy.auxiliary.values(slots) * torch.nan).sum().backward()
    with pytest.raises(AuxiliaryError, match="gradient of delta is not finite at step"):
        toy.auxiliary.step(toy.scores, toy.batch([0]))
    assert torch.equal(toy.auxiliary.delta, before)
    with pytest.raises(AuxiliaryError, match="'exact' needs the score rows of all slots, and no other mode"):
        Auxiliary(toy.slots, AuxiliaryOptions(mode="exact"))
    with pytest.raises(AuxiliaryError, match="weights must be 12 finite numbers >= 0"):
        Auxiliary(toy.slots, AuxiliaryOptions(), weights=torch.ones(3))
    with pytest.raises(AuxiliaryError, match="gauge rows are for tied delta"):
        Auxiliary(Slots.untied(8), AuxiliaryOptions(mode="exact", gauge=True), rows=torch.ones(16, 3))
    with pytest.raises(AuxiliaryError, match=r"score rows must be \(12, d\), got \(5, 3\)"):
        Auxiliary(toy.slots, AuxiliaryOptions(mode="exact"), rows=torch.ones(5, 3))
