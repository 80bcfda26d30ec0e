"""How the gradients of each parameter are computed, as a table that a terminal shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table

from replay.command.show.cells import explained
from replay.command.terminal import literal
from replay.session.plan import WITHOUT_GRADIENT, ParameterPath

_READ, _COMPLETE, _NONE = "from one backward pass", "one backward per example", "no gradient"


def plan_summary(
    paths: Sequence[ParameterPath], passes: Mapping[str, str] | None = None
) -> RenderableType:
    """Return for each side how many parameters take which way, and why the slow ones do.

    Args:
        paths: Of each parameter.
        passes: How states of the run are taken, as ``Replay.plan`` says it.
    """
    table = Table.grid(padding=(0, 2))
    table.add_row("training side", literal(_counted([path.train for path in paths])))
    table.add_row("test side", literal(_counted([path.test for path in paths])))
    for side, how in (passes or {}).items():
        table.add_row(side, literal(how))
    return table


def _counted(paths: Sequence[str]) -> str:
    """Return "39 from one backward pass, 2 one backward per example: why"."""
    kinds, reasons = Counter(map(_kind, paths)), Counter[str]()
    for path in paths:
        reasons.update({why for way in path.split("; ") if (why := _reason(way))})
    parts = [f"{kinds[kind]} {kind}" for kind in (_READ, _NONE, _COMPLETE) if kinds[kind]]
    slow = [f"{why} ({count})" if len(reasons) > 1 else why for why, count in reasons.most_common()]
    return ", ".join(parts) + (f": {', '.join(slow)}" if slow else "")


def _kind(path: str) -> str:
    if any(map(_reason, path.split("; "))):
        return _COMPLETE
    return _NONE if path in WITHOUT_GRADIENT else _READ


def _reason(way: str) -> str:
    return way.removeprefix("complete: ") if way.startswith("complete: ") else ""


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
