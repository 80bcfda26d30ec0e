"""A sweep over checkpoints: computed, written, shown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.jobs.opening import chosen, opened
from replay.command.jobs.saving import save
from replay.command.options import Settings, Tests
from replay.command.show.checkpoints import sweep_json, sweep_report
from replay.command.terminal import Terminal
from replay.results.output import check_free
from replay.results.reservation import reserved
from replay.results.variables import CHECKPOINT_SWEEP


def checkpoints(
    *,
    log: Path,
    tests: Tests,
    counts: tuple[int, ...],
    placements: tuple[str, ...],
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    target: Path,
    overwrite: bool,
) -> None:
    """Compute the sweep, write it, show it."""
    run = opened(log, settings, target)
    ids = chosen(run, tests)
    check_free(target, CHECKPOINT_SWEEP, overwrite=overwrite, inputs=[log, *tests.inputs])
    with reserved(target):
        found = run.checkpoint_sweep(
            ids,
            counts=counts,
            placements=placements or None,
            allow_mismatch=allow_mismatch,
        )
        save(found, target, overwrite=overwrite)
    click.echo(f"wrote {target}", err=True)
    if as_json:
        click.echo(json.dumps(sweep_json(found), allow_nan=False))
        return
    Terminal().print(sweep_report(found))
