"""Self-influence: examples that moved themselves most are often mislabelled."""

from __future__ import annotations

from typing import Any

import click

from replay.command.importing import job
from replay.command.kinds import Checkpoints
from replay.command.options import BY, STEPS, computes, takes_log
from replay.command.several import takes_workers

_ENDING = ".self.h5"


@click.command(
    "self",
    epilog="""\b
Examples:
  tracin-replay self run.h5
  tracin-replay self run.h5 --top 20 --steps 0:500 --out early.h5
  tracin-replay self run.h5 --checkpoints 10 --by epoch
""",
)
@takes_log
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Examples shown."
)
@STEPS
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    help="Also the checkpoint heuristic, summed over a number of states, steps, epochs or all.",
)
@BY
@computes(_ENDING)
@takes_workers
def self_influence(**given: Any) -> None:
    """How much did each training example move its own loss?

    Self-influence is the immediate effect of an example's own part of the steps that it was in.
    Prints the examples with the largest self-influence, which are often mislabelled, and
    writes all of them to an HDF5 file. The cost is one pass over the run. The mean loss of an
    example stands beside it, as the baseline that is to be beaten.
    """
    job("self_influence")(**given)
