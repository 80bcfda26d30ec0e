"""The same run in another log, and its parameters as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.command.importing import job
from replay.command.options import JSON, takes_log, takes_settings

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
def convert(**given: Any) -> None:
    """Write the same run with the parameters of other steps.

    The steps are taken again, and each is proved by its digest: what cannot be proved is not
    written. Every other record of the run is copied as it is.
    """
    job("convert")(**given)


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
def export_checkpoint(**given: Any) -> None:
    """Write the model before a step as .pt or .safetensors.

    It is the state_dict of the task's model: parameters and buffers. A state that the log does not
    have is computed.
    """
    job("export_checkpoint")(**given)
