"""MMLU-Pro with a small Llama from scratch: DPO, IPO, DPOP and modes of AuxDPO, from the result files of two sweeps."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.claims import Claim
from figures.paired import Difference
from figures.style import COLOURS
from prefgeo.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

RESULTS = Path(__file__).parent / "results"
"""What the sweeps gave: their results.csv, unchanged."""
TITLE = "MMLU-Pro, a Llama of 0.2 million parameters from scratch: AuxDPO against DPO, three seeds"
SIZE = (11.5, 7.4)
SETTINGS: dict[str, Any] = {  # in the folder ``results``; or the path of another sweep's results.csv
    "full": "mmlu_pro_small.csv",
    "lora": "mmlu_pro_small_lora.csv",
}
BASELINE = "dpo"
MEASURES = {
    "held_out/accuracy": "by log-probability, held out",
    "held_out/accuracy_by_margin": "by implicit reward, held out",
    "out_of_domain/accuracy_by_margin": "by implicit reward, out of domain",
}
CATEGORY = "held_out/accuracy_by_margin/"
STUDIES = {"full": "all parameters", "lora": "LoRA of rank 1, last block"}
MARKS = dict(zip(MEASURES, ("o", "s", "^"), strict=True))
SHADES = dict(zip(MEASURES, (COLOURS["dpo"], COLOURS["auxdpo"], COLOURS["reference"]), strict=True))


def compute(full: str, lora: str) -> dict[str, Any]:
    """For each study and case: accuracies in percent with 95% t intervals over seeds, and paired differences to DPO."""
    table: dict[str, Any] = {}
    for study, path in (("full", full), ("lora", lora)):
        columns = read_results(path)
        cases = {case: [i for i, name in enumerate(columns["case"]) if name == case] for case in columns["case"]}
        names = [name for name in columns if name in MEASURES or name.startswith((CATEGORY, "auxiliary/", "before/"))]
        table[study] = {
            case: {
                name: _summary(columns[name], rows, cases[BASELINE], 100.0 if "accuracy" in name else 1.0)
                for name in names
                if columns[name][rows[0]]
            }
            for case, rows in cases.items()
        }
    return table


def read_results(name: str) -> dict[str, list[str]]:
    """The columns of a sweep's results.csv, as texts: of the file beside this module, or at the path."""
    path = Path(name) if Path(name).is_absolute() else RESULTS / name
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [row[name] for row in rows] for name in rows[0]}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Left: differences to DPO, for both studies. Right: accuracy by category."""
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.35, 1.0])
    left, right = halves
    heights = [len(table[study]) for study in STUDIES]
    panels = left.subplots(2, 1, height_ratios=heights)
    for panel, (study, title) in zip(panels, STUDIES.items(), strict=True):
        _differences(panel, table[study], title)
    panels[0].legend(loc="lower left", bbox_to_anchor=(-0.36, 1.06), ncols=3, columnspacing=0.8, handletextpad=0.2)
    panels[1].set_xlabel("accuracy minus DPO's, points (95% t interval, paired by seed)")
    left.subplots_adjust(left=0.26, right=0.97, top=0.86, bottom=0.1, hspace=0.35)
    _categories(right.subplots(), table["full"])
    right.subplots_adjust(left=0.27, right=0.96, top=0.86, bottom=0.1)


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """The paper's, and what the dimension count says of them."""
    found = []
    for study, capacity, where in (("full", "", "Sec. 5, Tab. 1"), ("lora", " at low capacity", "App., Fig. 4")):
        modes = {case: row for case, row in table[study].items() if case.startswith("auxdpo")}
        gains = {case: _difference(row["held_out/accuracy"]) for case, row in modes.items()}
        found.append(
            Claim(
                f"AuxDPO is better than DPO{capacity} (accuracy by log-probability, {STUDIES[study]})",
                f"AuxDPO, {where}",
                "; ".join(f"{_short(case)} {gain}" for case, gain in gains.items()) + " points",
                all(gain.is_up for gain in gains.values()),
            )
        )
    modes = {case: row for case, row in table["full"].items() if case.startswith("auxdpo")}
    gains = {case: _difference(row["held_out/accuracy_by_margin"]) for case, row in modes.items()}
    found.append(
        Claim(
            "with more parameters than pairs AuxDPO does not differ from DPO (accuracy by implicit reward)",
            "theory page, section 6, for the exact constraint",
            "; ".join(f"{_short(case)} {gain}" for case, gain in gains.items()) + " points",
            not any(gain.is_up or gain.is_down for gain in gains.values()),
        )
    )
    return found


def _summary(column: list[str], rows: list[int], baseline: list[int], scale: float) -> dict[str, Any]:
    values = scale * np.array([float(column[row]) for row in rows])
    estimate = Estimate.of(values)
    found = {"mean": estimate.mean, "half": estimate.half_width, "values": values}
    if all(column[row] for row in baseline):
        other = scale * np.array([float(column[row]) for row in baseline])
        paired = Difference.of(values, other)
        found |= {"difference": paired.mean, "difference_half": paired.half}
    return found


def _difference(summary: Mapping[str, Any]) -> Difference:
    return Difference(summary["difference"], summary["difference_half"])


def _differences(panel: Axes, cases: Mapping[str, Any], title: str) -> None:
    shown = [case for case in cases if case != BASELINE]
    for offset, name in zip((-0.22, 0.0, 0.22), MEASURES, strict=True):
        rows = [cases[case][name] for case in shown]
        places = np.arange(len(shown)) + offset
        means, halves = ([row[key] for row in rows] for key in ("difference", "difference_half"))
        panel.errorbar(
            means, places, xerr=halves, fmt=MARKS[name], color=SHADES[name], markersize=4.5, capsize=2, linewidth=1.1,
            label=MEASURES[name],
        )  # fmt: skip
    panel.axvline(0.0, color="#111111", linewidth=0.9)
    panel.set_yticks(np.arange(len(shown)), [_short(case) for case in shown])
    panel.invert_yaxis()
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
    panel.set_title("by category, all parameters", fontsize=9, loc="right")
    panel.legend(loc="lower right")


def _short(case: str) -> str:
    return {"dpo": "DPO", "ipo": "IPO", "dpop": "DPOP"}.get(case, case.replace("auxdpo_", "").replace("_", " "))
