"""The auxiliary variables on a causal LM, through the log-probs that the trainer uses."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llm_backend.auxiliary import (  # noqa: E402
    Auxiliary,
    AuxiliaryOptions,
    ReferenceScores,
    Slots,
    dimensions,
    estimate_dimensions,
    largest_curvature,
    plain_weights,
    reference_weights,
    response_key,
    rows_of,
    set_log_probs,
)
from llm_backend.batching import Collator  # noqa: E402
from llm_backend.log_probs import response_log_probs  # noqa: E402
from llm_backend.models import new_model, tiny_config  # noqa: E402
from objectives import PairLogProbs, make_objective  # noqa: E402

VOCABULARY = 23
ROWS = [
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]},
    {"prompt_ids": [1, 2], "chosen_ids": [6], "rejected_ids": [7, 8]},
    {"prompt_ids": [9], "chosen_ids": [10, 11], "rejected_ids": [12, 13, 14]},
]


def model():
    return new_model(tiny_config("gpt2", vocab_size=VOCABULARY, width=16), seed=1, dtype="float64", attention="sdpa")


def log_probs(module, batch):
    """Chosen, then rejected, (2b,)."""
    found = response_log_probs(module, batch).log_probs
    return torch.cat([found["chosen"], found["rejected"]])


def plain_log_probs(module, batch):
    """The same from full logits, which every derivative can pass."""
    each = []
    for side in ("chosen_ids", "rejected_ids"):
        for row in batch:
            prompt, response = row["prompt_ids"], row[side]
            table = module(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            each.append(sum(table[len(prompt) - 1 + t, token] for t, token in enumerate(response)))
    return torch.stack(each)


def flat(direction):
    return torch.cat([part.flatten() for part in direction.values()])


def test_products_through_the_trainers_log_probs() -> None:
    """Its head has a backward pass of its own: pull as it is, push as a difference; forward mode on full logits."""
    network, batch = model(), Collator()(ROWS)
    scores = ReferenceScores(network, log_probs, product="difference")
    plain = ReferenceScores(network, plain_log_probs)
    cotangent = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    pulled, wanted = scores.pull(batch, cotangent), plain.pull(ROWS, cotangent)
    torch.testing.assert_close(flat(pulled), flat(wanted), rtol=1e-10, atol=1e-13)
    exact = plain.push(ROWS, wanted)
    torch.testing.assert_close(scores.push(batch, pulled), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))


def tied_slots():
    keys = [
        torch.tensor([[response_key(row["prompt_ids"]), response_key(row[side])] for row in ROWS])
        for side in ("chosen_ids", "rejected_ids")
    ]
    return Slots.tied(*keys)


def test_auxdpo_on_a_language_model() -> None:
    """Tied delta, D renormalised over each prompt's responses: a response that wins and loses has one slot; the
    scores are centred over the sets, and the residual that is followed is that of all delta."""
    network, batch, slots = model(), Collator()(ROWS), tied_slots()
    assert slots.size == 5 and slots.n_components == 2
    order = torch.cat([slots.chosen, slots.rejected])

    def in_sets(module, rows):
        """Log-probs of the slots, renormalised over their prompt's responses; then by row."""
        table = torch.zeros(slots.size, dtype=torch.float64).index_copy(0, order, log_probs(module, rows))
        return set_log_probs(table, slots.prompt)[order]

    scores = ReferenceScores(network, in_sets, product="difference")
    reference = scores.log_probs(batch)
    by_slot = torch.zeros(slots.size, dtype=torch.float64).index_copy(0, order, reference)
    weights = reference_weights(slots, by_slot)
    rows = torch.zeros(slots.size, scores.n_parameters, dtype=torch.float64).index_copy(0, order, scores.rows(batch))
    report = dimensions(slots, rows, weights)
    assert report.rank == (3, 3) and report.level_rank == (0, 0)  # A D B = 0; d is large, so the rank is m - S
    assert report.verdict == "equals DPO"
    curvature = largest_curvature(scores, [(order, batch)], weights**2)
    options = AuxiliaryOptions(penalty=0.3 / curvature, dual_every=5, learning_rate=0.5, optimiser="sgd", every=1)
    auxiliary = Auxiliary(slots, options, weights=weights)
    objective, engine = make_objective("auxdpo", beta=0.5), torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        part, pi = rows_of(slots.chosen, slots.rejected, batch), log_probs(network, batch)
        delta = auxiliary.values(part.slots)
        pair = PairLogProbs(
            policy_chosen=pi[:3], policy_rejected=pi[3:], reference_chosen=reference[:3],
            reference_rejected=reference[3:], delta_chosen=delta[:3], delta_rejected=delta[3:],
        )  # fmt: skip
        engine.zero_grad()
        loss = objective.mean_loss(pair)
        loss.backward()
        engine.step()
        auxiliary.step(scores, part)
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(2.0), rel=1e-9) and losses[-1] < 0.9 * losses[0]
    followed, wanted = flat(auxiliary.residual), rows.T @ (weights * auxiliary.delta)
    torch.testing.assert_close(followed, wanted, rtol=1e-8, atol=1e-10)
    assert (scores.n_pull, auxiliary.n_steps) == (12 + 20, 12)  # 20 of the curvature's


def test_untied_pairs_of_a_large_model_equal_dpo_unless_a_response_comes_twice() -> None:
    """d >= 2n. Rows 0 and 1 share a response, whose two variables can trade with each other: one margin is free."""
    for rows, nullity, verdict in ((ROWS[1:], 0, "equals DPO"), (ROWS, 1, "partly free")):
        network, batch, slots = model(), Collator()(rows), Slots.untied(len(rows))
        scores = ReferenceScores(network, log_probs, product="difference")
        order = torch.cat([slots.chosen, slots.rejected])
        each = torch.zeros(slots.size, scores.n_parameters, dtype=torch.float64)
        exact = dimensions(slots, each.index_copy(0, order, scores.rows(batch)), plain_weights(slots))
        assert exact.verdict == verdict and exact.nullity == (nullity, nullity)
        assert scores.n_parameters > 1000
        assert estimate_dimensions(slots, scores, [(order, batch)], plain_weights(slots), probes=8) == exact
