"""Counterfactual runs: what would have happened without some training examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from replay.command.opening import chosen, chosen_training, opened
from replay.command.options import (
    ALLOW_MISMATCH,
    JSON,
    Settings,
    Tests,
    beside,
    takes_log,
    takes_settings,
    takes_tests,
    writes_result,
)
from replay.command.show.counterfactual import counterfactual_json, counterfactual_report
from replay.command.terminal import Terminal
from replay.counterfactual.change import drawn
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.output import check_free
from replay.results.parts import parts_of
from replay.results.reservation import reserved
from replay.results.variables import COUNTERFACTUAL
from replay.session.replay import Replay
from replay.task import example_ids
from tracer.records import ID

_ENDING, _INFLUENCE = ".counterfactual.h5", ".influence.h5"


@dataclass(frozen=True)
class Choice:
    """Which counterfactual runs are asked for; exactly one kind is given.

    Attributes:
        leave_one_out: A list of training IDs, or ``all``: a run without each.
        subsets: How many random subsets: a run without each.
        fraction: The share of the training examples in each subset.
        seed: Of the draw.
        remove: A list of training IDs: one run without all of them.
        scale: What their weights are multiplied by instead of 0.
    """

    leave_one_out: str | None
    subsets: int | None
    fraction: float
    seed: int
    remove: str | None
    scale: float | None

    def check(self) -> None:
        """Raise unless one kind of runs is asked for."""
        given = [v for v in (self.leave_one_out, self.subsets, self.remove) if v is not None]
        if len(given) != 1:
            raise click.UsageError(
                "expected one of --leave-one-out train.txt, --subsets 100 and --remove train.txt; "
                "see --help."
            )
        if self.scale is not None and self.remove is None:
            raise click.UsageError("--scale goes with --remove, whose examples it is for.")

    @property
    def inputs(self) -> list[str]:
        """The files that IDs are read from."""
        return [file for file in (self.leave_one_out, self.remove) if file is not None]

    def lists(self, run: Replay) -> list[list[ID]]:
        """Return the training examples that each run changes."""
        if self.leave_one_out is not None:
            return [[identity] for identity in chosen_training(run, self.leave_one_out)]
        if self.subsets is not None:
            ids = example_ids(run.task.train)
            return drawn(ids, self.subsets, self.fraction, self.seed)
        return [chosen_training(run, str(self.remove))]

    def asked(self, run: Replay, tests: list[ID], **how: Any) -> Counterfactual:
        """Take the runs."""
        if self.leave_one_out is not None:
            ids = chosen_training(run, self.leave_one_out)
            return run.leave_one_out(tests, ids, **how)
        if self.subsets is not None:
            how |= {"count": self.subsets, "fraction": self.fraction, "seed": self.seed}
            return run.subsets(tests, **how)
        if self.scale is None:
            return run.counterfactual(tests, remove=self.lists(run), **how)
        scale = dict.fromkeys(self.lists(run)[0], self.scale)
        return run.counterfactual(tests, scale=scale, **how)


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
@click.option(
    "--leave-one-out", metavar="FILE|all", help="A run without each of these training examples."
)
@click.option("--subsets", type=click.IntRange(min=1), help="So many runs without a random subset.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="The share of the training examples in each subset.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the subsets."
)
@click.option("--remove", metavar="FILE", help="One run without all of these training examples.")
@click.option("--scale", type=float, help="Multiply their weights by this instead of 0.")
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
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say how long it will take and how much memory, from some timed steps; write nothing.",
)
@takes_settings
@JSON
@ALLOW_MISMATCH
@writes_result(_ENDING)
def counterfactual(
    *,
    log: Path,
    tests: Tests,
    renormalise: bool,
    along: int | None,
    workers: int,
    scores: Path | None,
    dry_run: bool,
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    out: Path | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """What would have happened without some training examples?

    Takes the run again, with the weights of some examples 0 and all else as it was: order, random
    states, learning rates, denominators. Finished runs are kept beside the result until it is
    written; the same command goes on from them.
    """
    choice = Choice(**{field.name: given[field.name] for field in fields(Choice)})
    choice.check()
    if dry_run:
        run = opened(log, settings)
        cost = run.estimate_counterfactual(
            chosen(run, tests), remove=choice.lists(run), along=along
        )
        click.echo(json.dumps(asdict(cost)) if as_json else f"about {cost}")
        return
    target = beside(log, _ENDING) if out is None else out
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
