"""The same number of pairs in few large or many small iterations of DPO, by the proxy's taste for length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.aipo._loops import by_iteration, iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "Few large or many small iterations of DPO on as many pairs, ranked by a proxy with a bonus b per token"
SIZE = (11.5, 5.6)
SETTINGS: dict[str, Any] = {
    "bias": [0.0, 0.02, 0.04],  # of the proxy, in facts per token
    "iterations": [1, 2, 4, 8, 16],
    "pairs": 8000,  # in all; T iterations draw pairs / T each
    "seeds": 5,
    "first_seed": 8400,  # none was used when the world was chosen
}


def compute(bias: list[float], iterations: list[int], pairs: int, seeds: int, first_seed: int) -> dict[str, Any]:
    """Mean length and LC win rate in percent, (T + 1, seeds), for each bias and T; the first row is the base policy."""
    length: dict[str, dict[str, np.ndarray]] = {}
    quality: dict[str, dict[str, np.ndarray]] = {}
    runs = range(first_seed, first_seed + seeds)
    for b in bias:
        length[f"{b:g}"], quality[f"{b:g}"] = {}, {}
        for rounds in iterations:
            world = sequence_world(runs, rewards={"length_bias": b}, n_prompts=pairs // rounds)
            found = iterated(world, "dpo", {"beta": 0.1}, rounds)  # AIPO, Tab. 6
            length[f"{b:g}"][str(rounds)] = by_iteration(found, "mean_length")
            quality[f"{b:g}"][str(rounds)] = 100.0 * by_iteration(found, "lc_win_rate")
    return {"bias": np.asarray(bias), "pairs": pairs, "length": length, "lc_win_rate": quality}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """A column for each bias: LC win rate above, length below, over the number of pairs seen."""
    import matplotlib.pyplot as plt

    names = list(table["length"])
    axes = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.87, bottom=0.18, wspace=0.08, hspace=0.12)
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(table["length"][names[0]])))
    for column, name in enumerate(names):
        for row, quantity in enumerate(("lc_win_rate", "length")):
            for shade, (rounds, values) in zip(shades, table[quantity][name].items(), strict=True):
                seen = np.linspace(0, table["pairs"], len(values))
                axes[row, column].plot(seen, values.mean(axis=-1), color=shade, marker=".", label=f"T = {rounds}")
                low, high = values.min(axis=-1), values.max(axis=-1)
                axes[row, column].fill_between(seen, low, high, color=shade, alpha=0.1, linewidth=0)
        axes[0, column].set(title=f"b = {name} per token")
        axes[1, column].set(xlabel="pairs seen", yscale="log")
        axes[1, column].set_yticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("LC win rate against SFT, %")
    axes[1, 0].set_ylabel("mean length, tokens")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(shades))


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What AIPO's Fig. 1 and Finding 2 say of the number of iterations."""
    biases = list(table["length"])
    counts = list(table["length"][biases[0]])
    few, many, before = counts[0], counts[-1], counts[-2]

    def gap(quantity: str, name: str, one: str, two: str) -> Difference:
        values = table[quantity][name]
        return Difference.of(values[one][-1], values[two][-1])

    def listed(found: Mapping[str, Difference], unit: str) -> str:
        return "; ".join(f"b={name}: {value} {unit}" for name, value in found.items())

    better = {name: gap("lc_win_rate", name, many, few) for name in biases}
    longer = {name: gap("length", name, many, few) for name in biases}
    last = {name: gap("lc_win_rate", name, many, before) for name in biases}
    falls = {
        name: Difference.of(values[many][-1], values[many][int(np.argmax(values[many].mean(axis=-1)))])
        for name, values in table["lc_win_rate"].items()
    }
    biased = [name for name in biases if float(name) > 0.0]
    return [
        Claim(
            f"{many} small iterations end better than {few} large one, whatever the proxy",
            "AIPO (arXiv:2409.08845), Fig. 1",
            listed(better, "points"),
            all(value.is_up for value in better.values()),
        ),
        Claim(
            f"they end better where the proxy's bias is small (b = {biased[0]})",
            "AIPO, Fig. 1",
            str(better[biased[0]]) + " points",
            better[biased[0]].is_up,
        ),
        Claim(
            f"from {before} to {many} iterations little more is gained (less than 1 point either way)",
            "AIPO, Sec. 4.2",
            listed(last, "points"),
            all(abs(value.mean) + value.half < 1.0 for value in last.values()),
        ),
        Claim(
            "more iterations make responses longer, with a biased proxy",
            "AIPO, Finding 2",
            listed({name: longer[name] for name in biased}, "tokens"),
            all(longer[name].is_up for name in biased),
        ),
        Claim(
            "... and without bias",
            "AIPO, which suspects the loss",
            listed({name: longer[name] for name in biases if name not in biased}, "tokens"),
            all(longer[name].is_up for name in biases if name not in biased),
        ),
        Claim(
            f"many iterations are stable: with T = {many} quality never falls from its best",
            "AIPO, Fig. 1: better training stability",
            listed(falls, "points from the best to the last"),
            not any(value.is_down for value in falls.values()),
        ),
    ]
