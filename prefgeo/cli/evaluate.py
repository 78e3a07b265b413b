"""`prefgeo evaluate MODEL DATA`: accuracy, margins and KL of a language model on data that say what is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geometry.safe_write import check_writable, write_safely
from prefgeo.cli.console import as_json, stdout
from prefgeo.cli.evaluate_table import show
from prefgeo.errors import UsageError
from prefgeo.progress import shown

if TYPE_CHECKING:
    from llm_backend.evaluation import Report, Sampling

HELP = """Evaluate a language model: does it prefer what the data say is better?

  prefgeo evaluate path/to/model pairs.jsonl --reference path/to/sft

  prefgeo evaluate path/to/model mmlu_pro_questions.jsonl.gz --part in_domain --limit 500

  prefgeo evaluate path/to/model reward_bench_2.parquet --reference path/to/sft --out scores.json

MODEL and --reference are folders or hub names; DATA is a file (.jsonl, .json, .csv, .parquet, or .gz of them), a folder
that `datasets` saved, or a hub name. Responses are ranked by log-probability, by log-probability per token and, given a
reference, by DPO's implicit reward log pi - log ref.

pairs: how often chosen scores above rejected, and the mean margin. mmlu_pro: how often the right answer scores highest
of all, and above each wrong one, by category; with a reference, the exact KL over the answers. rewardbench2: best of 4
by subset, the Ties score, and the leaderboard's average. With --samples the models also write: KL to the reference,
and by a --gold reward the win rate and the length-controlled win rate. Every number has a 95 % interval.
"""
INSTALL = "evaluating language models needs {name}; install it with: pip install 'prefgeo[llm]'"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate", help=HELP)(run)


def run(
    model: Annotated[str, typer.Argument(help="The policy: a folder, or a name on the hub.")],
    data: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's name on the hub.")],
    reference: Annotated[str | None, typer.Option(help="The reference: a folder, or a name on the hub.")] = None,
    kind: Annotated[str, typer.Option(help="auto, pairs, mmlu_pro or rewardbench2.")] = "auto",
    by: Annotated[
        list[str] | None, typer.Option(help="log_prob, log_prob_per_token or implicit_reward; repeatable.")
    ] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category or subset; repeatable.")] = None,
    part: Annotated[str, typer.Option(help="MMLU-Pro: all, train, in_domain (20 %) or out_of_domain.")] = "all",
    out_of_domain: Annotated[
        list[str] | None, typer.Option(help="MMLU-Pro: a category that training did not see; repeatable.")
    ] = None,
    split_seed: Annotated[int, typer.Option(help="MMLU-Pro: the seed of the 80/20 split.")] = 0,
    answer: Annotated[str, typer.Option(help="MMLU-Pro: letter, text or letter_text.")] = "letter_text",
    chat: Annotated[
        bool | None, typer.Option("--chat/--text", help="Use the chat template, or not.", show_default="auto")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many rows, evenly spaced.")] = None,
    samples: Annotated[int, typer.Option(help="Write so many responses to each prompt: KL, and --gold.")] = 0,
    gold: Annotated[
        str | None,
        typer.Option(help="Judges samples: starts_with_chosen or FILE.py:FUNCTION."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the samples; 0 is greedy. KL needs 1.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a sample.")] = 64,
    sample_seed: Annotated[int, typer.Option(help="The seed of the samples.")] = 0,
    kl_on_data: Annotated[
        bool, typer.Option("--kl-on-data", help="Add the KL of the next token along the given responses.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Which split of a folder or of a dataset of the hub; default: train.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer, if not the model's own.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of prompt and response together.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, cut_prompt_left or cut_response.")] = "drop",
    eos: Annotated[str, typer.Option(help="append_if_missing, template or never.")] = "append_if_missing",
    boundary: Annotated[str, typer.Option(help="Where tokens merge: refuse, joint or separate.")] = "refuse",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens in one batch; changes nothing but speed and memory.")
    ] = 8192,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Parse, evaluate, print, write."""
    if out is not None:
        check_writable(out, overwrite=force)
    if batch_tokens < 1:
        raise UsageError(f"--batch-tokens must be at least 1, got {batch_tokens}")
    rows = {"kind": kind, "categories": tuple(category or ()), "part": part, "chat": chat, "limit": limit}
    rows |= {"out_of_domain": tuple(out_of_domain or ()), "split_seed": split_seed, "answer": answer, "split": split}
    tokens = {"max_length": max_length, "truncation": truncation, "eos": eos, "boundary": boundary}
    models = {"model": model, "reference": reference, "tokenizer": tokenizer, "dtype": dtype, "device": device}
    written = {"samples": samples, "gold": gold, "temperature": temperature, "max_new_tokens": max_new_tokens}
    written |= {"seed": sample_seed, "kl_on_data": kl_on_data}
    report = _evaluate(data, models, rows, tokens, written, by or [], batch_tokens)
    options = {"options": tokens | {"batch_tokens": batch_tokens}, "rows_chosen": rows, "sampling": written}
    document = {"data": data, **models, **options, **report.to_json()}
    if out is not None:
        text = (as_json(document) + "\n").encode()
        write_safely(out, lambda stream: _write(stream, text), overwrite=force)
    if json_output:
        typer.echo(as_json(document))
    else:
        show(stdout(), report, model, reference, data)


def _write(stream: Any, text: bytes) -> None:
    stream.write(text)


def _evaluate(
    data: str,
    models: dict[str, Any],
    rows: dict[str, Any],
    tokens: dict[str, Any],
    written: dict[str, Any],
    by: list[str],
    batch_tokens: int,
) -> Report:
    """Everything that could be refused without a model is refused before one is loaded."""
    try:
        import torch
        import transformers  # noqa: F401  # the message below is for whoever has neither
    except ImportError as error:
        raise UsageError(INSTALL.format(name=error.name or "torch and transformers")) from None
    from llm_backend.evaluation import DataChoice, choose_measures, evaluate_sets, read_sets
    from llm_backend.evaluation.loading import load_pair
    from llm_backend.token_options import TokenOptions
    from llm_backend.tokenizers import load_tokenizer

    choose_measures(by, reference=models["reference"] is not None)
    choice, options = DataChoice(**rows), TokenOptions(**tokens)
    sampling = _sampling(written)
    tokenizer: Any = load_tokenizer(models["tokenizer"] or models["model"])
    kind, sets = read_sets(data, choice, has_template=bool(getattr(tokenizer, "chat_template", None)))
    with torch.no_grad():
        policy, reference = load_pair(models, tokenizer)
    total = sum(len(each.responses) for each in sets) * (1 if reference is None else 2)
    with shown("scoring responses", total) as advance:
        return evaluate_sets(
            kind,
            sets,
            tokenizer,
            policy,
            reference,
            by=by,
            options=options,
            kl_on_data=written["kl_on_data"],
            sampling=sampling,
            tokens_per_batch=batch_tokens,
            progress=advance,
        )


def _sampling(written: dict[str, Any]) -> Sampling | None:
    from llm_backend.evaluation import Decoding, Sampling, load_gold

    if not written["samples"]:
        if written["gold"] is not None:
            raise UsageError("--gold judges samples; say how many to write with --samples")
        return None
    gold = None if written["gold"] is None else load_gold(written["gold"])
    names = ("temperature", "max_new_tokens", "seed")
    decoding = Decoding(**{name: written[name] for name in names})
    return Sampling(samples=written["samples"], decoding=decoding, gold=gold)
