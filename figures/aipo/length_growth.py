"""Response length and length-controlled win rate by iteration on E3, for several losses and proxies. Fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.aipo._loops import by_iteration, iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "AIPO's loop on sequences: length and quality by iteration, ranked by a proxy with a bonus b per token"
SIZE = (11.5, 5.8)
SETTINGS: dict[str, Any] = {
    "bias": [0.0, 0.02, 0.04, 0.06],  # of the proxy, in facts per token
    "seeds": 5,
    "first_seed": 8000,  # none was used when the world was chosen
    "rounds": 8,
    "n_prompts": 1000,
}
METHODS: dict[str, tuple[str, dict[str, float], str]] = {  # beta and the shares of NLL: AIPO, Tab. 6
    "DPO": ("dpo", {"beta": 0.1}, "#6b6b6b"),
    "DPO + NLL": ("dpo_nll", {"beta": 0.1, "nll_weight": 0.2}, "#edae49"),
    "AIPO": ("aipo", {"beta": 0.1, "alpha": 0.3, "nll_weight": 0.2}, "#00798c"),  # alpha: ours
    "R-DPO, .02": ("r_dpo", {"beta": 0.1, "length_weight": 0.02}, "#8d6a9f"),  # length_weight: ours
    "R-DPO, .1": ("r_dpo", {"beta": 0.1, "length_weight": 0.1}, "#1d3557"),
    "SimPO": ("simpo", {"beta": 2.0, "gamma": 0.5}, "#d1495b"),
}


def compute(bias: list[float], seeds: int, first_seed: int, rounds: int, n_prompts: int) -> dict[str, Any]:
    """Mean length and LC win rate in percent, (rounds + 1, seeds), for each bias and method; round 0 is the base."""
    length: dict[str, dict[str, np.ndarray]] = {}
    quality: dict[str, dict[str, np.ndarray]] = {}
    for b in bias:
        runs = range(first_seed, first_seed + seeds)
        world = sequence_world(runs, rewards={"length_bias": b}, n_prompts=n_prompts)
        length[f"{b:g}"], quality[f"{b:g}"] = {}, {}
        for method, (name, values, _) in METHODS.items():
            found = iterated(world, name, values, rounds)
            length[f"{b:g}"][method] = by_iteration(found, "mean_length")
            quality[f"{b:g}"][method] = 100.0 * by_iteration(found, "lc_win_rate")
    return {"bias": np.asarray(bias), "length": length, "lc_win_rate": quality}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """A column for each bias: length above, LC win rate below; bands are the seeds' range."""
    names = list(table["length"])
    axes = figure.subplots(2, len(names), sharex=True, squeeze=False)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.87, bottom=0.16, wspace=0.25, hspace=0.15)
    for column, name in enumerate(names):
        for row, quantity in enumerate(("length", "lc_win_rate")):
            for method, (_, _, colour) in METHODS.items():
                values = table[quantity][name][method]
                steps = np.arange(len(values))
                axes[row, column].plot(steps, values.mean(axis=-1), color=colour, marker=".", label=method)
                low, high = values.min(axis=-1), values.max(axis=-1)
                axes[row, column].fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)
        axes[0, column].set(title=f"b = {name} per token", yscale="log")
        axes[0, column].set_yticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axes[0, column].minorticks_off()
        axes[1, column].set(xlabel="iteration")
    axes[0, 0].set_ylabel("mean length, tokens")
    axes[1, 0].set_ylabel("LC win rate against SFT, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(METHODS))


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What AIPO says of length, and which loss controls it here."""
    biases = list(table["length"])
    least, most = biases[0], biases[-1]
    middle = "0.04" if "0.04" in biases else most

    def last(quantity: str, name: str, method: str) -> np.ndarray:
        return np.asarray(table[quantity][name][method][-1])

    def gap(quantity: str, name: str, one: str, two: str) -> Difference:
        return Difference.of(last(quantity, name, one), last(quantity, name, two))

    growth = {b: Difference.of(last("length", b, "DPO"), table["length"][b]["DPO"][0]) for b in biases}
    rise = {m: Difference.of(last("lc_win_rate", middle, m), last("lc_win_rate", middle, "DPO")) for m in METHODS}
    peak = table["lc_win_rate"][most]["DPO"].mean(axis=-1)
    over = Difference.of(last("lc_win_rate", most, "DPO"), table["lc_win_rate"][most]["DPO"][int(np.argmax(peak))])
    others = [m for m in METHODS if m not in ("AIPO", "DPO", "DPO + NLL")]
    longest = {b: max((float(last("length", b, m).mean()), m) for m in METHODS)[1] for b in biases}
    nll = gap("lc_win_rate", middle, "DPO + NLL", "DPO")
    frontier = gap("lc_win_rate", middle, "AIPO", "DPO + NLL")
    shorter = gap("length", middle, "AIPO", "DPO + NLL")
    rivals = {m: gap("lc_win_rate", middle, "AIPO", m) for m in others}
    return [
        Claim(
            "iterated DPO makes responses longer even where the ranking does not favour length",
            "AIPO (arXiv:2409.08845), on its Tab. 2, suspects DPO's loss on similar responses",
            "; ".join(f"b={b}: {value} tokens" for b, value in growth.items()),
            growth[least].is_up,
        ),
        Claim(
            f"with b = {most} length grows, and quality falls from its peak (at iteration {int(np.argmax(peak))})",
            "AIPO, Finding 2",
            f"length {growth[most]} tokens; LC win rate, last minus best: {over} points",
            growth[most].is_up and over.is_down,
        ),
        Claim(
            f"AIPO is better and shorter than DPO + NLL at b = {middle}",
            "AIPO, Fig. 3",
            f"LC win rate {frontier} points, length {shorter} tokens",
            frontier.is_up and shorter.is_down,
        ),
        Claim(
            f"the NLL term alone is marginal at b = {middle}",
            "AIPO, on its Fig. 2",
            f"DPO + NLL minus DPO: {nll} points; AIPO minus DPO: {rise['AIPO']}",
            not nll.is_up,
        ),
        Claim(
            f"AIPO is the best of all losses tried at b = {middle}",
            "AIPO, Fig. 2 and 3",
            "AIPO minus " + "; ".join(f"{m}: {d}" for m, d in rivals.items()),
            all(d.is_up for d in rivals.values()) and rise["AIPO"].is_up and frontier.is_up,
        ),
        Claim(
            "SimPO gives the longest responses at every b",
            "AIPO, Fig. 2",
            "longest: " + "; ".join(f"b={b}: {m}" for b, m in longest.items()),
            all(m == "SimPO" for m in longest.values()),
        ),
    ]
