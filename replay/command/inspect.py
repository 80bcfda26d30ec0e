"""What a log holds, without its task."""

from __future__ import annotations

from typing import Any

import click

from replay.command.importing import job
from replay.command.options import JSON, takes_log


@click.command(
    epilog="""\b
Examples:
  tracin-replay inspect run.h5
  tracin-replay inspect run.h5 --follow
  tracin-replay inspect run.h5 --task task.py:task
"""
)
@takes_log
@JSON
@click.option("--follow", "-f", "watch", is_flag=True, help="Watch a log that training writes.")
@click.option("--task", help="Also say how each parameter's gradients are computed; runs its code.")
def inspect(**given: Any) -> None:
    """What does the log hold?

    Imports no task and runs no code unless --task names one.
    """
    job("inspect")(**given)
