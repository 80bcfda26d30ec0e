"""Whether a run reproduces: every step taken again, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.jobs.opening import opened
from replay.command.options import Settings
from replay.command.show.verify import verify_json, verify_table
from replay.command.terminal import Terminal
from replay.processes.group import here
from replay.session.together import verified_together
from replay.steps.verify import NotVerified, Verification


def verify(
    *,
    log: Path,
    steps: str | None,
    sample: int | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Take every step again and show what was found."""
    group = here()
    with group.agreeing():
        run = opened(log, settings)
    try:
        found = verified_together(run, group, steps=steps, sample=sample)
        if found is not None:
            _show(log, found, as_json=as_json)
    except NotVerified as error:
        _show(log, error.found, as_json=as_json)
        raise


def _show(log: Path, found: Verification, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(verify_json(log, found)))
    else:
        Terminal().print(verify_table(log, found))
