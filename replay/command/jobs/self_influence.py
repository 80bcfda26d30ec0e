"""Self-influence of a run: computed, written, shown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.jobs.opening import opened
from replay.command.jobs.saving import save
from replay.command.jobs.working import job
from replay.command.options import Settings
from replay.command.show.self_influence import self_report
from replay.command.terminal import Terminal
from replay.processes.group import here
from replay.results.output import check_free
from replay.results.variables import SELF_INFLUENCE
from replay.session.together import self_influence_together


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
    group, asked = here(), {"steps": steps, "checkpoints": checkpoints, "by": by}
    with group.agreeing():
        run = opened(log, settings, target)
        if group.leads:
            check_free(target, SELF_INFLUENCE, overwrite=overwrite, inputs=[log])
    with job(group, target):
        asked["allow_mismatch"] = allow_mismatch
        found = self_influence_together(run, group, target, **asked)
        if found is None:
            return
        save(found, target, overwrite=overwrite)
    click.echo(f"wrote {target}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_plain(), allow_nan=False))
        return
    Terminal().print(self_report(found, describe=run.describe_train, k=top))
