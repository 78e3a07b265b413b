"""Two processes (accelerate, gloo) train as one does: the same losses, and the same weights and deltas in the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from safetensors.torch import load_file

from llm_backend.models import load_model
from tests.llm_backend import process_runs

SCRIPT = Path(__file__).with_name("process_runs.py")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a run of every case by two processes, started once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    usual |= {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.txt").open("w") as out:
            command = [sys.executable, str(SCRIPT), str(folder)]
            started.append(subprocess.Popen(command, env=usual | ranks, stdout=out, stderr=out))
    codes = [process.wait(timeout=240) for process in started]
    assert codes == [0, 0], "\n".join(path.read_text()[-2000:] for path in folder.glob("*.txt"))
    return folder


def test_sharded_weights_have_the_same_gradient(both):
    """FSDP2 gathers weights as the model runs: the head that scores responses only gets them too."""
    model = process_runs.small_llama()
    process_runs.pair_loss(model, process_runs.rows()[:8]).backward()
    gradients = load_file(both / "gradients.safetensors")
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-9, atol=1e-12)
    saved = load_model(both / "sharded", dtype="float64").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", process_runs.CASES)
def test_two_processes_are_one(both, tmp_path, case):
    """Steps of 8 rows: 1 x 8, and 2 processes x 2 micro-batches x 2."""
    one = process_runs.train(case, tmp_path, batch=8, split=1)
    two = json.loads((both / f"{case}.json").read_text())
    assert len(one["logged"]) == 4
    np.testing.assert_allclose(two["logged"], one["logged"], rtol=1e-6, atol=1e-10)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-5)
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=0.0, atol=1e-7)  # Adam magnifies rounding
    np.testing.assert_allclose(two["delta"], one["delta"], rtol=0.0, atol=1e-7)
    assert case not in process_runs.AUXILIARY or max(map(abs, one["delta"])) > 5e-3
    assert (both / case / "checkpoint-4" / "manifest.json").is_file()
    assert (both / case / "checkpoint-4" / "random_state_1.json").is_file()
