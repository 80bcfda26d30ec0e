"""The report page of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.command.importing import job

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
def report(**given: Any) -> None:
    """Show a result as one page: figures, tables, examples.

    The task says what examples look like (Task.show). Where it cannot be loaded, the page has
    their IDs alone, and says so.
    """
    job("report")(**given)
