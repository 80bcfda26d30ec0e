"""Scores of a result for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.command.importing import job
from replay.command.options import JSON


@click.command(
    epilog="""\b
Examples:
  tracin-replay export run.influence.h5 scores.csv
  tracin-replay export run.influence.h5 scores.parquet --overwrite
  tracin-replay export run.self.h5 self.csv
"""
)
@click.argument("result", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@JSON
def export(**given: Any) -> None:
    """Write the scores of a result for other programs.

    RESULT is what 'influence' or 'self' wrote; what holds anything else is refused by name.

    The ending of OUT says how: .csv and .parquet hold a row for each test example, training example
    and method, .npz an array of each method, .json all by test example. Of self-influence they hold
    a row for each training example.
    """
    job("export")(**given)
