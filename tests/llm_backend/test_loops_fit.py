"""Fits of a loop on language models: deterministic, continued bit for bit, and by the plan's own schedule."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from bandits.schedules import Schedule
from bandits.supervised import NegativeLogLikelihood
from llm_backend.batching import Collator
from llm_backend.errors import CheckpointError
from llm_backend.log_probs import response_log_probs
from llm_backend.loops import LoopError, LoopRows, LoopTraining, StoreError
from llm_backend.loops.loop_trainer import pointer
from llm_backend.loops.training import Steps
from llm_backend.models import Lora
from llm_backend.reference import Reference
from objectives import make_objective
from prefgeo.backend import FitPlan
from tests.llm_backend import loop_world

DPO = loop_world.DPO


def plan(**options):
    settings = {"rate": lambda rows: 3e-3, "epochs": 2, "batch_size": 4, "schedule": Schedule("cosine", 0.2)}
    return FitPlan("adam", **(settings | {"log_every": 2} | options))


def rows(world):
    return world.preferences(world.base, kind="fixed", flip=0.0, round_index=1)


class Stop(Exception):
    """The process is killed."""


class Killer:
    """A monitor that takes snapshots at some steps, and then is killed after another."""

    def __init__(self, resume=None, snapshots=(), kill=None):
        self.resume, self.at, self.kill = resume, snapshots, kill
        self.lines, self.taken = [], None

    def log(self, step, values):
        self.lines.append((step, {name: float(value[0]) for name, value in values.items()}))

    def step(self, done, total, snapshot):
        if done in self.at:
            self.taken = json.loads(json.dumps(snapshot(), default=np.ndarray.tolist))
            self.lines_then = list(self.lines)
        if done == self.kill:
            raise Stop


def fit(world, monitor=None, objective=None, how=None, data=None, reference=None):
    return world.fit(
        world.base,
        reference or world.base,
        data or rows(world),
        objective or DPO(),
        plan=how or plan(),
        monitor=monitor,
    )


def world_of(tmp_path, name="store", architecture="llama", **options):
    return loop_world.backend(tmp_path / name, architecture, loop_world.fixed(), **options)


@pytest.mark.parametrize("objective", ["dpo", "alpha_dpo", "tdpo2", "kto"])
def test_a_fit_is_the_same_in_another_store_and_micro_batches_do_not_matter(tmp_path, objective):
    make = partial(make_objective, objective)
    one, two = (fit(world_of(tmp_path, name), objective=make()) for name in "ab")
    assert one[0].digest == two[0].digest and one[1] == two[1] and one[1]["loss"].shape == (1,)
    small = world_of(tmp_path, "c", micro_batch_size=1)
    three = fit(small, objective=make())
    assert three[1]["loss"] == pytest.approx(one[1]["loss"], rel=1e-4)
    model = world_of(tmp_path, "a").store.model
    for name, value in model(one[0]).state_dict().items():
        torch.testing.assert_close(value, small.store.model(three[0]).state_dict()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("snapshots", "kill"), [((3,), 4), ((2,), 5), ((1, 4), 5), ((6,), 6), ((), 3)],
    ids=["between logs", "at a log", "the last of two", "at the end", "before any"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["all", "lora"])
def test_a_fit_that_was_killed_goes_on_bit_for_bit(tmp_path, kind, snapshots, kill):
    options = {"trainable": Lora(2)} if kind == "lora" else {}
    objective = partial(make_objective, "alpha_dpo")
    whole = Killer()
    done, losses = fit(world_of(tmp_path, "whole", **options), whole, objective())
    broken = world_of(tmp_path, "broken", **options)
    first = Killer(snapshots=snapshots, kill=kill)
    with pytest.raises(Stop):
        fit(broken, first, objective())
    second = Killer(resume=first.taken)
    again, same = fit(world_of(tmp_path, "broken", **options), second, objective())
    assert again.digest == done.digest and same == losses
    before = first.lines_then if first.taken else []
    assert before + second.lines == whole.lines and len(whole.lines) == 4  # steps 1, 2, 4, 6
    third = Killer(resume=first.taken)
    assert fit(world_of(tmp_path, "broken", **options), third, objective())[0] == again
    assert third.lines == second.lines, "a fit that is remembered logs what it logged"


def test_the_schedule_and_the_optimiser_are_those_of_the_plan(tmp_path):
    """One step of gradient descent on all rows, by hand; and the rates of a cosine with warm-up."""
    world = world_of(tmp_path, architecture="gpt2", dtype="float64")  # llama's norms are in float32 whatever it has
    data = rows(world)
    how = FitPlan("gd", rate=lambda rows: 0.5, steps=1)
    policy, _ = fit(world, how=how, data=data)
    model = world.store.load(world.base)
    reference = Reference.initial(model).log_probs(data.rows).columns
    scores = response_log_probs(model, Collator(shared=False)(data.rows)).log_probs
    ratio = [scores[side] - torch.tensor(reference[f"reference_{side}"]) for side in ("chosen", "rejected")]
    torch.nn.functional.softplus(-0.1 * (ratio[0] - ratio[1])).mean().backward()
    trained = world.store.model(policy)
    for name, value in model.named_parameters():
        expected = (value - 0.5 * value.grad).detach()
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-9, atol=1e-12)
    seen = Killer()
    fit(world, seen, how=plan(log_every=1), data=data)
    schedule = Schedule("cosine", 0.2)
    rates = [line["learning_rate"] for _, line in seen.lines]
    np.testing.assert_allclose(rates, [3e-3 * schedule.factor(step, 6) for step in range(6)], rtol=1e-12, atol=1e-15)


def test_a_fit_that_learns_nothing_is_the_start(tmp_path):
    world = world_of(tmp_path)
    policy, losses = fit(world, how=plan(rate=lambda rows: 1e-300))
    assert policy == world.base
    assert losses["loss"][0] == pytest.approx(np.log(2.0), rel=1e-6)


def test_the_reference_is_who_it_is_said_to_be(tmp_path):
    """A first step from another policy than the reference does not begin at ln 2."""
    world = world_of(tmp_path)
    moved, _ = fit(world)
    seen = Killer()
    world.fit(moved, world.base, rows(world), DPO(), plan=plan(), monitor=seen)
    assert abs(seen.lines[0][1]["loss"] - np.log(2.0)) > 1e-4
    own = Killer()
    world.fit(moved, moved, rows(world), DPO(), plan=plan(), monitor=own)
    assert own.lines[0][1]["loss"] == pytest.approx(np.log(2.0), abs=1e-6)


def test_each_option_of_training_does_what_it_says(tmp_path):
    plain_world = world_of(tmp_path, "plain")
    plain, loss = fit(plain_world)
    expected = plain_world.store.model(plain).state_dict()

    def trained(name, **options):
        world = world_of(tmp_path, name, **options)
        policy, found = fit(world)
        return policy, world.store.model(policy).state_dict(), found["loss"][0]

    _, saved, _ = trained("memory", gradient_checkpointing=True)
    half, autocast, near = trained("half", precision="bfloat16")
    assert half != plain and near == pytest.approx(loss["loss"][0], abs=5e-3)
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(autocast[name], value, rtol=0, atol=2e-2)
    base = plain_world.store.model(plain_world.base).state_dict()
    _, block, _ = trained("block", trainable="last_block")
    still = [name for name, value in block.items() if torch.equal(value, base[name])]
    assert "model.embed_tokens.weight" in still and "model.layers.0.mlp.up_proj.weight" not in still
    assert trained("clipped", max_grad_norm=1e-4)[0] != plain
    same, _, other = trained("fewer", loss_rows=3)
    assert same == plain and other != loss["loss"][0]


def test_a_live_reference_is_another_policy_where_that_is_said(tmp_path):
    """TDPO compares whole distributions with the reference's, which is not the start here."""
    world, tdpo = world_of(tmp_path), make_objective("tdpo2")
    moved, _ = fit(world)
    seen = [Killer() for _ in range(2)]
    for reference, monitor in zip((world.base, moved), seen, strict=True):
        world.fit(moved, reference, rows(world), tdpo, plan=plan(), monitor=monitor)
    first = [monitor.lines[0][1]["loss"] for monitor in seen]
    assert first[1] == pytest.approx(np.log(2.0), abs=1e-6) and abs(first[0] - np.log(2.0)) > 1e-5


def test_supervised_fine_tuning_raises_the_likelihood(tmp_path):
    world = world_of(tmp_path)
    data = world.preferences(world.base, kind="supervised", flip=0.0, round_index=1)
    assert all("rejected_ids" not in row for row in data.rows)
    policy, losses = fit(world, objective=NegativeLogLikelihood(), data=data, how=plan(rate=lambda rows: 3e-2))
    start = Reference.initial(world.store.load(world.base)).log_probs(data.rows, ("chosen",))
    tokens = sum(len(row["chosen_ids"]) for row in data.rows)
    before = -start.columns["reference_chosen"].sum() / tokens
    assert policy != world.base and losses["loss"][0] < before - 0.3


def test_a_checkpoint_that_nobody_was_told_of_is_removed(tmp_path):
    """A kill between a checkpoint and its pointer must not make the next ones push out the one that is pointed to."""
    world = world_of(tmp_path)
    first = Killer(snapshots=(2, 5), kill=5)
    with pytest.raises(Stop):
        fit(world, first)
    folder = next((world.store.root / "checkpoints").iterdir())
    last = folder / "checkpoint-5"
    known = {"step": 2, "arrays": pointer(folder.name, 2, folder / "checkpoint-2")["arrays"], "objective": {}}
    second = Killer(resume=known, snapshots=(3, 4), kill=4)
    with pytest.raises(Stop):
        fit(world, second)
    assert not last.exists() and sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    assert fit(world, Killer(resume=second.taken))[0] == fit(world_of(tmp_path, "whole"))[0]


def test_checkpoints_of_earlier_fits_are_removed(tmp_path):
    world = world_of(tmp_path)
    for step in (3, 4):
        fit(world, Killer(snapshots=(step,)), how=plan(log_every=step))
    assert len(list((world.store.root / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_is_gone_or_of_another_training_is_told(tmp_path):
    world = world_of(tmp_path)
    first = Killer(snapshots=(2,), kill=3)
    with pytest.raises(Stop):
        fit(world, first)
    with pytest.raises(CheckpointError, match="was made with another"):
        fit(world, Killer(resume=first.taken), objective=make_objective("dpo", beta=0.2))
    for file in (world.store.root / "checkpoints").rglob("manifest.json"):
        file.unlink()
    with pytest.raises(StoreError, match="the checkpoint of step 2, from which this run goes on, is missing"):
        fit(world, Killer(resume=first.taken))
    with pytest.raises(StoreError, match=r"does not point to a checkpoint of a language model: it holds \['theta'\]"):
        fit(world, Killer(resume={"step": 1, "arrays": {"theta": np.zeros(3)}, "objective": {}}))


def test_what_cannot_be_trained_is_told(tmp_path, monkeypatch):
    world = world_of(tmp_path)
    cases = [
        (dict(how=FitPlan("exact")), "has no exact minimiser; train it with the optimiser adam"),
        (
            dict(how=FitPlan("lion", rate=lambda rows: 0.1, steps=1)),
            "the optimiser must be one of adam, gd, got 'lion'",
        ),
        (dict(how=plan(rate=lambda rows: np.zeros(1))), "the learning rate must be a number > 0, got 0.0"),
        (dict(how=plan(rate=lambda rows: np.ones(3))), "the learning rate must be one finite number"),
        (dict(how=plan(epochs=0)), "the plan has no steps"),
        (dict(objective=make_objective("sppo")), "sppo reads win rates, which these rows do not have; give the source"),
        (dict(objective=make_objective("wrpo")), "wrpo reads source_chosen responses, which these rows do not have"),
        (dict(objective=make_objective("auxdpo")), "auxdpo has variables of its own, which loops do not train"),
    ]
    for options, message in cases:
        with pytest.raises(LoopError, match=message):
            fit(world, **options)
    with pytest.raises(LoopError, match="there are no rows to train on"):
        fit(world, data=LoopRows([], {"kept": 0}), how=plan(epochs=None, steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("transformers.TrainingArguments.world_size", 2)
        with pytest.raises(LoopError, match="a loop runs in one process, which alone writes to its store"):
            fit(world)
    half = world_of(tmp_path, "half", dtype="bfloat16", trainable=Lora(2))
    with pytest.raises(LoopError, match="bfloat16 would round them away; store policies in float32"):
        fit(half)
    for options, message in (
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"), ({"precision": "int8"}, "precision must be"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be"), ({"merge_precision": "float16"}, "merge_precision must be"),
    ):  # fmt: skip
        with pytest.raises(LoopError, match=message):
            LoopTraining(**options)


@pytest.mark.parametrize(
    ("n", "batch", "expected"),
    [(12, 4, (4, 1)), (12, 10, (5, 2)), (13, None, (8, 2)), (9, 7, (7, 1)), (30, 13, (1, 13)), (3, 8, (3, 1))],
)
def test_micro_batches_make_up_a_step(n, batch, expected):
    data = LoopRows([{}] * n, {})
    steps = Steps.of(FitPlan("adam", rate=lambda rows: 0.1, epochs=2, batch_size=batch), data)
    assert steps.micro_batches(8) == expected
    assert steps.total == 2 * -(-n // (batch or n))
