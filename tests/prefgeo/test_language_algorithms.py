"""The loops on language models: the very algorithms that run on finite policies."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from llm_backend.generation import Sampling
from llm_backend.loops import LanguageBackend, StoreError
from llm_backend.merging import MergeError
from llm_backend.pairing import PairRule
from llm_backend.prompts import FixedPrompts
from llm_backend.toy import make_tokenizer
from objectives import make_objective
from prefgeo.algorithms.aipo import aipo
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.errors import AlgorithmError
from prefgeo.algorithms.iterative import Rules, iterate
from prefgeo.algorithms.sdpo import sdpo
from prefgeo.algorithms.sppo import sppo
from prefgeo.algorithms.tpmm import Weighting, tpmm
from prefgeo.algorithms.tr_dpo import Update, tr_dpo
from prefgeo.algorithms.wrpo import wrpo
from prefgeo.backend import FitPlan
from tests.llm_backend import loop_world

DPO, PAIRS, PLAN = loop_world.DPO, loop_world.PAIRS, loop_world.PLAN


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One backend: its store knows what another test has trained already."""
    return loop_world.backend(tmp_path_factory.mktemp("shared"))


def with_source(backend: Any, source: Any) -> LanguageBackend:
    return LanguageBackend(
        backend.store,
        backend.base,
        source,
        backend.training,
        backend.evaluator,
        tokens=backend.tokens,
        seed=backend.seed,
    )


@pytest.mark.parametrize("start", ["policy", "merged", "initial"])
@pytest.mark.parametrize("reference", ["initial", "previous", "merged", "ema"])
def test_every_rule_of_start_and_reference(shared: Any, start: Any, reference: Any) -> None:
    """Each rule is played by whom it names, and no two of them end alike."""
    played: list[tuple[str, str, str]] = []
    spied = with_source(shared, shared.source)
    fit = spied.fit

    def spy(one: Any, two: Any, *rest: Any, **options: Any) -> Any:
        found = fit(one, two, *rest, **options)
        played.append((one.digest, two.digest, found[0].digest))
        return found

    spied.fit = spy  # type: ignore[method-assign]
    done = iterate(spied, DPO, rules=Rules(2, start, reference, ema_decay=0.25), data=PAIRS, plan=PLAN)
    base, first = shared.base, done.rounds[0].policy
    named = {"initial": base, "policy": first, "previous": first}
    named["merged"] = shared.merge([base, first], [0.5, 0.5])
    named["ema"] = shared.merge([base, first], [0.25, 0.75])
    assert played[0] == (base.digest, base.digest, first.digest)
    assert played[1] == (named[start].digest, named[reference].digest, done.policy.digest)
    ENDS[start, reference] = done.policy.digest
    assert len(set(ENDS.values())) == len(ENDS)


ENDS: dict[tuple[str, str], str] = {}


def test_round_one_of_tpmm_is_iterative_dpo_bit_for_bit(tmp_path: Path) -> None:
    plain = iterate(loop_world.backend(tmp_path / "a"), DPO, rules=Rules(2), data=PAIRS, plan=PLAN)
    merged = tpmm(
        loop_world.backend(tmp_path / "b"), DPO, rounds=2, data=PAIRS, plan=PLAN,
        weighting=Weighting(beta=0.1, budget_divisor=2),
    )  # fmt: skip
    assert plain.rounds[0].policy == merged.rounds[0].policy
    for name, value in plain.rounds[0].metrics.items():
        np.testing.assert_array_equal(value, merged.rounds[0].metrics[name], err_msg=name)
    assert plain.policy != merged.policy
    shares = merged.rounds[0].shares
    assert shares.shape == (1, 2) and shares.sum() == pytest.approx(1.0) and np.all(shares > 0.0)


@pytest.mark.parametrize("weight_data", ["train", "heldout_clean", "heldout_sft"])
def test_tpmm_learns_its_weights_on_the_data_it_names(shared: Any, weight_data: Any) -> None:
    done = tpmm(shared, DPO, rounds=2, data=PAIRS, plan=PLAN, weighting=Weighting(data=weight_data, budget_divisor=2))
    assert done.rounds[0].shares.sum() == pytest.approx(1.0)


def test_segments_of_tr_dpo_are_one_training(shared: Any) -> None:
    """With a reference that stays, and with the optimiser's moments carried over, it is DPO bit for bit."""
    dpo = iterate(shared, DPO, rules=Rules(1), data=PAIRS, plan=PLAN)
    still = tr_dpo(shared, DPO, update=Update("soft", 0.0, 2), data=PAIRS, plan=PLAN)
    assert still.policy == dpo.policy
    soft = tr_dpo(shared, DPO, update=Update("soft", 1.0, 2), data=PAIRS, plan=PLAN)
    hard = tr_dpo(shared, DPO, update=Update("hard", 0.3, 2), data=PAIRS, plan=PLAN)
    assert soft.policy == hard.policy != dpo.policy


def test_a_segment_of_tr_dpo_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """After a hard update policy and reference are one: the next step begins at ln 2, and only the rest is trained."""
    run = tmp_path / "run"
    plan = FitPlan("adam", rate=lambda rows: 3e-2, steps=5, batch_size=12, log_every=1)
    tr_dpo(
        loop_world.backend(tmp_path / "store"), DPO, update=Update("hard", every=2), data=PAIRS, plan=plan,
        journal=loop_world.journal(run),
    )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    at_start = [abs(line["loss"] - np.log(2.0)) < 1e-5 for line in lines]
    assert at_start == [True, False, True, False, True]
    moved = [line["logps/chosen"] for line in lines]
    assert len(set(moved)) == 5, "each step moves the policy on"


def test_parts_of_tr_dpo_do_not_fill_the_disk(tmp_path: Path) -> None:
    """Of policies and references between parts, at most those of the last two are there at any time."""
    backend = loop_world.backend(tmp_path / "store")
    most, fit = 0, backend.fit

    def spy(*parts: Any, **options: Any) -> Any:
        nonlocal most
        found = fit(*parts, **options)
        most = max(most, len(list((backend.store.root / "policies").iterdir())))
        return found

    backend.fit = spy
    plan = FitPlan("adam", rate=lambda rows: 3e-3, steps=6, batch_size=4)
    run = loop_world.journal(tmp_path / "run")
    done = tr_dpo(backend, DPO, update=Update("soft", 0.5, 1), data=PAIRS, plan=plan, journal=run)
    assert most <= 5, "base, two policies and two references"
    backend.store.check(done.policy), backend.store.check(done.reference)
    whole = tr_dpo(loop_world.backend(tmp_path / "b"), DPO, update=Update("soft", 0.5, 1), data=PAIRS, plan=plan)
    assert whole.policy == done.policy


@pytest.mark.parametrize("name", loop_world.LOOPS)
def test_a_loop_in_a_journal_is_the_loop_without(tmp_path: Path, name: str) -> None:
    """TR-DPO's segments too, whose snapshots are pointers; and a finished loop is read, not done again."""
    loop = loop_world.LOOPS[name]
    plain = loop(loop_world.backend(tmp_path / "plain"))
    kept = loop(loop_world.backend(tmp_path / "kept"), journal=loop_world.journal(tmp_path / "run"))
    assert kept.policy == plain.policy
    again = loop_world.backend(tmp_path / "kept")
    again.fit = lambda *_, **__: pytest.fail("trained again")
    assert loop(again, journal=loop_world.journal(tmp_path / "run")).policy == plain.policy


def test_sdpo_sees_each_row_once(shared: Any) -> None:
    whole = shared.counts(PAIRS.draw(shared, shared.base, 1))
    done = sdpo(shared, DPO, chunks=3, data=PAIRS, plan=PLAN)
    assert sum(int(each.metrics["rows_kept"][0]) for each in done.rounds) == int(whole["kept"][0])


def test_aipo_and_sppo_run(shared: Any) -> None:
    make = partial(make_objective, "aipo", beta=0.1, alpha=0.05, nll_weight=0.2)
    done = aipo(shared, make, rounds=2, data=PAIRS, plan=PLAN)
    assert done.reference == done.rounds[0].policy
    bradley_terry = with_source(shared, loop_world.candidates(win_scale=3.0))
    played = sppo(bradley_terry, partial(make_objective, "sppo", eta=5.0), rounds=2, data=PAIRS, plan=PLAN)
    assert played.policy not in (shared.base, played.rounds[0].policy)
    with pytest.raises(ValueError, match="sppo reads win rates, which these rows do not have"):
        sppo(shared, partial(make_objective, "sppo"), rounds=1, data=PAIRS, plan=PLAN)


@pytest.mark.parametrize(("name", "kind"), [("wrpo", "candidates"), ("wrpo_simpo", "candidates"), ("dpo", "hybrid")])
def test_wrpo_fine_tunes_and_then_fuses(shared: Any, name: str, kind: str) -> None:
    fused = with_source(shared, loop_world.fusion(target=loop_world.candidates()))
    done = wrpo(fused, partial(make_objective, name), data=DataSource(kind), plan=PLAN, supervised=PLAN)
    assert [each.roles["policy"] for each in done.rounds] == ["sft", "wrpo"]
    assert done.reference == done.rounds[0].policy != shared.base


def test_wrpo_with_rejected_source_responses(shared: Any) -> None:
    fused = with_source(shared, loop_world.fusion(source_rejected=True))
    done = wrpo(
        fused, partial(make_objective, "wrpo_rejected"), data=DataSource("candidates"), plan=PLAN, supervised=None
    )
    assert done.policy != shared.base
    lacking = with_source(shared, loop_world.fusion())
    with pytest.raises(ValueError, match="wrpo_rejected reads source_rejected responses, which these rows do not have"):
        wrpo(
            lacking, partial(make_objective, "wrpo_rejected"), data=DataSource("candidates"), plan=PLAN, supervised=None
        )


# -- bad input ------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_empty_after_filtering_is_told(shared: Any) -> None:
    one = FixedPrompts(["say red", "say sun"], rounds="same")
    alike = Sampling(candidates=3, max_new_tokens=5, top_k=1)
    identical = with_source(shared, loop_world.candidates(prompts=one, n_prompts=2, sampling=alike))
    with pytest.raises(AlgorithmError, match=r"round 1: in 1 of 1 runs no row is left .*identical 2, ties 0"):
        iterate(identical, DPO, rules=Rules(1), data=PAIRS, plan=PLAN)
    strict = with_source(shared, loop_world.candidates(rule=PairRule(longest=1)))
    with pytest.raises(AlgorithmError, match=r"no row is left after filtering \(.*cut_off 1"):
        iterate(strict, DPO, rules=Rules(1), data=PAIRS, plan=PLAN)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 32}, "head_dim"),
        ({"architecture": "gpt2"}, "architectures"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(shared: Any, other: dict[str, Any], message: str) -> None:
    strange = shared.store.add(loop_world.model(loop_world.tokenizer(), **other), loop_world.tokenizer())
    with pytest.raises(MergeError, match=rf"{message}.*only models of one kind can be merged"):
        shared.merge([shared.base, strange], [0.5, 0.5])


def test_another_vocabulary_is_refused(shared: Any) -> None:
    words = make_tokenizer(["quite other words are in here"] * 3, 280)
    strange = shared.store.add(loop_world.model(words), words)
    with pytest.raises(MergeError, match="has another vocabulary than"):
        shared.merge([shared.base, strange], [0.5, 0.5])


def test_a_missing_checkpoint_of_the_trajectory_is_told(tmp_path: Path) -> None:
    done = loop_world.LOOPS["tpmm"](
        loop_world.backend(tmp_path / "store"), journal=loop_world.journal(tmp_path / "run")
    )
    shutil.rmtree(done.rounds[0].policy.path)
    with pytest.raises(StoreError, match="a checkpoint of the trajectory is missing; restore its folder"):
        loop_world.LOOPS["tpmm"](loop_world.backend(tmp_path / "store"), journal=loop_world.journal(tmp_path / "run"))
