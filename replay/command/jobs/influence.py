"""The main job: scores computed, compared, written, shown."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from replay.command.jobs.dry_run import from_the_start
from replay.command.jobs.opening import chosen, opened
from replay.command.jobs.report import page_of, reports, write_page
from replay.command.jobs.saving import save
from replay.command.jobs.working import job
from replay.command.options import INFLUENCE_ENDING, Settings, Tests, beside
from replay.command.show.cost import cost_text
from replay.command.show.influence import report, to_json
from replay.command.terminal import Terminal
from replay.methods.names import DEFAULT
from replay.processes.group import here
from replay.results.earlier import warn_of_change
from replay.results.output import check_free
from replay.results.variables import INFLUENCE
from replay.session.estimate import Cost, peak_bytes
from replay.session.together import estimated_together, influence_together


def influence(
    *,
    log: Path,
    tests: Tests,
    methods: tuple[str, ...],
    checkpoints: int | str | list[int],
    top: int,
    ideal_tolerance: float | None,
    by: str | int | None,
    dry_run: bool,
    as_page: bool,
    steps: str | None,
    parameters: tuple[str, ...],
    settings: Settings,
    as_json: bool,
    allow_mismatch: bool,
    target: Path,
    overwrite: bool,
    workers: int,
) -> None:
    """Compute the scores, write them, show them."""
    question: dict[str, Any] = {
        "methods": methods or DEFAULT,
        "checkpoints": checkpoints,
        "steps": steps,
        "parameters": parameters or None,
        "ideal_tolerance": ideal_tolerance,
        "by": by,
        "allow_mismatch": allow_mismatch,
    }
    if dry_run:
        run = opened(log, settings)
        estimate = partial(estimated_together, run, chosen(run, tests), workers, **question)
        click.echo(cost_text(from_the_start(estimate, workers), as_json=as_json))
        return
    began, group = time.perf_counter(), here()
    inputs: list[str | Path] = [log, *tests.inputs]
    with group.agreeing():
        run = opened(log, settings, target)
        ids = chosen(run, tests)
        if group.leads:
            check_free(target, INFLUENCE, overwrite=overwrite, inputs=inputs)
        if group.leads and as_page:
            reports().require_free(page_of(target), overwrite=overwrite, inputs=inputs)
    with job(group, target):
        found = influence_together(run, ids, group, target, **question)
        if found is None:
            return
        if target != beside(log, INFLUENCE_ENDING):
            warn_of_change(
                beside(log, INFLUENCE_ENDING), found.test_ids, found.values, found.attributes
            )
        save(found, target, overwrite=overwrite)
    click.echo(f"wrote {target}; took {Cost(time.perf_counter() - began, peak_bytes())}", err=True)
    if as_page:
        write_page(found, run.task, page_of(target), k=top, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(to_json(found, k=top), allow_nan=False))
        return
    Terminal().print(
        report(found, describe_test=run.describe_test, describe_train=run.describe_train, k=top)
    )
