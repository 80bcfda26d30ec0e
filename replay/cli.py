"""The command line: parses, calls, echoes."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from replay.arguments import DEFAULT, METHODS
from replay.following import follow
from replay.inspection import inspection, inspection_table
from replay.option_types import Checkpoints, Tolerance
from replay.progress import Progress
from replay.report import report, to_json
from replay.run import Replay
from tracer.errors import (
    InputError,
    LogWarning,
    MismatchError,
    OutputExistsError,
    TracinError,
)
from tracer.reader import open_log

_EXAMPLES = """\b
Examples:
  tracin-replay --log run.h5 --test ids.txt
  tracin-replay --log run.h5 --test ids.txt --method tracin --method ideal --top 10
  tracin-replay --log run.h5 --test - --task task.py:task --out study.h5 < ids.txt
  tracin-replay inspect run.h5

ids.txt holds one test ID a line; '#' begins a comment. Scores are positive for
proponents: training examples whose steps lowered the test loss.
"""


@click.group(
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
    type=click.Choice(METHODS),
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
@click.option("--task", help="module:name or file.py:name.  [default: what the log names]")
@click.option("--memory", default="2GiB", show_default=True, help="Budget for gradients.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option(
    "--dtype",
    type=click.Choice(["model", "float64"]),
    default="model",
    show_default=True,
    help="Gradients in the run's own dtype or in float64.",
)
@click.option(
    "--values",
    type=click.Choice(["float64", "model"]),
    default="float64",
    show_default=True,
    help="Test losses in float64 or in the model's dtype.",
)
@click.option(
    "--ideal-tolerance",
    type=Tolerance(),
    default="1e-3",
    show_default=True,
    help="Where the split of ideal stops refining; none never refines.",
)
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Go on where a step does not reproduce; the difference counts as rounding.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone to stdout.")
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
        if log is not None or test_file is not None:
            raise click.UsageError(
                f"--log and --test go without a subcommand, found {context.invoked_subcommand!r}."
            )
        return
    if log is None or test_file is None:
        raise click.UsageError("expected --log run.h5 and --test ids.txt; see --help.")
    target = log.with_name(log.stem + ".influence.h5") if out is None else out
    if target.exists() and not overwrite:
        raise OutputExistsError(f"the result {target} exists; pass --overwrite or another --out.")
    _replay(log, test_file, target, methods or DEFAULT, top, as_json, overwrite, options)


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
    run = Replay(
        log,
        options["task"],
        device=options["device"],
        dtype=torch.float64 if options["dtype"] == "float64" else None,
        values=options["values"],
        memory=options["memory"],
        announce=lambda file: click.echo(f"running the task's code in {file}", err=True),
    )
    influence = run.influence(
        _test_ids(run, test_file),
        methods=methods,
        checkpoints=options["checkpoints"],
        ideal_tolerance=options["ideal_tolerance"],
        allow_mismatch=options["allow_mismatch"],
    )
    influence.save(target, overwrite=overwrite)
    click.echo(f"wrote {target}", err=True)
    if as_json:
        click.echo(json.dumps(to_json(influence, k=top), allow_nan=False))
        return
    Console().print(
        report(influence, describe_test=run.describe_test, describe_train=run.describe_train, k=top)
    )


def _test_ids(run: Replay, test_file: str) -> list[int | str]:
    try:
        with click.open_file(test_file) as lines:
            return run.parse_test_ids(lines)
    except InputError as error:
        raise InputError(f"{test_file}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of test IDs {test_file} cannot be read: {error}.") from error


@cli.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone to stdout.")
@click.option("--follow", "-f", "watch", is_flag=True, help="Watch a log that training writes.")
def inspect(log: Path, as_json: bool, watch: bool) -> None:
    """Say what LOG holds; imports no task and runs no code."""
    if watch and as_json:
        raise click.UsageError("--follow prints lines, --json one object; pass one of them.")
    if watch:
        for line in follow(log):
            click.echo(line)
        return
    with open_log(log) as opened, Progress(enabled=True) as progress:
        facts = inspection(opened, progress.task("reading steps", len(opened)))
    if as_json:
        click.echo(json.dumps(facts))
        return
    Console().print(inspection_table(facts))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Note: {message}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 1 a check failed, 2 bad input, 3 internal, 130 Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LogWarning)
            warnings.showwarning = _show_warning
            cli(arguments, prog_name="tracin-replay", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except MismatchError as error:
        click.echo(f"Check failed: {error}", err=True)
        sys.exit(1)
    except TracinError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; nothing was written.", err=True)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        click.echo(
            "This is an error in the task's own code or in tracin-replay; the lines above say "
            "where.",
            err=True,
        )
        sys.exit(3)
    sys.exit(0)
