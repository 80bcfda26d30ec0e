"""Scores of a result for other programs: read and written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.results.influence import Influence


def export(*, result: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write the scores."""
    found = Influence.load(result)
    found.export(out, overwrite=overwrite)
    facts = {"out": str(out), "methods": list(found.scores)}
    sizes = {"test": len(found.test_ids), "train": len(found.train_ids)}
    click.echo(json.dumps(facts | sizes) if as_json else f"wrote {out}", err=not as_json)
