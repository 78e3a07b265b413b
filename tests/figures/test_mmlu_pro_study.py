"""The study's figure from made-up results: differences by hand, and verdicts that can go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from figures.auxdpo import mmlu_pro_study as figure
from figures.auxdpo import study_results as results
from figures.auxdpo.study_table import COLUMNS, LABELS, MARK, MOVED, markdown
from figures.gallery import make

DPO = (0.50, 0.53, 0.47)
MODES = ("auxdpo_dual", "auxdpo_dual_strong")
Table = dict[str, dict[str, Any]]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "mmlu_pro_study.md"


def written(folder: Path, name: str, gains: dict[str, tuple[float, ...]], moved: dict[str, float]) -> str:
    """A results.csv with these gains over DPO, in every measure, for three seeds."""
    measures = [*figure.MEASURES, results.BEFORE, f"{results.CATEGORY}law", f"{results.CATEGORY}math"]
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
        ((UP, UP), [True, True, False, False, True]),
        ((UP, DOWN), [False, True, False, False, True]),
        ((NOISE, NOISE), [False, True, False, True, True]),
        ((NOISE, DOWN), [False, True, False, False, True]),
    ],
)
def test_differences_and_verdicts(tmp_path: Path, gains: tuple[tuple[float, ...], ...], verdicts: list[bool]) -> None:
    full = dict(zip(MODES, gains, strict=True))
    table = figure.compute(
        written(tmp_path, "full.csv", full, dict.fromkeys(full, 0.3)),
        written(tmp_path, "lora.csv", {"auxdpo_exact": UP}, {"auxdpo_exact": 0.1}),
        written(tmp_path, "hh.csv", {"auxdpo_dual": NOISE}, {"auxdpo_dual": 0.1}),
    )
    found = table["full"]["auxdpo_dual_strong"]["held_out/accuracy"]
    values = 100.0 * (np.array(DPO) + np.array(gains[1]))
    paired = ttest_rel(values, 100.0 * np.array(DPO)).confidence_interval()
    np.testing.assert_allclose(found["mean"], values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["difference"] - found["difference_half"], paired.low, rtol=1e-10)
    np.testing.assert_allclose(found["difference"] + found["difference_half"], paired.high, rtol=1e-10)
    assert "auxiliary/delta_rms" not in table["full"]["dpo"]
    assert [claim.held for claim in figure.claims(table)] == verdicts


def test_a_table_of_a_page(tmp_path: Path) -> None:
    """Percent and points to one decimal, DPO's differences empty, delta only where there is one."""
    cases = results.study(written(tmp_path, "full.csv", {"auxdpo_dual": UP}, {"auxdpo_dual": 0.3}))
    head, rule, before, dpo, dual = markdown(cases)
    assert head == f"|  | {' | difference | '.join(COLUMNS.values())} | difference | rms of delta |"
    assert rule.count("|") == head.count("|") == before.count("|") == dual.count("|")
    assert before.startswith("| after SFT | 50.0 ± 7.5 |  |")
    assert dpo.startswith("| DPO | 50.0 ± 7.5 |  | 50.0 ± 7.5 |  |") and dpo.endswith("|  |  |")
    assert dual.startswith(f"| {LABELS['auxdpo_dual']} | 52.5 ± 8.1 | +2.5 ± 1.2 | ") and dual.endswith("| 0.300 |")


def test_the_page_has_the_tables_of_its_result_files() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name in results.FILES.values():
        table, place = markdown(results.study(name)), lines.index(MARK.format(name)) + 2
        assert lines[place : place + len(table)] == table


def test_the_sentences_of_the_page_follow_from_its_result_files() -> None:
    """What came out and what was counted, in the page's words."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    full, lora, hh = (results.study(name) for name in results.FILES.values())

    def gain(case: str) -> float:
        return full[case][results.BY_LOG_PROB]["mean"] - full["dpo"][results.BEFORE]["mean"]

    def span(values: np.ndarray) -> str:
        return f"{values.min():.0f} to {values.max():.0f}"

    def moved(table: Table, *measures: str) -> list[dict[str, Any]]:
        return [row[each] for case, row in table.items() if case.startswith("auxdpo") for each in measures]

    chemistry, engineering, biology = (
        full["dpo"][f"{results.CATEGORY}{name}"]["mean"] for name in ("chemistry", "engineering", "biology")
    )
    bound, free = lora["auxdpo_exact"], lora["auxdpo_exact_unweighted"]
    ranks = np.concatenate([row["auxiliary/rank_least"]["values"] for row in (bound, free)])
    reachable, margins = (bound[f"auxiliary/{name}"]["values"] for name in ("reachable_least", "margin_dimension"))
    by_reward = {case: row[results.BY_REWARD] for case, row in hh.items()}
    others = ("ipo", "dpop")
    below = [-by_reward[case]["difference"] for case in others]
    in_domain = moved(full, results.BY_LOG_PROB, results.BY_REWARD)
    said = [
        f"DPO gains {gain('dpo'):.0f} points over SFT, IPO {gain('ipo'):.0f} and DPOP {gain('dpop'):.0f}",
        f"{chemistry:.0f} % of chemistry, {engineering:.0f} % of engineering and {biology:.0f} % of biology",
        f"none is wider than ± {max(row['difference_half'] for row in in_domain):.1f} points",
        f"tells {span(ranks)} directions apart, which leaves {span(reachable)} of {span(margins)} margins with D",
        f"rank {span(full['auxdpo_dual']['auxiliary/rank_least']['values'])} in float32",
        f"1,000 responses have {span(full['auxdpo_batch_penalty']['auxiliary/rank_least']['values'])}",
        "though their deltas after the last visit differ "
        f"({hh['auxdpo_dual'][MOVED]['mean']:.2f} and {hh['auxdpo_batch_penalty'][MOVED]['mean']:.2f})",
        "IPO's is {:.0f} points below it and DPOP's {:.0f}, at".format(*below),
        f"of 1,000 rows the limits leave {span(hh['auxdpo_dual']['auxiliary/margin_dimension']['values'])} to train on",
    ]
    assert not [sentence for sentence in said if sentence not in text]
    assert np.array_equal(free["auxiliary/reachable_least"]["values"], margins)  # all of them without D
    assert all(abs(row["difference"]) < row["difference_half"] for row in [*moved(full, *figure.MEASURES), *in_domain])
    assert all(abs(row["difference"]) < 0.5 for row in moved(lora, *figure.MEASURES))
    assert all(abs(row["difference"]) < 0.5 for row in moved(hh, results.BY_LOG_PROB, results.BY_REWARD))
    assert all(by_reward[case]["difference"] < -by_reward[case]["difference_half"] for case in others)
    assert abs(by_reward["dpop"]["mean"] - 50.0) < by_reward["dpop"]["half"]
    by_log_prob = [row[results.BY_LOG_PROB]["mean"] - row[results.BEFORE]["mean"] for row in hh.values()]
    assert max(by_log_prob) < 0.5
    same = [(table["auxdpo_dual"], table["auxdpo_batch_penalty"]) for table in (lora, hh)]
    for one, other in [*same, (hh["dpo"], hh["auxdpo_official"])]:
        assert all(np.array_equal(one[name]["values"], other[name]["values"]) for name in one if "accuracy" in name)


@pytest.mark.parametrize("name", results.FILES.values())
def test_the_results_that_ship_are_those_of_the_sweeps(name: str) -> None:
    """Three seeds of every case of the recipes, nothing failed, and no count of margins beyond their dimension."""
    from prefgeo.sweep_recipes import load_sweep

    recipe = (Path(__file__).resolve().parents[2] / "recipes" / "sweeps" / name).with_suffix(".yaml")
    columns, sweep = results.read_results(name), load_sweep(recipe)
    assert set(columns["status"]) == {"done"}
    expected = [(cell.settings["case"], str(seed)) for cell in sweep.cells for seed in sweep.seeds]
    assert list(zip(columns["case"], columns["seed"], strict=True)) == expected
    counts = [columns[f"auxiliary/{part}"] for part in ("reachable_least", "reachable_most", "margin_dimension")]
    counted = [tuple(map(float, row)) for row in zip(*counts, strict=True) if all(row)]
    assert counted and all(0 <= least <= most <= dimension for least, most, dimension in counted)


def test_the_figure_is_drawn_from_them(tmp_path: Path) -> None:
    made = make("mmlu_pro_study", tmp_path)
    assert all(path.stat().st_size > 1000 for path in made.files)
