"""A sweep over checkpoints as tables that a terminal shows and as plain values."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.show.cells import explained
from replay.command.terminal import literal
from replay.results.checkpoint_sweep import ERRORS, CheckpointSweep
from replay.results.exporting import plain_table
from replay.results.summary import counted, number

_HEADS = ("Pearson", "Spearman", "error", "scaled error", "ratio of totals")


def sweep_report(found: CheckpointSweep) -> RenderableType:
    """Return a table for each exact method: medians over the test examples."""
    tables = [part for method in found.errors for part in (_table(found, method), Text())]
    line = (
        "error: the difference's length by that of the exact scores; scaled: after the best common "
        "factor, so that proportions alone count."
    )
    return explained(Group(*tables), line)


def _table(found: CheckpointSweep, method: str) -> Table:
    over = counted(found.test_ids)
    many = "median over " if len(found.test_ids) > 1 else ""
    title = f"Sums over checkpoints against {method}: {many}{over}"
    table = Table(title=literal(title), title_justify="left")
    for name in ("checkpoints", "used", *_HEADS):
        table.add_column(name, justify="left" if name == "checkpoints" else "right")
    columns = [found.median(measure, against=method) for measure in ERRORS]
    for row, choice in enumerate(found.choices):
        last = row + 1 == len(found.choices)
        ends = not last and found.choices[row + 1].placement != choice.placement
        cells = (number(column[row], 3) for column in columns)
        table.add_row(str(choice), str(len(choice.steps)), *cells, end_section=ends)
    return table


def sweep_json(found: CheckpointSweep) -> dict[str, Any]:
    """Return a sweep as plain values; what is not a number is None."""
    return {
        "attributes": dict(found.attributes),
        "test_ids": found.test_ids,
        "choices": [
            {"placement": one.placement, "count": one.count, "steps": list(one.steps)}
            for one in found.choices
        ],
        "errors": {
            method: {measure: plain_table(values) for measure, values in tables.items()}
            for method, tables in found.errors.items()
        },
    }
