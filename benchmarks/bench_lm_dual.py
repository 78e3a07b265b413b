"""What AuxDPO's ``dual`` costs beside DPO on a language model: the same trainer, rows and batches, by how often delta
moves.

    python benchmarks/bench_lm_dual.py [--data FOLDER] [--pairs N] [--threads N] [--repeats N]

Model, tokenizer and HH pairs are those of ``bench_lm_pairs.py``; the reference's log-probabilities are there for all.
Only ``train()`` is timed. Variants take turns in one process; the least of each counts, in wall and in CPU time: the
latter is what a busy machine disturbs less. ``--pairs`` should be a multiple of 96, so that every variant has its share
of moves: with 12 steps, 12, 6, 4 and 3 of them.
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

from bench_lm_pairs import SAME, prepare
from report import publish

VARIANTS: dict[str, dict[str, Any] | None] = {"dpo": None}
VARIANTS |= {f"dual_every_{k}": {"every": k, "product": "forward"} for k in (1, 2, 3, 4)}
VARIANTS |= {f"dual_every_{k}_difference": {"every": k, "product": "difference"} for k in (1, 4)}


def main() -> None:
    """Time all variants and publish the ratios to DPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PREFGEO_DATA"), help="folder of the HH file")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder of the HH file by --data or PREFGEO_DATA")
    import torch

    from llm_backend.models import load_model
    from llm_backend.reference import Reference

    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(Path(given.data), given.pairs, folder)
        pairs = json.loads((folder / "pairs.json").read_text())
        reference = Reference.initial(load_model(folder / "model")).log_probs(pairs)
        least = {variant: (float("inf"), float("inf")) for variant in VARIANTS}
        for _ in range(given.repeats):
            for variant, options in VARIANTS.items():
                found = run(folder, pairs, reference, options)
                least[variant] = (min(least[variant][0], found[0]), min(least[variant][1], found[1]))
    wall, work = least["dpo"]
    publish(
        "lm_dual",
        {
            "pairs": given.pairs,
            "threads": given.threads,
            "seconds": {variant: round(value[0], 2) for variant, value in least.items()},
            "cpu_seconds": {variant: round(value[1], 2) for variant, value in least.items()},
            "times_dpo": {variant: round(value[0] / wall, 2) for variant, value in least.items()},
            "times_dpo_cpu": {variant: round(value[1] / work, 2) for variant, value in least.items()},
        },
    )


def run(folder: Path, pairs: Any, reference: Any, options: dict[str, Any] | None) -> tuple[float, float]:
    """Train one epoch from the start; wall and CPU seconds."""
    from llm_backend.auxiliary import AuxiliaryOptions
    from llm_backend.lm_auxiliary import LMAuxiliary
    from llm_backend.models import load_model
    from llm_backend.response_trainer import training_arguments
    from llm_backend.trainer import PreferenceTrainer
    from objectives import make_objective

    policy, auxiliary = load_model(folder / "model"), None
    if options is not None:
        how = AuxiliaryOptions(every=options["every"])
        auxiliary = LMAuxiliary(policy, pairs, how, product=options["product"])
    objective = make_objective("dpo" if options is None else "auxdpo", beta=0.1)
    with tempfile.TemporaryDirectory() as output:
        args = training_arguments(output, **SAME)
        trainer = PreferenceTrainer(policy, objective, args, pairs, reference=reference, auxiliary=auxiliary)
        start, worked = time.perf_counter(), time.process_time()
        trainer.train()
        return time.perf_counter() - start, time.process_time() - worked


if __name__ == "__main__":
    main()
