"""How far sums over checkpoints are from the exact scores, by number and placement."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.kinds import Counts
from replay.command.opening import chosen, opened
from replay.command.options import Settings, Tests, computes, takes_log, takes_tests
from replay.command.saving import save
from replay.command.show.checkpoints import sweep_json, sweep_report
from replay.command.terminal import Terminal
from replay.results.output import check_free
from replay.results.reservation import reserved
from replay.results.variables import CHECKPOINT_SWEEP
from replay.session.checkpoint_sweep import COUNTS
from replay.states.placements import PLACEMENTS

_ENDING = ".checkpoints.h5"


@click.command(
    epilog="""\b
Examples:
  tracin-replay checkpoints run.h5 --test ids.txt
  tracin-replay checkpoints run.h5 --test ids.txt --counts 1,10,100 --placement even
"""
)
@takes_log
@takes_tests
@click.option(
    "--counts",
    type=Counts(),
    default=",".join(map(str, COUNTS)),
    show_default=True,
    help="Numbers of checkpoints.",
)
@click.option(
    "--placement",
    "placements",
    multiple=True,
    type=click.Choice(list(PLACEMENTS)),
    help="Where they stand; repeat for several.  [default: all that the run has]",
)
@computes(_ENDING)
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
    """How many checkpoints does the heuristic need, and where?

    Goes through the run once, computes the exact scores, and holds the heuristic of every number
    and placement of checkpoints against them.
    """
    check_free(target, CHECKPOINT_SWEEP, overwrite=overwrite, inputs=[log, *tests.inputs])
    with reserved(target):
        run = opened(log, settings, target)
        found = run.checkpoint_sweep(
            chosen(run, tests),
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
