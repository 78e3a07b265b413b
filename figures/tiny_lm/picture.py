"""The study in one picture: language models above, the exact simulator below, a column for each study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures.tiny_lm.cases import CASES
from figures.tiny_lm.signs import Runs

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

COLOURS = ("#6b6b6b", "#d1495b", "#00798c", "#edae49", "#1d3557")
COLUMNS = {
    "noise": ("gold", "gold reward", "labels: flips, inherited or fresh"),
    "length": ("length", "length, tokens", "ranked by a proxy with a bonus of b per token"),
    "sources": ("win_rate", "win rate against the base, %", "source models: one round"),
}


def draw(language: Runs, exact: Runs, figure: SubFigure) -> None:
    """Means over seeds; bands and bars are the seeds' range."""
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.89, bottom=0.16, wspace=0.22, hspace=0.32)
    for row, (runs, who) in enumerate(((language, "tiny language models"), (exact, "exact simulator"))):
        for column, (study, (metric, label, title)) in enumerate(COLUMNS.items()):
            names = [case.name for case in CASES if case.study == study and case.name in runs]
            place = axes[row, column]
            if not names:
                place.set_axis_off()
                continue
            if study == "sources":
                _bars(place, runs, names, metric)
            else:
                _lines(place, runs, names, metric)
            place.set_ylabel(label)
            place.set_title(f"{title}\n{who}" if row == 0 else who, fontsize=9)
            if row == 1 and study != "sources":
                place.set_xlabel("round (0: the base)")
                place.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _lines(axes: Any, runs: Runs, names: list[str], metric: str) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        values = np.array([np.asarray(each[metric]) for each in runs[name]])
        axes.plot(values.mean(axis=1), color=colour, marker=".", label=name)
        axes.fill_between(range(len(values)), values.min(axis=1), values.max(axis=1), color=colour, alpha=0.1, lw=0)
        axes.set_xticks(range(len(values)))


def _bars(axes: Any, runs: Runs, names: list[str], metric: str) -> None:
    values = [100.0 * np.asarray(runs[name][-1][metric]) for name in names]
    means = np.array([each.mean() for each in values])
    reach = np.array([[mean - each.min(), each.max() - mean] for mean, each in zip(means, values, strict=True)]).T
    axes.bar(range(len(names)), means, yerr=reach, color=COLOURS[2], width=0.6, capsize=3)
    axes.set_ylim(min(50.0, float((means - reach[0]).min()) - 2.0), float((means + reach[1]).max()) + 2.0)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=7)
