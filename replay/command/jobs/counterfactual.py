"""Counterfactual runs: taken, written, compared with scores, shown."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from replay.command.choice import Choice
from replay.command.jobs.dry_run import from_the_start
from replay.command.jobs.opening import chosen, chosen_training, opened
from replay.command.jobs.working import job
from replay.command.options import INFLUENCE_ENDING, Settings, Tests, beside
from replay.command.show.cost import cost_text
from replay.command.show.counterfactual import counterfactual_json, counterfactual_report
from replay.command.terminal import Terminal
from replay.counterfactual.change import drawn
from replay.processes.group import here
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.output import check_free
from replay.results.truth import require_common_tests, require_same_run
from replay.results.variables import COUNTERFACTUAL
from replay.session.replay import Replay
from replay.task import example_ids
from tracer.errors import InputError
from tracer.records import ID


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
    """Take the runs, write their values, show them."""
    if dry_run:
        run = opened(log, settings)
        ids, lists = chosen(run, tests), _lists(choice, run)
        _scores(scores, beside(log, INFLUENCE_ENDING), run, ids)
        estimate = partial(run.estimate_counterfactual, ids, remove=lists, along=along)
        cost = from_the_start(partial(estimate, workers=workers), workers)
        click.echo(cost_text(cost, as_json=as_json))
        return
    inputs: list[str | Path] = [log, *tests.inputs, *choice.inputs]
    group = here()
    how: dict[str, Any] = {
        "renormalise": renormalise,
        "along": along,
        "allow_mismatch": allow_mismatch,
    }
    with group.agreeing():
        run = opened(log, settings, target)
        ids, lists = chosen(run, tests), _lists(choice, run)
        usual = beside(log, INFLUENCE_ENDING)
        known = _scores(scores, usual, run, ids) if group.leads else None
        if group.leads:
            check_free(target, COUNTERFACTUAL, overwrite=overwrite, inputs=inputs)
    with job(group, target):
        how |= {"out": target, "overwrite": overwrite, "progress": group.leads}
        found = _asked(choice, run, ids, lists, **how)
    if not group.leads:
        return
    click.echo(f"wrote {target}", err=True)
    agreement = None if known is None else known.agreement(truth=found)
    if as_json:
        click.echo(json.dumps(counterfactual_json(found, agreement), allow_nan=False))
        return
    Terminal().print(
        counterfactual_report(
            found, agreement, describe_test=run.describe_test, describe_train=run.describe_train
        )
    )


def _scores(named: Path | None, usual: Path, run: Replay, tests: list[ID]) -> Influence | None:
    """Return the scores to compare with: those named, else those beside the log if they fit.

    Raises:
        InputError: What was named is no result, of another run or of other test examples.
    """
    if named is not None:
        return _fitting(named, run, tests)
    try:
        return _fitting(usual, run, tests) if usual.exists() else None
    except InputError as error:
        click.echo(f"Note: the runs are not compared with {usual}. {error}", err=True)
        return None


def _fitting(place: Path, run: Replay, tests: list[ID]) -> Influence:
    """Return scores that runs can be compared with, before they are taken."""
    found = Influence.load(place)
    require_same_run(found.attributes, str(run.log.metadata["run_uuid"]))
    require_common_tests(found.test_ids, tests)
    return found


def _lists(choice: Choice, run: Replay) -> list[list[ID]]:
    """Return the training examples that each run changes."""
    if choice.leave_one_out is not None:
        return [[identity] for identity in chosen_training(run, choice.leave_one_out)]
    if choice.subsets is not None:
        ids = example_ids(run.task.train)
        return drawn(ids, choice.subsets, choice.fraction, choice.seed)
    return [chosen_training(run, str(choice.remove))]


def _asked(
    choice: Choice, run: Replay, tests: list[ID], lists: list[list[ID]], **how: Any
) -> Counterfactual:
    """Take the runs."""
    if choice.leave_one_out is not None:
        return run.leave_one_out(tests, [identity for (identity,) in lists], **how)
    if choice.subsets is not None:
        how |= {"count": choice.subsets, "fraction": choice.fraction, "seed": choice.seed}
        return run.subsets(tests, **how)
    if choice.scale is None:
        return run.counterfactual(tests, remove=lists, **how)
    scale = dict.fromkeys(lists[0], choice.scale)
    return run.counterfactual(tests, scale=scale, **how)
