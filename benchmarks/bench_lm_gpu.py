"""DPO of a random-weight Llama in bfloat16 on one GPU, against TRL's DPOTrainer; and what each AuxDPO mode adds.

    python benchmarks/bench_lm_gpu.py [--size 0.5b|1b|tiny] [--data FOLDER] [--pairs N] [--batch N] [--modes MODE ...]

First it says what to expect: FLOPs a pair and peak memory of both, from the lengths of the pairs (``model_flops.py``).
Then both train the same model on the same pairs, one epoch, same batch size, AdamW, dtype, up to ``--limit`` tokens a
sequence, without gradient checkpointing; each in a process of its own, after a short run that is not timed. TRL's time
is that of ``train()``, in which it scores the reference with a second model; ours is that of scoring the reference and
``train()``. Peak memory is what torch had allocated, and reserved, on the device at most; on a CPU the largest resident
set. Model FLOP utilisation is the FLOPs that the pairs need (each prompt once, no padding), for both trainers alike,
over time and the device's peak; beside it stands that of the FLOPs which the trainer's lines hold, padding included.

Last, one epoch of each AuxDPO mode over ``--mode-pairs`` pairs by batch size, against DPO's; ``exact`` trains LoRA of
rank 1 on the queries, against DPO of the same. Pairs are HH dialogues where ``--data`` (or PREFGEO_DATA) names their
folder, else dialogues of 1 to 24 turns of the embedded sequence world. Numbers are published part by part, so that a
run that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES: dict[str, dict[str, int]] = {
    "0.5b": {"width": 1280, "layers": 24, "heads": 20, "num_key_value_heads": 10, "intermediate_size": 3584,
             "vocab_size": 32000},
    "1b": {"width": 2048, "layers": 16, "heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
           "vocab_size": 128256},
    "tiny": {"width": 64, "layers": 2, "heads": 4},
}  # fmt: skip
"""489M parameters; the 1.24B of Llama 3.2's smallest; ninety thousand beside the embedding, to try the script."""
MODES = ("dual", "batch_penalty", "cross_batch", "official_compat", "exact")
PACKAGES = ("torch", "transformers", "accelerate", "trl", "peft")


def main() -> int:
    """Say what to expect, run both trainers and the modes, publish; 2 where something is missing."""
    options = arguments().parse_args()
    if options.child:
        import gpu_runs

        told = json.loads((options.folder / "options.json").read_text())
        found = gpu_runs.child(options.child, options.folder, argparse.Namespace(**told))
        print(json.dumps(found))
        return 0
    missing = what_is_missing(options)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))
    return 0


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--data", type=Path, default=os.environ.get("PREFGEO_DATA"), help="folder of the HH file")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int, default=1024, help="tokens of prompt and response")
    parser.add_argument("--modes", choices=("none", *MODES), nargs="+", default=list(MODES))
    parser.add_argument("--mode-pairs", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name is not known")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def what_is_missing(options: argparse.Namespace) -> str | None:
    """One sentence on why this cannot run here, or None."""
    from bench_lm_pairs import FILE

    if not installed("torch"):
        return "bench_lm_gpu needs torch, which is not installed: pip install 'prefgeo[llm]'."
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        return (
            "bench_lm_gpu needs a CUDA device and torch sees none: run it where there is one, or try it out with "
            "--size tiny --device cpu."
        )
    if options.data is not None and not (Path(options.data) / FILE).is_file():
        return f"{options.data} holds no {FILE}: name its folder by --data, or leave --data out for embedded text."
    for name in ("pairs", "batch", "mode_pairs", "limit"):
        if getattr(options, name) < 1:
            return f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}."
    if min(options.batches) < 1:
        return f"--batches must be at least 1, got {min(options.batches)}."
    return None


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All parts in turn, each published as it comes."""
    from report import ask_child, publish

    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    (folder / "options.json").write_text(json.dumps(told))

    one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}

    def ask(name: str) -> dict[str, Any]:
        try:
            return ask_child(__file__, name, ["--folder", str(folder)], one)
        except SystemExit as problem:  # the other parts still count
            return {"failed": str(problem).strip().splitlines()[-1]}

    prepared = ask_child(__file__, "prepare", ["--folder", str(folder)], one)
    numbers: dict[str, Any] = {
        "size": options.size, "dtype": options.dtype, "pairs": options.pairs, "batch": options.batch,
        "limit": options.limit, **prepared,
    }  # fmt: skip
    print(json.dumps({"expected": prepared["expected"]}, indent=2), flush=True)
    numbers["prefgeo"] = ask("prefgeo")
    absent = [name for name in ("trl", "datasets") if not installed(name)]
    if absent:
        print(f"{' and '.join(absent)} not installed, so TRL's numbers are left out: pip install trl.", flush=True)
        numbers["trl"] = {"failed": f"{' and '.join(absent)} not installed"}
    else:
        numbers["trl"] = ask("trl")
    numbers |= compared(numbers["prefgeo"], numbers["trl"])
    publish(f"lm_gpu_{options.size}", numbers, PACKAGES)
    numbers["modes"] = {}
    wanted = [mode for mode in MODES if mode in options.modes]
    baselines = ["dpo"] * any(mode != "exact" for mode in wanted) + ["dpo_lora"] * ("exact" in wanted)
    for mode in (*baselines, *wanted):
        numbers["modes"][mode] = ask(mode)
        numbers["modes"][mode] |= times_dpo(numbers["modes"], mode)
        publish(f"lm_gpu_{options.size}", numbers, PACKAGES)


def compared(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    """The two ratios that count; none where one of the two has failed."""
    if "failed" in ours or "failed" in trl:
        return {}
    return {
        "times_faster": trl["seconds"] / ours["seconds"],
        "peak_memory_ratio": ours["peak_mib"] / trl["peak_mib"],
    }


def times_dpo(modes: dict[str, Any], mode: str) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of a mode over those of DPO on the same parameters, by batch size."""
    base = modes.get("dpo_lora" if mode in ("exact", "dpo_lora") else "dpo", {}).get("batches", {})
    mine = modes[mode].get("batches", {})
    both = [size for size in mine if "seconds" in mine[size] and "seconds" in base.get(size, {})]
    return {
        "times_dpo": {size: mine[size]["seconds"] / base[size]["seconds"] for size in both},
        "times_dpo_memory": {size: mine[size]["peak_mib"] / base[size]["peak_mib"] for size in both},
    }


if __name__ == "__main__":
    raise SystemExit(main())
