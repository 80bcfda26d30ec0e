"""The command line: parses, calls, echoes."""

from __future__ import annotations

import json
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from replay.command.commands import inspect, opened, self_influence, verify
from replay.command.options import Checkpoints, Tolerance, replay_options, result_options
from replay.command.show.influence import report, to_json
from replay.command.terminal import CLOSED, Terminal, forget_unwritten
from replay.methods.table import DEFAULT, METHODS
from replay.results.output import check_free
from replay.session.estimate import Cost, peak_bytes
from replay.session.replay import Replay
from tracer.errors import GradientError, InputError, LogWarning, MismatchError, TracinError

_EXAMPLES = """\b
Examples:
  tracin-replay --log run.h5 --test ids.txt
  tracin-replay --log run.h5 --test ids.txt --method tracin --method ideal --top 10
  tracin-replay --log run.h5 --test - --task task.py:task --out study.h5 < ids.txt
  tracin-replay self run.h5
  tracin-replay verify run.h5
  tracin-replay inspect run.h5

ids.txt holds one test ID a line; '#' begins a comment. Scores are positive for
proponents: training examples whose steps lowered the test loss.
"""


class _Program(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click itself would exit with 1, a failed check, at a closed pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            forget_unwritten()
            raise click.exceptions.Exit(CLOSED) from None


@click.group(
    cls=_Program,
    invoke_without_command=True,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tracin-replay")
@click.option("--log", type=click.Path(path_type=Path), help="The run log, e.g. run.h5.")
@click.option("--test", "test_file", help="File of test IDs, one a line; - is standard input.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="A method to compute; repeat for several.  [default: tracin, ideal, tracincp]",
)
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    default=10,
    show_default=True,
    help="What tracincp sums over: a number, steps, the ends of epochs, or every step.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Proponents and opponents shown for each test example.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Result file.  [default: LOG with the ending .influence.h5]",
)
@click.option(
    "--ideal-tolerance",
    type=Tolerance(),
    default="1e-3",
    show_default=True,
    help="Where the split of ideal stops refining; none never refines.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say how long it will take and how much memory, from a few timed steps; write nothing.",
)
@click.option("--steps", help="A window a:b of the run's steps.  [default: all]")
@click.option(
    "--parameters",
    multiple=True,
    help="Only parameters that match a pattern like 'head.*'; repeat for several.  [default: all]",
)
@replay_options
@result_options
@click.pass_context
def cli(
    context: click.Context,
    /,
    log: Path | None,
    test_file: str | None,
    methods: tuple[str, ...],
    top: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay a traced training run: how much did each example move each test loss?

    Computes exact TracIn, TracInIdeal and the TracInCP heuristic, shows how well each
    approximates the other, and writes all scores to an HDF5 file.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    if log is None or test_file is None:
        raise click.UsageError("expected --log run.h5 and --test ids.txt; see --help.")
    target = log.with_name(log.stem + ".influence.h5") if out is None else out
    if options["dry_run"]:
        _estimate(log, test_file, methods or DEFAULT, as_json, options)
        return
    check_free(target, overwrite=overwrite, inputs=(log, test_file))
    _replay(log, test_file, target, methods or DEFAULT, top, as_json, overwrite, options)


def _refuse_options(context: click.Context, command: str) -> None:
    """Raise if options stand before a subcommand, which would not see them."""
    own = {option for one in cli.commands[command].params for option in one.opts}
    for one in cli.params:
        if context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE:
            name = one.opts[0]
            advice = f"write it after {command!r}" if name in own else "leave one of the two out"
            raise click.UsageError(
                f"{name} goes without a subcommand, found it before {command!r}; {advice}."
            )


def _estimate(
    log: Path, test_file: str, methods: tuple[str, ...], as_json: bool, options: dict[str, Any]
) -> None:
    run = opened(log, options)
    cost = run.estimate(
        _test_ids(run, test_file),
        methods=methods,
        checkpoints=options["checkpoints"],
        steps=options["steps"],
        parameters=options["parameters"] or None,
        ideal_tolerance=options["ideal_tolerance"],
        allow_mismatch=options["allow_mismatch"],
    )
    click.echo(json.dumps(asdict(cost)) if as_json else f"about {cost}")


def _replay(
    log: Path,
    test_file: str,
    target: Path,
    methods: tuple[str, ...],
    top: int,
    as_json: bool,
    overwrite: bool,
    options: dict[str, Any],
) -> None:
    began = time.perf_counter()
    run = opened(log, options, target)
    influence = run.influence(
        _test_ids(run, test_file),
        methods=methods,
        checkpoints=options["checkpoints"],
        ideal_tolerance=options["ideal_tolerance"],
        steps=options["steps"],
        parameters=options["parameters"] or None,
        allow_mismatch=options["allow_mismatch"],
    )
    influence.save(target, overwrite=overwrite)
    took = Cost(time.perf_counter() - began, peak_bytes())
    click.echo(f"wrote {target}; took {took}", err=True)
    if as_json:
        click.echo(json.dumps(to_json(influence, k=top), allow_nan=False))
        return
    Terminal().print(
        report(influence, describe_test=run.describe_test, describe_train=run.describe_train, k=top)
    )


def _test_ids(run: Replay, test_file: str) -> list[int | str]:
    try:
        with click.open_file(test_file, encoding="utf-8-sig") as lines:
            return run.parse_test_ids(lines)
    except InputError as error:
        raise InputError(f"{test_file}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of test IDs {test_file} cannot be read: {error}.") from error


cli.add_command(self_influence)
cli.add_command(verify)
cli.add_command(inspect)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Note: {message}", err=True)


def run(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code; raise KeyboardInterrupt at Ctrl-C (130).

    0 done, 1 a check failed, 2 bad input, 3 internal, 141 the reader of its output went away.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LogWarning)
            warnings.showwarning = _show_warning
            return cli(arguments, prog_name="tracin-replay", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return 2
    except (GradientError, MismatchError) as error:
        click.echo(f"Check failed: {error}", err=True)
        return 1
    except TracinError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except click.Abort:
        raise KeyboardInterrupt from None
    except Exception:
        traceback.print_exc()
        click.echo(
            "This is an error in the task's own code or in tracin-replay; the lines above say "
            "where.",
            err=True,
        )
        return 3
