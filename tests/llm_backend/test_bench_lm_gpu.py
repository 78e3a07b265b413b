"""The GPU benchmark: its arithmetic, and all of its parts on a CPU with a model of a few thousand parameters."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; its parts run in this process, which saves importing torch for each."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script, report = importlib.import_module("bench_lm_gpu"), importlib.import_module("report")

    def ask(path: str, name: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
        folder = Path(arguments[1])
        told = json.loads((folder / "options.json").read_text())
        found = importlib.import_module("gpu_runs").child(name, folder, argparse.Namespace(**told))
        return dict(json.loads(json.dumps(found)))

    monkeypatch.setattr(report, "ask_child", ask)
    return script


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_lm_gpu.py", *arguments])
    return int(script.main())


MODES = ["dual", "exact"]
SMALL = ("--size", "tiny", "--device", "cpu", "--pairs", "6", "--batch", "2", "--mode-pairs", "4", "--limit", "192")


def test_all_parts_run_on_a_cpu(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.delenv("PREFGEO_DATA", raising=False)
    monkeypatch.setattr(bench, "installed", lambda package: package != "trl")
    assert run(bench, monkeypatch, *SMALL, "--batches", "2", "--modes", *MODES, "--peak-tflops", "0.05") == 0
    assert "trl not installed, so TRL's numbers are left out" in capsys.readouterr().out
    found = json.loads((tmp_path / "build" / "benchmarks" / "lm_gpu_tiny.json").read_text())["numbers"]
    ours = found["prefgeo"]
    assert ours["layout"] == "packed" and ours["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    # packed lines hold what the pairs need and nothing else
    assert ours["tflops_needed"] == pytest.approx(ours["tflops_laid_out"], rel=1e-9)
    assert ours["model_flop_utilisation"] == pytest.approx(ours["tflops_needed"] / 0.05, rel=1e-9)
    assert set(found["modes"]) == {"dpo", "dpo_lora", *MODES}
    for mode, epochs in found["modes"].items():
        assert set(epochs["batches"]) == set(epochs["times_dpo"]) == {"2"}, mode
    assert found["modes"]["dpo"]["times_dpo"] == {"2": 1.0}
    assert "variables" in found["modes"]["exact"]["batches"]["2"]
    assert "times_faster" not in found


@pytest.mark.slow
@pytest.mark.data
def test_trl_and_all_modes_run_on_dialogues(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_folder: Path
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr(importlib.import_module("report"), "ROOT", tmp_path)
    assert run(bench, monkeypatch, *SMALL, "--batches", "2", "4", "--data", str(data_folder)) == 0
    found = json.loads((tmp_path / "build" / "benchmarks" / "lm_gpu_tiny.json").read_text())["numbers"]
    assert found["text"] == "HH" and found["trl"]["layout"] == "separate" and found["times_faster"] > 0
    assert found["trl"]["tflops_needed"] < found["trl"]["tflops_laid_out"]
    assert "model_flop_utilisation" not in found["prefgeo"]  # no peak is known of a CPU
    assert set(found["modes"]) == {"dpo", "dpo_lora", *bench.MODES}
    assert all(set(epochs["times_dpo"]) == {"2", "4"} for epochs in found["modes"].values())


def test_what_is_missing_is_one_sentence(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cases = {
        (): "needs a CUDA device and torch sees none",
        (*SMALL, "--data", str(tmp_path)): "holds no hh_rlhf_harmless_base_test.jsonl.gz",
        (*SMALL, "--batch", "0"): "--batch must be at least 1, got 0",
        (*SMALL, "--batches", "0", "2"): "--batches must be at least 1, got 0",
    }
    for arguments, message in cases.items():
        assert run(bench, monkeypatch, *arguments) == 2
        told = capsys.readouterr()
        assert message in told.err and told.err.count("\n") == 1 and not told.out


def row(prompt: int, chosen: int, rejected: int) -> dict[str, list[int]]:
    return {"prompt_ids": [0] * prompt, "chosen_ids": [0] * chosen, "rejected_ids": [0] * rejected}


def test_work_is_counted_token_by_token(bench: Any) -> None:
    """Against a mask written out for [prompt | chosen | rejected], and widths by hand."""
    flops = importlib.import_module("model_flops")
    prompt, chosen, rejected = 3, 4, 2
    segments = [0] * prompt + [1] * chosen + [2] * rejected
    seen = sum(s in (0, own) for q, own in enumerate(segments) for s in segments[: q + 1])
    assert flops.needed([row(prompt, chosen, rejected)]) == flops.Work(9, 6, seen)
    two = [row(3, 4, 2), row(1, 1, 5)]
    assert flops.laid_out(two, "packed") == flops.needed(two)
    assert flops.laid_out(two, "shared") == flops.Work(18, 12, 2 * 9**2)
    assert flops.laid_out(two, "separate") == flops.Work(28, 12, 4 * 7**2)


def test_parameters_and_flops_are_those_of_the_model(bench: Any) -> None:
    """Counted by torch on the model itself: a forward pass of one line of eager attention, which knows no mask."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llm_backend.models import new_model, tiny_config

    flops = importlib.import_module("model_flops")
    for tied in (True, False):
        config = tiny_config("llama", vocab_size=50, width=32, layers=3, heads=4, tied=tied)
        model = new_model(config, seed=0, attention="eager")
        shape = flops.Shape.of(config)
        assert shape.parameters == sum(value.numel() for value in model.parameters())
    tokens = 7
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    # torch 2.11 also counts the tokens' rotary angles, one product each
    assert counter.get_total_flops() == pytest.approx(flops.Work(tokens, tokens, tokens**2).forward(shape), rel=2e-4)


def test_expectation_prefers_shared_prompts(bench: Any) -> None:
    """Long prompts: half the tokens or less, in operations and in memory; the reference counts once more."""
    flops = importlib.import_module("model_flops")
    from llm_backend.models import tiny_config

    config = tiny_config("llama", vocab_size=50, width=32, layers=3, heads=4)
    found = flops.expected(config, [row(90, 5, 5)] * 8, 4, dtype="float32")
    assert 1.8 < found["shared"]["flop_ratio"] < 2.0 < found["packed"]["flop_ratio"] < 2.5  # half of a mask is empty
    shape = flops.Shape.of(config)
    assert found["needed_gflop_per_pair"] == pytest.approx(4e-9 * flops.needed([row(90, 5, 5)]).forward(shape))
    assert found["packed"]["peak_mib"] < found["trl"]["peak_mib"]


def test_kept_bytes_are_those_of_the_whole_model(bench: Any) -> None:
    """Of all layers on a longer line: what one block keeps of a short one, times the layers (tables come once)."""
    flops = importlib.import_module("model_flops")
    from llm_backend.models import tiny_config

    config = tiny_config("llama", vocab_size=50, width=64, layers=4, heads=4)
    one = flops.kept_bytes(config, "bfloat16", tokens=32) / config.num_hidden_layers
    # at least hidden states, norm, query, key, value, attention, gate, up and product; at most a few times that
    least = 2 * (3 * 64 + 4 * 64 + 3 * config.intermediate_size)
    assert least < one < 5 * least
