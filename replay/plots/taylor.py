"""What first order predicts step by step, beside what was measured."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from replay.methods.names import NAMES
from replay.plots.canvas import (
    canvas,
    colour,
    drawn,
    ink,
    label,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.results.influence import Influence
from replay.results.influence_data import Table
from tracer.errors import InputError
from tracer.records import ID


@styled
def taylor_gap(influence: Influence, *, test_id: ID | None = None, width: float = 6.4) -> Figure:
    """Draw the test value over steps, and how far predictions of its drop are from it.

    The gap of ``tracin`` is the Taylor residual: what the curvature of the test value along each
    step adds to the first order.

    Args:
        influence: The result.
        test_id: One test example; default: the mean over all.
        width: In inches.

    Raises:
        InputError: Nothing was measured, or there is no such test example.
    """
    measured = measured_drops(influence)
    rows = list(range(len(influence.test_ids))) if test_id is None else [influence.row(test_id)]
    steps = influence.steps or list(range(len(measured)))
    ends = np.array([steps[0], *(step + 1 for step in steps)])
    over = f"mean over {len(rows)} test examples" if test_id is None else f"test example {test_id}"
    figure, (top, middle, low) = canvas(
        *(3, 1, width, 6.4), sharex=True, gridspec_kw={"height_ratios": [2, 3, 2]}
    )
    dropped = _accumulated(measured[:, rows])
    start = float(influence.values["before"][rows].mean()) if influence.values else 0.0
    top.plot(ends, drawn(start - dropped), color=ink(), label="measured")
    unit = unit_of(influence.attributes)
    top.set_ylabel(f"{'test value' if influence.values else 'from 0 on'}\n[{unit}]")
    middle.plot(ends, drawn(dropped), color=ink(), lw=2.4, label="measured")
    for method, drops in predicted_drops(influence).items():
        total, gap = _accumulated(drops[:, rows]), (drops - measured)[:, rows].mean(1)
        shade = colour(method)
        middle.plot(ends, drawn(total), color=shade, ls="--", label=f"{method} predicts")
        middle.fill_between(ends, drawn(dropped), drawn(total), color=shade, alpha=0.18, lw=0)
        low.plot(steps, drawn(gap), color=shade, lw=1, label=f"{method} − measured")
    zero_line(middle)
    zero_line(low)
    middle.set_ylabel("drop so far (fall: +)")
    low.set_ylabel("gap of a step")
    low.set_xlabel("step")
    for axes in (top, middle, low):
        axes.grid(axis="y")
        axes.legend(loc="best")
    top.set_title(label(over, 40))
    say_missing(middle, measured[:, rows])
    return figure


def measured_drops(influence: Influence) -> Table:
    """Return the measured drop of every step and test example, ``(T, m)``.

    Raises:
        InputError: Nothing was measured.
    """
    for terms in influence.terms.values():
        return terms["measured"]
    raise InputError(
        "the result has no measured drops, since none of its methods walks the steps.\n"
        "1. Compute one that does as well: methods=('tracin', 'ideal')."
    )


def predicted_drops(influence: Influence) -> dict[str, Table]:
    """Return what each method predicts of the drops, ``(T, m)``, if it predicts and not measures.

    It is the measured drop less the residual.
    """
    return {
        method: terms["measured"] - terms["residual"]
        for method, terms in influence.terms.items()
        if not (method in NAMES and NAMES[method].measured)
    }


def _accumulated(drops: Table) -> Table:
    """Return the mean drop up to each step, beginning with 0, ``(T + 1,)``."""
    found: Table = np.concatenate([[0.0], drops.mean(1).cumsum()])
    return found
