"""Counterfactual runs: what would have happened without some training examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.command.choice import takes_choice
from replay.command.importing import job
from replay.command.options import DRY_RUN, INFLUENCE_ENDING, computes, takes_log, takes_tests
from replay.command.several import takes_workers

_ENDING = ".counterfactual.h5"


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
    "--influence",
    "scores",
    type=click.Path(path_type=Path),
    help="Scores to compare with the runs.  "
    f"[default: LOG with the ending {INFLUENCE_ENDING}, if any]",
)
@DRY_RUN
@computes(_ENDING)
@takes_workers
def counterfactual(**given: Any) -> None:
    """What would have happened without some examples?

    Takes the run again, with the weights of some training examples 0 and all else as it was: order,
    random states, learning rates, denominators. Finished runs are kept beside the result until it
    is written; the same command goes on from them.
    """
    job("counterfactual")(**given)
