"""Exact metrics of policies in a bandit world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandits.judge import Judge, value_against
from geometry.pairs import FloatArray, IntArray, PairLayout


@dataclass(frozen=True, eq=False)
class BanditMetrics:
    """Exact metrics of policies against a base policy. Made by ``of``; called with log-probabilities (R, M).

    Names: expected_reward; win_rate and, where lengths are known, lc_win_rate and mean_length; entropy and kl (to
    ``reference``, the base by default) in nats; ``mass_<class>`` for each class of arms. Each is (R,).
    """

    weights: FloatArray  # (M,)
    gold: FloatArray
    value: FloatArray
    lc_value: FloatArray | None
    log_reference: FloatArray
    length: FloatArray | None
    classes: dict[str, FloatArray]

    @classmethod
    def of(
        cls,
        layout: PairLayout,
        gold: FloatArray,
        log_base: FloatArray,
        *,
        log_reference: FloatArray | None = None,
        prompt_distribution: FloatArray | None = None,
        judge: Judge | None = None,
        length: FloatArray | None = None,
        classes: dict[str, FloatArray] | None = None,
    ) -> BanditMetrics:
        """Prepare; ``gold`` and ``log_base`` are (R, M) or (1, M), classes are masks of that shape."""
        rho = np.full(layout.n_prompts, 1.0 / layout.n_prompts) if prompt_distribution is None else prompt_distribution
        judge = judge or Judge()
        value = value_against(layout, judge, log_base, gold, length)
        fair = None if length is None else value_against(layout, judge, log_base, gold)
        reference = log_base if log_reference is None else log_reference
        return cls(layout.spread(rho), gold, value, fair, reference, length, dict(classes or {}))

    def spread(self, back: IntArray) -> BanditMetrics:
        """The metrics of runs that share worlds: run i has world ``back[i]``; tables are copied, not made again."""

        def copy(values: FloatArray) -> FloatArray:
            return values if len(values) == 1 else values[back]

        return BanditMetrics(
            self.weights,
            copy(self.gold),
            copy(self.value),
            None if self.lc_value is None else copy(self.lc_value),
            copy(self.log_reference),
            None if self.length is None else copy(self.length),
            {name: copy(mask) for name, mask in self.classes.items()},
        )

    def __call__(self, log_choices: FloatArray) -> dict[str, FloatArray]:
        """All metrics of the policies, each (R,)."""
        weighted = np.exp(log_choices) * self.weights
        values = {
            "expected_reward": np.vecdot(weighted, self.gold),
            "win_rate": np.vecdot(weighted, self.value),
            "kl": np.vecdot(weighted, log_choices - self.log_reference),
            "entropy": -np.vecdot(weighted, log_choices),
        }
        if self.length is not None and self.lc_value is not None:
            values["lc_win_rate"] = np.vecdot(weighted, self.lc_value)
            values["mean_length"] = np.vecdot(weighted, self.length)
        for name, mask in self.classes.items():
            values[f"mass_{name}"] = np.vecdot(weighted, np.asarray(mask, dtype=np.float64))
        return values
