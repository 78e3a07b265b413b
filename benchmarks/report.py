"""What every benchmark prints and writes: the numbers, and the machine, versions and commit that they belong to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefgeo.runs import git_revision

ROOT = Path(__file__).resolve().parents[1]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def best_time(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least wall time in seconds over ``repeats`` runs, the last result): the least is what the machine can do."""
    least, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        least = min(least, time.perf_counter() - start)
    return least, result


def publish(name: str, numbers: Mapping[str, Any]) -> None:
    """Print the numbers with their circumstances, and write both to build/benchmarks/NAME.json."""
    record = {"benchmark": name, "numbers": dict(numbers), "circumstances": circumstances()}
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


def circumstances() -> dict[str, Any]:
    """Machine, load, threads, versions and commit."""
    packages = ("numpy", "scipy", "scikit-learn")
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
