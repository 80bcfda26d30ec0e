"""Self-influence of a run: computed, written, shown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.jobs.opening import opened
from replay.command.jobs.saving import save
from replay.command.options import Settings
from replay.command.show.self_influence import self_json, self_report
from replay.command.terminal import Terminal
from replay.results.output import check_free
from replay.results.reservation import reserved
from replay.results.variables import SELF_INFLUENCE


def self_influence(
    *,
    log: Path,
    top: int,
    steps: str | None,
    checkpoints: int | str | list[int] | None,
    by: str | int | None,
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    target: Path,
    overwrite: bool,
) -> None:
    """Compute self-influence, write it, show it."""
    check_free(target, SELF_INFLUENCE, overwrite=overwrite, inputs=[log])
    with reserved(target):
        run = opened(log, settings, target)
        found = run.self_influence(
            steps=steps, checkpoints=checkpoints, by=by, allow_mismatch=allow_mismatch
        )
        save(found, target, overwrite=overwrite)
    click.echo(f"wrote {target}", err=True)
    if as_json:
        click.echo(json.dumps(self_json(found), allow_nan=False))
        return
    Terminal().print(self_report(found, describe=run.describe_train, k=top))
