"""The page on merging and the benchmark do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "merging.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["True", "[0.2, 0.3, 0.5]", "(1,) (1, 3)"]


def test_the_benchmark_runs_on_small_models(tmp_path: Path) -> None:
    """Every part but the ratios, which mean nothing at this size: one merge in a process of its own."""
    script = ROOT / "benchmarks" / "bench_merge.py"
    same = ["--folder", str(tmp_path), "--size", "10000000", "--dtype", "bfloat16"]

    def child(name: str) -> dict[str, float]:
        command = [sys.executable, str(script), "--child", name, *same]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        return found

    assert 9e6 < child("prepare")["bytes"] < 11e6
    assert child("copy_three")["seconds"] > 0
    merged = child("merge")
    assert merged["seconds"] > 0 and 50 < merged["peak_mib"] < 950
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}
