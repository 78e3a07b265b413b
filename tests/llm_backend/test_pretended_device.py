"""No tensor is forgotten on the CPU when a model trains elsewhere: seen without a GPU, on a device that is made up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
PROGRAM = Path(__file__).with_name("pretended_device.py")


def run(folder: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(folder), *parts]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_restored_state_goes_to_the_model(tmp_path: Path) -> None:
    """AuxDPO's residual and dual vector come back where the model is."""
    ended = run(tmp_path, "restoring")
    assert ended.returncode == 0 and "done: restoring" in ended.stdout, ended.stderr[-3000:]


def test_a_tensor_on_the_cpu_is_refused(tmp_path: Path) -> None:
    """The device sees what it is for."""
    ended = run(tmp_path, "mixing")
    assert ended.returncode == 1 and "MixedDevicesError: aten.add.Tensor got a tensor (2,) of the CPU" in ended.stderr


@pytest.mark.slow
def test_training_in_all_modes_generation_and_evaluation(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.returncode == 0 and ended.stdout.count("done: ") == 12, ended.stderr[-3000:]
