"""DPO on HH dialogues against TRL's DPOTrainer: pairs per second and peak memory, reference included.

    python benchmarks/bench_lm_pairs.py [--data FOLDER] [--pairs N] [--threads N] [--repeats N]

Both train the same 5M-parameter Llama (4 layers, width 256, vocabulary 8000) from the same weights on the same pairs,
one epoch of batches of 8, float32, AdamW, up to 512 tokens a sequence. The tokenizer is made from the file. Each
trainer runs in a process of its own; peak memory is that process's largest resident set, and the part of it beyond what
it had before training. TRL's time is that of ``train()``, in which it scores the reference with a second model; ours is
that of scoring the reference and ``train()``. Tokenising is not timed. Pairs of over 512 tokens are left out for both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MARKER, LIMIT, VOCABULARY, BATCH = "\n\nAssistant:", 512, 8000, 8
FILE = "hh_rlhf_harmless_base_test.jsonl.gz"
SAME: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": 1e-5, "logging_steps": 4,
    "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "dataloader_pin_memory": False, "seed": 0,
}  # fmt: skip


def main() -> None:
    """Prepare the pairs, run both trainers, publish the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PREFGEO_DATA"), help="folder of the HH file")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", choices=("prepare", *RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "prepare":
        prepare(options.data, options.pairs, options.folder)
    elif options.child:
        run_child(options.child, options.folder, options.threads)
    elif options.data is None:
        parser.error("name the folder of the HH file by --data or PREFGEO_DATA")
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Best of the repeats of each, alternating, as the machine may be busy."""
    from report import publish

    _child("prepare", options, folder)
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.repeats):
        for name in RUNS:
            result = _child(name, options, folder)
            if name not in best or result["seconds"] < best[name]["seconds"]:
                best[name] = result
    ours, trl = best["prefgeo"], best["trl"]
    numbers = {
        **best,
        "pairs": options.pairs,
        "times_faster": trl["seconds"] / ours["seconds"],
        "times_less_cpu": trl["cpu_seconds"] / ours["cpu_seconds"],
        "peak_memory_ratio": ours["peak_mib"] / trl["peak_mib"],
        "training_memory_ratio": ours["training_mib"] / trl["training_mib"],
    }
    publish("lm_pairs", numbers)


def _child(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from report import ask_child

    arguments = ["--folder", str(folder), "--data", str(options.data)]
    arguments += ["--pairs", str(options.pairs), "--threads", str(options.threads)]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    return ask_child(__file__, name, arguments, threads)


def prepare(data: Path, n_pairs: int, folder: Path) -> None:
    """Write the tokenizer, the start of the model, and the pairs of the HH file as text and as token ids."""
    write_inputs(hh_texts(data), n_pairs, folder, {"width": 256, "layers": 4, "heads": 4})


def hh_texts(data: Path) -> list[dict[str, str]]:
    """The dialogues of the HH file whose two ends share their prompt."""
    with gzip.open(data / FILE, "rt", encoding="utf-8") as file:
        dialogues = [json.loads(line) for line in file]
    texts = []
    for dialogue in dialogues:
        cut = dialogue["chosen"].rfind(MARKER) + len(MARKER)
        if dialogue["rejected"][:cut] == dialogue["chosen"][:cut]:
            ends = {name: dialogue[name][cut:] for name in ("chosen", "rejected")}
            texts.append({"prompt": dialogue["chosen"][:cut], **ends})
    return texts


def write_inputs(
    texts: list[dict[str, str]], n_pairs: int, folder: Path, sizes: dict[str, int], *, limit: int = LIMIT,
    dtype: str = "float32",
) -> None:  # fmt: skip
    """Make a tokenizer from texts (prompt, chosen, rejected); write it, a random Llama of these ``sizes``, and the
    first ``n_pairs`` pairs of up to ``limit`` tokens, as text and as token ids."""
    from llm_backend.models import new_model, tiny_config

    tokenizer = _tokenizer([text["prompt"] + text["chosen"] for text in texts])
    tokenizer.save_pretrained(folder / "model")
    pairs: list[dict[str, Any]] = []
    for text in texts:
        ids = {name: tokenizer(value)["input_ids"] for name, value in text.items()}
        ids = {name: value + [tokenizer.eos_token_id] * (name != "prompt") for name, value in ids.items()}
        longest = len(ids["prompt"]) + max(len(ids["chosen"]), len(ids["rejected"]))
        if min(map(len, ids.values())) > 1 and longest <= limit and len(pairs) < n_pairs:
            pairs.append({"row": len(pairs), "text": text, **{f"{name}_ids": value for name, value in ids.items()}})
    if len(pairs) < n_pairs:
        raise SystemExit(f"there are {len(pairs)} pairs of up to {limit} tokens, fewer than {n_pairs}")
    (folder / "pairs.json").write_text(json.dumps(pairs))
    config = tiny_config("llama", context=limit, pad_token_id=0, eos_token_id=1,
                         **{"vocab_size": VOCABULARY, **sizes})  # fmt: skip
    new_model(config, seed=0, dtype=dtype).save_pretrained(folder / "model")


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet,
                                   show_progress=False)
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def run_child(name: str, folder: Path, threads: int) -> None:
    """Train, and print one line of numbers."""
    import torch
    from report import peak_mib

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    pairs = json.loads((folder / "pairs.json").read_text())
    with tempfile.TemporaryDirectory() as output:
        train = RUNS[name](folder / "model", pairs, output)
        before, start, worked = peak_mib(), time.perf_counter(), time.process_time()
        history = train()
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    loss = [entry["loss"] for entry in history if "loss" in entry]
    peak = peak_mib()
    record = {"seconds": seconds, "cpu_seconds": worked, "pairs_per_second": len(pairs) / seconds}
    record |= {"peak_mib": peak, "training_mib": peak - before, "first_loss": loss[0], "last_loss": loss[-1]}
    print(json.dumps(record))


def ours(
    model: Path, pairs: list[dict[str, Any]], output: str, *, same: dict[str, Any] = SAME, dtype: str = "float32",
    device: str = "cpu",
) -> Any:  # fmt: skip
    """What scores the reference and trains, and returns the log; ``same`` are options of both trainers."""
    from llm_backend.models import load_model
    from llm_backend.reference import Reference
    from llm_backend.response_trainer import training_arguments
    from llm_backend.trainer import PreferenceTrainer
    from objectives import make_objective

    policy, args = load_model(model, dtype=dtype).to(device), training_arguments(output, **same)

    def train() -> Any:
        reference = Reference.initial(policy).log_probs(pairs)
        trainer = PreferenceTrainer(policy, make_objective("dpo", beta=0.1), args, pairs, reference=reference)
        trainer.train()
        return trainer.state.log_history

    return train


def trl_dpo(
    model: Path, pairs: list[dict[str, Any]], output: str, *, same: dict[str, Any] = SAME, dtype: str = "float32",
    limit: int = LIMIT,
) -> Any:  # fmt: skip
    """The same of TRL's DPOTrainer; it takes its device from ``same``, as transformers does."""
    import datasets
    import transformers
    import trl

    args = trl.DPOConfig(
        output_dir=output, beta=0.1, max_length=limit, bf16=False, gradient_checkpointing=False, **same
    )
    trainer = trl.DPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype),
        args=args,
        train_dataset=datasets.Dataset.from_list([pair["text"] for pair in pairs]),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )

    def train() -> Any:
        trainer.train()
        return trainer.state.log_history

    return train


RUNS = {"prefgeo": ours, "trl": trl_dpo}

if __name__ == "__main__":
    main()
