"""Sweeps: the grid, paired comparisons, tables, workers of every kind, and resuming after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet
import pytest
from scipy.stats import ttest_rel

import prefgeo
from prefgeo import sweep as sweep_module
from prefgeo.errors import UsageError
from prefgeo.statistics import Estimate
from prefgeo.sweep import run_sweep
from prefgeo.sweep_recipes import label, load_sweep
from prefgeo.sweep_workers import run_cell, workers

ROOT = Path(prefgeo.__file__).resolve().parents[1]
SWEEP = """name: grid
recipe:
  world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
  objective: {name: dpo}
  training: {optimiser: world, steps: 3}
grid:
  objective:
    - {name: dpo, options: {beta: 0.1}}
    - {name: ipo, options: {tau: 0.5}}
  data.flip: [0, 0.3]
seeds: [4, 1, 7]
baseline:
  objective: {name: dpo, options: {beta: 0.1}}
"""
TABLES = ("results.parquet", "results.csv", "summary.parquet", "summary.csv")
SLOW = SWEEP.replace("steps: 3", "steps: 600").replace("n_prompts: 4", "n_prompts: 60").replace(
    "data.flip: [0, 0.3]", "data.flip: [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]"
)  # fmt: skip


def write(text: str, folder: Path) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(write(SWEEP, folder), "exact", folder / "out")
    return folder / "out"


# -- grid and tables --------------------------------------------------------------------------------------------------


def test_cells_are_the_product_and_know_their_baseline(tmp_path: Path) -> None:
    sweep = load_sweep(write(SWEEP, tmp_path))
    found = [(cell.settings["objective"]["name"], cell.settings["data.flip"], cell.baseline) for cell in sweep.cells]
    assert found == [("dpo", 0, None), ("dpo", 0.3, None), ("ipo", 0, 0), ("ipo", 0.3, 1)]
    assert all(cell.prepared.recipe.seeds == [4, 1, 7] for cell in sweep.cells)
    assert sweep.cells[2].prepared.config["objective"]["options"]["tau"] == 0.5
    assert len({cell.key("exact") for cell in sweep.cells} | {cell.key("torch") for cell in sweep.cells}) == 8


CASES = """name: cases
recipe:
  world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
  objective: {name: dpo}
  training: {optimiser: world, steps: 3}
cases:
  dpo: {objective.options.beta: 0.1}
  noisy: {objective: {name: cdpo, options: {label_smoothing: 0.1}}, data.flip: 0.3}
grid:
  training.steps: [2, 3]
seeds: [4]
baseline: {case: dpo}
"""


def test_cases_set_several_keys_at_once(tmp_path: Path) -> None:
    sweep = load_sweep(write(CASES, tmp_path))
    assert sweep.keys == ("case", "training.steps")
    found = [(cell.settings["case"], cell.settings["training.steps"], cell.baseline) for cell in sweep.cells]
    assert found == [("dpo", 2, None), ("dpo", 3, None), ("noisy", 2, 0), ("noisy", 3, 1)]
    config = sweep.cells[3].prepared.config
    assert (config["objective"]["name"], config["data"]["flip"], config["training"]["steps"]) == ("cdpo", 0.3, 3)
    assert sweep.cells[1].prepared.config["data"]["flip"] == 0.0  # not that of the other case
    done = run_sweep(tmp_path / "sweep.yaml", "exact", tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert not done.failures and table["case"] == ["dpo", "dpo", "noisy", "noisy"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("data.flip: 0.3", "data.flip: 3", "line 8, cases.noisy.data.flip: Input should be less than or equal to 1"),
        ("data.flip: 0.3", "dta.flip: 0.3", "cases.noisy.dta.flip: unknown key 'dta.flip'. Did you mean 'data'?"),
        ("data.flip: 0.3", "seeds: [1]", "cases.noisy.seeds: seeds is the same in all cells"),
        ("data.flip: 0.3", "training.steps: 7", "training.steps sets this already; vary one of the two"),
        ("{case: dpo}", "{case: ipo}", "baseline.case: ipo is not among its values in the grid: dpo, noisy"),
        (CASES[CASES.index("cases:\n") : CASES.index("seeds:")], "", "say what to vary: give a grid or cases"),
        ("dpo: {objective.options.beta: 0.1}", "dpo: {}", "cases.dpo: Dictionary should have at least 1 item"),
    ],
)
def test_faults_of_cases(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in CASES
    with pytest.raises(UsageError) as told:
        load_sweep(write(CASES.replace(old, new), tmp_path))
    assert sentence in str(told.value)


def test_a_recipe_file_serves_as_well(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\nworld: {name: e1, options: {n_prompts: 4, n_arms: 3}}\nobjective: {name: dpo}\nseeds: [9]\n"
        "training: {optimiser: world, steps: 3}\n",
        encoding="utf-8",
    )
    text = SWEEP[: SWEEP.index("recipe:")] + "recipe: base.yaml\n" + SWEEP[SWEEP.index("grid:") :]
    sweep = load_sweep(write(text, tmp_path))
    inline = load_sweep(write(SWEEP, tmp_path))
    assert [cell.key("exact") for cell in sweep.cells] == [cell.key("exact") for cell in inline.cells]
    assert load_sweep(write(text.replace("seeds: [4, 1, 7]\n", ""), tmp_path)).seeds == (9,)


def test_results_have_a_row_for_each_cell_and_seed(finished: Path) -> None:
    table = parquet.read_table(finished / "results.parquet").to_pydict()
    assert table["cell"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert table["seed"] == [4, 1, 7] * 4
    assert table["objective"][0] == "dpo(beta=0.1)" and table["data.flip"][3] == 0.3
    assert set(table["status"]) == {"done"} and set(table["error"]) == {None}
    assert all(0.0 < value < 1.0 for value in table["win_rate"])
    again = arrow_csv.read_csv(finished / "results.csv").to_pydict()
    assert again["win_rate"] == table["win_rate"]  # to the last bit


def test_the_summary_is_what_scipy_says(finished: Path) -> None:
    """Mean and interval from Student's t; the difference to the baseline is that of the paired test."""
    rows = parquet.read_table(finished / "results.parquet").to_pydict()
    wins = np.array(rows["win_rate"]).reshape(4, 3)
    summary = parquet.read_table(finished / "summary.parquet").to_pylist()
    row = next(each for each in summary if each["cell"] == 3 and each["metric"] == "win_rate")
    estimate = Estimate.of(wins[3])
    assert (row["n"], row["mean"], row["low"], row["high"]) == (3, estimate.mean, estimate.low, estimate.high)
    paired = ttest_rel(wins[3], wins[1]).confidence_interval()
    assert row["baseline_cell"] == 1
    np.testing.assert_allclose([row["difference_low"], row["difference_high"]], [paired.low, paired.high], rtol=1e-10)
    assert row["difference_sd"] < row["sd"] + 1.0
    baseline = next(each for each in summary if each["cell"] == 1 and each["metric"] == "win_rate")
    assert baseline["baseline_cell"] is None and baseline["difference_mean"] is None


def test_a_cell_is_the_run_of_its_recipe(finished: Path, tmp_path: Path) -> None:
    from prefgeo.runs import run_recipe

    text = "name: one\nworld: {name: e1, options: {n_prompts: 4, n_arms: 3}}\ndata: {flip: 0.3}\n"
    text += "objective: {name: ipo, options: {tau: 0.5}}\ntraining: {optimiser: world, steps: 3}\nseeds: [4, 1, 7]\n"
    done = run_recipe(write(text, tmp_path), "exact", tmp_path / "run")
    table = parquet.read_table(finished / "results.parquet").to_pydict()
    # up to rounding: a run is watched step by step, and keeps normalisers that a cell can leave out
    np.testing.assert_allclose(done.result["metrics"]["win_rate"]["values"], table["win_rate"][9:], rtol=1e-8)


def test_labels_are_short_and_distinct() -> None:
    assert label({"name": "dpo"}) == "dpo()"
    assert label("adam") == "adam"
    assert label(None) == "null"
    assert label([1, 2]) == "[1, 2]"


# -- workers ----------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    run_sweep(finished.parent / "sweep.yaml", "exact", tmp_path / "out", jobs=2)
    assert tables(tmp_path / "out") == tables(finished)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Dask scheduler with two worker processes on this machine."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about ports and event loops
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as local:
            yield local.scheduler_address


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same_bytes(finished: Path, tmp_path: Path, cluster: str) -> None:
    done = run_sweep(finished.parent / "sweep.yaml", "exact", tmp_path / "out", cluster=cluster)
    assert done.computed == 4
    assert tables(tmp_path / "out") == tables(finished)


@pytest.mark.filterwarnings("ignore")
def test_nobody_at_the_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("prefgeo.sweep_workers.PATIENCE", 1)
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9' within 1 s"):
        run_sweep(write(SWEEP, tmp_path), "exact", tmp_path / "out", cluster="tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def test_a_missing_dask_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(
            UsageError, match=r"--cluster needs dask, which is not installed: pip install 'prefgeo\[cluster\]'"
        ),
        workers(1, "tcp://127.0.0.1:8786"),
    ):
        pass


# -- failing and resuming ---------------------------------------------------------------------------------------------


def test_a_failing_cell_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    text = SWEEP.replace("{name: dpo, options: {beta: 0.1}}", "{name: dpo_nll, options: {beta: 0.1}}", 1)
    text = text.replace("{name: dpo, options: {beta: 0.1}}", "{name: dpo_nll, options: {beta: 0.1}}")
    text = text.replace("{name: ipo, options: {tau: 0.5}}", "{name: dpo_nll, options: {beta: 1.0e+200}}")
    path = write(text, tmp_path)
    done = run_sweep(path, "exact", tmp_path / "out")
    assert list(done.failures) == [2, 3]
    assert "is not finite" in done.failures[2]
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert table["status"] == ["done"] * 6 + ["failed"] * 6
    assert table["win_rate"][6:] == [None] * 6 and table["error"][6] == done.failures[2]
    again = run_sweep(path, "exact", tmp_path / "out", resume=True)
    assert again.computed == 2  # the failed ones are tried again, the others are not


def test_a_bug_in_a_cell_is_recorded_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(payload: object) -> None:
        raise KeyError("theta")

    monkeypatch.setattr("prefgeo.sweep_workers._train", broken)
    assert run_cell({}) == {"status": "failed", "error": "KeyError: 'theta'"}


def test_finished_cells_are_not_run_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(SWEEP, tmp_path), tmp_path / "out"
    run_sweep(path, "exact", out)
    cells = sorted((out / "cells").iterdir())
    cells[0].unlink()
    (out / "summary.csv").unlink()
    times = [each.stat().st_mtime_ns for each in cells[1:]]
    assert run_sweep(path, "exact", out, resume=True).computed == 1
    assert [each.stat().st_mtime_ns for each in cells[1:]] == times
    assert tables(out) == tables(finished)


def test_a_killed_sweep_continues_without_repeating(tmp_path: Path) -> None:
    """SIGKILL as soon as two cells are done; then the rest, and the tables of a sweep that nobody stopped."""
    path, out = write(SLOW, tmp_path), tmp_path / "killed"
    code = "import sys; from prefgeo.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sweep", str(path), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and len(list((out / "cells").glob("*.json"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {each: each.stat().st_mtime_ns for each in (out / "cells").glob("*.json")}
    assert 2 <= len(done) < 16
    resumed = run_sweep(path, "exact", out, resume=True)
    assert resumed.computed == 16 - len(done)
    assert {each: each.stat().st_mtime_ns for each in done} == done
    run_sweep(path, "exact", tmp_path / "whole")
    assert tables(out) == tables(tmp_path / "whole")


def test_another_sweep_or_backend_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists and is left as it is"):
        run_sweep(finished.parent / "sweep.yaml", "exact", finished)
    with pytest.raises(UsageError, match="belongs to another sweep: backend is exact there and torch here; undo that"):
        run_sweep(finished.parent / "sweep.yaml", "torch", finished, resume=True)
    with pytest.raises(UsageError, match=r"another sweep: seeds is \[4, 1, 7\] there and \[4, 1, 8\] here"):
        run_sweep(write(SWEEP.replace("[4, 1, 7]", "[4, 1, 8]"), tmp_path), "exact", finished, resume=True)
    (tmp_path / "mine" / "cells").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"is not the folder of a sweep: sweep.json is missing"):
        run_sweep(write(SWEEP, tmp_path), "exact", tmp_path / "mine", resume=True)


def test_the_folder_says_what_was_run(finished: Path) -> None:
    stored = json.loads((finished / sweep_module.CONFIG).read_text())
    assert stored["sweep"]["seeds"] == [4, 1, 7]
    assert stored["versions"]["numpy"] == np.__version__
    assert len(stored["sweep"]["cells"]) == len(list((finished / "cells").iterdir())) == 4
