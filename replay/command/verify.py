"""Whether a run reproduces."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.opening import opened
from replay.command.options import JSON, STEPS, Settings, takes_log, takes_settings
from replay.command.show.verify import verify_json, verify_line


@click.command(
    epilog="""\b
Examples:
  tracin-replay verify run.h5
  tracin-replay verify run.h5 --steps 0:100 --task task.py:task
"""
)
@takes_log
@STEPS
@takes_settings
@JSON
def verify(*, log: Path, steps: str | None, settings: Settings, as_json: bool) -> None:
    """Does every step reproduce?

    Re-executes each step and compares it with the log; exits with 1 at the first that differs.
    """
    found = opened(log, settings).verify(steps=steps)
    click.echo(json.dumps(verify_json(log, found)) if as_json else verify_line(log, found))
