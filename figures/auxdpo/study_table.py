"""The tables of docs/mmlu_pro_study.md from the result files: ``python -m figures.auxdpo.study_table`` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures.auxdpo.study_results import BASELINE, BEFORE, BY_LOG_PROB, BY_REWARD, FILES, OUT_OF_DOMAIN, study

LABELS = {
    "dpo": "DPO",
    "ipo": "IPO (tau = 0.1)",
    "dpop": "DPOP (beta = 0.3, penalty 50)",
    "auxdpo_exact": "`exact`, weights D",
    "auxdpo_exact_unweighted": "`exact`, no weights",
    "auxdpo_dual": "`dual`, weights D",
    "auxdpo_dual_strong": "`dual`, no weights, penalty 100",
    "auxdpo_cross_batch": "`cross_batch`, weights D",
    "auxdpo_batch_penalty": "`batch_penalty`, untied (the paper)",
    "auxdpo_official": "`official_compat` (the notebook)",
}
COLUMNS = {BY_LOG_PROB: "log-prob", BY_REWARD: "reward", OUT_OF_DOMAIN: "reward, out of domain"}
MOVED = "auxiliary/delta_rms"
MARK = "<!-- Generated: python -m figures.auxdpo.study_table; {} -->"
"""Stands above the table of a result file."""


def markdown(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One study as the lines of a Markdown table: percent, mean ± half the interval, differences to DPO in points."""
    measures = [name for name in COLUMNS if name in cases[BASELINE]]
    heads = [head for name in measures for head in (COLUMNS[name], "difference")]
    before = _percent(cases[BASELINE][BEFORE])
    lines = [["", *heads, "rms of delta"], ["after SFT", before, *[""] * len(heads)]]
    for case, row in cases.items():
        pairs = [(_percent(row[name]), "" if case == BASELINE else _points(row[name])) for name in measures]
        moved = f"{row[MOVED]['mean']:.3f}" if MOVED in row else ""
        lines.append([LABELS[case], *(cell for pair in pairs for cell in pair), moved])
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return [written[0], "|" + "---|" * (len(heads) + 2), *written[1:]]


def _percent(summary: Mapping[str, Any]) -> str:
    return f"{summary['mean']:.1f} ± {summary['half']:.1f}"


def _points(summary: Mapping[str, Any]) -> str:
    return f"{summary['difference']:+.1f} ± {summary['difference_half']:.1f}"


if __name__ == "__main__":
    for file in FILES.values():
        print(MARK.format(file), "", *markdown(study(file)), "", sep="\n")
