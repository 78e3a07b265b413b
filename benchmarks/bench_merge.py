"""Merging three models of 1 GB each, against plain copies of the same bytes: seconds, and peak memory.

    python benchmarks/bench_merge.py [--size BYTES] [--dtype NAME] [--repeats N] [--folder FOLDER]

Three models of the same shapes are written to a folder (of a temporary place, or ``--folder``) and merged with weights
0.2, 0.3, 0.5. What is timed, each ended by an fsync of what was written:

- ``merge``: ``merge_folders``, which reads 3 x SIZE and writes SIZE, and hashes all it reads (SHA-256, for merge.json);
- ``merge_unhashed``: the same without hashes;
- ``copy_three``: ``shutil.copyfile`` of the three files of weights, the same bytes read, 3 x SIZE written;
- ``copy_one``: of one of them: SIZE read, SIZE written, which no merge of three can reach.

They take turns, in one run; the least of the repeats counts. "warm": the inputs are in the page cache as far as memory
allows. "cold": they are dropped from it before each turn (posix_fadvise, which a virtual disk below may not honour).
Peak memory is the largest resident set of the process that merges, torch included (VmHWM, since its start).
mergekit is measured beside it where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

GIGABYTE = 10**9
WEIGHTS = (0.2, 0.3, 0.5)
FILE = "model.safetensors"
LAYER = 2048  # rows and columns of a layer's matrix, at full size
AIM_TIMES, AIM_MIB = 2.0, 1e9 / 2**20


def main() -> None:
    """Write the models, let all take turns, publish the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=GIGABYTE, help="bytes of each model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; it needs 7 times the size")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = Path(folder)
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """The least time of each, warm and cold."""
    from report import publish

    written = _child("prepare", options)
    best: dict[str, dict[str, float]] = {}
    peak = 0.0
    for state in ("warm", "cold"):
        for _ in range(options.repeats):
            for name in ("copy_three", "merge", "copy_one", "merge_unhashed"):
                os.sync()  # what earlier turns left to write is not this one's work
                if state == "cold":
                    _forget(options.folder)
                found = _child(name, options)
                peak = max(peak, found.get("peak_mib", 0.0))
                kept = best.setdefault(state, {})
                kept[name] = min(kept.get(name, float("inf")), found["seconds"])
    ratios = {
        state: {
            f"{name}_over_{copy}": times[name] / times[copy]
            for name in ("merge", "merge_unhashed")
            for copy in ("copy_three", "copy_one")
        }
        for state, times in best.items()
    }
    numbers = {
        "bytes_of_each_model": written["bytes"],
        "dtype": options.dtype,
        "repeats": options.repeats,
        "seconds": best,
        "times": ratios,
        "peak_mib": peak,
        "aims_met": {
            "at most twice a copy of the same bytes": all(each["merge_over_copy_three"] <= AIM_TIMES
                                                          for each in ratios.values()),
            "under 1 GB of memory": peak < AIM_MIB,
        },
        "mergekit": "installed, but not measured" if importlib.util.find_spec("mergekit") else "not installed: skipped",
    }  # fmt: skip
    publish("merge" if options.size >= GIGABYTE else "merge_trial", numbers)


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Three models of matrices and vectors, as a llama's configuration says."""
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, options.dtype)
    width = min(LAYER, int((options.size / dtype.itemsize / 4) ** 0.5))
    n_layers = max(1, round(options.size / dtype.itemsize / (width * width + width)))
    for t in range(3):
        generator = torch.Generator().manual_seed(t)
        tensors = {}
        for layer in range(n_layers):
            name = f"model.layers.{layer}"
            tensors[f"{name}.proj.weight"] = torch.randn(width, width, generator=generator).to(dtype)
            tensors[f"{name}.norm.weight"] = torch.randn(width, generator=generator).to(dtype)
        folder = options.folder / str(t)
        folder.mkdir()
        save_file(tensors, folder / FILE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return {"bytes": (options.folder / "0" / FILE).stat().st_size}


def merge(options: argparse.Namespace, *, hashed: bool = True) -> dict[str, Any]:
    """Merge, and the peak of this process."""
    from report import peak_mib

    from llm_backend.merging import merge_folders

    out = options.folder / "out"
    started = time.perf_counter()
    merge_folders([options.folder / str(t) for t in range(3)], WEIGHTS, out, hashed=hashed)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return {"seconds": seconds, "peak_mib": peak_mib()}


def merge_unhashed(options: argparse.Namespace) -> dict[str, Any]:
    """Without the hashes of the inputs."""
    return merge(options, hashed=False)


def copy_three(options: argparse.Namespace) -> dict[str, Any]:
    """Copy all files of weights."""
    return _copy(options, 3)


def copy_one(options: argparse.Namespace) -> dict[str, Any]:
    """Copy one file of weights."""
    return _copy(options, 1)


def _copy(options: argparse.Namespace, count: int) -> dict[str, Any]:
    targets = [options.folder / f"copy-{t}" for t in range(count)]
    started = time.perf_counter()
    for t, target in enumerate(targets):
        shutil.copyfile(options.folder / str(t) / FILE, target)
        _open_and(os.fsync, target)
    seconds = time.perf_counter() - started
    for target in targets:
        target.unlink()
    return {"seconds": seconds}


def _forget(folder: Path) -> None:
    """Drop the inputs from the page cache."""
    for t in range(3):
        _open_and(lambda file: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED), folder / str(t) / FILE)


def _open_and(work: Any, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        work(descriptor)
    finally:
        os.close(descriptor)


def _child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from report import ask_child

    arguments = ["--folder", str(options.folder), "--size", str(options.size), "--dtype", options.dtype]
    return ask_child(__file__, name, arguments)


CHILDREN = {
    "prepare": prepare,
    "merge": merge,
    "merge_unhashed": merge_unhashed,
    "copy_three": copy_three,
    "copy_one": copy_one,
}

if __name__ == "__main__":
    main()
