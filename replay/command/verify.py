"""Whether a run reproduces."""

from __future__ import annotations

from typing import Any

import click

from replay.command.importing import job
from replay.command.options import JSON, STEPS, takes_log, takes_settings
from replay.command.several import takes_workers


@click.command(
    epilog="""\b
Examples:
  tracin-replay verify run.h5
  tracin-replay verify run.h5 --steps 0:100 --task task.py:task
  tracin-replay verify run.h5 --sample 20
"""
)
@takes_log
@STEPS
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    help="Only so many of the steps, drawn at random.  [default: all]",
)
@takes_settings
@JSON
@takes_workers
def verify(**given: Any) -> None:
    """Does every step reproduce?

    Takes each step again, compares it with the log, and says how many lead to the run's parameters
    bit for bit. Exits with 1 at the first that is further off than rounding.
    """
    job("verify")(**given)
