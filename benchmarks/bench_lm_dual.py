"""What AuxDPO costs beside DPO on a language model: the same trainer, rows and batches.

    python benchmarks/bench_lm_dual.py [--data FOLDER] [--pairs N] [--threads N] [--repeats N] [--only NAME ...]
    python benchmarks/bench_lm_dual.py --modes [--batches N ...]

First ``dual`` as it is by default, then with other numbers of visits between two moves of a prompt's delta (``every``)
and with other products. ``--modes``: every mode at its defaults as the batch grows; exact, which needs all scores
before training, with LoRA of rank 1 in one block, beside DPO of the same LoRA.

Model, tokenizer and HH pairs are those of ``bench_lm_pairs.py``; the reference's log-probabilities are there for all,
and ``reference_seconds`` is what they take. Training goes on for 12 epochs (4 for ``--modes``), so that every prompt is
in turn as often as any other, whatever ``every`` is; seconds are those of ``train()`` by epoch. Variants alternate in
one process; the least of each counts, in wall and in CPU time: the latter is what a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from bench_lm_pairs import BATCH, SAME, prepare
from report import publish

LORA = "lora_dpo"
DUAL: dict[str, dict[str, Any] | None] = {"dpo": None, "dual_default": {}}
DUAL |= {f"dual_every_{k}": {"every": k} for k in (1, 2, 3)}
DUAL |= {f"dual_every_{k}_forward": {"every": k, "product": "forward"} for k in (1, 4)}
MODES: dict[str, dict[str, Any] | None] = {"dpo": None, LORA: None}
MODES |= {mode: {"mode": mode} for mode in ("dual", "batch_penalty", "cross_batch", "official_compat", "exact")}


def main() -> None:
    """Time all variants and publish the ratios to DPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PREFGEO_DATA"), help="folder of the HH file")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(DUAL), default=list(DUAL), help="without --modes")
    parser.add_argument("--modes", action="store_true", help="all modes as the batch grows, instead of dual")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8, 16], help="for --modes")
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder of the HH file by --data or PREFGEO_DATA")
    import torch

    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(Path(given.data), max(given.batches) if given.modes else given.pairs, folder)
        pairs = json.loads((folder / "pairs.json").read_text())
        numbers: dict[str, Any] = {"threads": given.threads}
        if given.modes:
            for batch in given.batches:
                numbers[f"batch_{batch}"] = compare(folder, pairs[:batch], MODES, given.repeats, batch, epochs=4)
        else:
            chosen = {name: DUAL[name] for name in dict.fromkeys(["dpo", *given.only])}
            numbers |= {"pairs": given.pairs} | compare(folder, pairs, chosen, given.repeats, BATCH, epochs=12)
    publish("lm_dual_modes" if given.modes else "lm_dual", numbers)


def compare(
    folder: Path, pairs: Any, variants: dict[str, Any], repeats: int, batch: int, *, epochs: int
) -> dict[str, Any]:
    """Seconds an epoch of each variant, and times those of DPO (of DPO with the same LoRA, for exact)."""
    from llm_backend.models import load_model
    from llm_backend.reference import Reference

    start, worked = time.perf_counter(), time.process_time()
    reference = Reference.initial(load_model(folder / "model")).log_probs(pairs)
    scoring = time.perf_counter() - start, time.process_time() - worked
    least = {variant: (float("inf"), float("inf")) for variant in variants}
    for _ in range(repeats):
        for variant, options in variants.items():
            lora = variant == LORA or (options or {}).get("mode") == "exact"
            found = run(folder, pairs, reference, options, batch, lora=lora, epochs=epochs)
            least[variant] = (min(least[variant][0], found[0]), min(least[variant][1], found[1]))
    base = {variant: least[LORA if variant == "exact" else "dpo"] for variant in variants}
    both = {variant: base[variant][0] + scoring[0] for variant in variants}
    return {
        "reference_seconds": round(scoring[0], 3),
        "seconds": {variant: round(value[0], 3) for variant, value in least.items()},
        "cpu_seconds": {variant: round(value[1], 3) for variant, value in least.items()},
        "times_dpo": {variant: round(value[0] / base[variant][0], 2) for variant, value in least.items()},
        "times_dpo_cpu": {variant: round(value[1] / base[variant][1], 2) for variant, value in least.items()},
        "times_dpo_with_reference": {
            variant: round((value[0] + scoring[0]) / both[variant], 2) for variant, value in least.items()
        },
    }


def run(
    folder: Path, pairs: Any, reference: Any, options: dict[str, Any] | None, batch: int, *, lora: bool, epochs: int
) -> tuple[float, float]:
    """Train from the start; wall and CPU seconds an epoch."""
    from llm_backend.auxiliary import AuxiliaryOptions
    from llm_backend.lm_auxiliary import LMAuxiliary
    from llm_backend.models import Lora, load_model, open_for_training
    from llm_backend.response_trainer import training_arguments
    from llm_backend.trainer import PreferenceTrainer
    from objectives import make_objective

    policy, auxiliary = load_model(folder / "model"), None
    if lora:
        policy = open_for_training(policy, Lora(rank=1, alpha=1, targets=("layers.3.self_attn.q_proj",)), seed=0)
    if options is not None:
        given = {name: value for name, value in options.items() if name != "product"}
        official = given.get("mode") == "official_compat"
        how = AuxiliaryOptions.official(0.1) if official else AuxiliaryOptions(**given)
        auxiliary = LMAuxiliary(policy, pairs, how, product=options.get("product"))
    objective = make_objective("dpo" if options is None else "auxdpo", beta=0.1)
    with tempfile.TemporaryDirectory() as output:
        args = training_arguments(output, **SAME | {"per_device_train_batch_size": batch, "num_train_epochs": epochs})
        trainer = PreferenceTrainer(policy, objective, args, pairs, reference=reference, auxiliary=auxiliary)
        start, worked = time.perf_counter(), time.process_time()
        trainer.train()
        return (time.perf_counter() - start) / epochs, (time.process_time() - worked) / epochs


if __name__ == "__main__":
    main()
