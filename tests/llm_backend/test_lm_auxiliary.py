"""AuxDPO on a language model: delta is tied, obeys its constraint, and survives a checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from llm_backend.auxiliary import AuxiliaryOptions, constraints
from llm_backend.batching import Collator
from llm_backend.lm_auxiliary import LMAuxiliary, row_slots
from llm_backend.lm_fields import pair_batch, score_pairs
from llm_backend.log_probs import response_log_probs
from llm_backend.models import new_model, tiny_config
from llm_backend.reference import Reference
from llm_backend.response_trainer import RowData, training_arguments
from llm_backend.slot_responses import PAIR, slot_log_probs
from llm_backend.trainer import PreferenceTrainer
from objectives import make_objective

VOCABULARY = 11


def policy():
    """Trainable: the 8 numbers of the last bias, fewer than the 12 deltas, so that the constraint leaves some free."""
    model = new_model(tiny_config("gpt2", vocab_size=VOCABULARY, width=8, layers=1, heads=2), seed=0, dtype="float64")
    model.requires_grad_(False)
    model.transformer.ln_f.bias.requires_grad_(True)
    return model


def rows():
    """Four prompts with three responses each, compared in both orders now and then: deltas are shared."""
    rng = np.random.default_rng(0)
    found = []
    for prompt in range(4):
        answers = [[*rng.integers(VOCABULARY, size=rng.integers(1, 4)).tolist(), prompt, 7 + k] for k in range(3)]
        for chosen, rejected in ((0, 1), (1, 2), (0, 2)):
            keys = {
                "prompt_key": f"p{prompt}",
                "chosen_key": f"{prompt}/{chosen}",
                "rejected_key": f"{prompt}/{rejected}",
            }
            ids = {"chosen_ids": answers[chosen], "rejected_ids": answers[rejected]}
            found.append({"row": len(found), "prompt_ids": [prompt, 5], **ids, **keys})
    return found


def scores_of_slots(model, slots):
    """g of every slot by plain autograd, one response at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.zeros(slots.size, sum(p.numel() for p in parameters), dtype=torch.float64)
    for i, row in enumerate(rows()):
        values = response_log_probs(model, Collator()([row])).log_probs
        for side, places in (("chosen", slots.chosen), ("rejected", slots.rejected)):
            gradient = torch.autograd.grad(values[side][0], parameters, retain_graph=True)
            found[places[i]] = torch.cat([part.flatten() for part in gradient])
    return found


def train(folder, options, *, split=1, steps=30, **more):
    model = policy()
    auxiliary = LMAuxiliary(model, rows(), options)
    before = scores_of_slots(model, auxiliary.auxiliary.slots)
    args = training_arguments(
        folder, per_device_train_batch_size=12 // split, gradient_accumulation_steps=split, max_steps=steps,
        learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=1, save_strategy="steps", save_steps=steps // 2,
        use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    reference = Reference.initial(model).log_probs(rows())
    trainer = PreferenceTrainer(
        model, make_objective("auxdpo", beta=0.5), args, rows(), reference=reference, auxiliary=auxiliary
    )
    trainer.train(**more)
    return trainer, auxiliary.auxiliary, before


def test_slots_are_tied_by_keys_and_by_ids():
    assert row_slots(rows()).size == 12
    plain = [{name: value for name, value in row.items() if not name.endswith("_key")} for row in rows()]
    assert row_slots(plain).size == 12
    assert row_slots(rows(), tied=False).size == 24


@pytest.mark.parametrize("split", [1, 4])
def test_exact_mode_keeps_the_constraint_at_every_step(tmp_path, split):
    trainer, auxiliary, scores = train(tmp_path, AuxiliaryOptions(mode="exact", learning_rate=0.05), split=split)
    delta = auxiliary.delta
    assert float(delta.abs().max()) > 1e-2
    residual = scores.T @ (auxiliary.weights * delta)
    assert float(residual.abs().max()) < 1e-10
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(2.0), abs=1e-6) and losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("split", [1, 4])
def test_dual_mode_follows_the_residual_exactly(tmp_path, split):
    options = AuxiliaryOptions(mode="dual", learning_rate=0.02, penalty=3.0, dual_every=5)
    _, auxiliary, scores = train(tmp_path, options, split=split)
    residual = scores.T @ (auxiliary.weights * auxiliary.delta)
    assert auxiliary.residual_norm == pytest.approx(float(residual.norm()), rel=1e-9)
    assert float(auxiliary.delta.abs().max()) > 1e-2


def test_micro_batches_and_checkpoints_do_not_matter(tmp_path):
    options = AuxiliaryOptions(mode="dual", learning_rate=0.02, dual_every=3)
    whole, delta, _ = train(tmp_path / "a", options, steps=10)
    _, parts, _ = train(tmp_path / "b", options, split=4, steps=10)
    torch.testing.assert_close(parts.delta, delta.delta, rtol=0.0, atol=1e-8)
    _, resumed, _ = train(
        tmp_path / "c", options, steps=10, resume_from_checkpoint=whole.output_folder / "checkpoint-5"
    )
    assert torch.equal(resumed.delta, delta.delta)


class Draws:
    """Stands for a generator whose draws are all possible ones in turn."""

    def __init__(self, n, size):
        self.every, self.seen = itertools.product(range(n), repeat=size), []

    def choice(self, n, size, p):
        self.seen.append((n, size, p.tolist()))
        return np.array(next(self.every))


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_batch_is_unbiased_for_the_square(monkeypatch, weighted):
    """Over all pairs of a step's batch (2 of 3 rows) and a second batch (2 draws) the mean of <c_B1, c_B2> is |c|^2,
    that of its gradient is that of |c|^2; two parts of one batch fall short, by the formula of ``second_batch``."""
    model, few = policy(), [row | {"weight": 1.0 + weighted * i} for i, row in enumerate(rows()[:3])]
    options = AuxiliaryOptions(mode="cross_batch", penalty=0.7)
    lm = LMAuxiliary(model, few, options, product="forward")
    auxiliary, scores, delta = lm.auxiliary, lm.scores, torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    everything = [lm._part(torch.arange(3), auxiliary.slots.row_weights / auxiliary.slots.total)]

    def residual(parts):
        found = constraints.batch_residual(scores, parts, auxiliary.rates, delta)
        return torch.cat([part.flatten() for part in found.values()])

    c = residual(everything)
    slopes = scores.push(
        everything[0].responses, constraints.batch_residual(scores, everything, auxiliary.rates, delta)
    )
    by_slot = torch.zeros(3, dtype=torch.float64).index_copy(0, everything[0].slots, slopes)
    draws = Draws(3, 2)
    with monkeypatch.context() as patch:
        patch.setattr("llm_backend.lm_auxiliary.np.random.default_rng", lambda seed: draws)
        seconds = [lm.second_batch(2, 2) for _ in range(9)]
    law = np.array(draws.seen[0][2])
    wanted = np.array([1, 2, 3] if weighted else [1, 1, 1])
    assert draws.seen == [(3, 2, law.tolist())] * 9 and law == pytest.approx(wanted / wanted.sum())
    chances = [law[i] * law[j] for i, j in itertools.product(range(3), repeat=2)]
    torch.testing.assert_close(sum(p * residual(second) for p, second in zip(chances, seconds, strict=True)), c)
    if weighted:
        return  # the step's own batches are those of the sampler, which counts each row once
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    firsts = [[lm._part(torch.tensor(pair), half)] for pair in itertools.combinations(range(3), 2)]
    square, gradient = 0.0, torch.zeros(3, dtype=torch.float64)
    for first, (chance, second) in itertools.product(firsts, zip(chances, seconds, strict=True)):
        square += chance / 3 * float(residual(first) @ residual(second))
        gradient += chance / 3 * constraints.cross_gradient(scores, first, second, auxiliary.rates, delta, 0.7)
    assert square == pytest.approx(float(c @ c), rel=1e-12)
    torch.testing.assert_close(gradient, 2 * 0.7 * auxiliary.weights * by_slot, rtol=1e-10, atol=1e-12)
    terms = [residual([lm._part(torch.tensor([i]), torch.ones(1, dtype=torch.float64))]) for i in range(3)]
    halves = np.mean([float(terms[i] @ terms[j]) for i, j in itertools.permutations(range(3), 2)])
    spread = np.mean([float(term @ term) for term in terms]) - float(c @ c)
    assert halves == pytest.approx(float(c @ c) - spread / 2, rel=1e-10) and spread > 0.1 * float(c @ c)


def test_second_batches_differ_by_step_and_cover_small_data(tmp_path):
    lm = LMAuxiliary(policy(), rows(), AuxiliaryOptions(mode="cross_batch"), seed=3)
    found = []
    for lm.auxiliary.n_steps in (0, 1, 1):
        found.append(torch.cat([part.slots for part in lm.second_batch(6, 4)]).tolist())
    assert found[0] != found[1] == found[2] and len(found[0]) == 12
    whole = lm.second_batch(12, 5)
    assert sorted(torch.cat([part.slots for part in whole]).tolist()) == sorted([*range(12)] * 2)
    assert float(sum(part.shares.sum() for part in whole)) == pytest.approx(2.0)


def test_cross_batch_trains_and_continues(tmp_path):
    options = AuxiliaryOptions(mode="cross_batch", learning_rate=0.02, penalty=3.0)
    whole, delta, _ = train(tmp_path / "a", options, steps=6, split=4)
    _, resumed, _ = train(
        tmp_path / "b", options, steps=6, split=4, resume_from_checkpoint=whole.output_folder / "checkpoint-3"
    )
    assert torch.equal(resumed.delta, delta.delta) and float(delta.delta.abs().max()) > 1e-2


def test_held_out_rows_have_no_delta(tmp_path):
    """Their loss is DPO's, also of rows that stand in the training rows, or that answer a prompt that is not there."""
    trainer, auxiliary, _ = train(tmp_path, AuxiliaryOptions(mode="exact", learning_rate=0.05), steps=8)
    assert float(auxiliary.delta.abs().max()) > 1e-2
    other = [{**row, "prompt_ids": [9, *row["prompt_ids"]], "prompt_key": f"other {i}"} for i, row in enumerate(rows())]
    dpo = make_objective("dpo", beta=0.5)
    for held_out in (rows(), other):
        data = RowData(held_out, Reference.named("start", policy()).log_probs(held_out).columns)
        found = trainer.evaluate(data)
        with torch.no_grad():
            batch = trainer.collate([data[i] for i in range(len(data))])
            fields = trainer.fields(trainer.model, batch, held_out=True)
            wanted = dpo(replace(fields, delta_chosen=None, delta_rejected=None)).mean()
        assert not fields.delta_chosen.any() and not fields.delta_rejected.any()
        assert found["eval_loss"] == pytest.approx(float(wanted), rel=1e-9)
        assert found["eval_rewards/margins"] == pytest.approx(found["eval_dpo_rewards/margins"], rel=1e-9)


def soft(row, share):
    """A pair in both orders, with the weights of a soft label."""
    swapped = {
        f"{side}_{part}": row[f"{other}_{part}"] for side, other in (PAIR, PAIR[::-1]) for part in ("ids", "key")
    }
    return [{**row, "weight": share}, {**row, **swapped, "weight": 1.0 - share}]


def test_dual_and_exact_reach_the_closed_form():
    """Two trained numbers against 12 deltas with weights D: A D (beta log pi/ref) = A D r, r the tabular reward fitted
    to the labels. Full batches, gradient descent with momentum."""
    data = [each for i, row in enumerate(rows()) for each in soft(row, (0.8, 0.6, 0.7)[i % 3] - 0.05 * (i // 3))]
    found, wanted = {}, None
    for mode, steps, own in (("exact", 120, {}), ("dual", 200, {"penalty": 1.4, "dual_every": 40, "every": 1})):
        config = tiny_config("gpt2", vocab_size=VOCABULARY, width=2, layers=1, heads=1)
        model = new_model(config, seed=0, dtype="float64")
        model.transformer.wte.weight.data.mul_(40.0)  # logits of order 1
        model.requires_grad_(False)
        bias = model.transformer.ln_f.bias.requires_grad_(True)
        reference = Reference.initial(model).log_probs(data)
        options = AuxiliaryOptions(mode=mode, optimiser="sgd", learning_rate=4.0, momentum=0.8, **own)
        lm = LMAuxiliary(model, data, options, reference=reference.columns)
        assert lm.report().reachable == (6, 6) and lm.report().verdict == "partly free"
        whole, objective = RowData(data, reference.columns), make_objective("auxdpo", beta=2.0)
        inputs = Collator()([whole[i] for i in range(24)])
        engine = torch.optim.SGD([bias], lr=1.0, momentum=0.8)
        for _ in range(steps):
            batch = pair_batch(objective, score_pairs(model, inputs, objective), inputs, lm.fields(inputs))
            engine.zero_grad()
            objective.mean_loss(batch, inputs["weight"]).backward()
            engine.step()
            lm.after_step([inputs])
        every, slots = lm.responses.of(torch.arange(12)), lm.auxiliary.slots
        with torch.no_grad():
            log_ratio = slot_log_probs(model, every) - lm.scores.log_probs(every)
        weighted = lm.scores.rows(every).T * lm.auxiliary.weights
        found[mode] = weighted @ (2.0 * log_ratio)
        wanted = weighted @ torch.as_tensor(fitted_rewards(slots))
    # relative to 0.035; what is left in dual falls with the number of steps (400: 1e-4 of it)
    torch.testing.assert_close(found["exact"], wanted, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(found["dual"], wanted, rtol=0.0, atol=2e-3)


def fitted_rewards(slots):
    """The maximum-likelihood rewards of the Bradley-Terry model on the rows, by scipy."""
    chosen, rejected, weights = slots.chosen.numpy(), slots.rejected.numpy(), slots.row_weights.numpy()

    def loss(reward):
        return float((weights * np.logaddexp(0.0, reward[rejected] - reward[chosen])).sum())

    return minimize(loss, np.zeros(slots.size), tol=1e-12).x


def test_a_step_takes_products_for_the_rows_in_turn_alone(tmp_path, monkeypatch):
    """Four prompts of three rows, all in each step: one prompt's rows a step, each prompt once in four steps."""
    asked = []
    usual = LMAuxiliary._part

    def part(self, index, shares):
        asked.append(index.tolist())
        return usual(self, index, shares)

    monkeypatch.setattr(LMAuxiliary, "_part", part)
    _, auxiliary, _ = train(tmp_path, AuxiliaryOptions(learning_rate=0.02, penalty=3.0), split=4, steps=8)
    prompts = [{row // 3 for row in index} for index in asked]
    assert [len(index) for index in asked] == [3] * 8 and all(len(prompt) == 1 for prompt in prompts)
    assert prompts[:4] == prompts[4:] and set().union(*prompts) == set(range(4))
    assert auxiliary.turns.visits.tolist() == [8] * 4
