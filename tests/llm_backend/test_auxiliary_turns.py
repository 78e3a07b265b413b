"""Prompts take turns: who moves is known before the loss, a step pays for those rows only, and nothing else changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llm_backend.auxiliary import Auxiliary, AuxiliaryOptions, Slots, rows_of  # noqa: E402
from llm_backend.auxiliary.turns import Turns  # noqa: E402
from tests.llm_backend.test_auxiliary_constraints import CHOSEN, REJECTED, Processes, Toy  # noqa: E402


def slots_of(*prompts):
    """One row a prompt, in the given prompts' order: slots 2 i and 2 i + 1 of prompt i."""
    keys = torch.tensor(prompts)
    return Slots.tied(torch.stack([keys, 2 * keys], dim=1), torch.stack([keys, 2 * keys + 1], dim=1))


def test_every_prompt_has_its_turn_once_in_k_visits_and_its_slots_together() -> None:
    slots, seen = slots_of(0, 1, 2, 3), []
    turns = Turns(slots, 3)
    for met in ([0, 1, 2, 3], [0, 3], [0, 1], [1, 2], [1, 3], [3]):
        both = torch.cat([slots.chosen[met], slots.rejected[met]])
        moves = turns.of(both)
        assert torch.equal(moves[: len(met)], moves[len(met) :])
        seen.append([prompt for prompt, own in zip(met, moves.tolist(), strict=False) if own])
        turns.count(both.unique())
    # by hand: s moves at its visits v = -s mod 3, counted from 0: 0 and 3 at the first, 2 at the second, 1 at the third
    assert seen == [[0, 3], [], [], [1, 2], [], [3]]
    assert turns.visits.tolist() == [3, 4, 2, 4]


def test_in_three_epochs_each_prompt_moves_once_and_steps_pay_for_a_third_of_their_rows() -> None:
    slots = slots_of(*range(30))
    turns, moved = Turns(slots, 3), []
    for epoch in range(3):
        for batch in torch.randperm(30, generator=torch.Generator().manual_seed(epoch)).split(10):
            moved.append(batch[turns.of(slots.chosen[batch])])
            turns.count(slots.chosen[batch])
        assert torch.cat(moved[-3:]).numel() == 10
    assert torch.cat(moved).sort().values.tolist() == list(range(30))
    assert Turns(slots, 1).of(slots.chosen).all()


def weighted(part, share):
    return type(part)(part.slots, part.shares * share, part.responses)


def steps(toy, batches, n=12, *, whole, share=1.0, gather=lambda slots: slots):
    """``whole``: the step gets all rows; else only those that move, as a caller who pays for them would give them."""
    for step in range(n):
        index = torch.tensor(batches[step % len(batches)])
        part = weighted(toy.batch(index), share)
        half = index.numel()
        delta = toy.auxiliary.values(part.slots)
        (torch.nn.functional.softplus(delta[half:] - delta[:half]) * part.shares[:half]).sum().backward()
        if whole:
            toy.auxiliary.step(toy.scores, part)
            continue
        moving = toy.auxiliary.moves(toy.slots.chosen[index])
        kept = rows_of(
            toy.slots.chosen[index][moving], toy.slots.rejected[index][moving],
            torch.cat([CHOSEN[index][moving], REJECTED[index][moving]]),
        )  # fmt: skip
        kept = type(kept)(kept.slots, part.shares[:half][moving].repeat(2), kept.responses)
        toy.auxiliary.step(toy.scores, [kept] if moving.any() else [], met=part.slots)
    return toy


OPTIONS = {"penalty": 0.01, "dual_every": 4, "learning_rate": 0.1, "every": 3}
BATCHES = [[0, 3, 6], [1, 4, 7], [2, 5], [0, 1, 4]]  # of three prompts; 0, 1 and 6, 7 share slots


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_rows_that_do_not_move_may_be_left_out(optimiser) -> None:
    """The same delta, residual and dual vector; and the residual stays that of all delta, exactly."""
    options = OPTIONS | {"optimiser": optimiser, "momentum": 0.5 * (optimiser == "sgd")}
    whole = steps(Toy(True, **options), BATCHES, whole=True)
    left_out = steps(Toy(True, **options), BATCHES, whole=False)
    start = Toy(True, **options)
    start.auxiliary.raw.data.copy_(start.delta)
    np.testing.assert_allclose(left_out.auxiliary.delta, whole.auxiliary.delta, rtol=1e-12)
    for name in ("residual", "dual"):
        one, two = (getattr(toy.auxiliary, name)["theta"] for toy in (whole, left_out))
        np.testing.assert_allclose(two, one, rtol=1e-10, atol=1e-14)
        assert float(one.abs().max()) > 1e-4
    moved = whole.auxiliary.delta - start.delta
    np.testing.assert_allclose(
        whole.auxiliary.residual["theta"][0], whole.rows.T @ (whole.auxiliary.weights * moved), rtol=1e-9, atol=1e-12
    )
    assert 0 < left_out.scores.n_push + 1 == left_out.scores.n_pull <= 12


def test_a_slot_moves_by_the_gradient_of_all_its_rows_in_the_step() -> None:
    """In its turn a prompt moves as without turns: as if the step were of its rows alone, with their shares."""
    with_turns, without = (
        Toy(True, **OPTIONS | {"optimiser": "sgd"}),
        Toy(True, **OPTIONS | {"optimiser": "sgd", "every": 1}),
    )
    steps(with_turns, [[0, 1, 3, 4, 6, 7]], 1, whole=True)
    steps(without, [[0, 1, 3, 4, 6, 7]], 1, whole=True)
    own = with_turns.slots.prompt == 0  # (v + s) mod 3 = 0 at v = 0
    change, wanted = (toy.auxiliary.delta - toy.delta for toy in (with_turns, without))
    torch.testing.assert_close(change[own], wanted[own], rtol=1e-12, atol=0.0)
    assert not change[~own].any() and wanted[~own].any() and change[own].any()


def test_two_processes_of_which_one_may_have_no_turn_make_the_steps_of_one() -> None:
    processes, found = Processes(2), {}
    work = [[[0], [3], [6], [1]], [[6], [0], [4], [7]]]

    def one(rank):
        with processes.turn:
            toy = Toy(True, **OPTIONS)
            toy.scores.reduce = processes.reduce(rank)
            found[rank] = steps(toy, work[rank], whole=False, share=0.5)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = [a + b for a, b in zip(*work, strict=True)]
    whole = steps(Toy(True, **OPTIONS), both, whole=True)
    assert torch.equal(found[0].auxiliary.delta, found[1].auxiliary.delta)
    np.testing.assert_allclose(found[0].auxiliary.delta, whole.auxiliary.delta, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(
        found[1].auxiliary.residual["theta"], whole.auxiliary.residual["theta"], rtol=1e-9, atol=1e-13
    )
    assert found[0].auxiliary.turns.visits.tolist() == whole.auxiliary.turns.visits.tolist()
    assert found[0].scores.n_pull != found[1].scores.n_pull  # one of them had steps without a row in turn


def test_untied_rows_are_prompts_of_their_own_and_dual_alone_takes_turns() -> None:
    slots = Slots.untied(6)
    auxiliary = Auxiliary(slots, AuxiliaryOptions(every=2))
    assert auxiliary.moves(slots.chosen).tolist() == [True, False] * 3 == auxiliary.moves(slots.rejected).tolist()
    assert AuxiliaryOptions().period == 4 and AuxiliaryOptions(every=2).period == 2
    assert AuxiliaryOptions(mode="batch_penalty").period == 1
    other = Auxiliary(slots, AuxiliaryOptions(mode="cross_batch", every=2))
    assert other.moves(slots.chosen).all()
    other.n_steps = 1
    assert not other.moves(slots.chosen).any()
