"""AuxDPO in language-model recipes: every mode trains, tells its dimensions, continues bit for bit; what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo.errors import UsageError
from prefgeo.language.recipe import load_language_recipe
from prefgeo.language.run import run_language_recipe
from prefgeo.language.stage_monitor import StageMonitor

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "tiny", "sizes": {"width": 8, "layers": 2, "heads": 2, "context": 128, "tied": False},
        "lora": {"r": 1, "alpha": 1, "targets": ["q_proj"], "blocks": 1},
    },
    "tokenizer": {"name": "embedded", "vocab_size": 280},
    "data": {"format": "pairs", "path": "pairs.jsonl", "test_fraction": 0.2},
    "objective": {"name": "auxdpo", "options": {"beta": 0.5}},
    "training": {"learning_rate": 0.01, "epochs": 2, "batch_size": 4, "accumulation": 2, "log_every": 2},
    "auxiliary": {"learning_rate": 0.05},
}  # fmt: skip


def pairs(folder: Path) -> None:
    """Three answers to each of 12 questions, each compared with the others once: sets of three."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        answers = [f" {word} {i}" for word in rng.permutation(["one", "two or", "three times"])]
        for good, bad in ((0, 1), (1, 2), (0, 2)):
            rows.append({"prompt": f"question {i}:", "chosen": answers[good], "rejected": answers[bad]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def recipe(folder: Path, **sections: Any) -> Path:
    pairs(folder)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **sections}, sort_keys=False), encoding="utf-8")
    return path


MODES: dict[str, dict[str, Any]] = {
    "dual": {}, "dual, no weights": {"weights": "none", "dual_every": 2, "every": 2, "dimensions": "estimate"},
    "exact": {"gauge": True},
    "cross_batch": {"optimiser": "sgd", "momentum": 0.5, "learning_rate": 0.5},
    "batch_penalty": {"tied": False, "ridge": 0.1}, "official_compat": {"tied": False, "cap": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_each_mode_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spec = {"mode": name.split(",")[0], "learning_rate": 0.05, **MODES[name]}
    done = run_language_recipe(recipe(tmp_path, auxiliary=spec), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]["loss"]
    assert first == pytest.approx(np.log(2.0), abs=2e-3 if name == "official_compat" else 1e-6)
    found = done.result["stages"]["preference"]["auxiliary"]
    n_rows = done.result["data"]["train"]["kept"]
    assert found["variables"] == (2 * n_rows if "tied" in spec else n_rows)  # three responses to three rows
    assert found["parameters"] == 8 + 8 and found["rank"] == [8, 8]  # the other half of LoRA is multiplied by zero
    assert found.get("active_parameters") == (8 if "dimensions" in spec else None)  # counted in samples
    assert found["delta_rms"] == lines[-1]["delta_rms"] > 0.01 and np.isfinite(lines[-1]["loss"])
    if name.split(",")[0] in ("dual", "exact"):
        assert found["delta_residual"] < 0.05 * found["delta_rms"] and (name != "exact" or not found["delta_residual"])
    said = capsys.readouterr().out
    assert f"AuxDPO: {found['variables']} auxiliary variables, 16 trainable parameters, " in said and "rank 8" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["auxiliary"]
    assert manifest["verdict"] == found["verdict"] and found["verdict"] in said


KILLED = """
import os, signal, sys
from pathlib import Path
from prefgeo.language.run import run_language_recipe
from prefgeo.language.stage_monitor import StageMonitor

usual = StageMonitor.on_step_end

def end(self, args, state, control, **more):
    if state.global_step == 5:  # between the checkpoints of steps 4 and 6
        os.kill(os.getpid(), signal.SIGKILL)
    usual(self, args, state, control, **more)

StageMonitor.on_step_end = end
run_language_recipe(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_seconds=0.0)
"""


@pytest.mark.parametrize("mode", ["dual", "cross_batch", "exact"])
def test_a_killed_run_continues_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    path = recipe(tmp_path, auxiliary={"mode": mode, "learning_rate": 0.05})
    run_language_recipe(path, tmp_path / "whole", checkpoint_seconds=0.0)
    said = capsys.readouterr().out
    if mode == "dual":
        command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "out")]
        home = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=home, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
        assert done.returncode == -signal.SIGKILL
    else:
        stopped(path, tmp_path / "out")
    checkpoints = list((tmp_path / "out" / "checkpoints" / "preference").glob("checkpoint-*"))
    assert [each.name for each in checkpoints] == ["checkpoint-4"]
    capsys.readouterr()
    run_language_recipe(path, tmp_path / "out", resume=True)
    assert "AuxDPO:" in said and "AuxDPO:" not in capsys.readouterr().out  # not counted again
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class StoppedError(Exception):
    """What a kill looks like from inside."""


def stopped(path: Path, out: Path) -> None:
    """The run until its fifth step of eight or so."""
    usual = StageMonitor.on_step_end

    def end(self: StageMonitor, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 5:
            raise StoppedError
        usual(self, args, state, control, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StageMonitor, "on_step_end", end)
        run_language_recipe(path, out, checkpoint_seconds=0.0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {  # sections, and what must be said
    "no section": ({"auxiliary": None}, "objective.name: auxdpo needs auxiliary variables: give a section auxiliary"),
    "no delta": ({"objective": {"name": "dpo"}}, "auxiliary: dpo has no auxiliary variables and would ignore this"),
    "path": ({"reference": {"name": "path", "path": "x"}}, "reference.name: auxiliary variables need the scores of"),
    "float16": (
        {"training": {"learning_rate": 0.01, "steps": 1, "precision": "float16"}}, "training.precision: float16 scales",
    ),
    "mode": ({"auxiliary": {"mode": "dul"}}, "auxiliary.mode: unknown mode 'dul'. Did you mean 'dual'?"),
    "penalty": ({"auxiliary": {"mode": "exact", "penalty": 1.0}}, "auxiliary: mode: exact would ignore penalty"),
    "dual_every": ({"auxiliary": {"mode": "batch_penalty", "dual_every": 3}}, "batch_penalty would ignore dual_every"),
    "ridge": ({"auxiliary": {"mode": "official_compat", "ridge": 0.1}}, "official_compat would ignore ridge"),
    "anti-ridge": ({"auxiliary": {"anti_ridge": 0.1, "cap": 1.0}}, "mode: dual would ignore cap, anti_ridge"),
    "product": ({"auxiliary": {"mode": "exact", "product": "forward"}}, "mode: exact would ignore product"),
    "gauge": ({"auxiliary": {"gauge": True}}, "mode: dual would ignore gauge"),
    "untied gauge": ({"auxiliary": {"mode": "exact", "gauge": True, "tied": False}}, "gauge is for tied delta"),
    "momentum": ({"auxiliary": {"momentum": 0.5}}, "momentum is that of optimiser: sgd"),
    "untied weights": ({"auxiliary": {"tied": False, "weights": "reference"}}, "untied delta has none: say none"),
    "official weights": (
        {"auxiliary": {"mode": "official_compat", "weights": "reference"}}, "official_compat has no weights",
    ),
    "negative": ({"auxiliary": {"penalty": -1.0}}, "auxiliary.penalty: Input should be greater than or equal to 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_faults_are_told(tmp_path: Path, name: str) -> None:
    sections, sentence = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        load_language_recipe(recipe(tmp_path, **sections))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
