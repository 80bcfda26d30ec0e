"""The same run in another log: taken again, proved, written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.jobs.opening import opened
from replay.command.options import Settings


def convert(
    *,
    log: Path,
    snapshot_every: str,
    out: Path,
    overwrite: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Write the other log."""
    every = int(snapshot_every) if snapshot_every.isdecimal() else snapshot_every
    opened(log, settings, out).convert(out, snapshot_every=every, overwrite=overwrite)
    say(out, as_json=as_json, snapshot_every=every)


def say(out: Path, *, as_json: bool, **facts: int | str) -> None:
    """Say what was written."""
    size = out.stat().st_size
    click.echo(f"wrote {out}, {size:,} bytes", err=True)
    if as_json:
        click.echo(json.dumps({"out": str(out), "bytes": size, **facts}))
