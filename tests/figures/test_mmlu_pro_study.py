"""The study's figure from made-up results: differences by hand, and verdicts that can go either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from figures.auxdpo import mmlu_pro_study as study
from figures.gallery import make

DPO = (0.50, 0.53, 0.47)
MODES = {"full": ("auxdpo_dual", "auxdpo_dual_strong"), "lora": ("auxdpo_exact",)}


def written(folder: Path, name: str, gains: dict[str, tuple[float, ...]], moved: dict[str, float]) -> str:
    """A results.csv with these gains over DPO, in every measure, for three seeds."""
    measures = [*study.MEASURES, f"{study.CATEGORY}law", f"{study.CATEGORY}math"]
    lines = [",".join(["cell", "case", "seed", *measures, "auxiliary/delta_rms"])]
    for case, gain in {"dpo": (0.0, 0.0, 0.0), **gains}.items():
        for seed, (base, plus) in enumerate(zip(DPO, gain, strict=True)):
            values = [str(base + plus)] * len(measures)
            lines.append(",".join(["0", case, str(seed), *values, str(moved.get(case, ""))]))
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


UP, DOWN, NOISE = (0.02, 0.03, 0.025), (-0.02, -0.03, -0.025), (0.01, -0.01, 0.002)


@pytest.mark.parametrize(
    ("gains", "verdicts"),
    [
        ((UP, UP), [True, True, False]),
        ((UP, DOWN), [False, True, False]),
        ((NOISE, NOISE), [False, True, True]),
        ((NOISE, DOWN), [False, True, False]),
    ],
)
def test_differences_and_verdicts(tmp_path: Path, gains: tuple[tuple[float, ...], ...], verdicts: list[bool]) -> None:
    full = dict(zip(MODES["full"], gains, strict=True))
    table = study.compute(
        written(tmp_path, "full.csv", full, dict.fromkeys(full, 0.3)),
        written(tmp_path, "lora.csv", {"auxdpo_exact": UP}, {"auxdpo_exact": 0.1}),
    )
    found = table["full"]["auxdpo_dual_strong"]["held_out/accuracy"]
    values = 100.0 * (np.array(DPO) + np.array(gains[1]))
    paired = ttest_rel(values, 100.0 * np.array(DPO)).confidence_interval()
    np.testing.assert_allclose(found["mean"], values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["difference"] - found["difference_half"], paired.low, rtol=1e-10)
    np.testing.assert_allclose(found["difference"] + found["difference_half"], paired.high, rtol=1e-10)
    assert "auxiliary/delta_rms" not in table["full"]["dpo"]
    assert [claim.held for claim in study.claims(table)] == verdicts


def test_the_results_that_ship_are_those_of_the_sweeps(tmp_path: Path) -> None:
    """Three seeds of every case of the recipes, nothing failed; and the figure is drawn from them."""
    from prefgeo.sweep_recipes import load_sweep

    recipes = Path(__file__).resolve().parents[2] / "recipes" / "sweeps"
    for name in ("mmlu_pro_small", "mmlu_pro_small_lora"):
        columns, sweep = study.read_results(f"{name}.csv"), load_sweep(recipes / f"{name}.yaml")
        assert set(columns["status"]) == {"done"}
        expected = [(cell.settings["case"], str(seed)) for cell in sweep.cells for seed in sweep.seeds]
        assert list(zip(columns["case"], columns["seed"], strict=True)) == expected
    made = make("mmlu_pro_study", tmp_path)
    assert all(path.stat().st_size > 1000 for path in made.files)
