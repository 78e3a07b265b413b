"""`prefgeo`: the commands, and what becomes of an error: one sentence on stderr, and an exit status.

To add a command, write ``prefgeo/cli/NAME.py`` with ``register(app)`` and put the module into ``COMMANDS``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from prefgeo import __version__
from prefgeo.cli import audit, evaluate, figures, merge, run, solve, sweep, world
from prefgeo.cli.group import NamedGroup
from prefgeo.endings import Terminated

COMMANDS = (world, solve, audit, run, sweep, evaluate, merge, figures)
PACKAGES = {"geometry", "objectives", "bandits", "llm_backend", "prefgeo", "figures"}
STOPPED, TERMINATED = 130, 143  # 128 and the number of the signal
HELP = """What DPO projects, what RLHF wants, and where they part: preference optimisation computed exactly.

[bold]Make a problem, solve it, see what goes wrong:[/bold]

  prefgeo world prop2 --n31 10 --out problem.json

  prefgeo solve problem.json --method dpo --method auxdpo --method rlhf

[bold]The same on real data[/bold] (28 language models vote on 10,130 questions):

  prefgeo world mmlu_votes --data mmlu_pro_votes.csv.gz --out votes.npz

  prefgeo solve votes.npz

[bold]Train an objective on a simulated world,[/bold] exactly or with torch:

  prefgeo run recipes/e1_dpo.yaml --backend exact

[bold]Draw every figure, each with the claims that it checks:[/bold]

  prefgeo figures --out figures_out
"""


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        cls=NamedGroup.of("command"),
        help=HELP,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True, help=HELP)(_root)
    for command in COMMANDS:
        command.register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: ``sys.argv``); status 0: done, 2: a mistake in the input, 130 or 143: stopped."""
    try:
        status = build()(args=arguments, prog_name="prefgeo", standalone_mode=False)
        sys.stdout.flush()
        if status == STOPPED:  # typer takes KeyboardInterrupt for itself, and says nothing
            return _say("stopped", STOPPED)
        return status if isinstance(status, int) else 0
    except typer.Abort:
        return _say("stopped", STOPPED)
    except Terminated:
        return _say("stopped", TERMINATED)
    except KeyboardInterrupt:
        return _say("stopped", STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it exits
        return 1
    except typer.TyperException as error:
        return _say(error.format_message(), 2)
    except Exception as error:
        if not (_is_for_users(error) or _is_of_files(error)):
            raise
        return _say(str(error), 2)


def _is_for_users(error: BaseException) -> bool:
    """Whether one of this project's own error types says, in one sentence, what is wrong with the input."""
    return type(error).__module__.partition(".")[0] in PACKAGES


def _is_of_files(error: BaseException) -> bool:
    """Whether the system could not read or write a file: safetensors has an error of its own for a full disk."""
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


def _say(sentence: str, status: int) -> int:
    print(f"prefgeo: {' '.join(sentence.split())}", file=sys.stderr)
    return status


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"prefgeo {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
