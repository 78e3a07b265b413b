"""A sweep that is stopped, however it is stopped, leaves no worker behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """name: endless
recipe:
  world: {name: e1, options: {n_prompts: 4, n_arms: 3}}
  objective: {name: dpo}
  training: {optimiser: adam, learning_rate: 0.001, steps: 100000000}
grid:
  objective.options.beta: [0.1, 0.2, 0.3]
"""
JOBS = ("--jobs", "2")
CODE = """
import signal, sys
from prefgeo.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
sys.exit(main(sys.argv[1:]))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads processes from /proc")


def stat(process: int) -> list[str]:
    """The fields after the name; none for a process that has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def workers_of(parent: int) -> list[int]:
    """Its children that have begun to compute."""
    ticks = os.sysconf("SC_CLK_TCK")
    numbers = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    found = [(number, stat(number)) for number in numbers]
    return [n for n, fields in found if fields and int(fields[1]) == parent and 2 * int(fields[11]) > ticks]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_workers_end_with_the_sweep(number: signal.Signals, status: int, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(ENDLESS, encoding="utf-8")
    working: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), *JOBS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            while len(working) < 2 and process.poll() is None:
                time.sleep(0.1)
                working = workers_of(process.pid)
            process.send_signal(number)
            process.wait()
            until = time.monotonic() + 20
            while any(map(stat, working)) and time.monotonic() < until:
                time.sleep(0.1)
            left = [each for each in working if stat(each)]
        finally:
            process.kill()
            for each in filter(stat, working):
                os.kill(each, signal.SIGKILL)
        assert process.stderr is not None
        told = process.stderr.read()
    assert (len(working), left, process.returncode) == (2, [], status), told
    assert "Traceback" not in told
    assert told.endswith("" if number is signal.SIGKILL else "prefgeo: stopped\n")
