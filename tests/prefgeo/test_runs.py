"""Run folders: what is in them, and that a run killed at any time continues to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import prefgeo
from prefgeo.errors import UsageError
from prefgeo.run_folder import CHECKPOINT, METRICS, RunFolder, arrays_digest
from prefgeo.run_monitor import RunMonitor
from prefgeo.runs import run_recipe
from prefgeo.statistics import Estimate

ROOT = Path(prefgeo.__file__).resolve().parents[1]
ADAM = """name: stateful
world: {name: e5, options: {n_prompts: 40, grammar: {max_length: 12}}}
data: {flip: 0.2}
objective: {name: alpha_dpo, options: {statistics: running, alpha: 0.5, beta: 2.0}}
training: {optimiser: adam, learning_rate: 0.02, epochs: 3, batch_size: 7, schedule: cosine, warmup: 0.2, log_every: 4}
seeds: [3, 1]
"""
SCHEDULE = """name: schedule
world: {name: e6, options: {n_prompts: 40}}
objective: {name: wrpo, options: {beta: 1.0}}
training: {optimiser: world, batch_size: 4}
seeds: [0, 1]
"""
DESCENT = """name: descent
world: {name: e1, options: {n_prompts: 5}}
objective: {name: dpo}
training: {optimiser: world, steps: 12}
seeds: [0, 1, 2]
"""
EXACT = """name: exact
world: {name: prop2, options: {n12: 40.0, n23: 40.0, n31: 40.0}}
data: {kind: sampled}
objective: {name: dpo, options: {beta: 1.0}}
training: {optimiser: exact}
seeds: [0, 1, 2, 3]
"""
LONG = """name: long
world: {name: e4, options: {n_prompts: 60, n_arms: 6, dimension: 4}}
objective: {name: alpha_dpo, options: {alpha: 0.3, beta: 2.0}}
training: {optimiser: adam, learning_rate: 0.01, epochs: 150, batch_size: 10, log_every: 40}
seeds: [0, 1]
"""
TEXTS = {"adam": ADAM, "schedule": SCHEDULE, "descent": DESCENT, "exact": EXACT}


class KilledError(BaseException):
    """Stands in for a signal: nothing catches it."""


def write(text: str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """What a finished run leaves behind, byte for byte."""
    return {name: (folder / name).read_bytes() for name in ("result.json", "theta.safetensors", "metrics.jsonl")
            if (folder / name).exists()}  # fmt: skip


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a run end without warning after so many steps (checkpoints of that step included)."""
    whole = RunMonitor.step

    def dying(self: RunMonitor, done: int, total: int, snapshot: Any) -> None:
        whole(self, done, total, snapshot)
        if done == step:
            raise KilledError

    monkeypatch.setattr(RunMonitor, "step", dying)
    return lambda: monkeypatch.setattr(RunMonitor, "step", whole)


# -- what a run writes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_recipe(write(ADAM, folder), "exact", folder / "out")
    return folder / "out"


def test_the_folder_says_what_was_run(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["backend"] == "exact"
    assert config["objective"]["options"]["gamma"] == 4.0  # a default, resolved
    assert config["world"]["options"]["grammar"]["max_length"] == 12
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["roles"] == {"data": "base", "start": "base", "reference": "base", "policy": "theta"}
    assert manifest["seeds"] == [3, 1]
    assert manifest["versions"]["numpy"] == np.__version__
    assert len(manifest["reference_sha256"]) == len(manifest["config_sha256"]) == 64
    assert sorted(path.name for path in finished.iterdir()) == [
        "config.json", "manifest.json", "metrics.jsonl", "result.json", "theta.safetensors"
    ]  # fmt: skip


def test_the_log_has_a_line_for_each_seed_and_logged_step(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / METRICS).read_text().splitlines()]
    assert [(line["step"], line["seed"]) for line in lines] == [(s, r) for s in (0, 4, 8, 12, 16, 18) for r in (3, 1)]
    assert {"loss", "win_rate", "kl", "mean_length"} <= set(lines[0])
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] > 0.0


def test_the_result_is_that_of_the_last_line(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    last = [json.loads(line) for line in (finished / METRICS).read_text().splitlines()][-2:]
    entry = result["metrics"]["win_rate"]
    assert entry["values"] == [line["win_rate"] for line in last]
    estimate = Estimate.of(entry["values"])
    assert (entry["mean"], entry["low"], entry["high"]) == (estimate.mean, estimate.low, estimate.high)
    theta = load_file(finished / "theta.safetensors")["theta"]
    assert theta.shape[0] == 2 and theta.dtype == np.float64


def test_a_t_interval_by_hand() -> None:
    """1, 2, 3: sd 1, and t_{2, .975} = 4.302653: half width 4.302653 / sqrt 3 = 2.484138."""
    estimate = Estimate.of([1.0, 2.0, 3.0])
    np.testing.assert_allclose([estimate.low, estimate.high], [2 - 2.484138, 2 + 2.484138], rtol=1e-6)
    assert Estimate.of([5.0]) == Estimate(5.0, None, None, None, 1)


def test_hashes_see_names_types_shapes_and_bytes() -> None:
    one = np.arange(6.0)
    seen = {
        arrays_digest(each)
        for each in ({"a": one}, {"b": one}, {"a": one.reshape(2, 3)}, {"a": one + 1e-16}, {"a": one + 1})
    }
    assert len(seen) == 5  # one + 1e-16 differs in its first element only, 0 + 1e-16
    assert arrays_digest({"a": one}) == arrays_digest({"a": one.copy()})


# -- killed and continued ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["exact", "torch"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_run_that_stops_anywhere_continues_to_the_same_bits(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    recipe = write(TEXTS[name], tmp_path)
    run_recipe(recipe, backend, tmp_path / "whole")
    for step in (1, 3):
        out = tmp_path / f"stopped {step}"
        restore = kill_at(step, monkeypatch)
        with pytest.raises(KilledError):
            run_recipe(recipe, backend, out, checkpoint_seconds=0.0)
        restore()
        assert (out / CHECKPOINT).exists() and not (out / "result.json").exists()
        assert not run_recipe(recipe, backend, out, resume=True).was_finished
        assert contents(out) == contents(tmp_path / "whole")
        assert not (out / CHECKPOINT).exists()


def test_what_was_logged_after_the_checkpoint_is_not_logged_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is older than the log when the run dies."""
    recipe = write(ADAM, tmp_path)
    run_recipe(recipe, "exact", tmp_path / "whole")
    save = RunMonitor._save
    monkeypatch.setattr(RunMonitor, "_save", lambda self, taken: save(self, taken) if taken["step"] <= 5 else None)
    restore = kill_at(14, monkeypatch)
    with pytest.raises(KilledError):
        run_recipe(recipe, "exact", tmp_path / "stopped", checkpoint_seconds=0.0)
    restore()
    assert json.loads((tmp_path / "stopped" / METRICS).read_text().splitlines()[-1])["step"] == 12
    run_recipe(recipe, "exact", tmp_path / "stopped", resume=True)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def command(recipe: Path, out: Path, backend: str, *more: str) -> list[str]:
    code = "import sys; from prefgeo.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "run", str(recipe), "--backend", backend, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("backend", ["exact", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_killed_process_continues_to_the_same_bits(backend: str, tmp_path: Path) -> None:
    """SIGKILL at a random moment of the training, several times over."""
    if backend == "torch":
        pytest.importorskip("torch")
    recipe, rng, kills = write(LONG, tmp_path), random.Random(5), 0
    run_recipe(recipe, backend, tmp_path / "whole")
    out = tmp_path / "killed"
    for attempt in range(2):
        process = subprocess.Popen(
            command(recipe, out, backend, "--resume", "--checkpoint-seconds", "0"),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        before = progress(out)
        while process.poll() is None and progress(out) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.15))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL), process.stderr.read() if process.stderr else attempt
        if process.stderr:
            process.stderr.close()
    assert kills >= 1
    run_recipe(recipe, backend, out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")


def progress(out: Path) -> int:
    """When the last checkpoint was written."""
    try:
        return (out / CHECKPOINT).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_a_finished_run_says_so(finished: Path) -> None:
    before = contents(finished)
    assert run_recipe(finished.parent / "recipe.yaml", "exact", finished, resume=True).was_finished
    assert contents(finished) == before


def test_a_run_killed_before_it_began_starts_again(tmp_path: Path) -> None:
    recipe, out = write(DESCENT, tmp_path), tmp_path / "out"
    out.mkdir()
    (out / ".config.json.123.abcd.part").write_text("{", encoding="utf-8")
    assert not run_recipe(recipe, "exact", out, resume=True).was_finished
    assert not list(out.glob(".*"))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(finished: Path, tmp_path: Path) -> None:
    recipe = finished.parent / "recipe.yaml"
    with pytest.raises(UsageError, match="exists and is left as it is; choose another --out, or continue it: --resume"):
        run_recipe(recipe, "exact", finished)
    with pytest.raises(UsageError, match=r"belongs to another run: backend is exact there and torch here;"):
        run_recipe(recipe, "torch", finished, resume=True)
    other = write(ADAM.replace("alpha: 0.5", "alpha: 0.6").replace("[3, 1]", "[3, 2]"), tmp_path)
    changed = (
        r"another run: objective.options.alpha is 0.5 there and 0.6 here; seeds is \[3, 1\] there and \[3, 2\] here;"
    )
    with pytest.raises(UsageError, match=changed):
        run_recipe(other, "exact", finished, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"is not the folder of a run: it holds thesis.tex; choose another --out"):
        run_recipe(recipe, "exact", tmp_path / "mine", resume=True)
    with pytest.raises(UsageError, match="is a file; --out needs a folder"):
        run_recipe(recipe, "exact", recipe, resume=True)


def test_a_changed_problem_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bandits.worlds.catalogue import make_world

    make_world("prop2", n12=40.0, n23=40.0, n31=40.0).save(tmp_path / "problem.json")
    text = EXACT.replace("{name: prop2, options: {n12: 40.0, n23: 40.0, n31: 40.0}}", "{file: problem.json}")
    recipe = write(text, tmp_path)
    restore = kill_at(2, monkeypatch)
    with pytest.raises(KilledError):
        run_recipe(recipe, "exact", tmp_path / "out", checkpoint_seconds=0.0)
    restore()
    make_world("prop2", n12=41.0).save(tmp_path / "problem.json", overwrite=True)
    with pytest.raises(UsageError, match=r"belongs to another run: world.inputs"):
        run_recipe(recipe, "exact", tmp_path / "out", resume=True)


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    held = RunFolder.claim(tmp_path / "out", resume=False)
    with pytest.raises(UsageError, match="another process is writing to"):
        run_recipe(write(DESCENT, tmp_path), "exact", tmp_path / "out", resume=True)
    held.release()
    run_recipe(write(DESCENT, tmp_path), "exact", tmp_path / "out", resume=True)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    recipe = write(DESCENT.replace("{optimiser: world, steps: 12}", "{optimiser: exact}"), tmp_path)
    with pytest.raises(ValueError, match="minimiser"):
        run_recipe(recipe, "exact", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_folder_is_told(tmp_path: Path, finished: Path) -> None:
    recipe, out = write(ADAM, tmp_path), tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "manifest.json"):
        (out / name).write_bytes((finished / name).read_bytes())
    (out / "config.json").write_text((out / "config.json").read_text().replace("0.2", "0.3"))
    with pytest.raises(UsageError, match=r"config.json was changed after the run began"):
        run_recipe(recipe, "exact", out, resume=True)
    (out / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match=r"manifest.json cannot be read"):
        run_recipe(recipe, "exact", out, resume=True)
