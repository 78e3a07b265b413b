"""Every mistake in the input is one line on stderr that starts with 'prefgeo:', exit status 2 and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefgeo.cli import main
from prefgeo.errors import UsageError, look_up

NAN = float("nan")
GOOD: dict[str, object] = {
    "rewards": [[1.0, 2.0, 0.0], [0.5, 0.0]],
    "prompt_distribution": [0.25, 0.75],
    "beta": 1.0,
    "policy": {"kind": "log_linear", "features": [[[1], [-1], [0]], [[1], [0]]]},
    "reference_theta": [0.0],
    "comparisons": [[0, 0, 1, 1], [0, 1, 2, 1], [1, 0, 1, 3]],
}
BAD_FEATURES: dict[str, object] = {"kind": "log_linear", "features": [[[1], [-1], [0]], [[1], [NAN]]]}
RAGGED: dict[str, object] = {"kind": "log_linear", "features": [[[1], [-1], [0]], [[1]]]}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused command line prints."""
    status = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("prefgeo: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


DOCUMENTS: dict[str, tuple[dict[str, object], str]] = {
    "NaN reward": ({"rewards": [[1, NAN, 0], [0, 0]]}, "rewards[0][1] (prompt 0, response 1) is nan"),
    "NaN feature": ({"policy": BAD_FEATURES}, "features[1][1][0] (prompt 1, response 1) is nan"),
    "ragged rows": ({"policy": RAGGED}, "prompt 1 has 2 rewards, but 1 entries of features; they must agree"),
    "with itself": ({"comparisons": [[0, 1, 1, 1]]}, "comparison 0 compares response 1 of prompt 0 with itself"),
    "out of range": ({"comparisons": [[1, 0, 2, 1]]}, "comparison 0 names responses 0 and 2, but prompt 1 has"),
    "prompt out of range": ({"comparisons": [[5, 0, 1, 1]]}, "names prompt 5, but the problem has prompts 0 to 1"),
    "negative count": ({"comparisons": [[0, 0, 1, -1]]}, "comparison 0 has count -1.0"),
    "beta": ({"beta": 0}, "beta is 0.0; the price of KL must be a finite number above 0"),
    "distribution": ({"prompt_distribution": [0.5, 0.6]}, "prompt_distribution sums to 1.1; it must sum to 1"),
    "two references": ({"reference_policy": [[1]]}, "give reference_theta or reference_policy, not both"),
    "unknown key": ({"rewards_": []}, "unknown key 'rewards_' in the problem. Did you mean 'rewards'?"),
    "wrong type": ({"rewards": "high"}, "rewards must be a list, got a text ('high')"),
    "kind": ({"policy": {"kind": "tabluar"}}, "unknown kind of policy 'tabluar'. Did you mean 'tabular'?"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_bad_document(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, sentence = DOCUMENTS[case]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(GOOD | change))
    assert sentence in refused(capsys, "solve", path)


def test_a_reference_outside_the_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {key: value for key, value in GOOD.items() if key != "reference_theta"}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document | {"reference_policy": [[0.3, 0.3, 0.4], [0.5, 0.5]]}))
    assert "the reference is outside the policy class" in refused(capsys, "solve", path)


def test_a_missing_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({key: value for key, value in GOOD.items() if key != "beta"}))
    assert "the problem lacks the key 'beta'" in refused(capsys, "solve", path)


def test_comparisons_across_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    from geometry import Problem

    Problem.load(tmp_path / "p.json").save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["second"][0] = 4
    np.savez(tmp_path / "p.npz", **arrays)
    assert "compares responses of prompts 0 and 1" in refused(capsys, "solve", tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.json", b'{"rewards": [[1, 2', "it ends too early; is it truncated?"),
        ("p.json", b"rewards = 1", "this is not valid JSON at line 1, column 1"),
        ("p.json", b"\xff\xfe", "not a JSON file"),
        ("p.npz", b"PK\x03\x04 and no more", "this is not a whole .npz file"),
        ("p.npz", b"", "this is not a whole .npz file"),
        ("p.csv", b"", "must end in .json or .npz"),
    ],
)
def test_a_broken_file(
    name: str, content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in refused(capsys, "solve", tmp_path / name)


def test_an_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text("mine")
    assert "exists and is left as it is" in refused(capsys, "world", "prop2", "--out", path)
    assert path.read_text() == "mine"
    assert main(["world", "prop2", "--out", str(path), "--force"]) == 0
    assert path.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["wrold"], "unknown command 'wrold'. Did you mean 'world'?"),
        (["world", "prop3"], "unknown world 'prop3'. Did you mean 'prop2'?"),
        (["world", "prop2", "--betta", "1", "--out", "p.json"], "--beta"),
        (["world", "prop2", "--beta", "x", "--out", "p.json"], "Invalid value for '--beta'"),
        (["world", "prop2", "--beta", "-1", "--out", "p.json"], "beta is -1.0"),
        (["world", "prop2"], "Missing option '--out'"),
        (["world", "prop2", "--out", "p.txt"], "must end in .json or .npz"),
        (["world", "prop2", "--out", "nowhere/p.json"], "the folder nowhere does not exist; create it first"),
        (["world", "random_log_linear", "--comparisons", "al", "--out", "p.json"], "unknown comparisons 'al'"),
        (["world", "mmlu_votes", "--data", "none.csv", "--out", "p.npz"], "there is no data file none.csv"),
        (["solve", "none.json"], "there is no file none.json"),
        (["solve"], "Missing argument"),
        (["solve", "none.json", "--method", "dop"], "unknown method 'dop'. Did you mean 'dpo'?"),
        (["solve", "none.json", "--set", "weights=none"], "must be METHOD.OPTION=VALUE"),
        (["solve", "none.json", "--set", "dop.x=1"], "unknown method in --set 'dop'. Did you mean 'dpo'?"),
        (["figures", "fase_diagram"], "unknown figure 'fase_diagram'. Did you mean 'phase_diagram'?"),
        (["figures", "--data", "none.csv"], "there is no data file none.csv"),
    ],
)
def test_a_bad_command_line(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ValueError that is no message for users is a bug: it keeps its traceback."""
    from prefgeo.cli import solve

    def broken(*_: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(solve, "report", broken)
    path = tmp_path / "p.json"
    assert main(["world", "prop2", "--out", str(path)]) == 0
    with pytest.raises((ValueError, TypeError)):
        main(["solve", str(path), "--method", "dpo"])


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where safetensors finds it, whose error is neither an OSError nor one of ours."""
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("prefgeo.cli.solve.Problem.load", full)
    assert "No space left on device" in refused(capsys, "solve", "problem.json")


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from prefgeo.cli import world

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world, "make_world", interrupted)
    assert main(["world", "prop2", "--out", "never.json"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("never.json").exists()


def test_a_closed_pipe_is_quiet() -> None:
    """Exit status 1, as Python's own tools have, and not a word."""
    code = "import sys; from prefgeo.cli import main; sys.exit(main(['world', '--list']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_look_up() -> None:
    assert look_up("method", "dpo", {"dpo": 3}) == 3
    with pytest.raises(UsageError, match=r"unknown method 'x'. Known: dpo"):
        look_up("method", "x", {"dpo": 3})
