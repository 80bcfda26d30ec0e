"""The report page of a result: made of it, and of what is compared with it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from replay.command.jobs.opening import announced
from replay.loading import resolved
from replay.results.checkpoint_sweep import CheckpointSweep
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.output import content
from replay.results.self_influence import SelfInfluence
from replay.results.variables import SELF_INFLUENCE
from replay.task import Task
from tracer.errors import InputError, TaskError

_ENDING = ".html"


def report(
    *,
    result: Path,
    truth: Path | None,
    self_result: Path | None,
    sweep: Path | None,
    task: str | None,
    top: int,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Write the page."""
    made = reports()
    target = page_of(result) if out is None else out
    inputs = [path for path in (result, truth, self_result, sweep) if path is not None]
    made.require_free(target, overwrite=overwrite, inputs=inputs)
    influence = _influence(result)
    shows, why = _task(influence, result, task)
    study = made.Study(
        influence,
        truth=None if truth is None else Counterfactual.load(truth),
        self_influence=None if self_result is None else SelfInfluence.load(self_result),
        sweep=None if sweep is None else CheckpointSweep.load(sweep),
        task=shows,
        why_no_task=why,
        run=made.run_facts(influence, result.absolute().parent),
        k=top,
    )
    made.write(study, target, overwrite=overwrite, inputs=inputs)
    click.echo(f"wrote {target}", err=True)


def _influence(result: Path) -> Influence:
    """Return the result that a page is about."""
    if result.is_file() and content(result) == SELF_INFLUENCE.content:
        raise InputError(
            f"a page is about influence, and {result} holds self-influence.\n"
            f"  1. Let the page show both: tracin-replay report run.influence.h5 --self {result};\n"
            f"  2. or write its scores for other programs: tracin-replay export {result} self.csv."
        )
    return Influence.load(result)


def reports() -> ModuleType:
    """Return what makes pages.

    Raises:
        InputError: What it draws with is not installed.
    """
    try:
        import replay.report
    except ImportError as error:
        raise InputError(str(error)) from error
    return replay.report


def page_of(result: Path) -> Path:
    """Return where the page of a result stands that ``--out`` gives no place: beside it.

    >>> page_of(Path("run.influence.h5")).name
    'run.html'
    """
    return result.with_name(result.stem.removesuffix(".influence") + _ENDING)


def write_page(influence: Influence, task: Task, place: Path, *, k: int, overwrite: bool) -> None:
    """Write the page of a result that was just computed."""
    made = reports()
    study = made.Study(influence, task=task, run=made.run_facts(influence), k=k)
    made.write(study, place, overwrite=overwrite)
    click.echo(f"wrote {place}", err=True)


def _task(influence: Influence, result: Path, task: str | None) -> tuple[Task | None, str]:
    """Return the task, or why there is none; one that was asked for must load."""
    named = {"task": influence.attributes.get("task")}
    log = Path(str(influence.attributes.get("log", "")))
    place = log if log.is_file() else result
    if task is None and not named["task"]:
        return None, "the result names none; --task does"
    try:
        return resolved(task, named, place, announced), ""
    except TaskError as error:
        if task is not None:
            raise
        click.echo(f"Note: examples are shown by their IDs alone. {error}", err=True)
        return None, str(error).splitlines()[0]
