"""The parts of ``bench_lm_gpu.py``, each in a process of its own: the pairs, both trainers, and the modes of AuxDPO."""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_lm_gpu import MODES, SIZES
from bench_lm_pairs import hh_texts, ours, trl_dpo, write_inputs
from model_flops import PARTS, Shape, epoch_cost, expected, needed, peak_tflops, reference_batches, sorted_batches
from report import peak_mib

Rows = list[dict[str, Any]]
LORA = ("dpo_lora", "exact")
WARM_UP = 2


def child(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One part by name."""
    warnings.simplefilter("ignore")
    if name == "prepare":
        return prepare(folder, options)
    pairs = json.loads((folder / "pairs.json").read_text())
    if name in ("prefgeo", "trl"):
        return train_once(name, folder / "model", pairs, options)
    if name in ("dpo", "dpo_lora", *MODES):
        return mode_epochs(name, folder / "model", pairs[: options.mode_pairs], options)
    raise SystemExit(f"there is no part {name!r}")


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write model, tokenizer and pairs; what is to be expected of training on them."""
    texts = world_texts(4 * options.pairs) if options.data is None else hh_texts(Path(options.data))
    write_inputs(texts, options.pairs, folder, SIZES[options.size], limit=options.limit, dtype=options.dtype)
    pairs = json.loads((folder / "pairs.json").read_text())
    lengths = {part: [len(pair[f"{part}_ids"]) for pair in pairs] for part in PARTS}
    return {
        "device": _device_name(options),
        "peak_tflops": options.peak_tflops or peak_tflops(_device_name(options)),
        "text": "sequence world" if options.data is None else "HH",
        "tokens": {part: {"mean": float(np.mean(found)), "most": max(found)} for part, found in lengths.items()},
        "expected": expected(_config(folder / "model"), pairs, options.batch, dtype=options.dtype),
    }


def world_texts(n: int) -> list[dict[str, str]]:
    """Pairs of the sequence world behind 0 to 23 earlier turns, few turns more often than many."""
    from bandits.worlds.simulated.sequence_options import SequenceOptions
    from prefgeo.language.world_text import TextWorld

    rows = TextWorld.make(0, SequenceOptions()).pairs(n, "benchmark").rows
    before = np.floor(24.0 ** np.random.default_rng(0).random(len(rows))).astype(int) - 1
    texts = []
    for i, row in enumerate(rows):
        turns = [f"{rows[j].prompt}{rows[j].chosen}\n" for j in range(max(0, i - int(before[i])), i)]
        texts.append({"prompt": "".join([*turns, str(row.prompt)]), "chosen": row.chosen, "rejected": row.rejected})
    return texts


def same_options(options: argparse.Namespace, batch: int, n_pairs: int) -> dict[str, Any]:
    """Training arguments of both trainers."""
    steps = -(-n_pairs // batch)
    return {
        "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": 1e-6,
        "logging_steps": min(10, steps), "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "seed": 0,
        "use_cpu": options.device == "cpu", "dataloader_pin_memory": options.device == "cuda",
        "optim": "adamw_torch_fused",
    }  # fmt: skip


def train_once(name: str, model: Path, pairs: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """One epoch of a trainer, timed after a few steps of another one of its kind."""
    with tempfile.TemporaryDirectory() as output:

        def build(rows: Rows) -> Callable[[], Any]:
            same = same_options(options, options.batch, len(rows))
            if name == "trl":
                built: Callable[[], Any] = trl_dpo(
                    model, rows, output, same=same, dtype=options.dtype, limit=options.limit
                )
            else:
                built = ours(model, rows, output, same=same, dtype=options.dtype, device=options.device)
            return built

        _timed(build(pairs[: WARM_UP * options.batch]))
        found = _timed(build(pairs))
    losses = [entry["loss"] for entry in found.pop("result") if "loss" in entry]
    found |= {"pairs_per_second": len(pairs) / found["seconds"], "first_loss": losses[0], "last_loss": losses[-1]}
    shape = Shape.of(_config(model))
    if name == "trl":  # its own order is another random one
        layout = "separate"
        laid_out = epoch_cost(
            shape, [pairs[k : k + options.batch] for k in range(0, len(pairs), options.batch)], layout
        )
    else:
        layout = _layout(model, options)
        laid_out = epoch_cost(shape, sorted_batches(pairs, options.batch), layout, reference_batches(pairs))
    least = 4.0 * needed(pairs).forward(shape)
    return found | {"layout": layout} | utilisation(least, laid_out.flops, found["seconds"], options)


def utilisation(least: float, laid_out: float, seconds: float, options: argparse.Namespace) -> dict[str, float]:
    """10^12 FLOPs a second and their share of the device's peak: of what the pairs need, of the trainer's lines."""
    found = {"tflops_needed": least / seconds / 1e12, "tflops_laid_out": laid_out / seconds / 1e12}
    peak = options.peak_tflops or peak_tflops(_device_name(options))
    if peak is not None:
        found["model_flop_utilisation"] = found["tflops_needed"] / peak
        found["utilisation_with_padding"] = found["tflops_laid_out"] / peak
    return found


def mode_epochs(mode: str, model: Path, pairs: Rows, options: argparse.Namespace) -> dict[str, Any]:
    """One epoch at each batch size; a size that does not fit into memory says so, and the rest go on."""
    from llm_backend.models import load_model
    from llm_backend.reference import Reference

    start = load_model(model, dtype=options.dtype).to(options.device)
    reference = Reference.initial(start).log_probs(pairs)
    del start
    found: dict[str, Any] = {}
    _timed(_mode_run(mode, model, pairs[: 2 * WARM_UP], _cut(reference, 2 * WARM_UP), 2, options)[0])
    for batch in options.batches:
        try:
            run, setup, more = _mode_run(mode, model, pairs, reference, batch, options)
            found[str(batch)] = _timed(run)
            del found[str(batch)]["result"]
            steps = -(-len(pairs) // batch)
            found[str(batch)] |= {"seconds_per_step": found[str(batch)]["seconds"] / steps, "setup_seconds": setup}
            found[str(batch)] |= more
        except torch.cuda.OutOfMemoryError:
            found[str(batch)] = {"failed": "out of memory"}
        run = None
        _forget()
    return {"pairs": len(pairs), "batches": found}


def _mode_run(
    mode: str, model: Path, pairs: Rows, reference: Any, batch: int, options: argparse.Namespace
) -> tuple[Callable[[], Any], float, dict[str, Any]]:
    """What trains, how long it took to make delta's variables, and what they say of themselves."""
    from llm_backend.auxiliary import AuxiliaryOptions
    from llm_backend.lm_auxiliary import LMAuxiliary
    from llm_backend.models import Lora, load_model, open_for_training
    from llm_backend.response_trainer import training_arguments
    from llm_backend.trainer import PreferenceTrainer
    from objectives import make_objective

    policy: Any = load_model(model, dtype=options.dtype)
    if mode in LORA:
        policy = open_for_training(policy, Lora(rank=1, alpha=1, targets=("q_proj",)))
    policy.to(options.device)
    auxiliary, before = None, time.perf_counter()
    if mode in MODES:
        how = AuxiliaryOptions.official(0.1) if mode == "official_compat" else AuxiliaryOptions(mode=mode)
        auxiliary = LMAuxiliary(policy, pairs, how)
    setup = time.perf_counter() - before
    objective = make_objective("dpo" if auxiliary is None else "auxdpo", beta=0.1)
    args = training_arguments(model.parent / "output", **same_options(options, batch, len(pairs)))
    trainer = PreferenceTrainer(policy, objective, args, pairs, reference=reference, auxiliary=auxiliary)
    free = {} if mode != "exact" else {"variables": auxiliary.auxiliary.raw.numel()}
    return trainer.train, setup, free


def _cut(reference: Any, n: int) -> Any:
    import dataclasses

    columns = {name: values[:n] for name, values in reference.columns.items()}
    return dataclasses.replace(reference, columns=columns)


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds until the device has done it, and peak memory in MiB."""
    _forget()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if not on_gpu:
        return {"seconds": seconds, "peak_mib": peak_mib(), "result": result}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"seconds": seconds, "peak_mib": allocated / 2**20, "reserved_mib": reserved / 2**20, "result": result}


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _layout(model: Path, options: argparse.Namespace) -> str:
    """How our trainer lays out the pairs of this model on this device."""
    from llm_backend.log_probs import best_collator
    from llm_backend.models import load_model

    collate = best_collator(load_model(model, dtype=options.dtype).to(options.device), PARTS[1:])
    return "packed" if collate.packed else "shared" if collate.shared else "separate"


def _device_name(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else "cpu"


def _config(model: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(model)
