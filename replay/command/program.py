"""The program: finds the command, and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Any

import click
from click.core import ParameterSource

from replay.command.checkpoints import checkpoints
from replay.command.closed_pipe import CLOSED, forget_unwritten
from replay.command.convert import convert, export_checkpoint
from replay.command.counterfactual import counterfactual
from replay.command.export import export
from replay.command.influence import HELP, influence
from replay.command.inspect import inspect
from replay.command.report import report
from replay.command.self_influence import self_influence
from replay.command.several import Several
from replay.command.verify import verify
from replay.processes.alone import Alone
from replay.processes.group import here
from replay.processes.launch import has_threads, on_several
from replay.processes.notes import Notes
from tracer.errors import GradientError, InputWarning, LogWarning, MismatchError, TracinError

COMMANDS = (
    *(influence, self_influence, counterfactual, checkpoints, verify, inspect),
    *(convert, export_checkpoint, export, report),
)
_EXAMPLES = f"""\b
Examples:
  tracin-replay --log run.h5 --test ids.txt
  tracin-replay --log run.h5 --test ids.txt --method tracin --method ideal --top 10
  tracin-replay --log run.h5 --test - --task task.py:task --out study.h5 < ids.txt
  tracin-replay influence run.h5 --test all
  tracin-replay self run.h5
  tracin-replay counterfactual run.h5 --test ids.txt --leave-one-out train.txt
  tracin-replay checkpoints run.h5 --test ids.txt
  tracin-replay verify run.h5
  tracin-replay inspect run.h5
  tracin-replay export run.influence.h5 scores.csv
  tracin-replay report run.influence.h5

{HELP}"""


class _Program(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click itself would exit with 1, a failed check, at a closed pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            forget_unwritten()
            raise click.exceptions.Exit(CLOSED) from None

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        """Read the command line; likewise where that prints help or the version."""
        try:
            return super().make_context(*given, **more)
        except BrokenPipeError:
            forget_unwritten()
            raise click.exceptions.Exit(CLOSED) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; a log in its place is a common slip."""
        if args[0] not in self.commands:
            raise click.UsageError(
                f"there is no command {args[0]!r}, only {', '.join(self.commands)}. To replay a "
                "log: tracin-replay --log run.h5 --test ids.txt.",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Program,
    invoke_without_command=True,
    epilog=_EXAMPLES,
    params=[one for one in influence.params if isinstance(one, click.Option)],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tracin-replay")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Replay a traced training run: how much did each example move each test loss?

    Without a command, this is 'influence': it computes the scores of every method, compares them
    with each other and with the measured drops of the test loss, and writes them to an HDF5 file.
    """
    if context.invoked_subcommand is None:
        context.invoke(influence, **options)
    else:
        _refuse_options(context, cli.commands[context.invoked_subcommand])


def _refuse_options(context: click.Context, command: click.Command) -> None:
    """Raise if options stand before a command, which would not see them."""
    own = {option for one in command.params for option in one.opts}
    for one in cli.params:
        if context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE:
            name = one.opts[0]
            value = "" if isinstance(one, click.Option) and one.is_flag else " ..."
            advice = f"put it after: tracin-replay {command.name} {name}{value}"
            raise click.UsageError(
                f"{name} was given before the command {command.name!r}; "
                + (advice if name in own else "leave one of the two out.")
            )


for _command in COMMANDS:
    cli.add_command(_command)


def _show(text: str) -> None:
    click.echo(f"Note: {text}", err=True)


def run(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code; raise KeyboardInterrupt at Ctrl-C (130).

    0 done, 1 a check failed, 2 bad input, 3 internal, 141 the reader of its output went away.
    """
    if not isinstance(here(), Alone):
        has_threads()
    notes = Notes(here(), _show)
    try:
        with warnings.catch_warnings():
            for kind in (InputWarning, LogWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = notes.take
            return cli(arguments, prog_name="tracin-replay", standalone_mode=False) or 0
    except Several as wanted:
        if wanted.idle:
            _show(wanted.idle)
        return on_several(wanted.workers, sys.argv[1:] if arguments is None else arguments)
    except click.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if here().speaks():
            _say(error)
        if isinstance(error, GradientError | MismatchError):
            return 1
        return 2 if isinstance(error, TracinError | click.ClickException) else 3
    finally:
        if here().leads:
            notes.show_others()


def _say(error: Exception) -> None:
    """Say what went wrong."""
    if isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, TracinError):
        checked = isinstance(error, GradientError | MismatchError)
        click.echo(f"{'Check failed' if checked else 'Error'}: {error}", err=True)
    else:
        traceback.print_exception(error)
        click.echo(
            "This is an error in the task's own code or in tracin-replay; the lines above say "
            "where.",
            err=True,
        )
