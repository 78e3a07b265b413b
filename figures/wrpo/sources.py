"""WRPO on E6: what more source models bring, to the data and to the policy. Fresh seeds, paired."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.backend import ExactBackend
from bandits.schedules import Schedule
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from figures.claims import Claim
from figures.paired import Difference
from objectives import make_objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.wrpo import wrpo
from prefgeo.backend import FitPlan, constant_rate

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "WRPO with 1 to 10 source models: win rate, gold reward of their best responses, and who the policy becomes"
SIZE = (11.5, 3.9)
SETTINGS: dict[str, Any] = {
    "sources": [1, 2, 5, 10],  # WRPO, Tab. 4
    "alpha": 0.5,
    "beta": 1.0,
    "seeds": 12,
    "first_seed": 9200,  # none was used when the world was chosen
    "n_prompts": 600,
}
METHODS = {"DPO on own pairs": "#6b6b6b", "WRPO, dynamic": "#00798c", "WRPO, static": "#edae49"}
ON, DYNAMIC, STATIC = METHODS
STAGES = {"with fine-tuning": True, "without": False}


def compute(
    sources: list[int], alpha: float, beta: float, seeds: int, first_seed: int, n_prompts: int
) -> dict[str, Any]:
    """Win rates against the target in percent, (sources, seeds), by stage and method; the sources' best gold reward;
    and the policy's probability of source arms, in percent."""
    runs = list(range(first_seed, first_seed + seeds))
    rates: dict[str, dict[str, list[np.ndarray]]] = {s: {m: [] for m in METHODS} for s in STAGES}
    mass: dict[str, dict[str, list[np.ndarray]]] = {s: {m: [] for m in METHODS} for s in STAGES}
    best = []
    for number in sources:
        options = simulated_options("e6", {"n_prompts": n_prompts, "n_source": number})
        backend = ExactBackend(make_simulation("e6", runs, options))
        plan, tuning = (
            FitPlan(
                "adam", constant_rate(rate), epochs=1, batch_size=options.batch_size, schedule=Schedule("cosine", 0.1)
            )
            for rate in (options.learning_rate, options.sft_learning_rate)
        )
        for stage, tuned in STAGES.items():
            for method, make in _objectives(alpha, beta).items():
                data = DataSource("candidates")
                found = wrpo(backend, make, data=data, plan=plan, supervised=tuning if tuned else None)
                rates[stage][method].append(100.0 * np.asarray(found.metrics["win_rate"]))
                mass[stage][method].append(100.0 * np.asarray(found.metrics["mass_source"]))
        best.append(_best_of_sources(runs, options))
    return {"sources": np.asarray(sources), "win_rate": rates, "mass_of_sources": mass, "best": np.stack(best)}


def _objectives(alpha: float, beta: float) -> dict[str, Any]:
    fused = partial(make_objective, "wrpo", beta=beta, alpha=alpha)
    return {
        ON: partial(make_objective, "dpo", beta=beta),
        DYNAMIC: partial(fused, schedule="linear"),
        STATIC: partial(fused, schedule="static"),
    }


def _best_of_sources(runs: list[int], options: Any) -> np.ndarray:
    """Mean gold reward of y_ws, (seeds,)."""
    from bandits.worlds.simulated.style_imitation import FusionWorld

    world = FusionWorld.make(runs, options)
    best, _ = world.source_extremes()
    return np.asarray(np.take_along_axis(world.gold, best, axis=-1).mean(axis=-1))


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Gain over DPO on own pairs; the sources' best gold reward; the policy's probability of source arms."""
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.84, bottom=0.26, wspace=0.27)
    at = np.arange(len(table["sources"]))
    for stage, style in zip(STAGES, ("-", "--"), strict=True):
        for method in (DYNAMIC, STATIC):
            found = [Difference.of(*pair) for pair in _pairs(table, stage, method)]
            axes[0].errorbar(
                at, [d.mean for d in found], [d.half for d in found], fmt=style, marker="o", markersize=3.5,
                color=METHODS[method], label=f"{method}, {stage}",
            )  # fmt: skip
        for method, colour in METHODS.items():
            means = [values.mean() for values in table["mass_of_sources"][stage][method]]
            axes[2].plot(at, means, style, marker="o", markersize=3.5, color=colour, label=f"{method}, {stage}")
    axes[0].axhline(0.0, color="black", linewidth=0.7)
    axes[0].set(ylabel="win rate, minus DPO on own pairs (points)")
    axes[1].plot(at, table["best"].mean(axis=-1), color="#d1495b", marker="o", markersize=3.5)
    axes[1].set(ylabel="gold reward of the sources' best response")
    axes[2].set(ylabel="probability of source responses, %")
    for ax in axes:
        ax.set_xticks(at, [str(n) for n in table["sources"]])
        ax.set_xlabel("source models")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="lower center", ncols=3, handlelength=4, fontsize=8)


def _pairs(table: Mapping[str, Any], stage: str, method: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(method, DPO on own pairs) for each number of sources."""
    rates = table["win_rate"][stage]
    return list(zip(rates[method], rates[ON], strict=True))


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """The paper's upward trend, and what it rests on."""
    sources = [int(n) for n in table["sources"]]

    def change(method: str) -> dict[str, Difference]:
        return {s: Difference.of(rates[method][-1], rates[method][0]) for s, rates in table["win_rate"].items()}

    def told(found: Mapping[str, Difference]) -> str:
        return ", ".join(f"{difference} ({stage})" for stage, difference in found.items())

    trend, own = change(DYNAMIC), change(ON)
    beyond = {
        stage: Difference.of(rates[DYNAMIC][-1] - rates[ON][-1], rates[DYNAMIC][0] - rates[ON][0])
        for stage, rates in table["win_rate"].items()
    }
    gains = {stage: [Difference.of(*pair) for pair in _pairs(table, stage, DYNAMIC)] for stage in STAGES}
    richer = Difference.of(table["best"][-1], table["best"][0])
    return [
        Claim(
            f"WRPO's win rate rises with the number of sources, from {sources[0]} to {sources[-1]}",
            "WRPO (arXiv:2412.03187), Tab. 4",
            told(trend),
            all(d.is_up for d in trend.values()),
        ),
        Claim(
            "that is more than the world's additional good responses do for DPO on own pairs",
            "ours: a source is also one more response that any policy may find",
            f"DPO's own change {told(own)}; WRPO's beyond it {told(beyond)}",
            all(d.is_up for d in beyond.values()),
        ),
        Claim(
            "it beats DPO on own pairs with any number of sources",
            "WRPO, Tab. 2 and 4",
            "; ".join(
                f"{stage}: " + ", ".join(f"{n}: {d}" for n, d in zip(sources, found, strict=True))
                for stage, found in gains.items()
            ),
            all(d.is_up for found in gains.values() for d in found),
        ),
        Claim(
            "more sources mean better responses to learn from: the best of n grows",
            "WRPO, Sec. 4.3",
            f"gold reward of y_ws {richer}",
            richer.is_up,
        ),
    ]
