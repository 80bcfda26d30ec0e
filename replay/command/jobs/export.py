"""Scores of a result for other programs: read and written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.results.influence import Influence
from replay.results.output import content
from replay.results.self_influence import SelfInfluence
from replay.results.variables import SELF_INFLUENCE


def export(*, result: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write the scores."""
    own = result.is_file() and content(result) == SELF_INFLUENCE.content
    found = SelfInfluence.load(result) if own else Influence.load(result)
    found.export(out, overwrite=overwrite)
    sizes = {"test": len(found.test_ids)} if isinstance(found, Influence) else {}
    facts = {"out": str(out), "methods": list(found.scores), **sizes, "train": len(found.train_ids)}
    click.echo(json.dumps(facts) if as_json else f"wrote {out}", err=not as_json)
