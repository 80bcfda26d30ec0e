"""How the gradients of each parameter are computed, as a table that a terminal shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import explained
from replay.command.terminal import literal
from replay.session.plan import ParameterPath


def plan_table(paths: Sequence[ParameterPath]) -> RenderableType:
    """Return a table of paths for a terminal."""
    table = Table(title="How gradients are computed", title_justify="left")
    for column in ("parameter", "shape", "of training examples", "of test examples"):
        table.add_column(column, overflow="fold")
    for path in paths:
        shape = " x ".join(map(str, path.shape)) or "()"
        table.add_row(*map(literal, (path.name, shape, path.train, path.test)))
    line = "'complete' takes a backward pass for each example, all others one for the batch."
    return explained(table, line)
