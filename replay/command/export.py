"""Scores of a result for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.options import JSON
from replay.results.influence import Influence


@click.command(
    epilog="""\b
Examples:
  tracin-replay export run.influence.h5 scores.csv
  tracin-replay export run.influence.h5 scores.parquet --overwrite
"""
)
@click.argument("result", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@JSON
def export(*, result: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write the scores of a result for other programs.

    The ending of OUT says how: .csv and .parquet hold a row for each test example, training example
    and method, .npz an array of each method, .json all by test example.
    """
    found = Influence.load(result)
    found.export(out, overwrite=overwrite)
    facts = {"out": str(out), "methods": list(found.scores)}
    sizes = {"test": len(found.test_ids), "train": len(found.train_ids)}
    click.echo(json.dumps(facts | sizes) if as_json else f"wrote {out}", err=not as_json)
