"""How far sums over checkpoints are from the exact scores, by number and placement."""

from __future__ import annotations

from typing import Any

import click

from replay.command.importing import job
from replay.command.kinds import Counts
from replay.command.options import computes, takes_log, takes_tests
from replay.names import COUNTS, PLACEMENTS

_ENDING = ".checkpoints.h5"


@click.command(
    epilog="""\b
Examples:
  tracin-replay checkpoints run.h5 --test ids.txt
  tracin-replay checkpoints run.h5 --test ids.txt --counts 1,10,100 --placement even
"""
)
@takes_log
@takes_tests
@click.option(
    "--counts",
    type=Counts(),
    default=",".join(map(str, COUNTS)),
    show_default=True,
    help="Numbers of checkpoints.",
)
@click.option(
    "--placement",
    "placements",
    multiple=True,
    type=click.Choice(list(PLACEMENTS)),
    help="Where they stand; repeat for several.  [default: all that the run has]",
)
@computes(_ENDING)
def checkpoints(**given: Any) -> None:
    """How many checkpoints are enough, and where?

    Goes through the run once, computes the exact scores, and holds the heuristic of every number
    and placement of checkpoints against them.
    """
    job("checkpoints")(**given)
