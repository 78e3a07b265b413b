"""The study of AuxDPO on real files, from the result files of its sweeps: means over seeds and differences to DPO."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from figures.paired import Difference
from prefgeo.statistics import Estimate

RESULTS = Path(__file__).parent / "results"
"""What the sweeps gave: their results.csv, unchanged."""
STUDIES = {  # each from the file of its sweep, recipes/sweeps/mmlu_pro_small.yaml and so on
    "full": "MMLU-Pro, all parameters",
    "lora": "MMLU-Pro, LoRA of rank 1, last block",
    "hh": "HH dialogues, all parameters",
}
FILES = {"full": "mmlu_pro_small.csv", "lora": "mmlu_pro_small_lora.csv", "hh": "hh_small.csv"}
BASELINE = "dpo"
BY_LOG_PROB, BY_REWARD = "held_out/accuracy", "held_out/accuracy_by_margin"
OUT_OF_DOMAIN = "out_of_domain/accuracy_by_margin"
CATEGORY = f"{BY_REWARD}/"
BEFORE = f"before/{BY_LOG_PROB}"
KEPT = (CATEGORY, "auxiliary/", "before/")


def study(name: str) -> dict[str, dict[str, Any]]:
    """For each case of a sweep: accuracies in percent with 95% t intervals over seeds, and paired differences to DPO.

    ``name`` is a file in the folder ``results``, or the path of another sweep's results.csv.
    """
    columns = read_results(name)
    cases = {case: [i for i, other in enumerate(columns["case"]) if other == case] for case in columns["case"]}
    measures = (BY_LOG_PROB, BY_REWARD, OUT_OF_DOMAIN)
    names = [column for column in columns if column in measures or column.startswith(KEPT)]
    return {
        case: {
            column: _summary(columns[column], rows, cases[BASELINE], 100.0 if "accuracy" in column else 1.0)
            for column in names
            if columns[column][rows[0]]
        }
        for case, rows in cases.items()
    }


def read_results(name: str) -> dict[str, list[str]]:
    """The columns of a sweep's results.csv, as texts: of the file in the folder ``results``, or at the path."""
    path = Path(name) if Path(name).is_absolute() else RESULTS / name
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _summary(column: list[str], rows: list[int], baseline: list[int], scale: float) -> dict[str, Any]:
    values = scale * np.array([float(column[row]) for row in rows])
    estimate = Estimate.of(values)
    found = {"mean": estimate.mean, "half": estimate.half_width, "values": values}
    if all(column[row] for row in baseline):
        other = scale * np.array([float(column[row]) for row in baseline])
        paired = Difference.of(values, other)
        found |= {"difference": paired.mean, "difference_half": paired.half}
    return found
