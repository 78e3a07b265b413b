"""Training: any split of a step gives one trajectory, TRL's where TRL is right, and bad numbers stop the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llm_backend.batching import Collator
from llm_backend.errors import (
    BackendError,
    BatchingError,
    NonFiniteLossError,
    ReferenceLogProbsError,
    StepZeroError,
)
from llm_backend.lm_fields import reference_columns, sides_of
from llm_backend.log_probs import response_log_probs
from llm_backend.models import Lora, new_model, open_for_training, tiny_config
from llm_backend.reference import Reference
from llm_backend.response_trainer import RowData, training_arguments
from llm_backend.supervised import SupervisedTrainer
from llm_backend.trainer import PreferenceTrainer
from llm_backend.whole_step import pairs_interact
from objectives import PairLogProbs, make_objective, objective_names

VOCABULARY = 37
NAMES = [name for name in objective_names() if name != "auxdpo"]  # auxdpo has its own test
INTERACTING = [("alpha_dpo", {}), ("alpha_dpo", {"statistics": "batch", "stop_gradient": False}), ("kto", {})]


def model(seed=0, architecture="gpt2", dtype="float64"):
    """GPT-2, as every operation of it is in float64: other architectures take their norms in float32."""
    config = tiny_config(architecture, vocab_size=VOCABULARY, width=16, layers=1, heads=2)
    return new_model(config, seed=seed, dtype=dtype)


def rows(n=12, seed=0, weighted=False):
    rng = np.random.default_rng(seed)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "source_chosen_ids", "source_rejected_ids")
    found = []
    for i in range(n):
        row = {"row": 100 + i} | {c: rng.integers(VOCABULARY, size=rng.integers(1, 8)).tolist() for c in columns}
        row |= {"win_chosen": float(rng.uniform()), "win_rejected": float(rng.uniform())}
        found.append(row | ({"weight": float(rng.uniform(0.2, 2.0))} if weighted else {}))
    return found


def arguments(folder, *, batch=4, split=1, **options):
    defaults = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": split, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "num_train_epochs": 2, "seed": 3,
    }  # fmt: skip
    return training_arguments(folder, **(defaults | options))


def trained(
    folder, objective, *, data=None, start=None, other_reference=True, trainer_options=None, resume=None, **options
):
    data = data or rows()
    policy = start or model()
    reference = None
    if reference_columns(objective):
        anchor = Reference.named("other", model(seed=9)) if other_reference else Reference.initial(policy)
        reference = anchor.log_probs(data, sides_of(objective))
    trainer = PreferenceTrainer(
        policy, objective, arguments(folder, **options), data, reference=reference, **(trainer_options or {})
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# -- splits -----------------------------------------------------------------------------------------------------


def test_the_objectives_whose_pairs_interact_are_found():
    assert {name for name in objective_names() if pairs_interact(make_objective(name))} == {"alpha_dpo", "kto"}
    assert not pairs_interact(make_objective("kto", kl=0.1))
    assert not pairs_interact(make_objective("alpha_dpo", statistics="none"))
    assert pairs_interact(make_objective("alpha_dpo", statistics="batch"))


@pytest.mark.parametrize(("name", "options"), [("dpo", {}), ("wrpo", {}), ("wpo", {}), *INTERACTING])
def test_micro_batches_do_not_matter(tmp_path, name, options):
    """12 rows in steps of 8: the second step of each epoch is short, its last micro-batch too."""
    data = rows(13, weighted=True)
    runs = [
        trained(tmp_path / str(split), make_objective(name, **options), data=data, batch=8 // split, split=split)
        for split in (1, 2, 8)
    ]
    for other in runs[1:]:
        assert other.state.global_step == runs[0].state.global_step == 4
        # Adam divides by the root of the second moment, which magnifies rounding where a gradient is almost 0
        torch.testing.assert_close(weights(other), weights(runs[0]), rtol=0.0, atol=1e-8)
        for key in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
            np.testing.assert_allclose(logged(other, key), logged(runs[0], key), rtol=1e-5, atol=1e-7)
    assert float((weights(runs[0]) - weights_of(model())).abs().max()) > 1e-3


def weights_of(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


@pytest.mark.parametrize(("name", "options"), INTERACTING)
def test_the_gradient_of_a_split_step_is_autograds_of_the_whole(tmp_path, name, options):
    """One SGD step of rate 1 in four micro-batches moves the weights by the gradient of the objective's mean loss."""
    data, objective, start = rows(8), make_objective(name, **options), model()
    before = weights_of(start)
    sides = sides_of(objective)
    inputs = Collator(sides)([{"row": i} | row for i, row in enumerate(data)])
    reference = Reference.named("other", model(seed=9)).log_probs(data, sides)
    fields = response_log_probs(start, inputs, sides).policy_fields()
    batch = PairLogProbs(**fields, **{k: torch.as_tensor(v) for k, v in reference.columns.items()})
    whole = make_objective(name, **options)
    whole.update(batch.map(lambda value: value.detach()))
    gradient = torch.autograd.grad(whole.mean_loss(batch), list(start.parameters()))
    run = trained(
        tmp_path, objective, data=data, start=start, batch=2, split=4, max_steps=1, optim="sgd", learning_rate=1.0,
        max_grad_norm=0.0,
    )  # fmt: skip
    moved = before - weights(run)
    expected = torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(moved, expected, rtol=0.0, atol=1e-9 * float(expected.abs().max()))
    assert run.objective.state_dict() == pytest.approx(whole.state_dict(), rel=1e-6)


# -- every objective --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains(tmp_path, name):
    options = {"live_reference": Reference.named("other", model(seed=9))} if name.startswith("tdpo") else {}
    run = trained(tmp_path, make_objective(name), max_steps=2, trainer_options=options)
    history = run.state.log_history
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    assert len(logged(run, "rewards/margins")) == 2
    assert float((weights(run) - weights_of(model())).abs().max()) > 1e-3


def test_training_prefers_the_chosen(tmp_path):
    run = trained(tmp_path, make_objective("dpo", beta=0.5), other_reference=False, num_train_epochs=12)
    accuracy, margins = logged(run, "rewards/accuracies"), logged(run, "rewards/margins")
    assert accuracy[0] == pytest.approx(0.5, abs=0.5) and np.mean(accuracy[-3:]) > 0.95
    assert margins[-1] > 0.5


def test_the_first_step_is_at_margin_zero(tmp_path):
    run = trained(tmp_path, make_objective("dpo"), other_reference=False, max_steps=1)
    assert logged(run, "loss")[0] == pytest.approx(math.log(2.0), abs=1e-6)
    assert logged(run, "rewards/margins")[0] == pytest.approx(0.0, abs=1e-6)
    changed = model()
    reference = Reference.initial(changed).log_probs(rows())
    with torch.no_grad():
        changed.transformer.ln_f.weight.mul_(1.5)
    trainer = PreferenceTrainer(changed, make_objective("dpo"), arguments(tmp_path), rows(), reference=reference)
    with pytest.raises(StepZeroError, match=r"differ by up to .* nats \(rows \[1"):
        trainer.train()


def test_statistics_of_the_data_set_are_taken_once(tmp_path):
    run = trained(tmp_path, make_objective("alpha_dpo", statistics="dataset"), max_steps=3)
    state = run.objective.state_dict()
    assert state["updates"] == 1
    fresh = make_objective("alpha_dpo", statistics="dataset")
    sides = sides_of(fresh)
    with torch.no_grad():
        fields = response_log_probs(model(), Collator(sides)(rows()), sides).policy_fields()
    reference = Reference.named("other", model(seed=9)).log_probs(rows(), sides)
    fresh.update(PairLogProbs(**fields, **{k: torch.as_tensor(v) for k, v in reference.columns.items()}))
    assert state["mean"] == pytest.approx(fresh.state_dict()["mean"], rel=1e-6)


# -- evaluation, SFT, parts of models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_evaluation_counts_every_row_once_in_any_batches(tmp_path, name):
    found = []
    for size in (1, 5, 64):
        policy, objective = model(), make_objective(name)
        reference = Reference.named("other", model(seed=9)).log_probs(rows())
        trainer = PreferenceTrainer(
            policy, objective, arguments(tmp_path, per_device_eval_batch_size=size), rows(), reference=reference,
            eval_rows=rows(), eval_reference=reference,
        )  # fmt: skip
        found.append(trainer.evaluate())
    assert set(found[0]) >= {"eval_loss", "eval_rewards/accuracies", "eval_dpo_rewards/margins"}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


def test_sft_is_the_mean_over_tokens_in_any_split(tmp_path):
    runs = []
    for split in (1, 4):
        options = arguments(tmp_path / str(split), batch=8 // split, split=split)
        trainer = SupervisedTrainer(model(), options, rows(13), eval_rows=rows(5, seed=7))
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        runs.append(trainer)
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=0.0, atol=1e-8)
    np.testing.assert_allclose(logged(runs[0], "loss"), logged(runs[1], "loss"), rtol=1e-5)
    held_out = rows(5, seed=7)
    policy = model().requires_grad_(False)
    total = sum(
        torch.nn.functional.cross_entropy(
            policy(input_ids=torch.tensor([row["prompt_ids"] + row["chosen_ids"]])).logits[0, :-1].double(),
            torch.tensor((row["prompt_ids"] + row["chosen_ids"])[1:]),
            reduction="none",
        )[len(row["prompt_ids"]) - 1 :].sum()
        for row in held_out
    )
    assert before == pytest.approx(float(total / sum(len(row["chosen_ids"]) for row in held_out)), rel=1e-6)


def test_lora_against_its_own_base(tmp_path):
    policy = open_for_training(model(architecture="llama", dtype="float32"), Lora(rank=2))
    frozen = policy.get_base_model().model.embed_tokens.weight.clone()
    reference = Reference.adapter_off(policy).log_probs(rows())
    trainer = PreferenceTrainer(policy, make_objective("dpo"), arguments(tmp_path), rows(), reference=reference)
    trainer.train()
    assert torch.equal(policy.get_base_model().model.embed_tokens.weight, frozen)
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2.0), abs=1e-4)
    assert logged(trainer, "rewards/margins")[-1] != 0.0


class Deltas:
    """Plain gradient descent on one delta for each side of each row."""

    def __init__(self, n=12):
        self.values = torch.zeros(2, n, dtype=torch.float64, requires_grad=True)
        self.seen = []

    def to(self, device):
        self.values = self.values.detach().to(device).requires_grad_()

    def fields(self, inputs):
        return {"delta_chosen": self.values[0, inputs["index"]], "delta_rejected": self.values[1, inputs["index"]]}

    def metrics(self):
        return {}

    def after_step(self, batches):
        self.seen.append([inputs["index"].tolist() for inputs in batches])
        with torch.no_grad():
            self.values -= 2.0 * self.values.grad
        self.values.grad = None

    def state_dict(self):
        return {"values": self.values.detach()}

    def load_state_dict(self, saved):
        with torch.no_grad():
            self.values.copy_(saved["values"])


@pytest.mark.parametrize("split", [1, 4])
def test_auxiliary_variables_give_fields_and_move_after_each_step(tmp_path, split):
    deltas = Deltas()
    run = trained(
        tmp_path, make_objective("auxdpo"), batch=4 // split, split=split, max_steps=2, save_strategy="steps",
        save_steps=1, trainer_options={"auxiliary": deltas},
    )  # fmt: skip
    held_out = rows(20, seed=5)
    anchor = Reference.named("other", model(seed=9)).log_probs(held_out)
    metrics = run.evaluate(
        RowData(held_out, anchor.columns)
    )  # more rows than there are deltas: held-out rows have none
    assert metrics["eval_rewards/margins"] == pytest.approx(metrics["eval_dpo_rewards/margins"], rel=1e-12)
    moved = deltas.values.detach()
    assert [len(step) for step in deltas.seen] == [split, split]
    seen = sorted(i for step in deltas.seen for batch in step for i in batch)
    assert torch.nonzero(moved[0]).flatten().tolist() == seen and len(seen) == 8
    assert torch.equal(moved[0], -moved[1])
    assert float(moved.sum(dim=1)[0]) == pytest.approx(2 * 2.0 * 0.5, abs=0.4)  # rate times sum of sigma(-margin) / 4
    other = Deltas()
    again = trained(
        tmp_path / "again", make_objective("auxdpo"), batch=4 // split, split=split, max_steps=2,
        trainer_options={"auxiliary": other},
        resume=run.output_folder / "checkpoint-1",
    )  # fmt: skip
    assert torch.equal(other.values, deltas.values) and torch.equal(weights(again), weights(run))


# -- what stops a run --------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing(tmp_path):
    policy, data = model(), rows()
    reference = Reference.named("other", model(seed=9)).log_probs(data)
    reference.columns["reference_chosen"][7] = np.nan
    before = weights_of(policy)
    trainer = PreferenceTrainer(policy, make_objective("dpo"), arguments(tmp_path, batch=12), data, reference=reference)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 0 in row 107; nothing was updated, there is no"):
        trainer.train()
    assert torch.equal(weights_of(policy), before)


def test_what_does_not_fit_is_refused(tmp_path):
    reference = Reference.named("other", model(seed=9)).log_probs(rows())
    options = arguments(tmp_path)
    with pytest.raises(ReferenceLogProbsError, match="dpo needs reference_chosen, reference_rejected"):
        PreferenceTrainer(model(), make_objective("dpo"), options, rows())
    with pytest.raises(ReferenceLogProbsError, match="dpo needs reference_chosen"):
        PreferenceTrainer(model(), make_objective("dpo"), options, rows(), reference=reference, eval_rows=rows())
    with pytest.raises(BatchingError, match="12 values for 11 rows"):
        PreferenceTrainer(model(), make_objective("dpo"), options, rows(11), reference=reference)
    with pytest.raises(BatchingError, match="no rows to train on"):
        RowData([])
    policy = model()
    for live in (None, Reference.initial(policy)):
        with pytest.raises(ReferenceLogProbsError, match="tdpo1 needs live_reference"):
            PreferenceTrainer(
                policy, make_objective("tdpo1"), options, rows(), reference=reference, live_reference=live
            )
    with pytest.raises(BackendError, match="training_arguments"):
        bad = arguments(tmp_path, remove_unused_columns=True)
        PreferenceTrainer(model(), make_objective("dpo"), bad, rows(), reference=reference)
    with pytest.raises(BackendError, match="evaluate needs RowData"):
        PreferenceTrainer(model(), make_objective("dpo"), options, rows(), reference=reference).evaluate()
    with pytest.raises(BatchingError, match="no column 'source_chosen_ids'"):
        plain = [{k: v for k, v in row.items() if not k.startswith("source")} for row in rows()]
        SupervisedTrainer(model(), options, plain)  # reads no sources
        Collator(("chosen", "rejected", "source_chosen"))(plain)
