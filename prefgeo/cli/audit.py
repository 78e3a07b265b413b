"""`prefgeo audit DATA`: what training would see of preference data, after tokenisation and truncation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llm_backend.audit import Audit, audit_preferences
from llm_backend.data import Preferences, load_preferences
from llm_backend.token_options import TokenOptions
from llm_backend.tokenizers import load_tokenizer
from llm_backend.toy import embedded_tokenizer
from prefgeo.cli.audit_table import show
from prefgeo.cli.console import as_json, stdout
from prefgeo.errors import UsageError
from prefgeo.progress import shown

EMBEDDED = "embedded"
VOCABULARY = 8000
HELP = """Audit preference data as training would see them: after the tokenizer, the template and the limits.

  prefgeo audit pairs.jsonl

  prefgeo audit hh_rlhf_harmless_base_test.jsonl.gz --max-length 512

  prefgeo audit pairs.parquet --tokenizer path/to/model --max-length 2048 --truncation cut_prompt_left --json

DATA is a file (.jsonl, .json, .csv, .parquet, or .gz of them), a folder that `datasets` saved, or a hub name. The
columns are prompt, chosen and rejected, as text or messages; HH dialogues and MMLU-Pro questions are known by theirs.

It counts: rows that training would drop, and why; EOS and BOS that are lost or doubled; duplicates, contradictions and
ties; tokens that merge across prompt and response; lengths, and whether they predict the label; and whether the
comparisons of each prompt are connected, without which its rewards are not determined.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit", help=HELP)(run)


def run(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a dataset's name on the hub.")],
    tokenizer: Annotated[
        str, typer.Option(help="A tokenizer's folder or name; 'embedded' trains one on the data themselves.")
    ] = EMBEDDED,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of prompt and response together.")] = None,
    max_prompt_length: Annotated[int | None, typer.Option(help="Most tokens of a prompt.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, cut_prompt_left or cut_response.")] = "drop",
    eos: Annotated[str, typer.Option(help="append_if_missing, template or never.")] = "append_if_missing",
    eos_token: Annotated[str | None, typer.Option(help="The token that ends a response, if not the usual.")] = None,
    boundary: Annotated[str, typer.Option(help="Where tokens merge: refuse, joint or separate.")] = "refuse",
    format: Annotated[str, typer.Option(help="auto, pairs, hh or mmlu_pro.")] = "auto",
    prompt: Annotated[
        str | None, typer.Option(help="For pairs: 'extract' takes the prompt out of whole conversations.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of a folder or of a dataset of the hub; default: train.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Tokens of the embedded tokenizer; default: 8000.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Parse, read, audit, print."""
    choices: dict[str, Any] = {"truncation": truncation, "eos": eos, "eos_token": eos_token, "boundary": boundary}
    options = TokenOptions(max_length=max_length, max_prompt_length=max_prompt_length, **choices)
    if vocab_size is not None and tokenizer != EMBEDDED:
        raise UsageError(f"--vocab-size is for the embedded tokenizer; leave it out with --tokenizer {tokenizer}")
    preferences = load_preferences(data, format=format, split=split, **({} if prompt is None else {"prompt": prompt}))
    found = _audit(preferences, tokenizer, vocab_size, options)
    if json_output:
        typer.echo(as_json(found.to_json()))
    else:
        show(stdout(), found)


def _audit(preferences: Preferences, name: str, vocab_size: int | None, options: TokenOptions) -> Audit:
    """With a progress bar, or lines, on stderr."""
    made = embedded_tokenizer(preferences, vocab_size or VOCABULARY) if name == EMBEDDED else load_tokenizer(name)
    with shown("tokenising rows", len(preferences)) as advance:
        return audit_preferences(preferences, made, options, progress=advance)
