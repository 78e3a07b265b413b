"""Sweeps of language-model recipes: a run for each cell and seed, SFT once a seed, the usual tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.cli import main
from prefgeo.errors import UsageError
from prefgeo.language import run as run_module
from prefgeo.language.run import run_language_recipe
from prefgeo.sweep import run_sweep
from prefgeo.sweep_recipes import load_sweep
from prefgeo.sweep_units import joined, sweep_units

RECIPE: dict[str, Any] = {
    "model": {"name": "tiny", "sizes": {"width": 16, "layers": 2, "heads": 2, "context": 128}},
    "tokenizer": {"name": "embedded", "vocab_size": 280},
    "data": {"format": "pairs", "path": "pairs.jsonl", "test_fraction": 0.3},
    "sft": {"learning_rate": 0.01, "steps": 3, "batch_size": 8, "log_every": 1},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.01, "steps": 2, "batch_size": 8, "log_every": 1},
}
SWEEP: dict[str, Any] = {
    "name": "language",
    "recipe": RECIPE,
    "grid": {"objective": [{"name": "dpo", "options": {"beta": 0.1}}, {"name": "ipo"}]},
    "seeds": [3, 5],
    "baseline": {"objective": {"name": "dpo", "options": {"beta": 0.1}}},
}
TABLES = ("results.parquet", "results.csv", "summary.parquet", "summary.csv")


def write(folder: Path, **parts: Any) -> Path:
    lines = [{"prompt": f"{i} and {i}?", "chosen": f" {2 * i}", "rejected": f" {2 * i + 1}"} for i in range(60)]
    lines = [line | {"category": ("odd", "even")[i % 2]} for i, line in enumerate(lines)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **parts}, sort_keys=False), encoding="utf-8")
    return path


SUPERVISED: list[int] = []
"""The seeds for which the sweep below trained SFT."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, usual = tmp_path_factory.mktemp("language"), run_module.run_supervised
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run_module, "run_supervised", lambda *args, **more: SUPERVISED.append(more["seed"]) or usual(*args, **more)
        )
        run_sweep(write(home), "torch", home / "out")
    return home / "out"


def test_a_run_for_each_cell_and_seed(finished: Path) -> None:
    units = sweep_units(load_sweep(finished.parent / "sweep.yaml"), "torch")
    assert [unit.seed for unit in units] == [3, 5, 3, 5] and len({unit.key for unit in units}) == 4
    assert sorted(each.name for each in (finished / "runs").iterdir()) == sorted(unit.key for unit in units)
    for unit in units:
        config = json.loads((finished / "runs" / unit.key / "config.json").read_text())
        assert (config["objective"]["name"], config["seed"]) == (unit.cell.settings["objective"]["name"], unit.seed)
        cell = json.loads((finished / "cells" / f"{unit.key}.json").read_text())
        assert cell["cell"]["seed"] == unit.seed


def test_the_tables_hold_what_the_runs_found(finished: Path) -> None:
    table = parquet.read_table(finished / "results.parquet").to_pydict()
    assert table["objective"] == ["dpo(beta=0.1)"] * 2 + ["ipo()"] * 2 and table["seed"] == [3, 5, 3, 5]
    for place, unit in enumerate(sweep_units(load_sweep(finished.parent / "sweep.yaml"), "torch")):
        stages = json.loads((finished / "runs" / unit.key / "result.json").read_text())["stages"]
        pairs = stages["preference"]["pairs"]["held_out"]
        assert table["held_out/accuracy"][place] == pairs["accuracy"]
        assert table["held_out/accuracy_by_margin"][place] == pairs["by_margin"]
        assert table["held_out/accuracy/odd"][place] == pairs["by_category"]["odd"]
        assert table["before/held_out/accuracy"][place] == stages["sft"]["pairs"]["held_out"]["accuracy"]
    rows = parquet.read_table(finished / "summary.parquet").to_pylist()
    row = next(each for each in rows if each["cell"] == 1 and each["metric"] == "held_out/accuracy_by_margin")
    values = table["held_out/accuracy_by_margin"]
    assert row["n"] == 2 and row["baseline_cell"] == 0
    assert row["difference_mean"] == pytest.approx(sum(values[2:]) / 2 - sum(values[:2]) / 2)


def test_cells_share_what_precedes_preference_training(finished: Path, tmp_path: Path) -> None:
    """SFT is trained once for each seed, and every run is what it would be alone, to the byte."""
    assert SUPERVISED == [3, 5]
    path = write(tmp_path)
    path.write_text(
        yaml.safe_dump({**RECIPE, "name": "language", "objective": {"name": "ipo"}, "seed": 5}), encoding="utf-8"
    )
    run_language_recipe(path, tmp_path / "alone")
    whole = {str(p.relative_to(tmp_path / "alone")): p for p in (tmp_path / "alone").rglob("*") if p.is_file()}
    unit = sweep_units(load_sweep(finished.parent / "sweep.yaml"), "torch")[3]
    shared = finished / "runs" / unit.key
    assert {str(p.relative_to(shared)) for p in shared.rglob("*") if p.is_file()} == set(whole)
    for name, file in whole.items():
        if name != "manifest.json":  # it holds the commit at the time
            assert (shared / name).read_bytes() == file.read_bytes(), name


def test_another_start_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    usual = run_module.run_supervised
    monkeypatch.setattr(
        run_module, "run_supervised", lambda *args, **more: trained.append(more["seed"]) or usual(*args, **more)
    )
    grid = {"sft.learning_rate": [0.01, 0.02], "model.trainable": ["all", "last_block"]}
    path = write(tmp_path, grid=grid, baseline={}, seeds=[3])
    run_sweep(path, "torch", tmp_path / "out")
    assert trained == [3, 3]  # one for each learning rate, not for each part that is trained later


def test_finished_runs_are_not_run_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    run_sweep(path, "torch", out)
    units = sweep_units(load_sweep(path), "torch")
    (out / "cells" / f"{units[1].key}.json").unlink()
    calls: list[int] = []
    usual = run_module.run_preference
    monkeypatch.setattr(
        run_module, "run_preference", lambda *args, **more: calls.append(more["seed"]) or usual(*args, **more)
    )
    assert run_sweep(path, "torch", out, resume=True).computed == 1
    assert not calls  # its folder had the result
    assert {name: (out / name).read_bytes() for name in TABLES} == {
        name: (finished / name).read_bytes() for name in TABLES
    }


def test_auxdpo_is_dpo_until_a_row_is_met_again(tmp_path: Path) -> None:
    """In the first epoch every delta that the loss reads is still zero, whatever the mode's constraint: the same
    weights, bit for bit. In the second it is not. (exact moves all of delta at every step.)"""
    modes = {"dual": {"mode": "dual"}, "untied": {"mode": "batch_penalty", "tied": False}}
    cases: dict[str, Any] = {"dpo": {"objective": {"name": "dpo"}}}
    for name, mode in modes.items():
        section = mode | {"learning_rate": 0.5, "dimensions": "skip"}
        cases[name] = {"objective": {"name": "auxdpo"}, "auxiliary": section}
    recipe = {**RECIPE, "training": {"learning_rate": 0.01, "epochs": 1, "batch_size": 16}}
    grid = {"training.epochs": [1, 2]}
    path = write(tmp_path, recipe=recipe, cases=cases, grid=grid, seeds=[3], baseline={"case": "dpo"})
    assert not run_sweep(path, "torch", tmp_path / "out").failures
    units = sweep_units(load_sweep(path), "torch")
    weights = [(tmp_path / "out" / "runs" / unit.key / "model" / "model.safetensors").read_bytes() for unit in units]
    once, twice = weights[0::2], weights[1::2]
    assert once[0] == once[1] == once[2]
    assert len(set(twice)) == 3
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert table["auxiliary/delta_rms"][0] is None and min(table["auxiliary/delta_rms"][2:]) > 0.1


def test_a_seed_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    bad = {"name": "ipo", "options": {"tau": 1e-30}}
    path = write(tmp_path, grid={"objective": [{"name": "dpo"}, bad]}, baseline={}, seeds=[3])
    done = run_sweep(path, "torch", tmp_path / "out")
    assert list(done.failures) == [1] and done.failures[1].startswith("seed 3: ")
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert table["status"] == ["done", "failed"]


def test_the_command_prints_accuracy_and_differences(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = str(finished.parent / "sweep.yaml")
    assert main(["sweep", sweep, "--backend", "torch", "--out", str(finished), "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "held_out/accuracy" in shown and "baseline" in shown and "2 cells (0 runs now) x 2 seeds" in shown


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"grid": {"seed": [1, 2]}, "baseline": {}}, "grid.seed: seed is the same in all cells"),
        ({"grid": {"world.name": ["e1"]}, "baseline": {}}, "unknown key 'world.name'"),
        ({"grid": {"model.trainable": ["all", "half"]}, "baseline": {}}, "grid.model.trainable.1: must be all"),
        ({"seeds": [3, 3]}, "a seed stands twice"),
        ({"recipe": RECIPE | {"seed": 1}}, "recipe.seed: the sweep has seeds already"),
    ],
)
def test_faults_are_told_before_anything_runs(tmp_path: Path, parts: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path, **parts)
    with pytest.raises(UsageError) as told:
        run_sweep(path, "torch", tmp_path / "out")
    assert sentence in str(told.value)
    assert not (tmp_path / "out").exists()


def test_the_exact_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say --backend torch"):
        run_sweep(write(tmp_path), "exact", tmp_path / "out")


def test_a_file_is_found_in_the_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFGEO_DATA is looked into after the recipe's folder; other contents are another cell."""
    path = write(tmp_path)
    here = load_sweep(path).cells[0]
    (tmp_path / "data").mkdir()
    (tmp_path / "pairs.jsonl").rename(tmp_path / "data" / "pairs.jsonl")
    gone = load_sweep(path).cells[0]
    monkeypatch.setenv("PREFGEO_DATA", str(tmp_path / "data"))
    there = load_sweep(path).cells[0]
    assert list(here.prepared.config["inputs"]) == ["pairs.jsonl"] and gone.prepared.config["inputs"] == {}
    assert here.key("torch") == there.key("torch") != gone.key("torch")
    monkeypatch.setenv("PREFGEO_DATA", "")
    failures = run_sweep(path, "torch", tmp_path / "out").failures
    assert "there is no file pairs.jsonl" in failures[0] and "PREFGEO_DATA" in failures[0]


def test_a_file_that_all_cells_read_is_hashed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefgeo.language import data

    path, usual, hashed = write(tmp_path), data.sha256, list[Path]()
    monkeypatch.setattr(data, "sha256", lambda file: (hashed.append(file), usual(file))[1])
    before = {cell.prepared.config["inputs"]["pairs.jsonl"] for cell in load_sweep(path).cells}
    assert (len(before), len(hashed)) == (1, 1)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": "p", "chosen": " c", "rejected": " r"}))
    after = {cell.prepared.config["inputs"]["pairs.jsonl"] for cell in load_sweep(path).cells}
    assert len(hashed) == 2 and after.isdisjoint(before)


def test_results_of_many_cells_are_joined_in_one_pass(tmp_path: Path) -> None:
    """Each cell gets its own seeds' results, in their order, whatever the order of the units."""
    sweep = load_sweep(write(tmp_path))
    units = sweep_units(sweep, "torch")
    found = {unit.key: {"status": "done", "metrics": {"m": [100.0 * unit.cell.index + unit.seed]}} for unit in units}
    assert [joined(sweep, units, found)[i]["metrics"]["m"] for i in (0, 1)] == [[3.0, 5.0], [103.0, 105.0]]
    found[units[3].key] = {"status": "failed", "error": "why"}
    assert joined(sweep, units, found)[1] == {"status": "failed", "error": "seed 5: why"}
