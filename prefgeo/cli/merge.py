"""`prefgeo merge MODEL MODEL ... --out DIR`: the weighted sum of language models, with given or learned weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from prefgeo.cli.console import as_json, counted, say, stdout
from prefgeo.errors import UsageError

if TYPE_CHECKING:
    from llm_backend.merging import MergeReport
    from prefgeo.language.merge_weights import LearnedShares

HELP = """Merge language models: the model whose parameters are the weighted sum of theirs.

  prefgeo merge sft round-1 round-2 --out merged

  prefgeo merge sft round-1 round-2 --out merged --weights 0.2,0.3,0.5

  prefgeo merge sft run/checkpoints --out merged --weights learned --data held_out.jsonl

  prefgeo merge adapter-1 adapter-2 --out merged --base path/to/base

MODEL is a folder of a model or of a LoRA adapter with safetensors weights, a folder of checkpoints (NAME-1, NAME-2,
..., all of them), or a name on the hub. Sums are taken in float32 whatever the models are stored in, block by block, so
that memory stays small. Adapters become one adapter whose rank is the sum of theirs, exactly; with --base, a whole
model.

Learned weights minimise the reference-free preference loss on --data minus --entropy times their own entropy, over the
simplex (TPMM-DPO). The folder gets merge.json: the inputs with their hashes, the weights, and the versions used.
"""
INSTALL = "merging language models needs {name}; install it with: pip install 'prefgeo[llm]'"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
Columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", help=HELP)(run)


def run(
    models: Annotated[list[str], typer.Argument(help="Folders, folders of checkpoints, or names on the hub.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    weights: Annotated[str, typer.Option(help="uniform, learned, or numbers as in 0.2,0.3,0.5.")] = "uniform",
    base: Annotated[str | None, typer.Option(help="Merge adapters into this model.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Pairs to learn weights from: a file, a folder or a hub name.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Of the preference loss [default: 0.1]", show_default=False)
    ] = None,
    entropy: Annotated[
        float | None, typer.Option(help="What entropy of the weights is worth [default: 0.1]", show_default=False)
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer, if not the first model's.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of prompt and response together.")] = None,
    truncation: Annotated[
        str | None, typer.Option(help="drop, cut_prompt_left or cut_response [default: drop]", show_default=False)
    ] = None,
    boundary: Annotated[
        str | None,
        typer.Option(help="Where tokens merge: refuse (default), joint or separate.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Learn from only so many pairs, evenly spaced.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of margins: float32 or float64 [default: float32]", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For learning: cpu, cuda, cuda:1, ... [default: cpu]", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the result, if not the inputs' own.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Largest file of weights, as in 5GB; default: as the first model.")
    ] = None,
    allow_extrapolation: Annotated[
        bool, typer.Option("--allow-extrapolation", help="Take negative weights, which lead beyond the models.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it holds a model.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Parse, learn weights if asked, merge, print."""
    learning = {"data": data, "beta": beta, "entropy": entropy, "tokenizer": tokenizer, "max_length": max_length}
    learning |= {"truncation": truncation, "boundary": boundary, "limit": limit}
    learning |= {"precision": precision, "device": device}
    learning = {name: value for name, value in learning.items() if value is not None}
    _check_use(weights, learning)
    options: dict[str, Any] = {"dtype": dtype, "overwrite": force, "extrapolate": allow_extrapolation}
    options["max_shard_bytes"] = None if max_shard_size is None else parse_size(max_shard_size)
    started = time.perf_counter()
    report, learned = _merge(models, out, weights, base, learning, options)
    if json_output:
        typer.echo(as_json({"out": str(out), **report.to_json(), **_note(learned, learning)}))
    else:
        show(stdout(), report, learned, time.perf_counter() - started)


def _check_use(weights: str, learning: dict[str, Any]) -> None:
    if weights == "learned" and "data" not in learning:
        raise UsageError("--weights learned needs the pairs to learn from: --data FILE")
    if weights != "learned" and learning:
        name = next(iter(learning)).replace("_", "-")
        raise UsageError(f"--{name} is for learning weights; leave it out, or say --weights learned")


def parse_weights(text: str, k: int) -> list[float]:
    """ "uniform", or numbers with commas between them.

    >>> parse_weights("0.25, 0.75", 2)
    [0.25, 0.75]
    """
    if text == "uniform":
        return [1.0 / k] * k
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights must be uniform, learned, or numbers as in 0.2,0.3,0.5, got {text!r}") from None


def parse_size(text: str) -> int:
    """Bytes of a size like 5GB (10^9 bytes), 200MB or 4096.

    >>> parse_size("1.5KB")
    1500
    """
    number = text.upper().rstrip("KMGB")
    unit = text.upper()[len(number) :]
    try:
        return int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise UsageError(f"--max-shard-size must be a size like 5GB, 200MB or 4096, got {text!r}") from None


def _merge(
    models: list[str], out: Path, weights: str, base: str | None, learning: dict[str, Any], options: dict[str, Any]
) -> tuple[MergeReport, LearnedShares | None]:
    try:
        import torch  # noqa: F401  # the message below is for whoever has neither
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(INSTALL.format(name=error.name or "torch and transformers")) from None
    from llm_backend.merging import merge_folders
    from llm_backend.merging.inputs import locate
    from llm_backend.merging.merge import opened_together

    folders = locate(models)
    root = None if base is None else locate([base])[0]
    console = Console(stderr=True)
    with Progress(*Columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        learned = None
        if weights == "learned":
            from prefgeo.language.merge_weights import Learning, learn_shares

            opened_together(folders, out, base=root, overwrite=options["overwrite"])  # before the long work
            passes = progress.add_task("learning weights", total=None)
            learned = learn_shares(folders, Learning(**learning), progress=lambda n: progress.advance(passes, n))
            progress.remove_task(passes)
        shares = parse_weights(weights, len(folders)) if learned is None else list(learned.shares)
        task = progress.add_task("merging", total=None)
        report = merge_folders(
            folders, shares, out, base=root, note=_note(learned, learning), **options,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    return report, learned


def _note(learned: LearnedShares | None, learning: dict[str, Any]) -> dict[str, Any]:
    return {} if learned is None else {"learned": {**learning, **vars(learned)}}


def show(console: Console, report: MergeReport, learned: LearnedShares | None, seconds: float) -> None:
    """The inputs with their weights, then what was written."""
    table = Table("model", "weight", "sha256 of its first file", pad_edge=False)
    for path, weight, hashes in zip(report.inputs, report.weights, report.hashes, strict=False):
        table.add_row(str(path), f"{weight:.6f}", (next(iter(hashes.values())) or "")[:16])
    console.print(table)
    if learned is not None:
        say(
            console,
            f"learned from {counted(learned.pairs, 'pair')}: preference loss {learned.loss:.6f} (of equal weights "
            f"{learned.loss_of_average:.6f}), entropy {learned.entropy:.4f} nats, KKT residual {learned.residual:.1e}",
        )
    for name, partner in report.written.ties.items():
        say(console, f"{name} is tied to {partner} and was merged once")
    done = report.written
    say(
        console,
        f"{done.kind} in {report.out}: {counted(done.n_tensors, 'tensor')}, {counted(done.n_parameters, 'parameter')}, "
        f"{', '.join(done.dtypes)}; {done.bytes_read / 1e6:,.1f} MB read, {done.bytes_written / 1e6:,.1f} MB written, "
        f"{seconds:.1f} s",
    )
