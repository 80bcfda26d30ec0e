"""The same run in another log, and its parameters as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.opening import opened
from replay.command.options import JSON, Settings, takes_log, takes_settings
from replay.results.state_dict import save_state_dict

_OUT = click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The new file."
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing file.")


@click.command(
    epilog="""\b
Examples:
  tracin-replay convert run.h5 --snapshot-every 100 --out small.h5
  tracin-replay convert small.h5 --snapshot-every 1 --out dense.h5
"""
)
@takes_log
@click.option(
    "--snapshot-every",
    required=True,
    metavar="N|epoch",
    help="1: the parameters of every step; else a full state there, and digests between.",
)
@_OUT
@_OVERWRITE
@takes_settings
@JSON
def convert(
    *,
    log: Path,
    snapshot_every: str,
    out: Path,
    overwrite: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Write the same run with the parameters of other steps.

    The steps are taken again, and each is proved by its digest: what cannot be proved is not
    written. Every other record of the run is copied as it is.
    """
    every = int(snapshot_every) if snapshot_every.isdecimal() else snapshot_every
    opened(log, settings, out).convert(out, snapshot_every=every, overwrite=overwrite)
    _say(out, as_json=as_json, snapshot_every=every)


@click.command(
    "export-checkpoint",
    epilog="""\b
Examples:
  tracin-replay export-checkpoint run.h5 --step 500 --out model.pt
  tracin-replay export-checkpoint run.h5 --step 500 --out model.safetensors
""",
)
@takes_log
@click.option(
    "--step",
    required=True,
    type=click.IntRange(min=0),
    help="Before which step; T is the last.",
)
@_OUT
@_OVERWRITE
@takes_settings
@JSON
def export_checkpoint(
    *, log: Path, step: int, out: Path, overwrite: bool, settings: Settings, as_json: bool
) -> None:
    """Write the model before a step as a checkpoint: .pt or .safetensors.

    It is the state_dict of the task's model: parameters and buffers. A state that the log does not
    have is computed.
    """
    run = opened(log, settings, out)
    save_state_dict(run.state_dict(step), out, overwrite=overwrite, inputs=[log])
    _say(out, as_json=as_json, step=step)


def _say(out: Path, *, as_json: bool, **facts: int | str) -> None:
    size = out.stat().st_size
    click.echo(f"wrote {out}, {size:,} bytes", err=True)
    if as_json:
        click.echo(json.dumps({"out": str(out), "bytes": size, **facts}))
