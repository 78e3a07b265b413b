"""A recipe run by two processes, by DDP and by FSDP: one folder, and the same weights as one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

import psutil
import torch
from safetensors.torch import load_file

from prefgeo.language.run import run_language_recipe

HOME = Path(__file__).resolve().parents[2]
LAUNCHER = str(Path(sys.executable).with_name("accelerate"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "tiny", "sizes": {"width": 16, "layers": 1, "heads": 2, "context": 128}, "dtype": "float64"},
    "tokenizer": {"name": "embedded", "vocab_size": 280},
    "data": {"format": "pairs", "path": "pairs.jsonl", "rows": 24},
    "sft": {"learning_rate": 0.01, "steps": 3, "batch_size": 8},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.01, "steps": 4, "batch_size": 8, "schedule": "constant", "log_every": 1},
}  # fmt: skip
AUXDPO = {"objective": {"name": "auxdpo"}, "auxiliary": {"learning_rate": 0.05}}


def recipe(folder: Path, batch: int, **changes: Any) -> Path:
    """A recipe beside its data. ``changes`` are of keys in sections, or whole sections that TINY does not have."""
    folder.mkdir(exist_ok=True)
    pairs = [
        {"prompt": f"question {i // 3}:", "chosen": f" good {i % 3} {i // 3}", "rejected": f" bad {i // 3}"}
        for i in range(48)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    made = TINY | {name: TINY.get(name, {}) | values for name, values in changes.items()}
    made |= {name: made[name] | {"batch_size": batch} for name in ("sft", "training")}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return path


def agree(one: Path, two: Path) -> None:
    """Steps of 8 of 24 rows by one process, and of 2 x 4: as they divide the rows, the order is the same."""
    files = [next((folder / "model").glob("*.safetensors")) for folder in (one, two)]
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0.0, atol=1e-6)
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    lines = [[json.loads(line) for line in log] for log in logs]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-6)
    found = [json.loads((folder / "result.json").read_text())["stages"]["preference"] for folder in (one, two)]
    assert found[0]["pairs"]["held_out"]["accuracy"] == found[1]["pairs"]["held_out"]["accuracy"]
    if "auxiliary" in found[0]:
        assert found[0]["auxiliary"]["delta_rms"] == pytest.approx(found[1]["auxiliary"]["delta_rms"], rel=1e-6)
        assert found[0]["auxiliary"]["verdict"] == found[1]["auxiliary"]["verdict"]
    assert sorted(each.name for each in one.iterdir()) == sorted(each.name for each in two.iterdir())


def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path, out = recipe(tmp_path / "two", 4, **AUXDPO), tmp_path / "two" / "out"
    usual = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "prefgeo", "run", str(path), "--backend", "torch", "--out", str(out)]
    started = [
        subprocess.Popen(
            [*command, "--checkpoint-seconds", "0"], cwd=HOME, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**usual, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        ) for rank in range(2)
    ]  # fmt: skip
    run_language_recipe(recipe(tmp_path / "one", 8, **AUXDPO), tmp_path / "one" / "out")
    told = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert "AuxDPO:" in told[0][0] and "curve.png" in told[0][0] and not told[1][0]
    agree(tmp_path / "one" / "out", out)


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=HOME, text=True, capture_output=True, env=ENVIRONMENT, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path) -> None:
    path, out = recipe(tmp_path / "two", 4, **AUXDPO), tmp_path / "two" / "out"
    command = [LAUNCHER, "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]  # --cpu starts but one
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "prefgeo", "run", str(path)]
    run([*command, "--backend", "torch", "--out", str(out)])
    run_language_recipe(recipe(tmp_path / "one", 8, **AUXDPO), tmp_path / "one" / "out")
    agree(tmp_path / "one" / "out", out)


def sharded_command(folder: Path, path: Path, *more: str) -> list[str]:
    """Two processes on CPUs, otherwise as recipes/launch/fsdp.yaml says."""
    config = yaml.safe_load((HOME / "recipes" / "launch" / "fsdp.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(config))
    launcher = [LAUNCHER, "launch", "--config_file", str(folder / "fsdp.yaml")]
    script = str(Path(__file__).with_name("fsdp_on_cpus.py"))
    return [*launcher, script, "run", str(path), "--backend", "torch", "--out", str(folder / "out"), *more]


FSDP_CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "half": {"model": {"sizes": {**TINY["model"]["sizes"], "layers": 2}, "trainable": 0.5}},
    "lora": {"model": {"lora": {"r": 2}}, "training": {"gradient_checkpointing": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FSDP_CASES)
def test_sharded_weights_end_as_whole_ones(tmp_path: Path, case: str) -> None:
    """FSDP2 of accelerate, with gloo: SFT and DPO, the model that is written and the evaluation of it."""
    path = recipe(tmp_path / "two", 4, **FSDP_CASES[case])
    run(sharded_command(tmp_path / "two", path))
    run_language_recipe(recipe(tmp_path / "one", 8, **FSDP_CASES[case]), tmp_path / "one" / "out")
    agree(tmp_path / "one" / "out", tmp_path / "two" / "out")


@pytest.mark.slow
def test_sharded_training_that_is_killed_goes_on(tmp_path: Path) -> None:
    """kill -9 of launcher and processes, after a checkpoint of preference training; optimiser state is in shards."""
    longer = {"training": {"steps": 12}}
    path, out = recipe(tmp_path / "two", 4, **longer), tmp_path / "two" / "out"
    command = sharded_command(tmp_path / "two", path, "--checkpoint-seconds", "0")
    with (tmp_path / "told.txt").open("w") as told:
        launcher = subprocess.Popen(command, cwd=HOME, stdout=told, stderr=told, env=ENVIRONMENT)
        begun = time.monotonic()
        while not any(out.glob("checkpoints/preference/checkpoint-*/manifest.json")):
            assert launcher.poll() is None, Path(told.name).read_text()[-3000:]
            assert time.monotonic() - begun < 400, "no checkpoint came"
            time.sleep(0.05)
        for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
            process.kill()
        launcher.wait()
    assert not (out / "result.json").exists()
    run([*command, "--resume", "--checkpoint-seconds", "1000"])
    run_language_recipe(recipe(tmp_path / "one", 8, **longer), tmp_path / "one" / "out")
    agree(tmp_path / "one" / "out", out)


def test_the_fsdp_configuration_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate reads it without complaint, and makes of it what it says: FSDP2 over blocks, whole checkpoints."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = HOME / "recipes" / "launch" / "fsdp.yaml"
    config = load_config_from_file(str(file))
    assert config.distributed_type == "FSDP" and config.num_processes == 4 and not config.use_cpu
    args = launch_command_parser().parse_args(["--config_file", str(file), "-m", "prefgeo", "run"])
    args, *_ = _validate_launch_command(args)
    environment = prepare_multi_gpu_env(args)
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward and not plugin.activation_checkpointing
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
