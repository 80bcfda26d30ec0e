"""Whether a run reproduces."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.opening import opened
from replay.command.options import JSON, STEPS, Settings, takes_log, takes_settings
from replay.command.show.verify import verify_json, verify_table
from replay.command.terminal import Terminal
from replay.steps.verify import NotVerified, Verification


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
def verify(
    *, log: Path, steps: str | None, sample: int | None, settings: Settings, as_json: bool
) -> None:
    """Does every step reproduce?

    Takes each step again, compares it with the log, and says how many lead to the run's parameters
    bit for bit. Exits with 1 at the first that is further off than rounding.
    """
    run = opened(log, settings)
    try:
        _show(log, run.verify(steps=steps, sample=sample), as_json=as_json)
    except NotVerified as error:
        _show(log, error.found, as_json=as_json)
        raise


def _show(log: Path, found: Verification, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(verify_json(log, found)))
    else:
        Terminal().print(verify_table(log, found))
