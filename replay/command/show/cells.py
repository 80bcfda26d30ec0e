"""What the tables share: labels of examples, the line under a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType

from replay.command.terminal import literal
from tracer.records import ID

Describe = Callable[[ID], str | None]
_LABEL = 40  # characters of a label that a row shows


def plain(value: float) -> float | None:
    """Return a number for JSON; None for what JSON has no number for."""
    return float(value) if math.isfinite(value) else None


def named(identity: ID, describe: Describe) -> str:
    """Return an example's ID, with its label if it has one; a long label is cut."""
    label = describe(identity)
    if not label:
        return str(identity)
    label = label.replace("\n", " ")
    return f"{identity} ({label if len(label) <= _LABEL else label[: _LABEL - 3] + '...'})"


def explained(table: RenderableType, line: str) -> RenderableType:
    """Return a table with one line under it: what is learned from it."""
    return Group(table, literal(line))


def listed_steps(steps: Sequence[object]) -> str:
    """Return "steps 0, 100, 200 ... 900"."""
    if not steps:
        return "no step"
    some = [*map(str, steps[:3])] + ([f"... {steps[-1]}"] if len(steps) > 3 else [])
    return "steps " + ", ".join(some).replace(", ...", " ...")
