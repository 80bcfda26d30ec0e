"""Counterfactual runs as tables that a terminal shows, and as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.show.cells import Describe, explained, named, plain
from replay.command.terminal import literal
from replay.results.agreement import LABELS, Agreement
from replay.results.counterfactual import Counterfactual
from replay.results.summary import number

_METHODS = 3  # in a table that is 80 columns wide


def counterfactual_report(
    found: Counterfactual,
    agreement: Agreement | None,
    *,
    describe_test: Describe,
    describe_train: Describe,
    examples: int = 10,
) -> RenderableType:
    """Return what the command line prints.

    Args:
        found: The runs.
        agreement: Of methods with them, if there are scores.
        describe_test: Label of a test example, or None.
        describe_train: Label of a training example, or None.
        examples: Test examples that are shown.
    """
    parts = [_changes(found, describe_test, describe_train, examples)]
    more = len(found.test_ids) - examples
    if more > 0:
        parts.append(Text(f"{more} more test examples are in the result file."))
    if agreement is not None:
        parts += [Text(), _against_truth(agreement)]
    return Group(*parts)


def counterfactual_json(found: Counterfactual, agreement: Agreement | None) -> dict[str, Any]:
    """Return the same as plain values; what is not a number is None."""
    return {
        "attributes": dict(found.attributes),
        "protocol": found.protocol,
        "test_ids": found.test_ids,
        "runs": [list(change) for change in found.changes],
        "baseline": [plain(value) for value in found.baseline],
        "change": [[plain(value) for value in row] for row in found.change],
        "agreement": None if agreement is None else _agreement_json(agreement),
    }


def _changes(
    found: Counterfactual, describe_test: Describe, describe_train: Describe, examples: int
) -> RenderableType:
    table = Table()
    table.add_column("test example")
    several = len(found.changes) > 1
    columns = ("the run", "largest rise", "", "largest fall", "") if several else ("the run", "so")
    for name in (*columns, *(() if several else ("change",))):
        table.add_column(name, justify="right" if name != "" else "left")
    for j, identity in enumerate(found.test_ids[:examples]):
        cells = [named(identity, describe_test), number(found.baseline[j])]
        if several:
            cells += _strongest(found, found.change[:, j], describe_train)
        else:
            cells += [number(found.values[0, j]), number(found.change[0, j])]
        table.add_row(*map(literal, cells))
    line = "A rise without an example says that it was a proponent."
    title = literal(f"What would have happened: {found.protocol}")
    line = line if several else "change: positive where they were proponents."
    return Group(title, explained(table, line))


def _strongest(found: Counterfactual, change: Any, describe: Describe) -> list[str]:
    """Return the largest rise and the largest fall, and the runs that they are of."""
    if not np.isfinite(change).any():
        return ["n/a", "", "n/a", ""]
    places = int(np.nanargmax(change)), int(np.nanargmin(change))
    cells = []
    for place, sign in zip(places, (1, -1), strict=True):
        name = f"run {place}"
        if found.is_leave_one_out:
            name = named(next(iter(found.changes[place])), describe)
        cells += [number(change[place]), name] if sign * change[place] > 0 else ["none", ""]
    return cells


def _against_truth(agreement: Agreement) -> RenderableType:
    rows = {(row.pair, row.metric): row for row in agreement.rows}
    metrics = list(dict.fromkeys(row.metric for row in agreement.rows))
    count = len(agreement.rows[0].values)
    title = f"Against {agreement.protocol}: mean over {count} test examples [95 %]"
    tables: list[Table] = []
    for k in range(0, len(agreement.pairs), _METHODS):
        pairs = agreement.pairs[k : k + _METHODS]
        table = Table()
        table.add_column("")
        for _, method in pairs:
            table.add_column(literal(method), justify="right")
        for metric in metrics:
            cells = [_interval(rows[pair, metric]) for pair in pairs]
            table.add_row(LABELS[metric].format(k=agreement.k), *cells)
        tables.append(table)
    line = "Near 1: as measured. scale, ratio of totals: predicted for each unit measured."
    return Group(literal(title), explained(Group(*tables), line))


def _interval(row: Any) -> Text:
    low, high = row.interval()
    sure = "" if np.isnan(low) else f"\n[{number(low, 3)}, {number(high, 3)}]"
    return Text(number(row.mean, 3) + sure)


def _agreement_json(agreement: Agreement) -> list[dict[str, Any]]:
    found = []
    for row in agreement.rows:
        low, high = row.interval()
        values = {"mean": plain(row.mean), "low": plain(low), "high": plain(high)}
        found.append({"method": row.pair[1], "metric": row.metric, **values})
    return found
