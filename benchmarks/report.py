"""What every benchmark prints and writes: the numbers, and the machine, versions and commit that they belong to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefgeo.runs import git_revision

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "scikit-learn")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def best_time(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least wall time in seconds over ``repeats`` runs, the last result): the least is what the machine can do."""
    least, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        least = min(least, time.perf_counter() - start)
    return least, result


def ask_child(
    script: str | Path, name: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON that ``script --child NAME`` prints last, in a process of its own; nothing where it prints nothing.

    Exits with its last words where it fails.
    """
    command = [sys.executable, str(script), "--child", name, *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr[-3000:]}")
    found: dict[str, Any] = json.loads((ended.stdout.splitlines() or ["{}"])[-1])
    return found


def publish(name: str, numbers: Mapping[str, Any], packages: Sequence[str] = PACKAGES) -> None:
    """Print the numbers with their circumstances, and write both to build/benchmarks/NAME.json."""
    record = {"benchmark": name, "numbers": dict(numbers), "circumstances": circumstances(packages)}
    text = json.dumps(record, indent=2)
    folder = ROOT / "build" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"written to {path.relative_to(ROOT)}")


def peak_mib() -> float:
    """Largest resident set of this process so far (VmHWM: since exec, unlike ru_maxrss)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmHWM in /proc/self/status: this benchmark needs Linux")


def circumstances(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Machine, load, threads, versions of packages and commit."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "threads": {name: os.environ.get(name, "not set") for name in THREADS},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": git_revision() or "unknown",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
