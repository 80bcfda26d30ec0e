"""What each method accounts for, test example by test example, against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from replay.arguments import one_of
from replay.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    canvas,
    drawn,
    ink,
    label,
    say_missing,
    styled,
    unit_of,
    zero_line,
)
from replay.results.influence import Influence
from tracer.errors import InputError
from tracer.records import ID

_COLOURS = {
    "data": BLUE,
    "regulariser": GREEN,
    "history": ORANGE,
    "elsewhere": PINK,
    "buffers": SKY,
    "rounding": GREY,
    "residual": RED,
}
_MEASURED = "measured"


@styled
def completeness(
    influence: Influence,
    *,
    test_ids: Sequence[ID] | None = None,
    methods: Sequence[str] | None = None,
    most: int = 30,
    width: float = 4.0,
) -> Figure:
    """Draw the terms of the completeness identity: signed bars that add up to the measured drop.

    What is positive is stacked to the right, what is negative to the left. A hatched residual is
    what a method does not explain.

    Args:
        influence: The result.
        test_ids: Which test examples; default: those with the largest residuals, in the order
            of the result.
        methods: Which methods, a panel each; default: all that account for drops.
        most: How many test examples, if ``test_ids`` names none.
        width: Of one panel, in inches.

    Raises:
        InputError: The result has no terms, or not such a test example.
    """
    if not influence.terms:
        raise InputError(
            "the result has no terms of completeness, since none of its methods walks the steps.\n"
            "1. Compute one that does as well: methods=('tracin', 'ideal')."
        )
    rows = largest(influence, most) if test_ids is None else list(map(influence.row, test_ids))
    methods = [one_of("method", name, influence.terms) for name in methods or influence.terms]
    figure, found = canvas(
        *(1, len(methods), width * len(methods), 1.6 + 0.27 * len(rows)), sharex=True, sharey=True
    )
    used = _used(influence)
    found[0].set_xlim(*_span(influence, rows, used))  # the same, whichever methods are drawn
    for axes, method in zip(found, methods, strict=True):
        _bars(axes, influence, method, rows, used)
    found[0].set_yticks(range(len(rows)), [label(influence.test_ids[j], 16) for j in rows])
    found[0].invert_yaxis()
    found[0].set_ylabel("test example")
    shown: list[Patch | Line2D] = [
        Patch(facecolor=_COLOURS[t], hatch=_hatch(t), edgecolor=_edge(t), label=t) for t in used
    ]
    shown.append(Line2D([], [], marker="D", ls="", color=ink(), ms=6, label="measured drop"))
    columns = max(2, min(len(shown), int(width * len(methods) / 1.3)))
    figure.legend(handles=shown, loc="outside lower center", ncols=columns)
    return figure


def largest(influence: Influence, most: int) -> list[int]:
    """Return the rows of the test examples with the largest residuals, in the result's order."""
    left = np.max([np.abs(drawn(t["residual"].sum(0))) for t in influence.terms.values()], axis=0)
    order = np.argsort(-np.nan_to_num(left, nan=np.inf), kind="stable")[:most]
    return sorted(int(j) for j in order)


def _bars(
    axes: Axes, influence: Influence, method: str, rows: list[int], used: Sequence[str]
) -> None:
    totals = influence.completeness[method]
    zero_line(axes, vertical=True)
    right, left, places = np.zeros(len(rows)), np.zeros(len(rows)), np.arange(len(rows))
    for term in used:
        values = np.nan_to_num(drawn(totals[term][rows]))
        start = np.where(values >= 0, right, left)
        axes.barh(
            *(places, values),
            left=start,
            height=0.7,
            color=_COLOURS[term],
            hatch=_hatch(term),
            edgecolor=_edge(term),
            lw=0,
            label=term,
        )
        right, left = right + np.maximum(values, 0), left + np.minimum(values, 0)
    measured = drawn(totals[_MEASURED][rows])
    axes.plot(measured, places, "D", color=ink(), ms=5, label=_MEASURED, zorder=4)
    axes.set_title(method)
    axes.set_xlabel(f"drop of the test value [{unit_of(influence.attributes)}]")
    axes.grid(axis="x")
    say_missing(axes, *(totals[term][rows] for term in (*used, _MEASURED)))


def _span(influence: Influence, rows: list[int], used: Sequence[str]) -> tuple[float, float]:
    """Return how far bars go to the left and to the right, over all methods."""
    right, left = 0.0, 0.0
    for terms in influence.completeness.values():
        values = np.nan_to_num([drawn(terms[term][rows]) for term in used])
        right = max(right, float(np.maximum(values, 0).sum(0).max(initial=0)))
        left = min(left, float(np.minimum(values, 0).sum(0).min(initial=0)))
    room = 0.05 * (right - left) or 1.0
    return left - room, right + room


def _used(influence: Influence) -> list[str]:
    """Return the terms that are not 0 at every step of every method."""
    names = [t for t in next(iter(influence.terms.values())) if t != _MEASURED]
    return [t for t in names if any(terms[t].any() for terms in influence.terms.values())]


def _hatch(term: str) -> str | None:
    return "////" if term == "residual" else None


def _edge(term: str) -> str:
    return "white" if term == "residual" else "none"
