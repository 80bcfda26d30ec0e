"""The main job: every method's scores, their comparison, a result file."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import click

from replay.command.kinds import Checkpoints, MethodName, Tolerance
from replay.command.opening import chosen, opened
from replay.command.options import (
    BY,
    DRY_RUN,
    STEPS,
    Settings,
    Tests,
    beside,
    computes,
    takes_log,
    takes_tests,
)
from replay.command.report import page_of, reports, write_page
from replay.command.saving import save
from replay.command.show.cost import cost_text
from replay.command.show.influence import report, to_json
from replay.command.terminal import Terminal
from replay.methods.table import DEFAULT, METHODS
from replay.results.earlier import warn_of_change
from replay.results.output import check_free
from replay.results.reservation import reserved
from replay.results.variables import INFLUENCE
from replay.session.estimate import Cost, peak_bytes

_ENDING = ".influence.h5"
_WIDTH = max(map(len, METHODS)) + 4
_TOLD = "\n".join(
    textwrap.fill(f"  {name:{_WIDTH - 2}}{method.summary}", 78, subsequent_indent=" " * _WIDTH)
    for name, method in METHODS.items()
)
HELP = f"""\b
Methods:
{_TOLD}

\b
ids.txt holds one test ID a line; '#' begins a comment. Scores are positive for
proponents: training examples whose steps lowered the test loss.
"""


@click.command(
    epilog=f"""\b
Examples:
  tracin-replay influence run.h5 --test ids.txt
  tracin-replay influence run.h5 --test all --top 10
  tracin-replay influence run.h5 --test-id 3 --test-id 14 --out study.h5

{HELP}"""
)
@takes_log
@takes_tests
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=MethodName(list(METHODS)),
    help=f"A method to compute; repeat for several.  [default: {', '.join(DEFAULT)}]",
)
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    default=10,
    show_default=True,
    help="What a checkpoint method sums over: a number, steps, the ends of epochs, or every step.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Proponents and opponents shown for each test example.",
)
@click.option(
    "--ideal-tolerance",
    type=Tolerance(),
    default="1e-3",
    show_default=True,
    help="Where dividing a measured drop stops refining; none never refines.",
)
@BY
@DRY_RUN
@click.option(
    "--report",
    "as_page",
    is_flag=True,
    help="Write a page with figures, tables and examples, too, beside the result.",
)
@STEPS
@click.option(
    "--parameters",
    multiple=True,
    help="Only parameters that match a pattern like 'head.*'; repeat for several.  [default: all]",
)
@computes(_ENDING)
def influence(
    *,
    log: Path,
    tests: Tests,
    methods: tuple[str, ...],
    checkpoints: int | str | list[int],
    top: int,
    ideal_tolerance: float | None,
    by: str | int | None,
    dry_run: bool,
    as_page: bool,
    steps: str | None,
    parameters: tuple[str, ...],
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    target: Path,
    overwrite: bool,
) -> None:
    """How much did each training example move each test loss?

    Computes the scores of every method, compares them with each other and with the measured drops
    of the test loss, and writes all scores to an HDF5 file.
    """
    question: dict[str, Any] = {
        "methods": methods or DEFAULT,
        "checkpoints": checkpoints,
        "steps": steps,
        "parameters": parameters or None,
        "ideal_tolerance": ideal_tolerance,
        "by": by,
        "allow_mismatch": allow_mismatch,
    }
    if dry_run:
        run = opened(log, settings)
        cost = run.estimate(chosen(run, tests), **question)
        click.echo(cost_text(cost, as_json=as_json))
        return
    check_free(target, INFLUENCE, overwrite=overwrite, inputs=(log, *tests.inputs))
    if as_page:
        reports().require_free(page_of(target), overwrite=overwrite, inputs=(log, *tests.inputs))
    began = time.perf_counter()
    with reserved(target):
        run = opened(log, settings, target)
        found = run.influence(chosen(run, tests), **question)
        if target != beside(log, _ENDING):
            warn_of_change(beside(log, _ENDING), found.test_ids, found.values, found.attributes)
        save(found, target, overwrite=overwrite)
    click.echo(f"wrote {target}; took {Cost(time.perf_counter() - began, peak_bytes())}", err=True)
    if as_page:
        write_page(found, run.task, page_of(target), k=top, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(to_json(found, k=top), allow_nan=False))
        return
    Terminal().print(
        report(found, describe_test=run.describe_test, describe_train=run.describe_train, k=top)
    )
