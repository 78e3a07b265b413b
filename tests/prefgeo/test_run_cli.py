"""`prefgeo run` and `prefgeo sweep` from the command line: what they print, and the one line of every refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefgeo.cli import main
from prefgeo.errors import UsageError
from prefgeo.runs import run_recipe

RECIPE = """name: small
world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
objective: {name: dpo}
training: {optimiser: world, steps: 3}
seeds: [0, 1]
"""
SWEEP = """name: grid
recipe:
  world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
  objective: {name: dpo}
  training: {optimiser: world, steps: 3}
grid:
  objective.options.beta: [0.1, 1.0]
  data.flip: [0.0, 0.3]
seeds: [0, 1]
baseline: {objective.options.beta: 0.1}
"""


def write(text: str, folder: Path, name: str = "input.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused command line prints."""
    status = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("prefgeo: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_a_run_prints_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(write(RECIPE, tmp_path)), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "win_rate" in out and "base policy" in out and "±" in out
    assert "2 seeds, mean ± half of the 95% t interval; written to" in out
    assert main(["run", str(tmp_path / "input.yaml"), "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert "is finished already; this is its result." in capsys.readouterr().out


def test_the_default_folder_is_told_by_name_and_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(write(RECIPE, tmp_path, "tiny.yaml"))]) == 0
    assert (tmp_path / "runs" / "tiny-exact" / "result.json").is_file()
    assert main(["sweep", str(write(SWEEP, tmp_path, "grid.yaml"))]) == 0
    assert (tmp_path / "sweeps" / "grid-exact" / "summary.csv").is_file()
    assert "4 cells (4 run now) x 2 seeds" in capsys.readouterr().out


def test_a_sweep_prints_differences_to_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write(SWEEP, tmp_path)), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "│0.1 " in line or "│1.0 " in line]
    assert len(rows) == 4
    assert ["baseline" in row for row in rows] == [True, True, False, False]
    assert "win_rate vs baseline" in out


def test_a_failing_cell_is_told_and_the_status_is_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SWEEP.replace("[0.1, 1.0]", "[0.1, 1.0e+200]").replace("name: dpo", "name: dpo_nll")
    assert main(["sweep", str(write(text, tmp_path)), "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "failed: objective.options.beta=1e+200, data.flip=0.0: " in out
    assert "is not finite" in out
    assert "4 cells (4 run now)" in out


def test_the_exact_backend_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the base install: importing torch is an error, and asking for it says what to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "llm_backend")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    recipe = str(write(RECIPE, tmp_path))
    assert main(["run", recipe, "--out", str(tmp_path / "exact")]) == 0
    with pytest.raises(UsageError, match=r"needs torch, which is not installed: pip install 'prefgeo\[llm\]'"):
        run_recipe(Path(recipe), "torch", tmp_path / "torch")
    assert not (tmp_path / "torch").exists()


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "unknown key": (RECIPE.replace("seeds", "seedz"), [], "input.yaml, line 5, seedz: unknown key 'seedz'. Did you"),
    "unknown world": (RECIPE.replace("e1,", "e7,"), [], "input.yaml, line 2, world.name: unknown world 'e7'."),
    "unknown objective": (RECIPE.replace("dpo}", "dpi}"), [], "line 3, objective.name: unknown objective 'dpi'. Did"),
    "unknown optimiser": (
        RECIPE.replace(": world,", ": gdd,"),
        [],
        "line 4, training.optimiser: unknown optimiser 'gdd'",
    ),
    "unknown backend": (RECIPE, ["--backend", "jax"], "prefgeo: unknown backend 'jax'. Known: exact, torch"),
    "world option": (
        RECIPE.replace("n_arms", "arms"),
        [],
        "line 2, world.options.arms: world 'e1' has no option 'arms'.",
    ),
    "incompatible": (
        RECIPE.replace("dpo}", "wrpo}"),
        [],
        "objective.name: wrpo needs responses of source models, which",
    ),
    "NaN": (
        RECIPE.replace("dpo}", "dpo, options: {beta: .nan}}"),
        [],
        "line 3, objective.options: dpo: beta must be a",
    ),
    "length 0": (RECIPE.replace("steps: 3", "steps: 0"), [], "line 4, training.steps: Input should be greater than or"),
    "not YAML": ("a: [", [], "input.yaml, line 1: not valid YAML"),
    "device": (RECIPE, ["--device", "cuda"], "the exact backend computes on the CPU; --device cuda needs --backend to"),
    "seconds": (RECIPE, ["--checkpoint-seconds", "-1"], "--checkpoint-seconds is -1.0; it must be at least 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_run_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, more, sentence = MISTAKES[case]
    assert sentence in refused(capsys, "run", write(text, tmp_path), "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_files_and_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read" in refused(capsys, "run", tmp_path / "absent.yaml")
    recipe, out = write(RECIPE, tmp_path), tmp_path / "out"
    out.mkdir()
    assert "out exists and is left as it is; choose another --out" in refused(capsys, "run", recipe, "--out", out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    message = refused(capsys, "run", recipe, "--out", out, "--resume")
    assert "out is not the folder of a run: it holds notes.txt; choose another --out" in message
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "is not the folder of a sweep" in refused(
        capsys, "sweep", write(SWEEP, tmp_path, "grid.yaml"), "--out", out, "--resume"
    )


def test_run_and_sweep_point_at_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, sweep = write(RECIPE, tmp_path, "one.yaml"), write(SWEEP, tmp_path, "many.yaml")
    told = refused(capsys, "run", sweep, "--out", tmp_path / "out")
    assert told.endswith(f"many.yaml, line 6, grid: this is a sweep and not one run; say: prefgeo sweep {sweep}\n")
    told = refused(capsys, "sweep", recipe, "--out", tmp_path / "out")
    assert f"one.yaml, line 3, objective: this is a recipe of one run; say: prefgeo run {recipe}, or" in told
    assert not (tmp_path / "out").exists()


GRIDS: dict[str, tuple[str, str, str]] = {
    "unknown key": ("data.flip", "dtaa.flip", "line 8, grid.dtaa.flip: unknown key 'dtaa.flip'. Did you mean 'data'?"),
    "unknown inner key": ("data.flip", "data.flop", "line 8, grid.data.flop.0: unknown key 'flop'. Did you mean"),
    "unknown option": (
        "data.flip: [0.0, 0.3]", "world.options.n_prompt: [3, 4]",
        "line 8, grid.world.options.n_prompt.0: world 'e1' has no option 'n_prompt'. Did you mean 'n_prompts'?",
    ),
    "bad value": ("[0.0, 0.3]", "[0.0, 3.0]", "line 8, grid.data.flip.1: Input should be less than or equal to 1"),
    "empty": ("[0.0, 0.3]", "[]", "line 8, grid.data.flip: List should have at least 1 item"),
    "no grid": (
        "grid:\n  objective.options.beta: [0.1, 1.0]\n  data.flip: [0.0, 0.3]", "grid: {}",
        "line 6, grid: Dictionary should have at least 1 item",
    ),
    "twice": ("[0.0, 0.3]", "[0.3, 0.3]", "line 8, grid.data.flip.1: 0.3 stands twice"),
    "seeds": ("data.flip", "seeds", "line 8, grid.seeds: seeds is the same in all cells; give it beside the grid"),
    "overlap": ("data.flip", "objective.options", "grid.objective.options.beta: objective.options sets this already"),
    "baseline key": (
        "baseline: {objective.options.beta", "baseline: {objective.options.betta",
        "line 10, baseline.objective.options.betta: 'objective.options.betta' is not in the grid. Did you mean",
    ),
    "baseline value": (
        "beta: 0.1}", "beta: 0.2}", "baseline.objective.options.beta: 0.2 is not among its values in the grid: 0.1, 1.0"
    ),
    "two seeds": (
        "name: dpo}", "name: dpo}\n  seeds: [1]", "line 5, recipe.seeds: the sweep has seeds already; leave these out"
    ),
    "missing recipe": (
        SWEEP[SWEEP.index("recipe:") : SWEEP.index("grid:")], "recipe: no.yaml\n", "line 2, recipe: there is no file"
    ),
    "bad recipe": ("n_arms: 3", "n_arms: x", "line 3, recipe.world.options.n_arms: must be a whole number, got 'x'"),
    "name": ("name: grid", "name: a/b", "line 1, name: String should match pattern"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRIDS)
def test_a_mistake_in_a_sweep_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, sentence = GRIDS[case]
    assert old in SWEEP
    text = SWEEP.replace(old, new)
    assert sentence in refused(capsys, "sweep", write(text, tmp_path), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_workers_are_one_kind_or_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write(SWEEP, tmp_path)
    both = refused(capsys, "sweep", sweep, "--jobs", "2", "--cluster", "tcp://127.0.0.1:1")
    assert "--jobs and --cluster exclude each other" in both
    assert "--jobs is 0; it must be at least 1" in refused(capsys, "sweep", sweep, "--jobs", "0")
    assert "--cluster 'nonsense' is no address" in refused(capsys, "sweep", sweep, "--cluster", "nonsense")
