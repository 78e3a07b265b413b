"""`python -m figures.tiny_lm`: loops on tiny language models beside the exact simulator; a picture, a table of signs.

Runs are kept in --out and continued; nothing that is finished is run again. About fifteen minutes of one CPU core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from figures.save import framed, provenance, save_figure
from figures.style import house_style
from figures.tiny_lm.cases import CASES, Case
from figures.tiny_lm.picture import draw
from figures.tiny_lm.runs import exact_rounds, language_rounds
from figures.tiny_lm.signs import Rounds, answers, table

TITLE = "Loops on tiny GPT-2 models (SFT, then up to three rounds) and on the finite policies of the simulator"
SIZE = (12.0, 6.6)
EXACT_FIRST = 9000


def main(given: Sequence[str] | None = None) -> None:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(prog="python -m figures.tiny_lm", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("studies/tiny_lm"), help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the language models")
    parser.add_argument("--first-seed", type=int, default=500)
    parser.add_argument("--exact-seeds", type=int, default=12, help="seeds of the simulator")
    options = parser.parse_args(given)
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    study(options.out, seeds, list(range(EXACT_FIRST, EXACT_FIRST + options.exact_seeds)))


def study(
    out: Path, seeds: list[int], exact_seeds: list[int], cases: Sequence[Case] = CASES, sizes: Any = None
) -> dict[str, Any]:
    """Everything; what is written to ``tiny_lm.json``."""
    begun = time.process_time()
    by_seed = {seed: _one_seed(out, seed, cases, sizes) for seed in seeds}
    language = {case.name: _stacked([by_seed[seed][case.name] for seed in seeds]) for case in cases}
    exact = {case.name: exact_rounds(case, exact_seeds) for case in cases}
    found = answers(language, exact)
    record: dict[str, Any] = {"seeds": seeds, "exact_seeds": exact_seeds, "provenance": provenance()}
    record |= {"language": language, "exact": exact, "answers": [each.to_json() for each in found]}
    with house_style():
        figure, part = framed(SIZE, TITLE, [])
        draw(language, exact, part)
        save_figure(figure, out, "tiny_lm", record)
    print(table(found))
    print(f"{time.process_time() - begun:.0f} s of CPU; written to {out}", file=sys.stderr)
    return record


def _one_seed(out: Path, seed: int, cases: Sequence[Case], sizes: Any) -> dict[str, list[dict[str, float]]]:
    """All cases of a seed; those of one study begin with the same SFT."""
    found: dict[str, list[dict[str, float]]] = {}
    donors: dict[str, Path] = {}
    for case in cases:
        folder = out / "runs" / f"{''.join(c if c.isalnum() else '_' for c in case.name)}-{seed}"
        found[case.name] = language_rounds(case, seed, folder, donors.get(case.study), sizes)
        donors[case.study] = folder
        print(f"seed {seed}, {case.name}: done", file=sys.stderr, flush=True)
    return found


def _stacked(runs: Sequence[Sequence[dict[str, float]]]) -> Rounds:
    """Seeds of rounds of numbers as rounds of arrays over seeds; metrics that all have."""
    rounds = []
    for several in zip(*runs, strict=True):
        names = [name for name in several[0] if all(name in each for each in several)]
        rounds.append({name: np.array([each[name] for each in several]) for name in names})
    return rounds


if __name__ == "__main__":
    main()
