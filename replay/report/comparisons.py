"""How methods agree with each other, and with counterfactual runs: tables and hover."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from replay.plots.agreement import strongest
from replay.report.tables import Table, counted, numeric, words
from replay.results.agreement import LABELS, Agreement, where_totals_hold
from replay.results.influence import Influence
from replay.results.row import Row as Scores


def agreement_table(found: Agreement, scores: Mapping[str, Scores], name: str) -> Table:
    """Return the mean of each metric and pair over test examples, with its 95 % interval.

    A ratio of totals stands where it says something: not where scores cancel.
    """
    columns = ["x", "y", "metric", "mean", "95 % from", "to", "median", "test examples"]
    rows = []
    for row in found.rows:
        if row.metric == "total_ratio":
            if not set(row.pair) <= set(scores):
                continue
            row = where_totals_hold(row, scores)
            if np.isnan(row.values).all():
                continue
        low, high = row.interval()
        defined = int((~np.isnan(row.values)).sum())
        rows.append(
            [
                words(row.pair[0]),
                words(row.pair[1]),
                words(LABELS[row.metric].format(k=found.k)),
                *(numeric(value, digits=3) for value in (row.mean, low, high, row.median)),
                counted(defined),
            ]
        )
    return Table(columns, rows, name)


def hover(figure: Figure, influence: Influence, pair: tuple[str, str]) -> Markup:
    """Return where the strongest dots of a scatter stand, and what each is, as JSON.

    Places are in the units of the figure's SVG: points, from the top left.
    """
    x, y = (influence.scores[method] for method in pair)
    chosen = strongest(x, y)
    axes, (width, height) = figure.axes[0], figure.get_size_inches() * 72
    tests, trains = np.unravel_index(chosen, x.shape)
    data = np.stack([one.reshape(-1)[chosen] for one in (x, y)], axis=1)
    places = axes.transData.transform(data) * 72 / figure.dpi if len(data) else data
    dots: dict[str, Any] = {
        "size": [round(float(width), 2), round(float(height), 2)],
        "names": list(pair),
        "x": np.round(places[:, 0], 1).tolist(),
        "y": np.round(height - places[:, 1], 1).tolist(),
        "a": data[:, 0].tolist(),
        "b": data[:, 1].tolist(),
        "test": [str(influence.test_ids[j]) for j in tests],
        "train": [str(influence.train_ids[i]) for i in trains],
    }
    return in_script(dots)


def in_script(value: Any) -> Markup:
    """Return JSON that may stand inside a script element, whatever it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
