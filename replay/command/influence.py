"""The main job: every method's scores, their comparison, a result file."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from replay.command.importing import job
from replay.command.kinds import Checkpoints, MethodName, Tolerance
from replay.command.options import (
    BY,
    DRY_RUN,
    INFLUENCE_ENDING,
    STEPS,
    computes,
    takes_log,
    takes_tests,
)
from replay.command.several import takes_workers
from replay.methods.names import DEFAULT, NAMES

_WIDTH = max(map(len, NAMES)) + 4
_TOLD = "\n".join(
    textwrap.fill(f"  {name:{_WIDTH - 2}}{method.summary}", 78, subsequent_indent=" " * _WIDTH)
    for name, method in NAMES.items()
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
    type=MethodName(list(NAMES)),
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
    help="How far a split of a measured drop may be off, of itself; none: not looked at.",
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
@computes(INFLUENCE_ENDING)
@takes_workers
def influence(**given: Any) -> None:
    """How much did each training example move each test loss?

    Computes the scores of every method, compares them with each other and with the measured drops
    of the test loss, and writes all scores to an HDF5 file.
    """
    job("influence")(**given)
