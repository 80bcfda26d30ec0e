"""How well methods agree, as tables of three pairs and as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.command.show.cells import explained, plain
from replay.command.terminal import literal
from replay.results.agreement import LABELS, METRICS, Agreement, Comparison, where_totals_hold
from replay.results.influence import Influence
from replay.results.summary import counted, number

_PAIRS = 3  # in a table that is 80 columns wide
_RATIO = "total_ratio"


def agreement_tables(influence: Influence) -> RenderableType:
    """Return each metric's median over the test examples, quartiles in brackets."""
    agreement = influence.agreement()
    rows = {(row.pair, row.metric): row for row in agreement.rows}
    for pair in agreement.pairs:
        rows[pair, _RATIO] = where_totals_hold(rows[pair, _RATIO], influence.scores)
    ratios = any(_defined(rows[pair, _RATIO]) for pair in agreement.pairs)
    overlaps = agreement.k < len(influence.train_ids)  # those of all with all say nothing
    metrics = [
        metric
        for metric in METRICS
        if (ratios or metric != _RATIO) and (overlaps or not metric.startswith("top_"))
    ]
    several = len(influence.test_ids) > 1
    over = counted(influence.test_ids)
    title = f"Agreement: median over {over} [quartiles]" if several else f"Agreement: {over}"
    parts = [agreement.pairs[k : k + _PAIRS] for k in range(0, len(agreement.pairs), _PAIRS)]
    tables = [
        _table(metrics, [[rows[p, m] for m in metrics] for p in pairs], agreement.k)
        for pairs in parts
    ]
    tables[0].title = literal(title)
    line = "Near 1: same ranking. scale: the first's score for each unit of the second's."
    if ratios:
        line = "Near 1: same ranking. scale: of single scores; ratio of totals: of their sums."
    return explained(Group(*tables), line)


def agreement_json(agreement: Agreement) -> list[dict[str, Any]]:
    """Return every metric of every pair as plain values."""
    return [
        {
            "x": row.pair[0],
            "y": row.pair[1],
            "metric": row.metric,
            "median": plain(row.median),
            "q1": plain(row.quantile(0.25)),
            "q3": plain(row.quantile(0.75)),
            "defined": _defined(row),
        }
        for row in agreement.rows
    ]


def _table(metrics: list[str], pairs: list[list[Comparison]], k: int) -> Table:
    table = Table(title_justify="left")
    table.add_column("")
    for first, second in (rows[0].pair for rows in pairs):
        table.add_column(literal(f"{second}\nagainst {first}"), justify="right", no_wrap=True)
    for n, metric in enumerate(metrics):
        table.add_row(LABELS[metric].format(k=k), *(_cell(rows[n]) for rows in pairs))
    return table


def _cell(row: Comparison) -> Text:
    """Return median and quartiles, and of how many test examples if of some only."""
    if row.metric == _RATIO and not _defined(row):
        return Text("totals cancel")
    low, middle, high = (number(row.quantile(q), 3) for q in (0.25, 0.5, 0.75))
    lines = [middle] if len(row.values) == 1 else [middle, f"[{low}, {high}]"]
    if 0 < _defined(row) < len(row.values):
        lines.append(f"for {_defined(row)} of {len(row.values)}")
    return Text("\n".join(lines))


def _defined(row: Comparison) -> int:
    return int((~np.isnan(row.values)).sum())
