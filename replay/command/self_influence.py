"""Self-influence: examples that moved themselves most are often mislabelled."""

from __future__ import annotations

import json
from pathlib import Path

import click

from replay.command.kinds import Checkpoints
from replay.command.opening import opened
from replay.command.options import BY, STEPS, Settings, computes, takes_log
from replay.command.saving import save
from replay.command.show.self_influence import self_json, self_report
from replay.command.terminal import Terminal
from replay.results.output import check_free
from replay.results.reservation import reserved
from replay.results.variables import SELF_INFLUENCE

_ENDING = ".self.h5"


@click.command(
    "self",
    epilog="""\b
Examples:
  tracin-replay self run.h5
  tracin-replay self run.h5 --top 20 --steps 0:500 --out early.h5
  tracin-replay self run.h5 --checkpoints 10 --by epoch
""",
)
@takes_log
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Examples shown."
)
@STEPS
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    help="Also the checkpoint heuristic, summed over a number of states, steps, epochs or all.",
)
@BY
@computes(_ENDING)
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
    """How much did each training example move its own loss?

    Self-influence is the immediate effect of an example's own part of the steps that it was in.
    Prints the examples with the largest self-influence, which are often mislabelled, and
    writes all of them to an HDF5 file. The cost is one pass over the run. The mean loss of an
    example stands beside it, as the baseline that is to be beaten.
    """
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
