"""The report page of a result."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from replay.command.opening import announced
from replay.loading import resolved
from replay.results.checkpoint_sweep import CheckpointSweep
from replay.results.counterfactual import Counterfactual
from replay.results.influence import Influence
from replay.results.self_influence import SelfInfluence
from replay.task import Task
from tracer.errors import InputError, TaskError

_ENDING = ".html"


@click.command(
    epilog="""\b
Examples:
  tracin-replay report run.influence.h5
  tracin-replay report run.influence.h5 --truth run.counterfactual.h5 --self run.self.h5
  tracin-replay report run.influence.h5 --task task.py:task --out study.html
"""
)
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Counterfactual runs to compare with."
)
@click.option(
    "--self",
    "self_result",
    type=click.Path(path_type=Path),
    help="A result of 'self': what may be mislabelled.",
)
@click.option(
    "--checkpoints",
    "sweep",
    type=click.Path(path_type=Path),
    help="A result of 'checkpoints': how many they need to be, and where.",
)
@click.option("--task", help="module:name or file.py:name.  [default: what the result names]")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Proponents and opponents shown for each test example.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page.  [default: RESULT with the ending .html]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
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
    """Show a result as one page that needs nothing else: figures, tables, examples.

    The task says what examples look like (Task.show). Where it cannot be loaded, the page has
    their IDs alone, and says so.
    """
    made = reports()
    target = page_of(result) if out is None else out
    inputs = [path for path in (result, truth, self_result, sweep) if path is not None]
    made.require_free(target, overwrite=overwrite, inputs=inputs)
    influence = Influence.load(result)
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
