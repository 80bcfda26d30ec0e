"""Counterfactual runs: what would have happened without some training examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from replay.command.choice import Choice, takes_choice
from replay.command.opening import chosen, opened
from replay.command.options import (
    DRY_RUN,
    Settings,
    Tests,
    beside,
    computes,
    takes_log,
    takes_tests,
)
from replay.command.show.cost import cost_text
from replay.command.show.counterfactual import counterfactual_json, counterfactual_report
from replay.command.terminal import Terminal
from replay.results.influence import Influence
from replay.results.output import check_free
from replay.results.parts import parts_of
from replay.results.reservation import reserved
from replay.results.variables import COUNTERFACTUAL

_ENDING, _INFLUENCE = ".counterfactual.h5", ".influence.h5"


@click.command(
    epilog="""\b
Examples:
  tracin-replay counterfactual run.h5 --test ids.txt --leave-one-out train.txt
  tracin-replay counterfactual run.h5 --test all --subsets 100 --fraction 0.5 --seed 0
  tracin-replay counterfactual run.h5 --test-id 3 --remove train.txt --scale 0.5

\b
The files hold one ID a line; '#' begins a comment. Changes are positive where the loss
would have been larger without the examples: where they were proponents.
"""
)
@takes_log
@takes_tests
@takes_choice
@click.option(
    "--renormalise",
    is_flag=True,
    help="Let a mean divide by the examples left, not by those of the run.",
)
@click.option("--along", type=click.IntRange(min=1), help="Take values every so many steps, too.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes; the result is the same, bit for bit.",
)
@click.option(
    "--influence",
    "scores",
    type=click.Path(path_type=Path),
    help=f"Scores to compare with the runs.  [default: LOG with the ending {_INFLUENCE}, if any]",
)
@DRY_RUN
@computes(_ENDING)
def counterfactual(
    *,
    log: Path,
    tests: Tests,
    choice: Choice,
    renormalise: bool,
    along: int | None,
    workers: int,
    scores: Path | None,
    dry_run: bool,
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    target: Path,
    overwrite: bool,
) -> None:
    """What would have happened without some training examples?

    Takes the run again, with the weights of some examples 0 and all else as it was: order, random
    states, learning rates, denominators. Finished runs are kept beside the result until it is
    written; the same command goes on from them.
    """
    if dry_run:
        run = opened(log, settings)
        ids, lists = chosen(run, tests), choice.lists(run)
        cost = run.estimate_counterfactual(ids, remove=lists, along=along, workers=workers)
        click.echo(cost_text(cost, as_json=as_json))
        return
    inputs: list[str | Path] = [log, *tests.inputs, *choice.inputs]
    check_free(target, COUNTERFACTUAL, overwrite=overwrite, inputs=inputs)
    how: dict[str, Any] = {
        "renormalise": renormalise,
        "along": along,
        "allow_mismatch": allow_mismatch,
    }
    with reserved(target), _said_what_is_kept(target):
        run = opened(log, settings, target)
        how |= {"out": target, "overwrite": overwrite, "workers": workers}
        found = choice.asked(run, chosen(run, tests), **how)
    click.echo(f"wrote {target}", err=True)
    known = _scores(scores, beside(log, _INFLUENCE))
    agreement = None if known is None else known.agreement(truth=found)
    if as_json:
        click.echo(json.dumps(counterfactual_json(found, agreement), allow_nan=False))
        return
    Terminal().print(
        counterfactual_report(
            found, agreement, describe_test=run.describe_test, describe_train=run.describe_train
        )
    )


@contextmanager
def _said_what_is_kept(target: Path) -> Iterator[None]:
    """Say at Ctrl-C that finished runs are on file."""
    try:
        yield
    except KeyboardInterrupt:
        if (parts := parts_of(target)).exists():
            click.echo(f"Finished runs are in {parts}; the same command goes on.", err=True)
        raise


def _scores(named: Path | None, usual: Path) -> Influence | None:
    """Return the scores to compare with: those named, else those beside the log."""
    if named is not None:
        return Influence.load(named)
    return Influence.load(usual) if usual.exists() else None
