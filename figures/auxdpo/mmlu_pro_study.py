"""MMLU-Pro and HH with a small Llama from scratch: DPO, IPO, DPOP and modes of AuxDPO, from three sweeps' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.auxdpo.study_results import (
    BASELINE,
    BY_LOG_PROB,
    BY_REWARD,
    CATEGORY,
    FILES,
    OUT_OF_DOMAIN,
    STUDIES,
    study,
)
from figures.claims import Claim
from figures.paired import Difference
from figures.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

TITLE = "MMLU-Pro and HH, a Llama of 0.2 million parameters from scratch: AuxDPO against DPO, three seeds"
SIZE = (11.5, 12.0)
SETTINGS: dict[str, Any] = dict(FILES)  # in the folder ``results``; or the path of another sweep's results.csv
MEASURES = {
    BY_LOG_PROB: "by log-probability, held out",
    BY_REWARD: "by implicit reward, held out",
    OUT_OF_DOMAIN: "by implicit reward, out of domain",
}
MARKS = dict(zip(MEASURES, ("o", "s", "^"), strict=True))
SHADES = dict(zip(MEASURES, (COLOURS["dpo"], COLOURS["auxdpo"], COLOURS["reference"]), strict=True))


def compute(full: str, lora: str, hh: str) -> dict[str, Any]:
    """For each study and case: accuracies in percent with 95% t intervals over seeds, and paired differences to DPO."""
    return {"full": study(full), "lora": study(lora), "hh": study(hh)}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Left: differences to DPO, for each study. Right: accuracy by category."""
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.35, 1.0])
    left, right = halves
    heights = [len(table[name]) for name in STUDIES]
    panels = left.subplots(len(STUDIES), 1, height_ratios=heights)
    for panel, (name, title) in zip(panels, STUDIES.items(), strict=True):
        _differences(panel, table[name], title)
    panels[0].legend(loc="lower left", bbox_to_anchor=(-0.36, 1.08), ncols=3, columnspacing=0.8, handletextpad=0.2)
    panels[-1].set_xlabel("accuracy minus DPO's, points (95% t interval, paired by seed)")
    left.subplots_adjust(left=0.26, right=0.97, top=0.9, bottom=0.07, hspace=0.35)
    _categories(right.subplots(), table["full"])
    right.subplots_adjust(left=0.27, right=0.96, top=0.9, bottom=0.07)


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """The paper's, and what the dimension count says of them."""
    better = {
        "full": ("AuxDPO is better than DPO", "AuxDPO, Sec. 5, Tab. 1"),
        "lora": ("AuxDPO is better than DPO at low capacity", "AuxDPO, App., Fig. 4"),
        "hh": ("AuxDPO is better than DPO on other pairs too", "ours"),
    }
    found = []
    for name, (statement, source) in better.items():
        gains = _gains(table[name], BY_LOG_PROB)
        where = f"{statement} (accuracy by log-probability; {STUDIES[name]})"
        found.append(Claim(where, source, _told(gains), all(gain.is_up for gain in gains.values())))
    for name in ("full", "hh"):
        gains = _gains(table[name], BY_REWARD)
        found.append(
            Claim(
                "with more parameters than variables AuxDPO does not differ from DPO "
                f"(accuracy by implicit reward; {STUDIES[name]})",
                "theory page, section 6, for the exact constraint",
                _told(gains),
                not any(gain.is_up or gain.is_down for gain in gains.values()),
            )
        )
    return found


def _gains(cases: Mapping[str, Any], measure: str) -> dict[str, Difference]:
    rows = {case: row[measure] for case, row in cases.items() if case.startswith("auxdpo")}
    return {case: Difference(row["difference"], row["difference_half"]) for case, row in rows.items()}


def _told(gains: Mapping[str, Difference]) -> str:
    return "; ".join(f"{_short(case)} {gain}" for case, gain in gains.items()) + " points"


def _differences(panel: Axes, cases: Mapping[str, Any], title: str) -> None:
    shown = [case for case in cases if case != BASELINE]
    measures = [name for name in MEASURES if name in cases[BASELINE]]
    for offset, name in zip((-0.22, 0.0, 0.22), measures, strict=False):
        rows = [cases[case][name] for case in shown]
        places = np.arange(len(shown)) + offset
        means, halves = ([row[key] for row in rows] for key in ("difference", "difference_half"))
        panel.errorbar(
            means, places, xerr=halves, fmt=MARKS[name], color=SHADES[name], markersize=4.5, capsize=2, linewidth=1.1,
            label=MEASURES[name],
        )  # fmt: skip
    panel.axvline(0.0, color="#111111", linewidth=0.9)
    panel.set_yticks(np.arange(len(shown)), [_short(case) for case in shown])
    panel.set_ylim(len(shown) - 0.5, -0.5)
    panel.set_title(title, fontsize=9, loc="right")


def _categories(panel: Axes, cases: Mapping[str, Any]) -> None:
    names = sorted(name for name in cases[BASELINE] if name.startswith(CATEGORY))
    for offset, case, shade in ((-0.15, BASELINE, COLOURS["dpo"]), (0.15, "auxdpo_dual", COLOURS["auxdpo"])):
        rows = [cases[case][name] for name in names]
        places = np.arange(len(names)) + offset
        means, halves = ([row[key] for row in rows] for key in ("mean", "half"))
        panel.errorbar(
            means, places, xerr=halves, fmt="o", color=shade, markersize=4, capsize=2, linewidth=1.0, label=_short(case)
        )
    panel.axvline(50.0, color="#111111", linewidth=0.9, linestyle=":")
    panel.set_yticks(np.arange(len(names)), [name.removeprefix(CATEGORY) for name in names])
    panel.invert_yaxis()
    panel.set_xlabel("accuracy by implicit reward, held out, %")
    panel.set_title("MMLU-Pro by category, all parameters", fontsize=9, loc="right")
    panel.legend(loc="lower right")


def _short(case: str) -> str:
    return {"dpo": "DPO", "ipo": "IPO", "dpop": "DPOP"}.get(case, case.replace("auxdpo_", "").replace("_", " "))
