"""Quality against length for a grid of settings of each loss: every family tuned, at several biases of the proxy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.aipo._loops import by_iteration, iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "Quality against length: each loss with settings of its own, ranked by a proxy with a bonus b per token"
SIZE = (11.5, 4.6)
SETTINGS: dict[str, Any] = {
    "bias": [0.02, 0.04, 0.06],  # of the proxy, in facts per token
    "seeds": 6,
    "first_seed": 8500,  # none was used when the world was chosen
    "rounds": 8,
    "n_prompts": 500,
}
COLOURS = {"DPO": "#6b6b6b", "DPO + NLL": "#edae49", "AIPO": "#00798c", "R-DPO": "#8d6a9f", "SimPO": "#d1495b"}
GRID: dict[
    str, tuple[str, list[dict[str, float]]]
] = {  # beta, NLL, SimPO: AIPO, Tab. 6; alpha and R-DPO's weights: ours
    "DPO": ("dpo", [{"beta": 0.1}, {"beta": 0.5}]),
    "DPO + NLL": ("dpo_nll", [{"beta": 0.1, "nll_weight": 0.2}, {"beta": 0.1, "nll_weight": 0.6}]),
    "AIPO": (
        "aipo",
        [
            {"beta": 0.1, "alpha": 0.05, "nll_weight": 0.2},
            {"beta": 0.1, "alpha": 0.3, "nll_weight": 0.2},
            {"beta": 0.1, "alpha": 0.3, "nll_weight": 0.5},
        ],
    ),
    "R-DPO": ("r_dpo", [{"beta": 0.1, "length_weight": 0.02}, {"beta": 0.1, "length_weight": 0.1}]),
    "SimPO": ("simpo", [{"beta": 2.0, "gamma": 0.5}, {"beta": 2.0, "gamma": 1.0}]),
}


def compute(bias: list[float], seeds: int, first_seed: int, rounds: int, n_prompts: int) -> dict[str, Any]:
    """Length and LC win rate in percent after each iteration, (settings, rounds + 1, seeds), by bias and family."""
    runs = range(first_seed, first_seed + seeds)
    length: dict[str, dict[str, np.ndarray]] = {}
    quality: dict[str, dict[str, np.ndarray]] = {}
    for b in bias:
        world = sequence_world(runs, rewards={"length_bias": b}, n_prompts=n_prompts)
        length[f"{b:g}"], quality[f"{b:g}"] = {}, {}
        for family, (objective, settings) in GRID.items():
            found = [iterated(world, objective, values, rounds) for values in settings]
            length[f"{b:g}"][family] = np.stack([by_iteration(each, "mean_length") for each in found])
            quality[f"{b:g}"][family] = 100.0 * np.stack([by_iteration(each, "lc_win_rate") for each in found])
    return {"bias": np.asarray(bias), "length": length, "lc_win_rate": quality}


def tuned(values: np.ndarray) -> np.ndarray:
    """The last iteration's quality of each seed, (seeds,), with the setting that is best on the other seeds.

    ``values`` is (settings, rounds + 1, seeds). A family with more settings gains nothing by luck.
    """
    last = values[:, -1]
    others = last.sum(axis=-1, keepdims=True) - last
    chosen = others.argmax(axis=0)
    return np.asarray(last[chosen, np.arange(last.shape[-1])])


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """A panel for each bias: the path of each setting over the iterations, its end marked."""
    names = list(table["length"])
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.06, right=0.98, top=0.86, bottom=0.24, wspace=0.06)
    for panel, name in zip(axes, names, strict=True):
        for family, colour in COLOURS.items():
            x, y = table["length"][name][family].mean(axis=-1), table["lc_win_rate"][name][family].mean(axis=-1)
            for place in range(len(x)):
                panel.plot(x[place], y[place], color=colour, linewidth=0.8, alpha=0.6)
                panel.plot(x[place, -1:], y[place, -1:], color=colour, marker="o", linestyle="")
        panel.set(title=f"b = {name} per token", xlabel="mean length, tokens", xscale="log", xlim=(6.0, 42.0))
        panel.set_xticks([10, 20, 40], ["10", "20", "40"])
        panel.minorticks_off()
    axes[0].set_ylabel("LC win rate against SFT, %")
    for family, colour in COLOURS.items():
        axes[0].plot([], [], color=colour, marker="o", label=family)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(COLOURS))


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """AIPO against each rival, both tuned, at each bias."""
    names = list(table["length"])
    quality = {name: {family: tuned(table["lc_win_rate"][name][family]) for family in GRID} for name in names}

    def against(rival: str) -> dict[str, Difference]:
        return {name: Difference.of(quality[name]["AIPO"], quality[name][rival]) for name in names}

    def verdict(statement: str, source: str, rival: str) -> Claim:
        found = against(rival)
        measured = "; ".join(f"b={name}: {value} points" for name, value in found.items())
        return Claim(statement, source, f"AIPO minus {rival}, {measured}", all(each.is_up for each in found.values()))

    fig_2 = "AIPO (arXiv:2409.08845), Fig. 2 and 3"
    longest = {
        name: max(
            (float(values[:, -1].mean(axis=-1).max()), family) for family, values in table["length"][name].items()
        )
        for name in names
    }
    return [
        verdict("tuned AIPO beats tuned DPO at every bias", fig_2, "DPO"),
        verdict("... tuned DPO + NLL", fig_2, "DPO + NLL"),
        verdict("... tuned SimPO", fig_2, "SimPO"),
        verdict("... tuned R-DPO", "ours: not in the paper", "R-DPO"),
        Claim(
            "SimPO gives the longest responses at every bias, whatever its settings",
            "AIPO, Fig. 2",
            "longest: "
            + "; ".join(f"b={name}: {family}, {value:.1f} tokens" for name, (value, family) in longest.items()),
            all(family == "SimPO" for _, family in longest.values()),
        ),
        _reach(table),
    ]


def _reach(table: Mapping[str, Any]) -> Claim:
    """Whether alpha adds to NLL: the settings that differ in alpha alone."""
    found = {}
    for name, values in table["lc_win_rate"].items():
        found[name] = Difference.of(values["AIPO"][1, -1], values["DPO + NLL"][0, -1])
    small = {
        name: Difference.of(values["AIPO"][0, -1], values["DPO + NLL"][0, -1])
        for name, values in table["lc_win_rate"].items()
    }
    return Claim(
        "agreement-awareness adds to NLL at the paper's alpha, 0.05",
        "AIPO, Fig. 3",
        "alpha 0.05: "
        + "; ".join(f"b={name}: {value}" for name, value in small.items())
        + "; alpha 0.3: "
        + "; ".join(f"b={name}: {value} points" for name, value in found.items()),
        all(each.is_up for each in small.values()),
    )
