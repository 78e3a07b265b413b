"""One contract for three backends: exact and torch on a finite world, and language models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from bandits.backend import ExactBackend
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from llm_backend.backend import TorchBackend
from llm_backend.loops import LoopRows
from prefgeo.backend import FitPlan
from tests.llm_backend import loop_world

DPO, PAIRS, PLAN = loop_world.DPO, loop_world.PAIRS, loop_world.PLAN


def arrays(backend: Any, policy: Any) -> list[np.ndarray]:
    return [np.asarray(value) for _, value in sorted(backend.dump(policy).items())]


def same(backend: Any, one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(backend, one), arrays(backend, two), strict=True))


class Killed(Exception):
    """The process is killed."""


class Watch:
    """A monitor that takes a snapshot after ``at`` steps and, with ``kill``, ends there."""

    def __init__(self, at: int = 0, resume: Any = None, *, kill: bool = False) -> None:
        self.at, self.resume, self.kill, self.taken = at, resume, kill, None
        self.lines: list[tuple[int, dict[str, list[float]]]] = []

    def log(self, step: int, values: Any) -> None:
        self.lines.append((step, {name: np.asarray(value).tolist() for name, value in values.items()}))

    def step(self, done: int, total: int, snapshot: Any) -> None:
        if done == self.at:
            self.taken = snapshot()
            if self.kill:
                raise Killed


class BackendContract:
    """What every backend must do, whatever its policies are made of. ``fresh`` makes the same backend again."""

    fresh: Any
    plan: FitPlan
    tolerance: float

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Any:
        return self.fresh(tmp_path / "one")

    def trained(self, backend: Any, steps: int = 3) -> Any:
        plan = FitPlan(self.plan.optimiser, rate=self.plan.rate, steps=steps, batch_size=self.plan.batch_size)
        return backend.fit(backend.load(), backend.load(), self.pairs(backend), DPO(), plan=plan)[0]

    def pairs(self, backend: Any, **options: Any) -> Any:
        return PAIRS.draw(backend, backend.load(), options.pop("t", 1), **options)

    def test_a_policy_survives_its_arrays(self, backend: Any) -> None:
        policy = self.trained(backend)
        assert same(backend, backend.load(backend.dump(policy)), policy)
        assert not same(backend, policy, backend.load())
        assert same(backend, backend.load(), backend.load())

    def test_the_same_draw_is_the_same_and_others_are_not(self, backend: Any) -> None:
        one, two = (self.signature(self.pairs(backend)) for _ in range(2))
        assert one == two
        for other in ({"t": 2}, {"split": "heldout"}):
            assert self.signature(self.pairs(backend, **other)) != one

    def signature(self, data: Any) -> Any:
        if isinstance(data, LoopRows):
            return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in data.rows]
        return [np.asarray(data.chosen.choices).tolist(), np.asarray(data.rejected.choices).tolist()]

    def test_parts_make_up_the_whole(self, backend: Any) -> None:
        base = backend.load()
        parts = [
            backend.counts(backend.preferences(base, kind="candidates", flip=0.2, round_index=1, part=(i, 3)))
            for i in range(3)
        ]
        whole = backend.counts(self.pairs(backend))
        assert {"kept", "flipped"} <= set(parts[0]) & set(parts[1]) & set(parts[2])
        for name in set(parts[0]) & set(parts[1]):
            total = sum(np.asarray(each[name]) for each in parts)
            np.testing.assert_array_equal(total, whole[name], err_msg=name)
            assert np.shape(whole[name]) == np.shape(whole["kept"])

    def test_training_is_deterministic_and_goes_on_where_it_was_killed(self, backend: Any, tmp_path: Path) -> None:
        def fit(where: Any, watch: Any = None) -> Any:
            base = where.load()
            return where.fit(base, base, self.pairs(where), DPO(), plan=self.plan, monitor=watch)

        whole = Watch()
        policy, losses = fit(backend, whole)
        other = self.fresh(tmp_path / "two")
        broken = Watch(1, kill=True)
        with pytest.raises(Killed):
            fit(other, broken)
        rest = Watch(resume=broken.taken)
        again, same_losses = fit(other, rest)
        np.testing.assert_array_equal(np.concatenate(arrays(backend, policy)), np.concatenate(arrays(other, again)))
        np.testing.assert_array_equal(losses["loss"], same_losses["loss"])
        assert losses["loss"].shape == np.shape(backend.counts(self.pairs(backend))["kept"])
        assert whole.lines[-1] == rest.lines[-1] and whole.lines[0] == broken.lines[0]

    def test_a_rate_of_nothing_changes_nothing(self, backend: Any) -> None:
        still = FitPlan("gd", rate=lambda data: 1e-300, steps=2)
        policy, losses = backend.fit(backend.load(), backend.load(), self.pairs(backend), DPO(), plan=still)
        assert same(backend, policy, backend.load())
        np.testing.assert_allclose(losses["loss"], np.log(2.0), rtol=1e-6)

    def test_merging_identical_policies_changes_nothing(self, backend: Any) -> None:
        policy = self.trained(backend)
        for weights in ([0.5, 0.5], [0.3, 0.7]):
            merged = backend.merge([policy, policy], np.array(weights))
            for one, two in zip(arrays(backend, merged), arrays(backend, policy), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-15)
        assert same(backend, backend.merge([policy, backend.load()], np.array([0.0, 1.0])), backend.load())
        assert same(backend, backend.merge([policy], np.array([[1.0]])), policy)

    def test_weights_that_make_no_merge_are_refused(self, backend: Any) -> None:
        base = backend.load()
        with pytest.raises(ValueError, match=r"must sum to 1, (got|but they sum to) 1\.5"):
            backend.merge([base, base], [0.5, 1.0])
        with pytest.raises(ValueError, match=r"a merge of 2 policies needs 2 shares.*, got shape \(3,\)"):
            backend.merge([base, base], [0.5, 0.25, 0.25])
        with pytest.raises(ValueError, match="a merge needs at least one policy, got none"):
            backend.merge([], [])

    def test_the_slopes_of_merged_margins_are_derivatives(self, backend: Any) -> None:
        policies = [backend.load(), self.trained(backend), self.trained(backend, 1)]
        rows, centre, step = self.pairs(backend), np.array([0.2, 0.5, 0.3]), 1e-4

        def margins(shares: np.ndarray) -> np.ndarray:
            return np.asarray(backend.merged_margins(policies, rows, shares)[0])

        _, slopes, shares = backend.merged_margins(policies, rows, centre)
        np.testing.assert_allclose(np.asarray(shares).sum(axis=-1), 1.0, rtol=1e-12)
        for t, way in enumerate(np.eye(3) * step):
            found = (margins(centre + way) - margins(centre - way)) / (2.0 * step)
            np.testing.assert_allclose(np.asarray(slopes)[..., t], found, rtol=0, atol=self.tolerance)
        assert np.abs(slopes).max() > 1e-3

    def test_metrics_are_one_number_for_each_run(self, backend: Any) -> None:
        found = backend.evaluate(backend.load())
        shape = np.shape(backend.counts(self.pairs(backend))["kept"])
        assert "kl" in found and all(np.shape(value) == shape for value in found.values())
        np.testing.assert_allclose(found["kl"], 0.0, atol=1e-7)
        assert np.all(np.asarray(backend.evaluate(self.trained(backend))["kl"]) > 0.0)


FINITE = make_simulation("e1", [0, 4], simulated_options("e1", {"n_prompts": 12, "n_arms": 5}))


class TestExact(BackendContract):
    plan = FitPlan("gd", rate=lambda data: FINITE.own.rate(data, 10.0), steps=4)
    tolerance = 1e-6
    fresh = staticmethod(lambda place: ExactBackend(FINITE))


class TestTorch(TestExact):
    fresh = staticmethod(lambda place: TorchBackend(FINITE))


class TestGPT2(BackendContract):
    plan = PLAN
    tolerance = 1e-6
    fresh = staticmethod(partial(loop_world.backend, architecture="gpt2"))


class TestLlama(TestGPT2):
    tolerance = 1e-2  # its norms are computed in float32, whatever the weights are in
    fresh = staticmethod(partial(loop_world.backend, architecture="llama"))
