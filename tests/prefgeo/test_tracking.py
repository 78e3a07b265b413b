"""Metrics sent on to TensorBoard and Weights & Biases: the same numbers as metrics.jsonl, and clear refusals."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefgeo.cli import main
from prefgeo.run_folder import METRICS
from prefgeo.tracking import named

RECIPE = """name: small
world: {name: e1, options: {n_prompts: 30, n_arms: 6}}
objective: {name: dpo}
training: {optimiser: world, learning_rate: 5.0, steps: 3, log_every: 1}
algorithm: {name: iterative, options: {rounds: 2}}
seeds: [4, 7]
"""


def run(folder: Path, *more: str) -> int:
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return main(["run", str(folder / "small.yaml"), "--out", str(folder / "out"), *more])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / METRICS).read_text(encoding="utf-8").splitlines()]


def events(path: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value of an event file: records of length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found, place = path.read_bytes(), {}, 0
    while place < len(content):
        (size,) = struct.unpack("<Q", content[place : place + 8])
        event = Event.FromString(content[place + 12 : place + 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        place += size + 16
    return found


def test_tensorboard_gets_every_number_of_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX")
    assert run(tmp_path, "--track", "tensorboard") == 0
    logged = lines(tmp_path)
    assert {line["stage"] for line in logged} == {"round-1", "round-2"}
    for seed in (4, 7):
        (file,) = (tmp_path / "out" / "tensorboard" / f"seed-{seed}").iterdir()
        expected = {
            (name, line["step"]): value
            for line in logged
            if line["seed"] == seed
            for name, value in named(line).items()
        }
        assert ("round-2/loss", 3) in expected
        assert events(file) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_finished_run_and_its_tracks_are_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX")
    assert run(tmp_path, "--track", "tensorboard") == 0
    assert run(tmp_path, "--resume") == 0
    assert "is finished already" in capsys.readouterr().out


def test_wandb_gets_a_run_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    told: dict[str, list[Any]] = {}

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        mine = told.setdefault(options["name"], [])
        return SimpleNamespace(log=mine.append, finish=lambda: mine.append("over"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    assert run(tmp_path, "--track", "wandb") == 0
    assert [each["name"] for each in begun] == ["out-seed-4", "out-seed-7"]
    assert begun[0]["config"]["objective"]["name"] == "dpo" and begun[0]["id"] != begun[1]["id"]
    assert {each["resume"] for each in begun} == {"allow"}
    mine = [line for line in lines(tmp_path) if line["seed"] == 7]
    assert told["out-seed-7"] == [{**named(line), f"{line['stage']}/step": line["step"]} for line in mine] + ["over"]


@pytest.mark.parametrize(
    ("tracker", "sentence"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'. Did you mean 'tensorboard'? Known: tensorboard, wandb"),
        ("wandb", "--track wandb needs wandb, which is not installed: pip install 'prefgeo[wandb]'"),
    ],
)
def test_what_cannot_track_is_refused_before_the_run(
    tracker: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    assert run(tmp_path, "--track", tracker) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_client_that_fails_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    assert run(tmp_path, "--track", "wandb") == 2
    assert capsys.readouterr().err == "prefgeo: --track wandb: no API key configured; try WANDB_MODE=offline\n"
