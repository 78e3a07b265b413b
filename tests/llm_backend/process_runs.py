"""Small training runs for ``test_lm_processes``: each case by itself, in this process or as one of several.

As a script: the cases one after the other in a process that a launcher has given its rank; the first one writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from llm_backend.auxiliary import AuxiliaryOptions
from llm_backend.batching import Collator
from llm_backend.lm_auxiliary import LMAuxiliary
from llm_backend.log_probs import response_log_probs
from llm_backend.models import new_model, tiny_config
from llm_backend.reference import Reference
from llm_backend.response_trainer import training_arguments
from llm_backend.supervised import SupervisedTrainer
from llm_backend.trainer import PreferenceTrainer
from objectives import make_objective

AUXILIARY = {
    "auxdpo dual": {"mode": "dual", "dual_every": 2, "penalty": 3.0, "ridge": 0.1},
    "auxdpo exact": {"mode": "exact"},
    "auxdpo batch_penalty": {"mode": "batch_penalty"},
    "auxdpo cross_batch": {"mode": "cross_batch", "penalty": 3.0},
    "auxdpo official_compat": {"mode": "official_compat", "cap": 1.0, "anti_ridge": 1.0, "beta": 0.1},
}
CASES = ("sft", "dpo", "alpha_dpo", "kto", *AUXILIARY)
KEYS = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "delta_rms", "delta_residual")


def rows():
    """16 weighted pairs: four prompts, each with four responses, so that AuxDPO's sets are larger than a pair."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4):
        prompt, *answers = (rng.integers(37, size=rng.integers(2, 8)).tolist() for _ in range(5))
        for good, bad in ((0, 1), (1, 2), (2, 3), (0, 3)):
            row = {"row": len(found), "weight": float(rng.uniform(0.5, 2))}
            found.append(row | {"prompt_ids": prompt, "chosen_ids": answers[good], "rejected_ids": answers[bad]})
    return found


def train(case, folder, *, batch, split):
    """Two epochs in steps of 8 rows over all processes: what was logged, the evaluation, and the weights with delta."""
    config, data = tiny_config("gpt2", vocab_size=37, width=16, layers=1, heads=2), rows()
    held_out = data[:7]  # odd: the processes get different numbers of rows
    model, auxiliary = new_model(config, seed=0, dtype="float64"), None
    args = training_arguments(
        folder, per_device_train_batch_size=batch, gradient_accumulation_steps=split, num_train_epochs=2,
        learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, save_strategy="steps", save_steps=4,
        use_cpu=True, disable_tqdm=True, seed=3, per_device_eval_batch_size=2, ddp_find_unused_parameters=False,
    )  # fmt: skip
    if case == "sft":
        trainer = SupervisedTrainer(model, args, data, eval_rows=held_out)
    else:
        reference = Reference.named("other", new_model(config, seed=9, dtype="float64"))
        before = reference.log_probs(data)
        if case in AUXILIARY:
            for name, value in model.named_parameters():  # few enough for a null space
                value.requires_grad_(name.endswith(("ln_1.bias", "ln_f.bias")) or "dual" in case)
            options = AuxiliaryOptions(**AUXILIARY[case], learning_rate=0.02)
            weights = before.columns if case != "auxdpo official_compat" else None
            auxiliary = LMAuxiliary(model, data, options, reference=weights, seed=5)
        trainer = PreferenceTrainer(
            model, make_objective(case.split()[0]), args, data, reference=before, eval_rows=held_out,
            eval_reference=reference.log_probs(held_out), auxiliary=auxiliary,
        )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    logged = [[entry[key] for key in KEYS if key in entry] for entry in history]
    found = {"logged": logged, "eval": {k: v for k, v in metrics.items() if "loss" in k or "reward" in k}}
    found["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    found["delta"] = [] if auxiliary is None else auxiliary.auxiliary.delta.tolist()
    return found


def small_llama():
    """The same weights in every process, its head tied to the embedding."""
    return new_model(tiny_config("llama", vocab_size=37, width=16), seed=4, dtype="float64")


def pair_loss(model, data):
    """Mean of -log sigma(log pi(chosen) - log pi(rejected))."""
    found = response_log_probs(model, Collator()(data)).log_probs
    return -torch.nn.functional.logsigmoid(found["chosen"] - found["rejected"]).mean()


def sharded(folder):
    """Gradient and saved weights of a model whose parameters are spread over the processes, block by block."""
    model = small_llama()
    mesh = torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    tied = [model.model.norm, model.model.embed_tokens, model.lm_head]  # one part, as accelerate has it
    for part in (*model.model.layers, tied, model):
        fully_shard(part, mesh=mesh)
    pair_loss(model, rows()[:8]).backward()  # the same rows in each process: the mean of equal gradients
    gradients = {name: value.grad.full_tensor() for name, value in model.named_parameters()}
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() == 0:
        save_file(gradients, folder / "gradients.safetensors")
        whole = small_llama()
        with torch.no_grad():
            for value in whole.parameters():
                value.zero_()  # what is saved comes from the shards
        whole.load_state_dict(weights)
        whole.save_pretrained(folder / "sharded")


def main(folder):
    """All cases as one of two processes: steps of 8 rows are 2 processes x 2 micro-batches x 2."""
    for case in CASES:
        found = train(case, folder / case, batch=2, split=2)
        if torch.distributed.get_rank() == 0:
            (folder / f"{case}.json").write_text(json.dumps(found))
    sharded(folder)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
